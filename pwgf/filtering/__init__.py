"""Filtering of noisy dynamics: the law of a diffusion given observations of it at times.

`run` filters by flows; `particles`, `finite_volumes` and `kalman` serve for comparison.
"""

from ..measures import PushedLaw as Law
from ..oracles.bootstrap import Particles, particles
from ..oracles.grid_filter import finite_volumes
from ..oracles.kalman import kalman
from .by_flow import predict, run, update
from .found import Filtered, Updated
from .model import StateSpace
from .stored import load

__all__ = [
    "Filtered",
    "Law",
    "Particles",
    "StateSpace",
    "Updated",
    "finite_volumes",
    "kalman",
    "load",
    "particles",
    "predict",
    "run",
    "update",
]
