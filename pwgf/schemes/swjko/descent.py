"""Adam on a sampled objective, stopped where it no longer falls: the inner optimisation of minimising movements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import SolverError
from .._adam import Adam
from ..base import read

WINDOW = 10
"""Iterations whose mean value is compared with that of the ones before, and whose iterates are averaged."""

_CUTS, _CUT = 3, 0.25  # learning rates tried, each a quarter of the one before, until the value stalls at the last
_RETREATS = 6  # steps taken back before the optimisation counts as diverged
_STALL = 1e-5  # of the fall since the start: a window that brings less is a plateau


class Descent(NamedTuple):
    """Where an inner optimisation ended.

    Args:
        theta: mean of the last iterates, (p,).
        num_iterations: gradients taken.
        value: mean of the objective over the last window.
        settled: False where the maximum of iterations came before the plateau.
    """

    theta: Tensor
    num_iterations: int
    value: float
    settled: bool


def descend(
    objective: Callable[[Tensor], Tensor], theta: Tensor, *, learning_rate: float, max_iterations: int
) -> Descent:
    """Minimises an objective that is sampled anew at every call.

    Adam runs in windows. Where the mean value over a window is hardly lower than over the one before, the iterate is
    set to the mean over the window, which takes most of the sampling noise out of it, and the learning rate is
    quartered; after the third such plateau the optimisation ends. An iterate where the value or its gradient is not
    finite is taken back, and Adam begins anew from the one before at a quarter of the learning rate.

    Args:
        objective: (p,) → scalar, differentiable.
        theta: start, (p,).
        learning_rate: first length of Adam's steps, in units of θ.
        max_iterations: most gradients.

    Raises:
        SolverError: the value or its gradient is NaN or infinite at the start, or still after steps were taken back
            six times; tells the iteration and the learning rate.

    References:
        D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, arXiv 1412.6980.
    """
    rate, plateaus, retreats, before, start = learning_rate, 0, 0, math.inf, math.nan
    good, adam, window = theta, Adam(theta), _Window(theta)
    for k in range(1, max_iterations + 1):
        value, gradient, finite = _evaluated(objective, theta)
        if not (math.isfinite(value) and finite):
            if k == 1 or retreats == _RETREATS:
                what = "its gradient is NaN or infinite" if math.isfinite(value) else f"the objective is {value}"
                raise SolverError(f"{what} at inner iteration {k}, learning rate {rate:.3g}")
            theta, rate, retreats, before = good, _CUT * rate, retreats + 1, math.inf
            adam, window = Adam(theta), _Window(theta)
            continue
        start = value if k == 1 else start
        good, theta = theta, theta - rate * adam.direction(gradient)
        if not window.filled_by(value, theta):
            continue
        mean, average, window = window.value, window.theta, _Window(theta)
        if before - mean > _STALL * (start - mean):
            before = mean
            continue
        theta, plateaus, rate, before = average, plateaus + 1, _CUT * rate, math.inf
        if plateaus == _CUTS:
            return Descent(theta, k, mean, True)
    return Descent(good if retreats else theta, max_iterations, before, False)


class _Window:
    """Means of values and iterates over `WINDOW` iterations."""

    def __init__(self, theta: Tensor) -> None:
        self.value, self.theta, self._count = 0.0, torch.zeros_like(theta), 0

    def filled_by(self, value: float, theta: Tensor) -> bool:
        """Takes one in; True when that was the last."""
        self.value, self.theta = self.value + value / WINDOW, self.theta + theta / WINDOW
        self._count += 1
        return self._count == WINDOW


def _evaluated(objective: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[float, Tensor, bool]:
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_(True)
        value = objective(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return read(value, gradient)
