"""Markov chains that preserve a density: Metropolis-adjusted Langevin, and Hamiltonian Monte Carlo for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import as_tensor, check_integer, plain_numbers, private, seeded
from ..errors import ConfigError, NonFiniteError, ShapeError

LogDensity = Callable[[Tensor], Tensor]
USER_ERRORS = (ArithmeticError, AssertionError, RuntimeError, ValueError)  # of a log p far from where flows go
_FINE = 8  # one in this many trajectories takes steps that are 8, 64 and 512 times shorter in turn


def langevin(log_density: LogDensity, x: Tensor, steps: int, *, seed: int = 0, step: float = 0.1) -> Tensor:
    """Samples after the given number of steps of Metropolis-adjusted Langevin, one chain per sample, (n,d).

    The step h of x + h∇log p + √(2h)ξ is adapted to an acceptance of .57 in the first half of the steps, then kept.

    Args:
        log_density: log p, (n,d) → (n,), differentiable.
        x: (n,d) starts, a tensor or an array; log p is evaluated on their device.
        steps: ≥ 0.
        seed: of the noise.
        step: h at the start, in units of x².
    """
    generator = seeded(seed, "langevin", offset=3)
    x = as_tensor(x)
    value, slope = _value_and_slope(log_density, x)
    for k in range(steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        proposed = x + step * slope + math.sqrt(2 * step) * noise
        there, back = _value_and_slope(log_density, proposed)
        reverse = (x - proposed - step * back).square().sum(1) / (4 * step)
        log_ratio = there - value + noise.square().sum(1) / 2 - reverse
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype).to(x.device)
        taken = (uniform.log() < log_ratio) & torch.isfinite(there)
        x = torch.where(taken[:, None], proposed, x)
        value, slope = torch.where(taken, there, value), torch.where(taken[:, None], back, slope)
        if k < steps // 2:
            step *= math.exp(float(taken.double().mean()) - 0.57)
    return x


class Chains(NamedTuple):
    """Hamiltonian Monte Carlo's output.

    Args:
        x: (steps, m, d) positions of m chains after the warm-up.
        acceptance: share of proposals taken after the warm-up.
        rhat: (d,) potential scale reduction from the halves of all chains; 1.01 and below counts as converged.
        ess: (d,) effective number of samples among the steps·m, from the variance of the chains' means.
    """

    x: Tensor
    acceptance: float
    rhat: Tensor
    ess: Tensor

    @property
    def samples(self) -> Tensor:
        """All positions, (steps·m, d)."""
        return self.x.flatten(0, 1)


@plain_numbers
def hmc(log_density: LogDensity, x: Tensor, steps: int = 1000, *, warmup: int = 300, seed: int = 0) -> Chains:
    """Hamiltonian Monte Carlo by many independent chains at once.

    A trajectory has a random length in [π/4, 3π/4], about a quarter of the period at unit variance, so that successive
    positions are nearly uncorrelated; its leapfrog steps are adapted during the warm-up to an acceptance of .8. One in
    eight is short, with steps 8, 64 or 512 times shorter: it moves chains from places where p is too steep for the
    others. After each of the first three quarters of the warm-up the covariance of all chains determines the
    coordinates. Scales should not be far from one at the start: run it in the coordinates of `laplace`.

    Args:
        log_density: log p, (m,d) → (m,), differentiable.
        x: (m,d) starts, a tensor or an array, spread more widely than p, which `rhat` assumes; log p is evaluated on
            their device.
        steps: trajectories kept, ≥ 2.
        warmup: trajectories before them, which adapt the step.
        seed: of momenta and lengths.

    Raises:
        ConfigError, ShapeError: arguments that cannot work.
        NonFiniteError: log p is not finite at a start.

    References:
        R. M. Neal, MCMC using Hamiltonian dynamics, 2011, §5.3. A. Gelman et al., Bayesian Data Analysis, 2013, §11.4.
    """
    check_integer(steps, "steps", "hmc", least=2)
    check_integer(warmup, "warmup", "hmc", least=0)
    x = as_tensor(x)
    if x.ndim != 2 or len(x) < 2:
        raise ShapeError(f"hmc(x=…): starts must have shape (m, d) with m ≥ 2 chains; got {tuple(x.shape)}.")
    if not callable(log_density):
        raise ConfigError(f"hmc(log_density=…) must be a function (m,d) → (m,); got {type(log_density).__name__}.")
    generator = seeded(seed, "hmc")
    x, step = x.detach().double(), 0.2
    scale = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    value, slope = _value_and_slope(log_density, x)
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(f"hmc: log p is not finite at {int((~torch.isfinite(value)).sum())} of {len(x)} starts.")
    kept, seen, accepted = [], [], 0.0
    for k in range(warmup + steps):
        momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        length = math.pi / 4 * (1 + 2 * float(torch.rand(1, generator=generator)))
        short = k % _FINE == 0  # frees chains that are where p is too steep for the step
        h = step / _FINE ** (1 + k // _FINE % 3) if short else step
        count = max(1, round(length / step))
        proposed, there, back, drop = _leapfrog(log_density, x, slope, momentum, scale, h, count)
        log_ratio = there - value + drop
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype).to(x.device)
        taken = uniform.log() < log_ratio  # NaN is refused
        x = torch.where(taken[:, None], proposed, x)
        value, slope = torch.where(taken, there, value), torch.where(taken[:, None], back, slope)
        share = float(taken.double().mean())
        if k >= warmup:
            kept.append(x)
            accepted += share / steps
            continue
        seen.append(x)
        if not short:
            step = min(step * math.exp((share - 0.8) / math.sqrt(1 + k / 20)), 1.0)
        if k + 1 in (warmup // 4, warmup // 2, 3 * warmup // 4) and len(x) * len(seen) > 20 * x.shape[1]:
            late = torch.cat(seen[len(seen) // 2 :])
            scale, step, seen = torch.linalg.cholesky(torch.cov(late.T).reshape(scale.shape)), 0.2, []
    path = torch.stack(kept)
    return Chains(path, accepted, *_diagnose(path))


def _leapfrog(
    log_density: LogDensity, x: Tensor, slope: Tensor, momentum: Tensor, scale: Tensor, step: float, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, log p and its slope after `count` steps of y, x = scale·y, and what the kinetic energy has lost."""
    start, value = momentum.square().sum(1) / 2, x.new_empty(len(x))
    for _ in range(count):
        momentum = momentum + step / 2 * slope @ scale
        x = x + step * momentum @ scale.T
        value, slope = _value_and_slope(log_density, x)
        momentum = momentum + step / 2 * slope @ scale
    return x, value, slope, start - momentum.square().sum(1) / 2


def _diagnose(path: Tensor) -> tuple[Tensor, Tensor]:
    """Potential scale reduction and effective sample size of each coordinate, from half chains."""
    half = len(path) // 2
    parts = torch.cat([path[:half], path[half : 2 * half]], 1)  # (half, 2m, d)
    within, between = parts.var(0).mean(0), half * parts.mean(0).var(0)
    total = (half - 1) / half * within + between / half
    return (total / within).sqrt(), (parts.shape[0] * parts.shape[1] * total / between).clamp(max=parts[..., 0].numel())


def _value_and_slope(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p (n,) and its gradient (n,d)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value = log_density(private(leaf))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope
