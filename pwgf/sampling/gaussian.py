"""The coordinates in which a density is closest to a standard Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import private
from ..errors import PWGFError
from ..maps import Affine
from ..measures import Gaussian
from .chains import USER_ERRORS, LogDensity
from .laplace import laplace
from .natural import Descended, NaturalDescent

_TOLERANCE = 1e-4  # nats, of KL(N(m, LLᵀ)|π) where π is Gaussian
_NUM_STARTS, _START_SCALE = 50, 3.0  # of the search for modes: N(0, 9I) in x, and as many in y
_ASCENT_STEPS = 50
_FAR = 2.0  # beyond √d standard deviations: a mode that N(m, LLᵀ) does not know
_SAME = 1.0  # distance of two ends of the search, in standard deviations of the peak, below which they are one mode
_MOST_MODES = 20
_LEAST_WEIGHT = 1e-3  # of a mode that counts
_UPHILL = 0.01  # gᵀH⁻¹g, twice the height of a peak above a point on its slope: beyond it that is no mode
_SMALL = 1e-4  # distance of slopes whose difference is the curvature of log p


class Centred(NamedTuple):
    """m (d,) and L (d,d) of coordinates x = m + Ly; modes (k,d), heaviest first, where no Gaussian holds them all."""

    m: Tensor
    scale: Tensor
    modes: Tensor


def closest_gaussian(log_density: LogDensity, dim: int, device: str, seed: int) -> Centred | None:
    """The Gaussian N(m, LLᵀ) that natural-gradient steps reach, from N(0, I) or, where π lies far from it, from a mode.

    Where a search from wide starts finds modes that it does not reach, m and LLᵀ are the moments of all of them
    instead: of a mixture of Gaussians, by Laplace's approximation at each.

    None where it would not serve: d > 31, where the steps are expensive; log p is not finite on the way; p has no
    finite integral; or the modes are fewer than two or more than twenty.
    """
    descent = NaturalDescent(Affine(dim), Gaussian(dim), log_density, device, seed + 5)
    if not descent.has_enough:
        return None
    found = descent.run(descent.map.initial(), _TOLERANCE)
    if not found.arrived:
        found = _from_mode(descent, found, log_density, dim)
    if not found.kl or found.runs_away:
        return None
    w = found.theta.view(dim, dim + 1)
    m, scale = w[:, -1], w[:, :-1]

    def inside(y: Tensor) -> Tensor:
        return log_density(private(m + y @ scale.T))

    wide = _START_SCALE * Gaussian(dim).sample(2 * _NUM_STARTS, seed + 6).to(m)
    starts = torch.cat([torch.linalg.solve(scale, (wide[:_NUM_STARTS] - m).T).T, wide[_NUM_STARTS:]])
    ends = _ascended(inside, starts)
    radius = math.sqrt(dim) + _FAR
    if bool((ends.square().sum(1) < radius**2).all()):
        return Centred(m, scale, m.new_zeros(0, dim))
    several = _of_modes(inside, ends)
    if several is None:
        return None
    return Centred(m + scale @ several.m, scale @ several.scale, m + several.modes @ scale.T)


def _from_mode(descent: NaturalDescent, found: Descended, log_density: LogDensity, dim: int) -> Descended:
    """The steps from the Gaussian at the mode that is found from 0, where they lead lower than those so far."""
    try:
        m, scale = laplace(log_density, dim, torch.zeros(dim, dtype=torch.float64, device=descent.device))
    except (*USER_ERRORS, PWGFError):
        return found
    other = descent.run(torch.cat([scale, m[:, None]], 1).reshape(-1), _TOLERANCE)
    return other if min(other.energies, default=math.inf) < min(found.energies, default=math.inf) else found


def _ascended(log_density: LogDensity, starts: Tensor) -> Tensor:
    """Where L-BFGS ascends to, (n,d); NaN where log p fails."""
    y = starts.contiguous().requires_grad_(True)
    search = torch.optim.LBFGS([y], max_iter=_ASCENT_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = -log_density(y).sum()
        loss.backward()
        return loss

    try:
        search.step(closure)
    except (*USER_ERRORS, PWGFError):
        return torch.full_like(y, math.nan)
    return y.detach()


def _of_modes(log_density: LogDensity, ends: Tensor) -> Centred | None:
    """The coordinates in which a mixture of Gaussians at the modes has mean 0 and covariance I; None if that fails.

    Args:
        ends: (n,d) of the search, several at a mode.
    """
    if not bool(torch.isfinite(ends).all()):
        return None
    with torch.no_grad():
        heights = log_density(ends).double()
    at: list[Tensor] = []
    factors: list[Tensor] = []
    log_weights: list[Tensor] = []
    rest = torch.ones_like(heights, dtype=torch.bool)
    while bool(rest.any()):
        if len(at) == _MOST_MODES:
            return None
        best = int(heights.masked_fill(~rest, -math.inf).argmax())
        rest[best] = False
        slope, curvature = _expanded(log_density, ends[best])
        factor, failed = torch.linalg.cholesky_ex(curvature)
        if int(failed) > 0 or float(slope @ torch.cholesky_solve(slope[:, None], factor)) > _UPHILL:
            continue  # no peak: the search stopped on its way
        at.append(ends[best])
        factors.append(factor)
        log_weights.append(heights[best] - factor.diagonal().log().sum())
        rest = rest & (((ends - ends[best]) @ factor).square().sum(1) > _SAME**2)
    if len(at) < 2:
        return None
    weights = torch.softmax(torch.stack(log_weights), 0)
    kept = weights > _LEAST_WEIGHT
    modes, weights = torch.stack(at)[kept], weights[kept] / weights[kept].sum()
    m = weights @ modes
    within = torch.tensordot(weights, torch.cholesky_inverse(torch.stack(factors)[kept]), 1)
    between = (modes - m).T @ (weights[:, None] * (modes - m))
    return Centred(m, torch.linalg.cholesky(within + between), modes[weights.argsort(descending=True)])


def _expanded(log_density: LogDensity, y: Tensor) -> tuple[Tensor, Tensor]:
    """∇ log p and −∇² log p at y (d,), by differences of slopes: log p may be differentiable once only."""
    steps = _SMALL * torch.eye(len(y)).to(y)
    around = torch.cat([y + steps, y - steps]).requires_grad_(True)
    (slopes,) = torch.autograd.grad(log_density(around).sum(), around)
    before, after = slopes.split(len(y))
    curvature = (after - before) / (2 * _SMALL)
    return slopes.mean(0), 0.5 * (curvature + curvature.T)
