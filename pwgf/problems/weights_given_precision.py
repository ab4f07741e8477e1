"""Coordinates in which the posterior of logistic regression is nearly standard normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from .base import check_count
from .expectation_propagation import Approximation, expectation_propagation

_STEP = 1.5  # in u between two approximations, in standard deviations of u given w; at most ½
_SWEEPS = 50  # of each approximation at most
_FAR = 16.0  # nats below the maximum at which log p(u) is cut off
_MOST = 150  # approximations at most
_FINE = 4000  # points of the distribution function of u
_REACH, _NORMAL_STEP = 4.75, 0.25  # of the table u(z)


class WeightsGivenPrecision:
    r"""(y, z) → (w, u): w = m(u) + L(u) y, u = Q(Φ(z)), with log|det ∂(w,u)/∂(y,z)|.

    m(u) and L(u)L(u)ᵀ are mean and covariance of the weights given log precision u, and Q the quantile function of u,
    all by expectation propagation. They are tabulated on a grid of u and joined by cubics; as the volume is exact for
    the tables, an error in them costs nothing but distance of the posterior from N(0, I).

    Where the classes can be separated, w given u grows as e^{−u/2} for u → −∞: w has no variance, but (y, z) is nearly
    normal.

    Args:
        rows: y_i x_i, (N,k); N may be 0.
        log_prior: log p(u) up to a constant.
        highest: u above which p(u) is nothing.
        slope, curvature: (k,) and (k,k): a factor exp(slope·w − w·curvature·w/2) beside prior and rows.
    """

    def __init__(
        self, rows: Tensor, log_prior: Callable[[float], float], highest: float, *, slope: Tensor, curvature: Tensor
    ) -> None:
        k, sites = rows.shape[1], None
        self._step = min(0.5, _STEP / math.sqrt(0.5 * k + 1))
        logs: list[float] = []
        found: list[Approximation] = []
        tables: list[Tensor] = []  # e^{u/2} (m(u), L(u)): what tends to a constant for large and for small u
        while len(logs) < 4 or (logs[-1] > max(logs) - _FAR and len(logs) < _MOST):
            u = highest - self._step * len(logs)
            precision = math.exp(u) * torch.eye(k, dtype=torch.float64) + curvature
            found.append(expectation_propagation(rows, precision, slope, start=sites, max_sweeps=_SWEEPS))
            sites = found[-1].sites
            logs.append(found[-1].log_z + 0.5 * k * u + log_prior(u))
            factor = torch.linalg.cholesky(found[-1].cov)
            tables.append(math.exp(u / 2) * torch.cat([found[-1].mean[:, None], factor], 1))
        self._lowest, self._tables = u, torch.stack(tables[::-1])  # (G, k, 1+k)
        self._quantiles = _quantiles(torch.tensor(logs[::-1], dtype=torch.float64), u, self._step)
        self._directions = _directions(rows, found[logs.index(max(logs))])

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(n,k+1) → (n,k+1) and (n,)."""
        u, slope = self._log_precision(y[:, -1])
        w, log_scale = self._standardised((u - self._lowest) / self._step, y[:, :-1])
        x = torch.cat([w * torch.exp(-u / 2)[:, None], u[:, None]], 1)
        return x, log_scale - 0.5 * w.shape[1] * u + slope.log()

    def directions(self, count: int) -> Tensor:
        """Where in y the posterior is least normal: unit rows (count, k+1), for `maps.ConvexRidge.initial`.

        They are those of the `count` rows of data (all, if there are fewer) that tell most about their own margin, at
        the most probable u.

        Raises:
            ConfigError: a count below 1.
        """
        check_count("LogisticRegression.coordinates().directions", "count", count)
        rows = self._directions[:count]
        return torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)

    def _log_precision(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u and du/dz, (n,) each; linear beyond the table."""
        table, place = self._quantiles.to(z), (z + _REACH) / _NORMAL_STEP
        inside = place.clamp(1, len(table) - 2)
        slope = _cubic_slopes(inside, len(table)) @ table / _NORMAL_STEP
        return _cubic(inside, len(table)) @ table + slope * (place - inside) * _NORMAL_STEP, slope

    def _standardised(self, place: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """e^{u/2} w and log|det e^{u/2} L|, (n,k) and (n,), for u at `place` of the grid; constant beyond it.

        Samples go by the four nodes that they lie between, so that each meets 4 and not all tables.
        """
        tables, place = self._tables.to(y), place.clamp(1, len(self._tables) - 2)
        padded = torch.cat([torch.ones_like(y[:, :1]), y], 1)
        node = place.detach().nan_to_num(1.0).long().clamp(max=len(tables) - 3)
        order, sizes = node.argsort(), torch.bincount(node, minlength=len(tables)).tolist()
        found = []
        for k, (at, rows) in enumerate(zip(place[order].split(sizes), padded[order].split(sizes), strict=True)):
            if len(at):
                four, shares = tables[k - 1 : k + 3], _cubic(at - (k - 1), 4)
                by_node = (rows @ four.flatten(0, 1).T).view(len(at), 4, -1)
                diagonal = shares @ four[:, :, 1:].diagonal(dim1=1, dim2=2)
                found.append(torch.cat([(by_node * shares[..., None]).sum(1), diagonal.log().sum(1, keepdim=True)], 1))
        both = torch.cat(found)[order.argsort()]
        return both[:, :-1], both[:, -1]


def _quantiles(logs: Tensor, lowest: float, step: float) -> Tensor:
    """u at which the distribution function is Φ(z), z from −_REACH to _REACH, from log densities on the grid of u."""
    place = torch.linspace(0, len(logs) - 1, _FINE, dtype=torch.float64)
    density = torch.exp(_cubic(place.clamp(1, len(logs) - 2), len(logs)) @ logs - logs.max())
    below = torch.cumulative_trapezoid(density)
    below = torch.cat([below.new_zeros(1), below]) / below[-1]
    z = np.arange(-_REACH, _REACH + _NORMAL_STEP / 2, _NORMAL_STEP)
    u = np.interp([NormalDist().cdf(v) for v in z], below.numpy(), (lowest + step * place).numpy())
    return torch.from_numpy(u)


def _directions(rows: Tensor, found: Approximation) -> Tensor:
    """Unit rows L⊤a_i, those first whose site is the largest share of its margin's precision."""
    spread = ((rows @ found.cov) * rows).sum(1)
    order = (found.sites[0] * spread).argsort(descending=True)
    along = rows[order] @ torch.linalg.cholesky(found.cov)
    return along / along.norm(dim=1, keepdim=True)


def _cubic(place: Tensor, count: int) -> Tensor:
    """Shares (n,count) of the values at 0, …, count − 1 in their cubic interpolant at `place` (n,) (Keys, 1981)."""
    s = (place[:, None] - torch.arange(count, dtype=place.dtype, device=place.device)).abs()
    near, far = (1.5 * s - 2.5) * s * s + 1, ((-0.5 * s + 2.5) * s - 4) * s + 2
    return torch.where(s < 1, near, torch.where(s < 2, far, torch.zeros_like(s)))


def _cubic_slopes(place: Tensor, count: int) -> Tensor:
    """Their derivatives by `place`."""
    difference = place[:, None] - torch.arange(count, dtype=place.dtype, device=place.device)
    s = difference.abs()
    near, far = (4.5 * s - 5) * s, (-1.5 * s + 5) * s - 4
    return difference.sign() * torch.where(s < 1, near, torch.where(s < 2, far, torch.zeros_like(s)))
