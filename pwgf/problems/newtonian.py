"""Aggregation by Newtonian repulsion and quadratic attraction in the plane, from a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_points, check_dim, check_positive, plain_numbers
from ..energies import Interaction, Potential
from ..energies.base import Energy
from ..errors import ConfigError
from ..measures import Gaussian
from ..measures.base import Isotropic
from ..measures.law import as_generator
from .base import Problem

_HALVINGS, _NEWTON = 100, 2  # of an interval that holds r₀², and steps from there


@dataclass(frozen=True)
class ShellLaw(Isotropic):
    """The push-forward of N(0, σ²I) in the plane by r² = (M + c)(1 − E) + E r₀², M = 1 − e^{−r₀²/2σ²}, along rays.

    Args:
        sigma: σ.
        hole: c.
        kept: E in (0, 1].
    """

    sigma: float
    hole: float
    kept: float
    dim: int = 2

    @property
    def second_moment(self) -> float:
        """(½ + c)(1 − E) + 2σ²E."""
        return (0.5 + self.hole) * (1 - self.kept) + 2 * self.sigma**2 * self.kept

    def squared_radius(self, start: Tensor) -> Tensor:
        """r² from r₀²."""
        mass = -torch.expm1(-start / (2 * self.sigma**2))
        return (mass + self.hole) * (1 - self.kept) + self.kept * start

    def moved(self, z: Tensor) -> Tensor:
        """The exact image x of z (n,2)."""
        start = z.square().sum(1, keepdim=True)
        return z * (self.squared_radius(start) / start).sqrt()

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples, (n,2) float64: images of Gaussian ones."""
        return self.moved(Gaussian(2, cov=self.sigma**2).sample(n, as_generator(seed, "ShellLaw.sample")))

    def _rate(self, start: Tensor) -> Tensor:
        """d r²/d r₀²."""
        variance = 2 * self.sigma**2
        return (1 - self.kept) / variance * torch.exp(-start / variance) + self.kept

    def _start(self, squared: Tensor) -> Tensor:
        """r₀² from r², differentiable."""
        target = squared.detach()
        low, high = torch.zeros_like(target), target / self.kept
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = self.squared_radius(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        start = (low + high) / 2
        for _ in range(_NEWTON):
            start = start - (self.squared_radius(start) - target) / self._rate(start)
        return start + (squared - target) / self._rate(start)

    def log_density(self, x: Tensor) -> Tensor:
        """−log(2πσ²) − r₀²/2σ² − log(d r²/d r₀²), (n,2) → (n,); −inf in the hole."""
        squared = as_points(x, 2, "ShellLaw.log_density(x): x").square().sum(1)
        outside = (squared < self.hole * (1 - self.kept)) | squared.isinf()
        start = self._start(torch.where(outside, 1.0 + self.hole, squared))
        variance = 2 * self.sigma**2
        log_density = -math.log(math.pi * variance) - start / variance - self._rate(start).log()
        return torch.where(outside, -math.inf, log_density)


class NewtonianAggregation(Problem):
    """F(ρ) = ½∬W(x−y) dρ dρ with W(x) = |x|²/2 − log|x| in the plane, from N(0, σ²I); it tends to the unit disc.

    A sample feels only the mass M = 1 − e^{−r₀²/2σ²} within its own radius, which stays the same, so that it moves
    along its ray with r² = M + (r₀² − M)e^{−2t}. With `annulus` the potential −¼log|x| opens a hole: M + ¼ in place of
    M, and the limit is uniform on ½ < |x| < √5/2.

    Args:
        dim: 2.
        sigma: σ > 0.
        annulus: whether the potential is there.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> round(NewtonianAggregation(sigma=1.0).exact(0.5).second_moment, 6)
        1.051819

    References:
        R. C. Fetecau, Y. Huang, T. Kolokolnikov, Swarm dynamics and equilibria for a nonlocal aggregation model, 2011,
        Nonlinearity 24, 2681.
    """

    @plain_numbers
    def __init__(self, dim: int = 2, sigma: float = 1.0, annulus: bool = False) -> None:
        check_dim(dim, "NewtonianAggregation(dim)")
        if dim != 2:
            raise ConfigError(f"NewtonianAggregation(dim=…) must be 2, where −log|x| is Newtonian; got {dim}.")
        self.dim, self.annulus = dim, bool(annulus)
        self.sigma = check_positive(sigma, "sigma", "NewtonianAggregation")

    @property
    def reference(self) -> Gaussian:
        """N(0, σ²I)."""
        return Gaussian(2, cov=self.sigma**2)

    @property
    def energy(self) -> Energy:
        """½∬W, and with `annulus` −¼E log|x|."""

        def kernel(r: Tensor) -> Tensor:
            squared = r.square().sum(-1)
            return 0.5 * (squared - squared.log())

        def hole(x: Tensor) -> Tensor:
            return -0.125 * x.square().sum(-1).log()

        swarm = Interaction(kernel)
        return swarm + Potential(hole) if self.annulus else swarm

    @property
    def times(self) -> np.ndarray:
        """0, .1, …, 1."""
        return np.linspace(0, 1, 11)

    def exact(self, t: float) -> ShellLaw:
        """The law at time t ≥ 0; its `moved(z)` is the exact map."""
        return ShellLaw(self.sigma, 0.25 if self.annulus else 0.0, math.exp(-2 * self._check_time(t)))

    def exact_energy(self, t: float) -> float:
        """½E|x|² − ½E log max(|x|, |y|), and −¼E log|x|: over angles log|x−y| averages to the log of the larger."""
        from scipy.integrate import quad  # noqa: PLC0415

        law = self.exact(t)

        def log_radius(mass: float) -> float:
            start = -2 * self.sigma**2 * math.log1p(-mass)
            return 0.5 * math.log((mass + law.hole) * (1 - law.kept) + law.kept * start)

        pairs = quad(lambda mass: 2 * mass * log_radius(mass), 0, 1)[0]
        single = quad(log_radius, 0, 1)[0] if self.annulus else 0.0
        return 0.5 * law.second_moment - 0.5 * pairs - 0.25 * single

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "sigma": self.sigma, "annulus": self.annulus}
