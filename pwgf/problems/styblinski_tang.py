"""The Styblinski–Tang flow: a product of tilted double wells with entropy, known in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_points, check_dim, check_positive, density_at, plain_numbers
from ..energies.base import Energy
from ..energies.local import Entropy
from ..energies.potential import Potential
from ..measures import Gaussian, Law
from ..measures.law import as_generator
from ..oracles.finite_volume import Marginal, fokker_planck_marginal
from .base import Problem


@dataclass(frozen=True, eq=False)
class ProductLaw(Law):
    """The law of d independent coordinates with the same marginal.

    Args:
        dim: d.
        marginal: the law of one coordinate.
    """

    dim: int
    marginal: Marginal

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples, (n, d) float64."""
        return self.marginal.sample((n, self.dim), as_generator(seed, "ProductLaw.sample"))

    def log_density(self, x: Tensor) -> Tensor:
        """Σ_k log ρ(x_k) at x (n, d), (n,)."""
        x = as_points(x, self.dim, "ProductLaw.log_density(x): x")
        return density_at(x, lambda x: self.marginal.log_density(x).sum(-1))

    def mean(self) -> Tensor:
        """(d,)."""
        return torch.full((self.dim,), self.marginal.mean, dtype=torch.float64)

    def cov(self) -> Tensor:
        """(d, d)."""
        return self.marginal.var * torch.eye(self.dim, dtype=torch.float64)


class StyblinskiTang(Problem):
    """F(ρ) = ∫c Σ_k(x_k⁴ − 16x_k² + 5x_k) dρ + ∫ρ log ρ from N(0, I), temperature 1.

    Two wells per coordinate, near ±2.8, with a barrier of height about 64c between them. The law is a product; its
    marginal comes from finite volumes, about .3 s for each new time, and is kept. Its energy and moments are accurate
    to 1e-6 for c ≤ 5, to 1e-10 at c = .06.

    Args:
        dim: d ≥ 1.
        c: steepness > 0; at .06 mass still crosses the barriers, at .5 hardly any does.
        end_time: last of the problem's times; default .12/c, which is 2 at c = .06.

    Raises:
        ConfigError: an argument outside its range.

    References:
        M. A. Styblinski, T.-S. Tang, Experiments in nonconvex optimization, 1990.
    """

    @plain_numbers
    def __init__(self, dim: int, c: float = 0.06, end_time: float | None = None) -> None:
        check_dim(dim, "StyblinskiTang(dim)")
        self.dim, self.c = dim, check_positive(c, "c", "StyblinskiTang")
        self.end_time = check_positive(0.12 / self.c if end_time is None else end_time, "end_time", "StyblinskiTang")
        self._marginals: dict[float, Marginal] = {}

    def potential(self, x: Tensor) -> Tensor:
        """V(x) = c Σ(x⁴ − 16x² + 5x), (n, d) -> (n,)."""
        squared = x.square()
        return self.c * (squared * (squared - 16) + 5 * x).sum(-1)

    @property
    def reference(self) -> Gaussian:
        """N(0, I)."""
        return Gaussian(self.dim)

    @property
    def energy(self) -> Energy:
        """Potential + entropy."""
        return Potential(self.potential) + Entropy()

    @property
    def times(self) -> np.ndarray:
        """Nine times from 0 to `end_time`."""
        return np.linspace(0, self.end_time, 9)

    @property
    def temperature(self) -> float:
        """1."""
        return 1.0

    @property
    def convexity(self) -> float:
        """−32c, the smallest second derivative of V."""
        return -32 * self.c

    def marginal(self, t: float) -> Marginal:
        """The law of one coordinate at time t ≥ 0, with its moments, energy and `probability_below`."""
        t = self._check_time(t)
        if t not in self._marginals:
            num_nodes = 1 + 2048 * min(16, math.ceil(self.c))  # steeper wells make narrower fronts
            self._marginals[t] = fokker_planck_marginal(self.potential, t, num_nodes=num_nodes)
        return self._marginals[t]

    def exact(self, t: float) -> Law:
        """The product law at time t ≥ 0."""
        return self.reference if self._check_time(t) == 0 else ProductLaw(self.dim, self.marginal(t))

    def exact_energy(self, t: float) -> float:
        """d times the energy of a coordinate."""
        return self.dim * self.marginal(t).energy

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "c": self.c, "end_time": self.end_time}
