"""The tangent of a push-forward map in its parameters, of its slopes, and both stacked for an implicit step."""

from .base import OutputBlocks, SlopeTangent, Tangent
from .implicit import Curvature, ImplicitTangent
from .rescaled import Rescaled

__all__ = [
    "Curvature",
    "ImplicitTangent",
    "OutputBlocks",
    "Rescaled",
    "SlopeTangent",
    "Tangent",
]
