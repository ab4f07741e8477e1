"""The flow to Neal's funnel: a scale that is itself a coordinate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_dim, check_positive, plain_numbers
from ..errors import ConfigError
from ..measures import Gaussian
from .langevin import LangevinProblem, TargetLaw


class Funnel(LangevinProblem):
    """F(ρ) = ∫ρ log(ρ/π), π: x₁ ~ N(0, scale²) and, given it, x_i ~ N(0, e^{x₁}), from N(0, I), temperature 1.

    The neck, x₁ < 0, is steep and narrow, the mouth flat and wide; mass reaches both slowly. The law at t comes from
    Langevin particles (`LangevinProblem`), about 20 s to t = 2.

    Args:
        dim: d ≥ 2; 10 in the source.
        scale: > 0, standard deviation of x₁; 3 in the source.
        end_time: last of the problem's times.
        num_particles, dt, particle_seed: of the Langevin particles.

    Raises:
        ConfigError: an argument outside its range.

    References:
        R. M. Neal, Slice sampling, Ann. Statist. 31, 2003, §8.
    """

    @plain_numbers
    def __init__(
        self,
        dim: int,
        scale: float = 3.0,
        end_time: float = 2.0,
        num_particles: int = 50_000,
        dt: float = 0.01,
        particle_seed: int = 0,
    ) -> None:
        check_dim(dim, "Funnel(dim)")
        if dim < 2:
            raise ConfigError(f"Funnel(dim=…) needs d ≥ 2, a scale and a coordinate that has it; got {dim}.")
        super().__init__(num_particles, dt, particle_seed)
        self.dim, self.scale = dim, check_positive(scale, "scale", "Funnel")
        self.end_time = check_positive(end_time, "end_time", "Funnel")

    def log_target(self, x: Tensor) -> Tensor:
        """log π(x), (n, d) -> (n,), normalised."""
        v, rest = x[:, 0], x[:, 1:].square().sum(1)
        constant = 0.5 * self.dim * math.log(2 * math.pi) + math.log(self.scale)
        return -0.5 * (v / self.scale).square() - 0.5 * (self.dim - 1) * v - 0.5 * rest * torch.exp(-v) - constant

    def curvature(self, x: Tensor) -> Tensor:
        """1/scale² + e^{−x₁}(1 + r + r²/2) with r the norm of the others, above the largest eigenvalue; (n,)."""
        r = x[:, 1:].norm(dim=1)
        return 1 / self.scale**2 + torch.exp(-x[:, 0]) * (1 + r + 0.5 * r.square())

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
        """The funnel; mean 0, var x₁ = scale², var x_i = e^{scale²/2}."""
        cov = math.exp(self.scale**2 / 2) * torch.eye(self.dim, dtype=torch.float64)
        cov[0, 0] = self.scale**2

        def draw(n: int, generator: torch.Generator) -> Tensor:
            x = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
            first = self.scale * x[:, :1]
            return torch.cat([first, torch.exp(0.5 * first) * x[:, 1:]], 1)

        return TargetLaw(torch.zeros(self.dim, dtype=torch.float64), cov, draw, self.log_target)

    def _arguments(self) -> dict[str, Any]:
        own = {"dim": self.dim, "scale": self.scale, "end_time": self.end_time}
        return {**own, **self._particle_arguments()}
