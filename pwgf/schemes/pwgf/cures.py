"""What would bring the law nearer to the exact one, tried at a state where it seems to be too far off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import NonFiniteError, SolverError
from ...maps import Composed, ResidualMLP, Standardised
from .estimate import error_estimate
from .right_side import RightSide
from .setup import Setup

CURES = {
    "error_more_samples": "4 times the samples (num_samples)",
    "error_second_map": (
        "a second map: maps.Layers(maps.ResidualMLP(dim)) in d = 2 and 3, "
        "else maps.Composed([map, maps.ResidualMLP(dim)])"
    ),
}
"""Columns with the error estimate that each cure gives, and what it is."""

MORE_SAMPLES = 4
NOT_TRIED = dict.fromkeys(CURES, math.nan)


def errors_with_cures(
    setup: Setup, theta: Tensor, t: float, num_samples: int, draw: Callable[[int], tuple[Tensor, Tensor | None]],
    fresh: Tensor, elapsed: float, damping: float,
) -> dict[str, float]:  # fmt: skip
    """The error estimate with each of `CURES`, in units of x, by one solve each; NaN where that fails.

    The second map starts as the identity, so that ρ is the same and only the velocities that can be followed differ. It
    would carry mass out of a box or a torus, and is not tried there; nor are more samples where pairs of them count.

    Args:
        setup: of a single process.
        theta, t: θ (p,) and the time.
        num_samples: of the solves of the run.
        draw: n → z (n,d) and its weights (n,) or None, of a right side.
        fresh: (n,d) further samples, for the estimate.
        elapsed: T since the start of the flow.
        damping: of the solves.
    """

    def error(setup: Setup, theta: Tensor, z: Tensor, weights: Tensor | None) -> float:
        side = RightSide(setup, z, torch.zeros_like(theta), t, momentum=0.0, damping=damping, weights=weights)
        try:
            return error_estimate(setup, theta, side(theta), fresh, elapsed, t).error
        except (SolverError, NonFiniteError):
            return math.nan

    found = dict(NOT_TRIED)
    map = setup.map
    box = setup.reference.box
    if box is None or not map.closes(*box):
        z, weights = draw(num_samples)
        second = Standardised.about(ResidualMLP(map.dim), map(theta, z).detach().cpu())
        both = dataclasses.replace(setup, map=Composed([map, second]))
        found["error_second_map"] = error(both, torch.cat([theta, second.initial().to(theta)]), z, weights)
    if not setup.energy.pairwise:
        found["error_more_samples"] = error(setup, theta, *draw(MORE_SAMPLES * num_samples))
    return found
