"""Adam on a sampled objective, stopped where it no longer falls: the inner optimisation of minimising movements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SolverError

WINDOW = 10
"""Iterations whose mean value is compared with that of the ones before, and whose iterates are averaged."""

_CUTS, _CUT = 3, 0.25  # learning rates tried, each a quarter of the one before, until the value stalls at the last
_STALL = 1e-5  # of the fall since the start: a window that brings less is a plateau
_MEAN, _SQUARE, _TINY = 0.9, 0.99, 1e-12  # Adam's memory; short, since a step takes some hundred iterations


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
    quartered; after the third such plateau the optimisation ends.

    Args:
        objective: (p,) → scalar, differentiable.
        theta: start, (p,).
        learning_rate: first length of Adam's steps, in units of θ.
        max_iterations: most gradients.

    Raises:
        SolverError: the value or its gradient is NaN or infinite; tells the iteration and the learning rate.

    References:
        D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, arXiv 1412.6980.
    """
    rate, plateaus, before, start = learning_rate, 0, math.inf, math.nan
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    values, total = 0.0, torch.zeros_like(theta)
    for k in range(1, max_iterations + 1):
        value, gradient = _checked(objective, theta, k, rate)
        start = value if k == 1 else start
        first = _MEAN * first + (1 - _MEAN) * gradient
        second = _SQUARE * second + (1 - _SQUARE) * gradient.square()
        size = (second / (1 - _SQUARE**k)).sqrt() + _TINY
        theta = theta - rate / (1 - _MEAN**k) * first / size
        values, total = values + value, total + theta
        if k % WINDOW:
            continue
        mean, average = values / WINDOW, total / WINDOW
        values, total = 0.0, torch.zeros_like(theta)
        if before - mean > _STALL * (start - mean):
            before = mean
            continue
        theta, plateaus, rate, before = average, plateaus + 1, _CUT * rate, math.inf
        if plateaus == _CUTS:
            return Descent(theta, k, mean, True)
    return Descent(theta, max_iterations, before, False)


def _checked(objective: Callable[[Tensor], Tensor], theta: Tensor, k: int, rate: float) -> tuple[float, Tensor]:
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_(True)
        value = objective(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    number = float(value.detach())
    if not math.isfinite(number) or not bool(torch.isfinite(gradient).all()):
        what = f"the objective is {number}" if not math.isfinite(number) else "its gradient is NaN or infinite"
        raise SolverError(f"{what} at inner iteration {k}, learning rate {rate:.3g}")
    return number, gradient
