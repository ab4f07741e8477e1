"""Flows of KL(ρ|π) to a target π, whose law at a time is known from many Langevin particles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checks import as_points, check_integer, check_positive, density_at
from ..energies.base import Energy
from ..energies.potential import KL
from ..errors import ConfigError
from ..measures import Law
from ..measures.law import as_generator, sample_cov
from ..oracles.langevin import LangevinParticles
from .base import Problem


class SampleLaw(Law):
    """A law known from particles: samples and moments, no density.

    Args:
        particles: (N, d) float64, independent.
    """

    has_density = False

    def __init__(self, particles: Tensor) -> None:
        self.particles, self.dim = particles, particles.shape[1]

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n of the particles, (n, d): different ones up to N, beyond that with replacement."""
        count, generator = len(self.particles), as_generator(seed, "SampleLaw.sample")
        if n > count:
            return self.particles[torch.randint(count, (n,), generator=generator)]
        return self.particles[torch.randperm(count, generator=generator)[:n]]

    def log_density(self, x: Tensor) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError(
            "this law is known by Langevin particles, which have no density; compare samples instead: "
            "distances.energy_distance(run.sample(t, n), law.sample(n))."
        )

    def score(self, x: Tensor) -> Tensor:
        """Particles have none: ConfigError."""
        return self.log_density(x)

    def mean(self) -> Tensor:
        """Of the particles, (d,); off by their sampling error, σ/√N."""
        return self.particles.mean(0)

    def cov(self) -> Tensor:
        """Of the particles, (d, d); off by their sampling error, for a Gaussian √(2/N) of a variance."""
        return sample_cov(self.particles)


class TargetLaw(Law):
    """A target π with exact samples.

    Args:
        mean, cov: its moments.
        draw: (n, generator) -> (n, d).
        density: log π, normalised, (n, d) -> (n,).
    """

    def __init__(
        self,
        mean: Tensor,
        cov: Tensor,
        draw: Callable[[int, torch.Generator], Tensor],
        density: Callable[[Tensor], Tensor],
    ) -> None:
        self.dim, self._mean, self._cov, self._draw, self._density = len(mean), mean, cov, draw, density

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples, (n, d) float64."""
        return self._draw(n, as_generator(seed, "TargetLaw.sample"))

    def log_density(self, x: Tensor) -> Tensor:
        """log π at x (n, d), (n,)."""
        return density_at(as_points(x, self.dim, "TargetLaw.log_density(x): x"), self._density)

    def mean(self) -> Tensor:
        """(d,)."""
        return self._mean.clone()

    def cov(self) -> Tensor:
        """(d, d)."""
        return self._cov.clone()


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
            return self.reference
        return SampleLaw(self._particles.at(t))

    def _particle_arguments(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "dt": self.dt, "particle_seed": self.particle_seed}
