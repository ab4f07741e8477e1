"""Coordinates in which the posterior of logistic regression is nearly standard normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, check_integer, plain_numbers
from ..errors import ShapeError
from ._expectation_propagation import Approximation, expectation_propagation

_STEP = 1.5  # in u between two approximations, in standard deviations of u given w; at most ½
_SWEEPS = 50  # of each approximation at most
_FAR = 16.0  # nats below the maximum at which log p(u) is cut off
_MOST = 150  # approximations at most
_FINE = 4000  # points of the distribution function of u
_REACH = 4.75  # the table u(z) covers z from −_REACH to _REACH
_NORMAL_STEP = 0.25  # in z, of this table


class WeightsGivenPrecision:
    r"""(y, z) → (w, u): w = m(u) + L(u) y, u = Q(Φ(z)), with log|det ∂(w,u)/∂(y,z)|.

    m(u) and L(u)L(u)ᵀ are mean and covariance of the weights given log precision u, and Q the quantile function of u,
    all by expectation propagation. They are tabulated on a grid of u and interpolated by cubics; since the volume
    factor is exact for the tables, an error in them only leaves the posterior farther from N(0, I).

    Where the classes can be separated, w given u grows as e^{−u/2} for u → −∞: w has no variance, but (y, z) is nearly
    normal.

    Args:
        rows: y_i x_i, (N,k); N may be 0.
        log_prior: log p(u) up to a constant, (G,) → (G,).
        highest: u above which p(u) is negligible.
        slope, curvature: (k,) and (k,k): a factor exp(slope·w − w·curvature·w/2) beside prior and rows.
    """

    def __init__(
        self, rows: Tensor, log_prior: Callable[[Tensor], Tensor], highest: float, *, slope: Tensor, curvature: Tensor
    ) -> None:
        rows = rows[rows.norm(dim=1) > 0]  # the others say nothing
        k, sites = rows.shape[1], None
        self._step = min(0.5, _STEP / math.sqrt(0.5 * k + 1))
        logs: list[float] = []
        evidence: list[float] = []
        found: list[Approximation] = []
        tables: list[Tensor] = []  # e^{u/2} (m(u), L(u)): what tends to a constant for large and for small u
        while len(logs) < 4 or (logs[-1] > max(logs) - _FAR and len(logs) < _MOST):
            u = highest - self._step * len(logs)
            precision = math.exp(u) * torch.eye(k, dtype=torch.float64) + curvature
            found.append(expectation_propagation(rows, precision, slope, start=sites, max_sweeps=_SWEEPS))
            sites = found[-1].sites
            evidence.append(found[-1].log_z + 0.5 * k * u)
            logs.append(evidence[-1] + float(log_prior(torch.tensor(u, dtype=torch.float64))))
            factor = torch.linalg.cholesky(found[-1].cov)
            tables.append(math.exp(u / 2) * torch.cat([found[-1].mean[:, None], factor], 1))
        self._lowest = u
        self._tables = torch.stack(tables[::-1])  # (G, k, 1+k)
        self._quantiles = _quantiles(torch.tensor(evidence[::-1], dtype=torch.float64), log_prior, u, self._step)
        self._constants = Constants(self._tables, self._quantiles)
        self._directions = _directions(rows, found[logs.index(max(logs))])

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(n,k+1) → (n,k+1) and (n,).

        Raises:
            ShapeError: y of another shape.
        """
        if y.ndim != 2 or y.shape[1] != self._tables.shape[2]:
            raise ShapeError(
                f"LogisticRegression.coordinates()(y) needs shape (n, {self._tables.shape[2]}), weights and log α in "
                f"standard units; got {tuple(y.shape)}."
            )
        u, slope = self._log_precision(y[:, -1])
        w, log_scale = self._standardised((u - self._lowest) / self._step, y[:, :-1])
        x = torch.cat([w * torch.exp(-u / 2)[:, None], u[:, None]], 1)
        return x, log_scale - 0.5 * w.shape[1] * u + slope.log()

    @plain_numbers
    def directions(self, count: int) -> Tensor:
        """Where in y the posterior is least normal: unit rows (count, k+1), for `maps.ConvexRidge.initial`.

        They are those of the `count` rows of data (all, if there are fewer) that contribute most to the precision of
        their own margin, at the most probable u.

        Raises:
            ConfigError: a count below 1.
        """
        check_integer(count, "count", "LogisticRegression.coordinates().directions")
        rows = self._directions[:count]
        return torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)

    def _log_precision(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u and du/dz, (n,) each; linear beyond the table."""
        place = (z + _REACH) / _NORMAL_STEP
        quantiles = self._constants.like(z)[1]
        inside, node = _between(place, len(quantiles))
        four = _neighbours(quantiles, node)
        slope = (_cubic_slopes(inside - node) * four).sum(1)
        return (_cubic(inside - node) * four).sum(1) + slope * (place - inside), slope / _NORMAL_STEP

    def _standardised(self, place: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """e^{u/2} w and log|det e^{u/2} L|, (n,k) and (n,), for u at `place` of the grid; constant beyond it.

        Samples are grouped by the four nodes around them, so that each uses 4 tables and not all.
        """
        tables = self._constants.like(y)[0]
        padded = torch.cat([torch.ones_like(y[:, :1]), y], 1)
        place, node = _between(place, len(tables))
        order, sizes = node.argsort(), torch.bincount(node, minlength=len(tables)).tolist()
        found = []
        for k, (at, rows) in enumerate(zip(place[order].split(sizes), padded[order].split(sizes), strict=True)):
            if len(at):
                four, shares = tables[k - 1 : k + 3], _cubic(at - k)
                by_node = (rows @ four.flatten(0, 1).T).view(len(at), 4, -1)
                diagonal = shares @ four[:, :, 1:].diagonal(dim1=1, dim2=2)
                found.append(torch.cat([(by_node * shares[..., None]).sum(1), diagonal.log().sum(1, keepdim=True)], 1))
        both = torch.cat(found)[order.argsort()]
        return both[:, :-1], both[:, -1]


def _quantiles(evidence: Tensor, log_prior: Callable[[Tensor], Tensor], lowest: float, step: float) -> Tensor:
    """u at which the distribution function is Φ(z), z from −_REACH to _REACH; log p(data|u) is given on the grid."""
    place = torch.linspace(1, len(evidence) - 2, _FINE, dtype=torch.float64)
    u = lowest + step * place
    inside, node = _between(place, len(evidence))
    logs = (_cubic(inside - node) * _neighbours(evidence, node)).sum(1) + log_prior(u)
    below = torch.cumulative_trapezoid(torch.exp(logs - logs.max()))
    below = torch.cat([below.new_zeros(1), below]) / below[-1]
    z = np.arange(-_REACH, _REACH + _NORMAL_STEP / 2, _NORMAL_STEP)
    return torch.from_numpy(np.interp([NormalDist().cdf(v) for v in z], below.numpy(), u.numpy()))


def _directions(rows: Tensor, found: Approximation) -> Tensor:
    """Unit rows L⊤a_i, those first whose site is the largest share of its margin's precision."""
    spread = ((rows @ found.cov) * rows).sum(1)
    order = (found.sites[0] * spread).argsort(descending=True)
    along = rows[order] @ torch.linalg.cholesky(found.cov)
    return along / along.norm(dim=1, keepdim=True)


def _between(place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`place` within [1, count − 2], and the node below it that has two more above; NaN goes to some node."""
    place = place.clamp(1, count - 2)
    return place, place.detach().nan_to_num(1.0).long().clamp(max=count - 3)


def _neighbours(table: Tensor, node: Tensor) -> Tensor:
    """Values (n,4) of the table (G,) about each node (n,)."""
    return table[node[:, None] + torch.arange(-1, 3, device=node.device)]


def _cubic(t: Tensor) -> Tensor:
    """Shares (n,4) of the values at −1, 0, 1, 2 in their cubic interpolant at t in [0, 1], (n,) (Keys, 1981)."""
    rows = [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
    return torch.stack(rows, 1) / 2


def _cubic_slopes(t: Tensor) -> Tensor:
    """Their derivatives by t."""
    rows = [(4 - 3 * t) * t - 1, (9 * t - 10) * t, (8 - 9 * t) * t + 1, (3 * t - 2) * t]
    return torch.stack(rows, 1) / 2
