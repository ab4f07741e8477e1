"""The flow to the hybrid Rosenbrock law: curved, narrow valleys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_dim, check_positive, is_real, plain_numbers
from ..errors import ConfigError
from ..measures import Gaussian
from .langevin import LangevinProblem, TargetLaw


class Rosenbrock(LangevinProblem):
    """F(ρ) = ∫ρ log(ρ/π), π ∝ exp(−a(x₁ − μ)² − b Σ_{i≥2}(x_i − x₁²)²), from N(0, I), temperature 1.

    In d = 2 the defaults give exp(−[100(x₂ − x₁²)² + (1 − x₁)²]/20). For d > 2 this is the hybrid law with blocks of
    one coordinate: every further coordinate bends with the first. Mass descends fast into the valleys and spreads
    slowly along them, at the rate 2a. The law at t comes from Langevin particles (`LangevinProblem`).

    Args:
        dim: d ≥ 2.
        mu: μ, mean of x₁ under π.
        a, b: > 0; π has var x₁ = 1/(2a), var(x_i | x₁) = 1/(2b).
        end_time: last of the problem's times.
        num_particles, dt, particle_seed: of the Langevin particles.

    Raises:
        ConfigError: an argument outside its range.

    References:
        J. Goodman, J. Weare, Ensemble samplers with affine invariance, 2010 (d = 2); F. Pagani, M. Wiegand,
        S. Nadarajah, An n-dimensional Rosenbrock distribution for MCMC testing, 2019, arXiv 1903.09556.
    """

    @plain_numbers
    def __init__(
        self,
        dim: int,
        mu: float = 1.0,
        a: float = 0.05,
        b: float = 5.0,
        end_time: float = 1.0,
        num_particles: int = 50_000,
        dt: float = 0.01,
        particle_seed: int = 0,
    ) -> None:
        check_dim(dim, "Rosenbrock(dim)")
        if dim < 2:
            raise ConfigError(
                f"Rosenbrock(dim=…) needs d ≥ 2, a coordinate that bends and one that follows; got {dim}."
            )
        if not is_real(mu):
            raise ConfigError(f"Rosenbrock(mu=…) needs a finite number; got {mu!r}. Try mu=1.0.")
        super().__init__(num_particles, dt, particle_seed)
        self.dim, self.mu = dim, float(mu)
        self.a, self.b = check_positive(a, "a", "Rosenbrock"), check_positive(b, "b", "Rosenbrock")
        self.end_time = check_positive(end_time, "end_time", "Rosenbrock")

    def log_target(self, x: Tensor) -> Tensor:
        """log π(x), (n, d) -> (n,), normalised."""
        off = x[:, 1:] - x[:, :1].square()
        constant = 0.5 * math.log(self.a / math.pi) + 0.5 * (self.dim - 1) * math.log(self.b / math.pi)
        return constant - self.a * (x[:, 0] - self.mu).square() - self.b * off.square().sum(1)

    def curvature(self, x: Tensor) -> Tensor:
        """2a + 2b(1 + Σ(4x₁² + 2|x_i − x₁²|)), above the largest eigenvalue, (n, d) -> (n,)."""
        squared = x[:, :1].square()
        return 2 * self.a + 2 * self.b * (1 + (4 * squared + 2 * (x[:, 1:] - squared).abs()).sum(1))

    @property
    def reference(self) -> Gaussian:
        """N(0, I)."""
        return Gaussian(self.dim)

    @property
    def times(self) -> np.ndarray:
        """Nine times from 0 to `end_time`."""
        return np.linspace(0, self.end_time, 9)

    @property
    def equilibrium(self) -> TargetLaw:
        """x₁ ~ N(μ, 1/(2a)) and, given it, x_i ~ N(x₁², 1/(2b))."""
        var, width = 1 / (2 * self.a), 1 / (2 * self.b)
        mean = torch.full((self.dim,), self.mu**2 + var, dtype=torch.float64)
        cov = torch.full((self.dim, self.dim), 4 * self.mu**2 * var + 2 * var**2, dtype=torch.float64)
        cov += width * torch.eye(self.dim, dtype=torch.float64)
        mean[0], cov[0, 0], cov[0, 1:], cov[1:, 0] = self.mu, var, 2 * self.mu * var, 2 * self.mu * var

        def draw(n: int, generator: torch.Generator) -> Tensor:
            x = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
            first = self.mu + math.sqrt(var) * x[:, :1]
            return torch.cat([first, first.square() + math.sqrt(width) * x[:, 1:]], 1)

        return TargetLaw(mean, cov, draw, self.log_target)

    def _arguments(self) -> dict[str, Any]:
        own = {"dim": self.dim, "mu": self.mu, "a": self.a, "b": self.b, "end_time": self.end_time}
        return {**own, **self._particle_arguments()}
