"""The bootstrap filter of an observed diffusion, by particles in any dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_integer, check_number, plain_numbers, seeded
from ..measures import Cloud
from ..measures.base import effective_share
from ._observations import Observed, check_observation, schedule


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


@plain_numbers
def particles(
    model: Observed,
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
    generator = seeded(seed, "filtering.particles")
    x, now, evidence, shares = model.initial.sample(n, generator), 0.0, 0.0, []
    for t, y in zip(at, observations, strict=True):
        x = _wander(model, x, now, t, dt, generator)
        log_w = model.at(y)(x)
        check_observation(log_w, t)
        evidence += float(torch.logsumexp(log_w, 0)) - math.log(n)
        shares.append(effective_share(log_w))
        levels = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
        x, now = x[torch.searchsorted(torch.softmax(log_w, 0).cumsum(0), levels).clamp(max=n - 1)], t
    return Particles(_wander(model, x, now, end, dt, generator), evidence, shares)


def _wander(model: Observed, x: Tensor, start: float, end: float, dt: float, generator: torch.Generator) -> Tensor:
    """Euler–Maruyama from one time to another, in equal steps of at most dt."""
    drifts, temperature = model.energy.particle_form()
    noises = model.energy.noises()
    count = math.ceil((end - start) / dt - 1e-9)
    h = (end - start) / max(count, 1)
    for k in range(count):
        rho = Cloud(x, start + k * h)
        x = x + math.sqrt(2 * temperature * h) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for factor, term in drifts:
            x = x + factor * h * term.velocity(rho)
        for factor, term in noises:
            gauss = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + math.sqrt(2 * factor * h) * term.noise(rho, gauss)
    return x
