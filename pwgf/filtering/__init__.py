"""Filtering of noisy dynamics: the law of a diffusion given observations of it at times.

`run` filters by flows; `particles`, `finite_volumes` and `kalman` serve for comparison.
"""

from ..measures import PushedLaw as Law
from ..oracles.bootstrap import Particles, particles
from ..oracles.grid_filter import finite_volumes
from ..oracles.kalman import kalman
from .by_flow import Filtered, Updated, predict, run, update
from .model import StateSpace

__all__ = [
    "Filtered",
    "Law",
    "Particles",
    "StateSpace",
    "Updated",
    "finite_volumes",
    "kalman",
    "particles",
    "predict",
    "run",
    "update",
]
