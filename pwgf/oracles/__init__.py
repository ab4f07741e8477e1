"""Oracles: what flows are compared with where no formula is known. They know nothing of maps and schemes.

`finite_volume` solves a flow on a line, `langevin` moves particles; `kalman`, `grid_filter` and `bootstrap` filter.
"""

from . import bootstrap, finite_volume, grid_filter, kalman, langevin

__all__ = ["bootstrap", "finite_volume", "grid_filter", "kalman", "langevin"]
