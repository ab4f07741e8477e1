"""Gaussian mixtures on the line, one a coordinate: their fit to samples, and the functions that make them normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_BINS = 512  # a coordinate's samples enter the fit by counts and means of as many cells
_ITERATIONS = 300
_CHECK_EVERY, _SETTLED = 20, 3e-6  # iterations, and a rise of the mean log likelihood in nats, that end the fit
_TINY = 1e-290  # Φ below which its logarithm is taken
_NEWTON = 100  # iterations at most
_EXACT = 1e-12
_NODES = 41  # of the table, for each component
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Mixtures(NamedTuple):
    """Σ_m a_m N(μ_m, σ_m²) in each of k coordinates.

    Args:
        log_weight, mean, deviation: log a, μ and σ, (M, k) each.
    """

    log_weight: Tensor
    mean: Tensor
    deviation: Tensor

    def terms(self, u: Tensor) -> Tensor:
        """log a_m N(u; μ_m, σ_m²), (n,k) → (M,n,k)."""
        t = (u - self.mean[:, None]) / self.deviation[:, None]
        return (self.log_weight - self.deviation.log())[:, None] - 0.5 * t.square() - _HALF_LOG_TWO_PI

    def normal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z with Φ(z) = F(u) and log dz/du, (n,k) each; F the distribution functions."""
        t = (u - self.mean[:, None]) / self.deviation[:, None]
        weight = 0.5 * self.log_weight.exp()[:, None]  # erfc, since torch's ndtr cancels in the tail
        below, above = ((weight * torch.erfc(side * math.sqrt(0.5))).sum(0) for side in (-t, t))
        z = torch.where(below < above, torch.special.ndtri(below), -torch.special.ndtri(above))
        far = torch.minimum(below, above) < _TINY
        if bool(far.any()):
            log_weight, t = self.log_weight[:, None].expand_as(t)[:, far], t[:, far]
            low, high = (torch.logsumexp(log_weight + torch.special.log_ndtr(side), 0) for side in (t, -t))
            z[far] = torch.where(low < high, _far_quantile(low), -_far_quantile(high))
        log_density = torch.logsumexp(self.terms(u), 0)
        return z, log_density + 0.5 * z.square() + _HALF_LOG_TWO_PI

    def slope(self, u: Tensor) -> Tensor:
        """d/du of the log density, (n,k) → (n,k)."""
        share = torch.softmax(self.terms(u), 0)
        return (share * (self.mean[:, None] - u) / self.deviation.square()[:, None]).sum(0)

    def inverse(self, z: Tensor) -> Tensor:
        """u with F(u) = Φ(z), (n,k) → (n,k), by Newton's method between bounds, at first the nodes of a table."""
        low, high = (bound.reshape(1, -1) for bound in self._bounds(z))
        u, wanted = 0.5 * (low + high), z.reshape(1, -1)
        left = torch.arange(u.numel(), device=u.device)  # entries still to be found, and where they lie
        for _ in range(_NEWTON):
            here, aim = u[:, left], wanted[:, left]
            of = left % z.shape[1]
            reached, log_slope = Mixtures(*(part[:, of] for part in self)).normal(here)
            low = torch.where(reached < aim, here, low)
            high = torch.where(reached > aim, here, high)
            step = here - (reached - aim) * torch.exp(-log_slope)
            found = ((reached - aim).abs() <= _EXACT * (1 + aim.abs())) | (high - low <= _EXACT * here.abs())
            u[:, left] = torch.where(found | (step > low) & (step < high), step, 0.5 * (low + high)).clamp(low, high)
            left, low, high = left[~found[0]], low[:, ~found[0]], high[:, ~found[0]]
            if len(left) == 0:
                break
        return u.view_as(z)

    def _bounds(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Below and above the quantiles: all lie between the least and the greatest quantile of a component."""
        grid = torch.linspace(-8, 8, _NODES).to(z)
        nodes = (self.mean[:, None] + self.deviation[:, None] * grid[:, None]).flatten(0, 1).sort(0).values
        reached = self.normal(nodes)[0].cummax(0).values
        after = torch.searchsorted(reached.T.contiguous(), z.T.contiguous()).T
        spread = self.mean[:, None] + self.deviation[:, None] * z
        low, high = spread.amin(0), spread.amax(0)
        last = len(nodes) - 1
        low = torch.where(after > 0, nodes.gather(0, (after - 1).clamp(min=0)), low)
        return low, torch.where(after <= last, nodes.gather(0, after.clamp(max=last)), high)


def fit_mixtures(x: Tensor, components: int) -> Mixtures:
    """Maximum likelihood in each coordinate of x (n,k) by expectation and maximisation, from even quantiles.

    Cost: 300·512·M·k exponentials at most, whatever n is.

    References:
        A. P. Dempster, N. M. Laird, D. B. Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977.
    """
    centre, share, width = _cells(x)
    middle = (2 * torch.arange(components, device=x.device) + 1) * len(x) // (2 * components)
    mean = x.sort(0).values[middle]
    deviation = (1.5 * x.std(0) / components).clamp(min=width).expand_as(mean)
    log_weight = torch.full_like(mean, -math.log(components))
    last = -math.inf
    for k in range(_ITERATIONS):
        terms = Mixtures(log_weight, mean, deviation).terms(centre)
        if k % _CHECK_EVERY == 0:
            likelihood = float((torch.logsumexp(terms, 0) * share).sum(0).mean())
            if likelihood - last < _SETTLED:
                break
            last = likelihood
        belongs = torch.softmax(terms, 0) * share
        mass = belongs.sum(1).clamp(min=1e-12)
        mean = (belongs * centre).sum(1) / mass
        square = (belongs * (centre - mean[:, None]).square()).sum(1) / mass
        deviation = (square + width.square() / 12).sqrt()
        log_weight = (mass / mass.sum(0)).log()
    return Mixtures(log_weight, mean, deviation)


def _cells(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and shares of the samples in each cell, (512, k), and the width of the cells, (k,)."""
    low, high = x.min(0).values, x.max(0).values
    width = ((high - low) / _BINS).clamp(min=1e-300)
    index = ((x - low) / width).long().clamp(max=_BINS - 1)
    empty = x.new_zeros(_BINS, x.shape[1])
    count = empty.scatter_add(0, index, torch.ones_like(x))
    return empty.scatter_add(0, index, x) / count.clamp(min=1), count / len(x), width


def _far_quantile(log_p: Tensor) -> Tensor:
    """z < 0 with log Φ(z) = log_p far below 0, by Φ(z) ≈ φ(z)(1 − 1/z²)/|z|, good to 1e-7 or better."""
    size = (-2 * log_p).sqrt()
    for _ in range(20):
        size = (-2 * (log_p + size.log() - torch.log1p(-size.square().reciprocal()) + _HALF_LOG_TWO_PI)).sqrt()
    return -size
