"""When a map that can grow does: where the law begins to lag behind, and further parameters would follow it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import NonFiniteError, SolverError
from ...linalg.choice import MAX_IMPLICIT_PRIMAL
from ...state import State
from ..base import fork
from .draws import Draws
from .estimate import Estimate, error_estimate, samples_for
from .right_side import RightSide
from .setup import Setup

EVERY = 3
"""Steps between looks."""

SHARE = 0.1
"""Share of the accuracy from which on the error estimate is worth another layer: what is missed adds up."""

GAIN = 0.7
"""Share of the estimate that may be left with it."""


def grown(setup: Setup, draws: Draws, state: State, accuracy: float, damping: float) -> Tensor | None:
    """θ (p,) of the same law by a map that has grown; None where it need not, cannot, or would not help.

    Nor where more parameters would move than a direct solver takes: with 8000 of them in d = 10, steps took ten times
    as long.

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
    if theta is None or setup.moving(theta)[0].map.num_params > MAX_IMPLICIT_PRIMAL:
        return None
    fresh = draws.samples(samples_for(setup.map.dim, setup.energy.pairwise), generator, even=True)
    elapsed = state.t - float(state.extra["began"])

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
