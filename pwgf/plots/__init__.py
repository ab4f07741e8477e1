"""Figures: of a run, its energy, its law and that in motion; `compare` for a comparison (needs the extra `plot`).

The methods `plot`, `plot_energy`, `plot_marginals`, `plot_density` and `animate` of a `Trajectory` call these.
"""

from . import compare
from ._over_time import energy
from ._style import style
from .laws import density, marginals
from .movie import animate
from .run import draw, save, title, write

__all__ = ["animate", "compare", "density", "draw", "energy", "marginals", "save", "style", "title", "write"]
