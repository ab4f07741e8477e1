"""The coordinates in which a density is closest to a standard Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import private
from ..errors import PWGFError
from ..maps import Affine
from ..measures import Gaussian
from .chains import USER_ERRORS, LogDensity
from .natural import NaturalDescent

_TOLERANCE = 1e-4  # nats, of KL(N(m, LLᵀ)|π) where π is Gaussian
_NUM_STARTS, _START_SCALE = 100, 3.0  # of the search for modes: N(0, 9I)
_ASCENT_STEPS = 50
_FAR = 2.0  # beyond √d standard deviations: a mode that N(m, LLᵀ) does not know


def closest_gaussian(log_density: LogDensity, dim: int, device: str, seed: int) -> tuple[Tensor, Tensor] | None:
    """m (d,) and L (d,d) of the Gaussian N(m, LLᵀ) that natural-gradient steps from N(0, I) reach.

    None where it would not serve: d > 31, where the steps are expensive; log p is not finite on the way; p has no
    finite integral; or a search from a hundred wide starts finds a mode that N(m, LLᵀ) does not reach.
    """
    descent = NaturalDescent(Affine(dim), Gaussian(dim), log_density, device, seed + 5)
    if not descent.has_enough:
        return None
    found = descent.run(descent.map.initial(), _TOLERANCE)
    if not found.kl or found.runs_away:
        return None
    w = found.theta.view(dim, dim + 1)
    m, scale = w[:, -1], w[:, :-1]
    modes = _modes(log_density, m, scale, seed)
    radius = math.sqrt(dim) + _FAR
    return (m, scale) if bool((modes.square().sum(1) < radius**2).all()) else None


def _modes(log_density: LogDensity, m: Tensor, scale: Tensor, seed: int) -> Tensor:
    """Where L-BFGS ascends to, from wide starts, in the coordinates y of x = m + Ly, (100,d); NaN where log p fails."""
    x = _START_SCALE * Gaussian(len(m)).sample(_NUM_STARTS, seed + 6).to(m)
    y = torch.linalg.solve(scale, (x - m).T).T.contiguous().requires_grad_(True)
    search = torch.optim.LBFGS([y], max_iter=_ASCENT_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = -log_density(private(m + y @ scale.T)).sum()
        loss.backward()
        return loss

    try:
        search.step(closure)
    except (*USER_ERRORS, PWGFError):
        return torch.full_like(y, math.nan)
    return y.detach()
