"""JKO steps by input-convex networks."""

from .quadratic_icnn import QuadraticICNN
from .replay import JKOReplay
from .scheme import JKOICNN

__all__ = ["JKOICNN", "JKOReplay", "QuadraticICNN"]
