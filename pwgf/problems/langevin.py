"""Flows of KL(ρ|π) to a target π, whose law at a time is known from many Langevin particles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_integer, check_points, check_positive
from ..energies.base import Energy
from ..energies.potential import KL
from ..errors import ConfigError
from ..oracles.langevin import LangevinParticles
from .base import Law, MeasureLaw, Problem


@dataclass(frozen=True, eq=False)
class SampleLaw(Law):
    """A law known from particles: samples and moments, no density.

    Args:
        mean, cov: moments of the particles; off by their sampling error, σ/√N.
        particles: (N, d) float64, independent.
    """

    particles: Tensor
    has_density: ClassVar[bool] = False

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n of the particles, (n, d): different ones up to N, beyond that with replacement."""
        count = len(self.particles)
        if n > count:
            return self.particles[torch.randint(count, (n,), generator=generator)]
        return self.particles[torch.randperm(count, generator=generator)[:n]]

    def log_density(self, x: Tensor) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError(
            "this law is known by Langevin particles, which have no density; compare samples instead: "
            "distances.energy_distance(run.sample(t, n), law.sample(n, generator))."
        )


@dataclass(frozen=True, eq=False)
class TargetLaw(Law):
    """A target π with exact samples.

    Args:
        mean, cov: its moments.
        draw: (n, generator) -> (n, d).
        density: log π, normalised, (n, d) -> (n,).
    """

    draw: Callable[[int, torch.Generator], Tensor]
    density: Callable[[Tensor], Tensor]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples, (n, d) float64."""
        return self.draw(n, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """log π at x (n, d), (n,)."""
        return self.density(check_points(x, len(self.mean), "TargetLaw.log_density(x): x"))


class LangevinProblem(Problem):
    """F(ρ) = ∫ρ log(ρ/π), temperature 1; the law at t comes from particles dX = ∇log π dt + √2 dW.

    They are moved at the first call of `exact(t)` and kept, one set of particles for each t (`LangevinParticles`).

    A subclass supplies `log_target`, `reference`, `times`, `equilibrium` and, where π is stiff, `curvature`.

    Args:
        num_particles: N ≥ 2; moments and distances carry a sampling error of order 1/√N.
        dt: longest step h > 0, in units of t.
        particle_seed: of the particles' start and noise.
    """

    def __init__(self, num_particles: int, dt: float, particle_seed: int) -> None:
        check_integer(num_particles, "num_particles", self.name, least=2)
        check_integer(particle_seed, "particle_seed", self.name, least=0)
        self.num_particles, self.particle_seed = num_particles, particle_seed
        self.dt = check_positive(dt, "dt", self.name)
        self._laws: dict[float, Law] = {}

    @abstractmethod
    def log_target(self, x: Tensor) -> Tensor:
        """log π(x), (n, d) -> (n,), differentiable."""

    @property
    @abstractmethod
    def equilibrium(self) -> Law:
        """π itself, the limit of the flow, with exact samples."""

    def curvature(self, x: Tensor) -> Tensor:
        """About the largest |eigenvalue| of ∇²log π at x, (n, d) -> (n,)."""
        return x.new_ones(len(x))

    @property
    def energy(self) -> Energy:
        """KL to the target."""
        return KL(self.log_target)

    @property
    def temperature(self) -> float:
        """1."""
        return 1.0

    def exact(self, t: float) -> Law:
        """The law at time t: the reference at the start, later a `SampleLaw` of N particles.

        Raises:
            ConfigError: t before the start.
            NonFiniteError: the particles are no longer finite: `dt` is too long.
        """
        t = self._check_time(t)
        if t not in self._laws:
            self._laws[t] = self._law(t)
        return self._laws[t]

    @cached_property
    def _particles(self) -> LangevinParticles:
        return LangevinParticles(
            self.name, self.log_target, self.reference, self.num_particles, self.dt, self.particle_seed,
            start=float(self.times[0]), curvature=self.curvature,
        )  # fmt: skip

    def _law(self, t: float) -> Law:
        if t == float(self.times[0]):
            return MeasureLaw(*self._start_moments(), self.reference)
        x = self._particles.at(t)
        return SampleLaw(x.mean(0), torch.atleast_2d(torch.cov(x.T)), x)

    def _start_moments(self) -> tuple[Tensor, Tensor]:
        return self.reference.mean, self.reference.cov  # type: ignore[attr-defined]  # a Gaussian in every member

    def _particle_arguments(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "dt": self.dt, "particle_seed": self.particle_seed}
