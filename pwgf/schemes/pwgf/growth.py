"""When a map that can grow does: where the law begins to lag behind, and further parameters would follow it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError, NonFiniteError, SolverError
from ...linalg.choice import MAX_IMPLICIT_PRIMAL
from ...maps.base import PushForward
from ...state import State
from ..base import fork
from .draws import Draws
from .estimate import Estimate, error_estimate, samples_for
from .guards import memory_of
from .right_side import RightSide
from .setup import Setup

EVERY = 3
"""Steps between looks."""

SHARE = 0.1
"""Share of the accuracy from which on the error estimate is worth another layer: what is missed adds up."""

GAIN = 0.7
"""Share of the estimate that may be left with it."""


def check_growth(map: PushForward) -> None:
    """ConfigError for a map that could grow, but to more parameters at a time than it may here."""
    z = torch.randn(8, map.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = map.grown(map.initial(), z)
    if theta is None:
        return
    moving = map.moving_at(theta)[0].num_params
    if moving > MAX_IMPLICIT_PRIMAL:
        raise ConfigError(
            f"PWGF(map={type(map).__name__}): with a second layer {moving} parameters would move, more than the "
            f"{MAX_IMPLICIT_PRIMAL} up to which maps grow here, since steps take too long beyond. Give a smaller map, "
            "as by maps.ResidualMLP(dim, width=…, axis_units=…), or in high dimension the map without layers."
        )


def grown(setup: Setup, draws: Draws, state: State, accuracy: float, damping: float) -> Tensor | None:
    """θ (p,) of the same law by a map that has grown; None where it need not, cannot, or would not help.

    Args:
        setup: of a single process.
        draws: of the run; what is drawn here is none of its samples.
        state: after a step.
        accuracy: of the run, in spreads.
        damping: of the solves.
    """
    if state.counters["num_steps"] % EVERY:
        return None
    generator = fork(state.rng, "growth")
    z, weights = draws.of_side(generator)
    theta = setup.map.grown(state.theta, z)
    if theta is None:
        return None
    fresh = draws.samples(samples_for(setup.map.dim, setup.energy.pairwise), generator, even=True)
    elapsed = state.t - memory_of(state).began

    def estimate(theta: Tensor) -> Estimate:
        inner, where = setup.moving(theta)
        own = theta[where]
        side = RightSide(inner, z, torch.zeros_like(own), state.t, momentum=0.0, damping=damping, weights=weights)
        return error_estimate(inner, own, side(own), fresh, elapsed, state.t, side.frame)

    try:
        now = estimate(state.theta)
        if not now.error > SHARE * accuracy * now.spread:
            return None
        return theta if estimate(theta).error < GAIN * now.error else None
    except (SolverError, NonFiniteError):
        return None
