"""The Gaussian approximation of a logistic posterior by expectation propagation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import SolverError

_NODES = 32  # of the Gauss–Hermite rule about the mode of each tilted margin
_HALVINGS = 30  # of the interval that holds this mode
_RELAXATION = 0.8  # share of a full update that all sites make at once


class Approximation(NamedTuple):
    """Of a law of weights w.

    Args:
        mean, cov: (k,) and (k,k).
        log_z: of the constant.
        sites: (2,N), precisions τ_i and shifts ν_i of the margins f_i = a_i·w: the factor of row i is taken for
            exp(ν_i f_i − τ_i f_i²/2).
    """

    mean: Tensor
    cov: Tensor
    log_z: float
    sites: Tensor


def expectation_propagation(
    rows: Tensor,
    precision: Tensor,
    shift: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-3,
    max_sweeps: int = 200,
) -> Approximation:
    r"""Mean, covariance and constant of exp(shift·w − w·precision·w/2) Π_i σ(a_i·w), σ(f) = 1/(1 + e^{−f}).

    Mean and covariance are those of the weights to within about a per cent. Where many rows are alike and the classes
    separate, they are off by tenths of a standard deviation, the Laplace approximation by halves.

    Args:
        rows: a_i, (N,k).
        precision: (k,k), positive definite.
        shift: (k,).
        start: sites of a similar problem, (2,N); zeros if None.
        tolerance: on the change of all sites' precisions in a sweep, each in units of its margin's own, in sum.
        max_sweeps: after this many the last sweep is returned all the same: it is an approximation anyway.

    Raises:
        SolverError: the iteration is no longer finite.

    References:
        T. P. Minka, Expectation Propagation for approximate Bayesian inference, 2001. C. E. Rasmussen, C. K. I.
        Williams, Gaussian Processes for Machine Learning, 2006, §3.6 (sites, cavities, constant).
    """
    tau, nu = torch.zeros(2, len(rows), dtype=torch.float64) if start is None else start
    for _ in range(max_sweeps):
        factor, failed = torch.linalg.cholesky_ex(precision + rows.T @ (tau[:, None] * rows))
        total = shift + rows.T @ nu
        cov = torch.cholesky_inverse(factor)
        mean = cov @ total
        spread = ((rows @ cov) * rows).sum(1)  # variance of each margin
        cavity = 1 / spread - tau
        centre = (rows @ mean / spread - nu) / cavity
        log_mass, its_mean, its_variance = _tilted(centre, 1 / cavity)
        change = torch.stack([1 / its_variance - cavity - tau, its_mean / its_variance - centre * cavity - nu])
        if int(failed) or not bool(torch.isfinite(change).all()):
            raise SolverError(
                "expectation_propagation: the Gaussian of a row's cavity is not finite. Cause: rows that differ in "
                "size by many orders, or a precision near 0. Cure: scale the features to unit variance."
            )
        if float((change[0] * spread).abs().sum()) <= tolerance:
            break
        tau, nu = (tau + _RELAXATION * change[0]).clamp(min=0), nu + _RELAXATION * change[1]
    log_scale = 0.5 * len(mean) * math.log(2 * math.pi) - factor.diagonal().log().sum() + 0.5 * (total @ mean)
    log_z = log_scale + (log_mass - _site_mass(centre, cavity, tau, nu)).sum()
    return Approximation(mean, cov, float(log_z), torch.stack([tau, nu]))


def _site_mass(centre: Tensor, cavity: Tensor, tau: Tensor, nu: Tensor) -> Tensor:
    """log ∫ N(f; centre, 1/cavity) exp(ν f − τ f²/2) df, (N,)."""
    share = 1 + tau / cavity
    return (centre * nu + (nu * nu / cavity - tau * centre**2) / 2) / share - 0.5 * share.log()


def _tilted(centre: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log mass, mean and variance of N(f; centre, variance) σ(f), each (N,)."""
    low, high = centre, centre + variance  # the mode f = centre + variance·σ(−f) lies between
    for _ in range(_HALVINGS):
        mode = (low + high) / 2
        above = mode < centre + variance * torch.sigmoid(-mode)
        low, high = torch.where(above, mode, low), torch.where(above, high, mode)
    p = torch.sigmoid(-mode)
    width = (p * (1 - p) + 1 / variance).rsqrt()
    nodes, weights = (torch.from_numpy(part)[:, None] for part in np.polynomial.hermite_e.hermegauss(_NODES))
    f = mode + width * nodes
    log_values = logsigmoid(f) - (f - centre) ** 2 / (2 * variance) + nodes**2 / 2 + weights.log()
    log_sum = torch.logsumexp(log_values, 0)
    share = torch.exp(log_values - log_sum)
    mean = (share * f).sum(0)
    log_mass = log_sum + width.log() - 0.5 * torch.log(2 * math.pi * variance)
    return log_mass, mean, (share * (f - mean) ** 2).sum(0)
