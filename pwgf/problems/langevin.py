"""Flows of KL(ρ|π) to a target π, whose law at a time is known by many Langevin particles."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..checks import check_count, check_positive
from ..energies.base import Energy
from ..energies.potential import KL
from ..errors import ConfigError, NonFiniteError
from .base import Law, MeasureLaw, Problem, check_samples

_ROUGH = 0.25  # largest curvature × step before a particle's step is split; width errors are then a per cent
_MAX_SPLIT = 2**12


@dataclass(frozen=True, eq=False)
class SampleLaw(Law):
    """A law known by particles: samples and moments, no density.

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
        return self.density(check_samples("TargetLaw", x, len(self.mean)))


class _Moment(NamedTuple):
    """The particles after `steps` full steps, with the state of their generator."""

    steps: int
    x: Tensor
    rng: Tensor


class LangevinProblem(Problem):
    """F(ρ) = ∫ρ log(ρ/π), temperature 1; the law at t comes from particles dX = ∇log π dt + √2 dW.

    They are moved by Heun's method, X̃ = X + h∇log π(X) + √(2h) ξ, X ← X + ½h(∇log π(X) + ∇log π(X̃)) + √(2h) ξ, of
    weak order 2 for additive noise; where `curvature` times h exceeds ¼, a particle's step is split. They are computed
    when `exact(t)` is first asked for and kept, one set of particles for each t; the law at t does not depend on what
    was asked before.

    A subclass gives `log_target`, `reference`, `times`, `equilibrium` and, where π is stiff, `curvature`.

    Args:
        num_particles: N ≥ 2; moments and distances carry a sampling error of order 1/√N.
        dt: longest step h > 0, in units of t.
        particle_seed: of the particles' start and noise.

    References:
        P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential Equations, 1992, §15.1.
    """

    def __init__(self, num_particles: int, dt: float, particle_seed: int) -> None:
        check_count(self.name, "num_particles", num_particles, least=2)
        check_count(self.name, "particle_seed", particle_seed, least=0)
        self.num_particles, self.particle_seed = num_particles, particle_seed
        self.dt = check_positive(self.name, "dt", dt)
        self._moments: list[_Moment] = []
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
            NonFiniteError: the particles left the range of numbers: `dt` is too long.
        """
        t = self._check_time(t)
        if t not in self._laws:
            self._laws[t] = self._law(t)
        return self._laws[t]

    def _law(self, t: float) -> Law:
        start = float(self.times[0])
        if t == start:
            return MeasureLaw(*self._start_moments(), self.reference)
        whole = (t - start) / self.dt
        steps = math.floor(whole + 1e-9)
        moment = self._at(steps)
        x, rest = moment.x, (whole - steps) * self.dt
        if rest > 1e-9 * self.dt:  # a last, shorter step, with noise that the path does not see
            generator = torch.Generator().manual_seed(((self.particle_seed + 1) << 32) + steps)
            x = self._checked(self._step(x, rest, generator), t)
        return SampleLaw(x.mean(0), torch.atleast_2d(torch.cov(x.T)), x)

    def _start_moments(self) -> tuple[Tensor, Tensor]:
        return self.reference.mean, self.reference.cov  # type: ignore[attr-defined]  # a Gaussian in every member

    def _at(self, steps: int) -> _Moment:
        """The particles after so many steps, from the latest ones kept before."""
        earlier = [moment for moment in self._moments if moment.steps <= steps]
        if earlier:
            last = max(earlier, key=lambda moment: moment.steps)
        else:
            generator = torch.Generator().manual_seed(self.particle_seed)
            last = _Moment(0, self.reference.sample(self.num_particles, generator), generator.get_state())
        if last.steps == steps:
            return last
        x, generator = last.x, torch.Generator()
        generator.set_state(last.rng)
        for k in range(last.steps, steps):
            x = self._checked(self._step(x, self.dt, generator), float(self.times[0]) + (k + 1) * self.dt)
        self._moments.append(_Moment(steps, x, generator.get_state()))
        return self._moments[-1]

    def _step(self, x: Tensor, h: float, generator: torch.Generator) -> Tensor:
        """One step of length h, (N, d); stiff particles take it in 2, 4, 8, … parts."""
        rough = (self.curvature(x) * h / _ROUGH).clamp(1, _MAX_SPLIT)
        parts = 2 ** torch.ceil(torch.log2(rough) - 1e-12).long()
        moved = x.clone()
        for count in parts.unique().tolist():
            mine = parts == count
            y = x[mine]
            for _ in range(count):
                y = self._heun(y, h / count, generator)
            moved[mine] = y
        return moved

    def _heun(self, x: Tensor, h: float, generator: torch.Generator) -> Tensor:
        noise = math.sqrt(2 * h) * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        drift = self._drift(x)
        return x + 0.5 * h * (drift + self._drift(x + h * drift + noise)) + noise

    def _drift(self, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self.log_target(leaf).sum(), leaf)[0]

    def _checked(self, x: Tensor, t: float) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"{self.name}.exact: {int((~torch.isfinite(x).all(1)).sum())} of {len(x)} Langevin particles are NaN "
                f"or infinite at t = {t:.6g}. Cause: the step is unstable where the target is steep. Give a shorter "
                f"one: {self.name}(…, dt={self.dt / 4:g})."
            )
        return x

    def _particle_arguments(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "dt": self.dt, "particle_seed": self.particle_seed}
