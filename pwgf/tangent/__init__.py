"""The tangent of a push-forward map in its parameters, of its slopes, and both stacked for an implicit step."""

from .base import OutputBlocks, SlopeTangent, Tangent
from .implicit import Curvature, ImplicitTangent

__all__ = ["Curvature", "ImplicitTangent", "OutputBlocks", "SlopeTangent", "Tangent"]
