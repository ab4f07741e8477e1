"""Filters to compare with: particles in any dimension, finite volumes in one, Kalman where all is linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..problems.finite_volume import Marginal, fokker_planck
from ..schemes.base import check_integer, check_number
from .model import StateSpace, check_observation, schedule

_TRUSTED = 1e-30  # densities below are continued from those above


class Particles(NamedTuple):
    """A bootstrap filter's result.

    Args:
        x: (n,d) equally weighted particles at the end.
        log_evidence: log p(y_1, …, y_K).
        shares: effective share of the particles at each observation.
    """

    x: Tensor
    log_evidence: float
    shares: list[float]


def particles(
    model: StateSpace,
    times: Sequence[float],
    observations: Sequence[Any],
    *,
    end: float | None = None,
    n: int = 10_000,
    dt: float = 0.01,
    seed: int = 0,
) -> Particles:
    """The bootstrap filter: Euler–Maruyama steps, weights by the likelihood, systematic resampling at each observation.

    Args:
        model, times, observations, end: as in `run`.
        n: particles ≥ 2.
        dt: longest step > 0, in units of t.
        seed: of all randomness.

    Raises:
        ConfigError: arguments out of range; an observation of zero likelihood at all particles.

    References:
        N. Gordon, D. Salmond, A. Smith, Novel approach to nonlinear/non-Gaussian Bayesian state estimation, 1993.
    """
    at, end = schedule(times, observations, end)
    check_integer(n, "n", "filtering.particles", least=2)
    check_number(dt, "dt", "filtering.particles", low=0.0, high=math.inf, open_low=True)
    generator = torch.Generator().manual_seed(seed)
    x, now, evidence, shares = model.initial.sample(n, generator), 0.0, 0.0, []
    for t, y in zip(at, observations, strict=True):
        x = _wander(model, x, t - now, dt, generator)
        log_w = model.at(y)(x)
        check_observation(log_w, t)
        evidence += float(torch.logsumexp(log_w, 0)) - math.log(n)
        w = torch.softmax(log_w, 0)
        shares.append(float(1 / (n * w.square().sum())))
        levels = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
        x, now = x[torch.searchsorted(w.cumsum(0), levels).clamp(max=n - 1)], t
    return Particles(_wander(model, x, end - now, dt, generator), evidence, shares)


def _wander(model: StateSpace, x: Tensor, duration: float, dt: float, generator: torch.Generator) -> Tensor:
    """Euler–Maruyama over the duration, in equal steps of at most dt."""
    count = math.ceil(duration / dt - 1e-9)
    h = duration / max(count, 1)
    for _ in range(count):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(model.potential(leaf).sum(), leaf)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - h * slope + math.sqrt(2 * model.temperature * h) * noise
    return x


def finite_volumes(
    model: StateSpace,
    times: Sequence[float],
    observations: Sequence[Any],
    *,
    end: float | None = None,
    half_width: float = 10.0,
    num_nodes: int = 8001,
    steps: int = 200,
) -> Marginal:
    """The filter on a grid in one dimension: the truth to compare with, of order 2 in the spacing.

    Args:
        model, times, observations, end: as in `run`; d = 1.
        half_width: the grid is [−half_width, half_width] and must hold all mass.
        num_nodes: of the grid.
        steps: in time, between observations.

    Returns:
        The law at the end; its `density` at the nodes `grid` sums to 1 over the spacing.

    Raises:
        ConfigError: d > 1, a grid that is too narrow.
    """
    if model.dim != 1:
        raise ConfigError(f"filtering.finite_volumes works in one dimension; the model has {model.dim}. Use particles.")
    at, end = schedule(times, observations, end)
    grid = np.linspace(-half_width, half_width, num_nodes)
    nodes, spacing = torch.from_numpy(grid)[:, None], grid[1] - grid[0]
    values = model.potential(nodes).detach().numpy()
    rho = model.initial.log_density(nodes).exp().numpy()
    now = 0.0
    for t, y in zip([*at, end], [*observations, None], strict=True):
        if t > now:
            rho = fokker_planck(grid, values, rho, t - now, tau=model.temperature, steps=steps)
        if y is not None:
            log_w = model.at(y)(nodes).detach()
            check_observation(log_w, t)
            rho = rho * (log_w - log_w.max()).exp().numpy()
        rho, now = rho / (rho.sum() * spacing), t
    if max(rho[0], rho[-1]) > 1e-8 * rho.max():
        raise ConfigError(
            f"filtering.finite_volumes(half_width={half_width:g}): the law reaches the ends of the grid. Give more, "
            f"such as half_width={2 * half_width:g}."
        )
    trusted = rho > _TRUSTED * rho.max()
    excess = np.interp(grid, grid[trusted], np.log(rho[trusted]) + values[trusted] / model.temperature)
    return Marginal(grid, excess, model.potential, model.temperature)


def kalman(
    K: Tensor,
    centre: Tensor,
    H: Tensor,
    R: Tensor,
    mean: Tensor,
    cov: Tensor,
    times: Sequence[float],
    observations: Sequence[Tensor],
    *,
    end: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, float]:
    """The exact filter of dX = −K(X − b) dt + √(2τ) dW, K symmetric, X₀ ~ N(mean, cov), y ~ N(HX, R).

    Args:
        K, centre: (d,d) positive definite and b (d,): V(x) = ½(x−b)ᵀK(x−b).
        H, R: (k,d) and (k,k).
        mean, cov: (d,), (d,d) at t = 0.
        times, observations: increasing times > 0 and y, each (k,).
        end: as in `run`.
        temperature: τ.

    Returns:
        Mean, covariance at the end, and log p(y_1, …, y_K).

    Raises:
        ShapeError: shapes that do not belong together.

    References:
        A. Jazwinski, Stochastic Processes and Filtering Theory, 1970, §7.3.
    """
    at, end = schedule(times, observations, end)
    d, k = len(mean), len(R)
    shapes = [tuple(part.shape) for part in (K, centre, H, R, mean, cov)]
    if shapes != [(d, d), (d,), (k, d), (k, k), (d,), (d, d)]:
        raise ShapeError(
            f"filtering.kalman(K, centre, H, R, mean, cov) needs shapes (d,d), (d,), (k,d), (k,k), (d,), (d,d); got "
            f"{shapes}."
        )
    rest, evidence, now = temperature * torch.linalg.inv(K), 0.0, 0.0
    for t, y in zip([*at, end], [*observations, None], strict=True):
        decay = torch.linalg.matrix_exp(-K * (t - now))
        mean, cov, now = centre + decay @ (mean - centre), rest + decay @ (cov - rest) @ decay.T, t
        if y is not None:
            seen = torch.distributions.MultivariateNormal(H @ mean, H @ cov @ H.T + R)
            evidence += float(seen.log_prob(y))
            gain = torch.linalg.solve(seen.covariance_matrix, H @ cov).T
            mean, cov = mean + gain @ (y - H @ mean), cov - gain @ H @ cov
    return mean, cov, evidence
