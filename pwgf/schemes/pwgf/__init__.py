"""The parameterised Wasserstein gradient flow: where energy, tangent and linear solve meet."""

from .scheme import PWGF

__all__ = ["PWGF"]
