"""The flow to the double banana: two curved ridges with a steep wall between them."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_dim, check_positive, is_real, plain_numbers
from ..errors import ConfigError
from ..measures import Gaussian
from .langevin import LangevinProblem, TargetLaw

_REACH = 6.0  # |x_k| beyond which N(0, I), and π with it, has no mass in float64 quadrature
_GRID = 3001  # nodes of an axis in quadratures


class DoubleBanana(LangevinProblem):
    """F(ρ) = ∫ρ log(ρ/π), π ∝ exp(−½|x|² − ½(y − G(x))²/σ²), from N(0, I) in d = 2, temperature 1.

    G(x) = log((1 − x₁)² + 100(x₂ − x₁²)²): the posterior of x ~ N(0, I) given G(x) + σξ = y. The two bananas lie on
    either side of the parabola x₂ = x₁², a wall about 65 high. The law at t comes from Langevin particles
    (`LangevinProblem`), about half a minute to t = .5. The energy is KL up to the constant log Z of the unnormalised π.

    Args:
        dim: 2.
        observation: y; drawn at random in the source, here log 30.
        noise: σ > 0.
        end_time: last of the problem's times.
        num_particles, dt, particle_seed: of the Langevin particles.

    Raises:
        ConfigError: an argument outside its range.

    References:
        G. Detommaso et al., A Stein variational Newton method, 2018, arXiv 1806.03085, §5.1.
    """

    @plain_numbers
    def __init__(
        self,
        dim: int = 2,
        observation: float = math.log(30),
        noise: float = 0.3,
        end_time: float = 0.5,
        num_particles: int = 20_000,
        dt: float = 0.005,
        particle_seed: int = 0,
    ) -> None:
        check_dim(dim, "DoubleBanana(dim)")
        if dim != 2:
            raise ConfigError(f"DoubleBanana(dim=…) must be 2; got {dim}. Leave it out.")
        if not is_real(observation):
            raise ConfigError(f"DoubleBanana(observation=…) needs a finite number; got {observation!r}. Try log 30.")
        super().__init__(num_particles, dt, particle_seed)
        self.dim, self.observation = dim, float(observation)
        self.noise = check_positive(noise, "noise", "DoubleBanana")
        self.end_time = check_positive(end_time, "end_time", "DoubleBanana")

    def _misfit(self, x: Tensor) -> Tensor:
        """½(y − G(x))²/σ², (n,)."""
        inner = (1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()
        return 0.5 * ((self.observation - inner.log()) / self.noise).square()

    def log_target(self, x: Tensor) -> Tensor:
        """log π(x) + log Z, (n, 2) -> (n,); −∞ at (1, 1)."""
        return -0.5 * x.square().sum(1) - self._misfit(x)

    def curvature(self, x: Tensor) -> Tensor:
        """1 + (|∇G|² + |y − G|(|∇²q|/q + |∇G|²))/σ² with G = log q, above the largest eigenvalue; (n,)."""
        first, off = x[:, 0], x[:, 1] - x[:, 0].square()
        q = (1 - first).square() + 100 * off.square()
        slope2 = (-2 * (1 - first) - 400 * off * first).square() + (200 * off).square()
        bend = 2 + 200 * (1 + 4 * first.square() + 2 * off.abs())
        misfit = (self.observation - q.log()).abs()
        return 1 + (slope2 / q**2 + misfit * (bend / q + slope2 / q**2)) / self.noise**2

    @property
    def reference(self) -> Gaussian:
        """N(0, I)."""
        return Gaussian(self.dim)

    @property
    def times(self) -> np.ndarray:
        """Nine times from 0 to `end_time`."""
        return np.linspace(0, self.end_time, 9)

    @cached_property
    def _quadrature(self) -> tuple[float, Tensor, Tensor]:
        """log Z, mean (2,) and covariance (2, 2) by the rectangle rule, about a second."""
        axis = torch.linspace(-_REACH, _REACH, _GRID, dtype=torch.float64)
        x = torch.cartesian_prod(axis, axis)
        weight = self.log_target(x).exp() * float(axis[1] - axis[0]) ** 2
        mass = weight.sum()
        mean = weight @ x / mass
        centred = x - mean
        return float(mass.log()), mean, centred.T @ (weight.unsqueeze(1) * centred) / mass

    @property
    def equilibrium(self) -> TargetLaw:
        """π: samples by rejection from N(0, I), the constant and the moments by quadrature."""
        log_z, mean, cov = self._quadrature

        def draw(n: int, generator: torch.Generator) -> Tensor:
            kept, count = [], 0
            while count < n:
                z = torch.randn(2 * n + 1000, 2, generator=generator, dtype=torch.float64)
                z = z[torch.rand(len(z), generator=generator, dtype=torch.float64) < torch.exp(-self._misfit(z))]
                kept.append(z)
                count += len(z)
            return torch.cat(kept)[:n]

        return TargetLaw(mean, cov, draw, lambda x: self.log_target(x) - log_z)

    def _arguments(self) -> dict[str, Any]:
        own = {"dim": self.dim, "observation": self.observation, "noise": self.noise, "end_time": self.end_time}
        return {**own, **self._particle_arguments()}
