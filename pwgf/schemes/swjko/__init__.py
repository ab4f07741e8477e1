"""JKO steps in the sliced Wasserstein distance."""

from .scheme import SWJKO

__all__ = ["SWJKO"]
