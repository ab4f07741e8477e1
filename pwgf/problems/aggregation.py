"""Aggregation by a kernel that repels at short range and attracts at long range, from a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import as_points, check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.interaction import Interaction, RadialPolynomial
from ..measures import Gaussian
from ..measures.base import Isotropic
from ..measures.law import as_generator
from .base import Problem


class RadialMap(NamedTuple):
    """The exact map |x|² = |z|²/(q + 2β|z|²), x ∥ z, from z ~ N(0, I), with the moments of its law.

    Args:
        q, beta: coefficients; q = 1/σ², β = 0 at the start, q → 0 and β → 1/(2R²) on the sphere of radius R at the end.
        second_moment: E|x|².
        fourth_moment: E|x|⁴.
    """

    q: float
    beta: float
    second_moment: float
    fourth_moment: float


@dataclass(frozen=True, eq=False)
class RadialLaw(Isotropic):
    """The push-forward of N(0, I) by a `RadialMap`; supported in the ball |x|² < 1/(2β).

    Args:
        dim: d.
        map: the map.
    """

    dim: int
    map: RadialMap

    @property
    def second_moment(self) -> float:
        """E|x|²."""
        return self.map.second_moment

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples, (n, d) float64."""
        z = torch.randn(n, self.dim, generator=as_generator(seed, "RadialLaw.sample"), dtype=torch.float64)
        return z / (self.map.q + 2 * self.map.beta * z.square().sum(1, keepdim=True)).sqrt()

    def log_density(self, x: Tensor) -> Tensor:
        """−½|z|² + (d/2) log(q/2π) − (d/2 + 1) log(1 − 2β|x|²), |z|² = q|x|²/(1 − 2β|x|²); (n, d) -> (n,)."""
        dim, q = self.dim, self.map.q
        squared = as_points(x, dim, "RadialLaw.log_density(x): x").square().sum(-1)
        room = 1 - 2 * self.map.beta * squared
        inside = room > 0
        room = torch.where(inside, room, torch.ones_like(room))
        log_density = -0.5 * q * squared / room - (dim / 2 + 1) * room.log() + dim / 2 * math.log(q / (2 * math.pi))
        return log_density.masked_fill(~inside, -math.inf)


class Aggregation(Problem):
    """F(ρ) = ½∬W(x−y) dρ dρ with W(x) = |x|⁴/4 − |x|²/2, from N(0, σ²I); the flow tends to a sphere.

    For a law symmetric about 0 the velocity is x(1 − (d+2)m − |x|²) with m = E|x|²/d, so |x|² = |z|²/(q + 2β|z|²),
    z ~ N(0, I), with q' = −2αq, β' = 1 − 2αβ, α = 1 − (d+2)m: two ordinary differential equations. In the limit
    |x|² = d/(2(d+1)).

    Args:
        dim: d ≥ 1.
        sigma: σ > 0.

    Raises:
        ConfigError: dim < 1 or σ ≤ 0.

    Example:
        >>> round(float(Aggregation(dim=2).exact(1.0).cov()[0, 0]), 6)
        0.174455

    References:
        J. A. Carrillo, Y. Huang, Explicit equilibrium solutions for the aggregation equation with power-law potentials,
        2017, arXiv 1602.06615.
    """

    @plain_numbers
    def __init__(self, dim: int, sigma: float = 1.0) -> None:
        check_dim(dim, "Aggregation(dim)")
        self.dim = dim
        self.sigma = check_positive(sigma, "sigma", "Aggregation")
        self._maps: dict[float, RadialMap] = {}

    @property
    def kernel(self) -> RadialPolynomial:
        """W(x) = |x|⁴/4 − |x|²/2, (…, d) -> (…,)."""
        return RadialPolynomial(quadratic=-0.5, quartic=0.25)

    @property
    def reference(self) -> Gaussian:
        """N(0, σ²I)."""
        return Gaussian(self.dim, cov=self.sigma**2)

    @property
    def energy(self) -> Energy:
        """½∬W, by moments."""
        return Interaction(self.kernel)

    @property
    def times(self) -> np.ndarray:
        """0, .1, …, 2."""
        return np.linspace(0, 2, 21)

    def map(self, t: float) -> RadialMap:
        """The exact map from N(0, I) to the law at time t ≥ 0; kept once computed."""
        t = self._check_time(t)
        if t not in self._maps:
            self._maps[t] = _radial_map(self.dim, self.sigma, t)
        return self._maps[t]

    def exact(self, t: float) -> RadialLaw:
        """The law at time t ≥ 0."""
        return RadialLaw(self.dim, self.map(t))

    def exact_energy(self, t: float) -> float:
        """½(E|x−y|⁴/4 − E|x−y|²/2), with E|x−y|⁴ = 2M₄ + (2 + 4/d)M₂² and E|x−y|² = 2M₂."""
        second, fourth = self.map(t)[2:]
        return 0.5 * ((2 * fourth + (2 + 4 / self.dim) * second**2) / 4 - second)

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "sigma": self.sigma}


def _radial_map(dim: int, sigma: float, t: float) -> RadialMap:
    """Integrates (q, β) to time t by the classical Runge–Kutta method, with steps in proportion to the present rate."""
    squared, weights = _chi_squared(dim)

    def moment(state: np.ndarray, power: int) -> float:
        return float(weights @ (squared / (state[0] + 2 * state[1] * squared)) ** power)

    def rate(state: np.ndarray) -> np.ndarray:
        alpha = 1 - (dim + 2) * moment(state, 1) / dim
        return np.array([-2 * alpha * state[0], 1 - 2 * alpha * state[1]])

    state, now = np.array([sigma**-2, 0.0]), 0.0
    while now < t:
        step = min(0.02 / (1 + (dim + 2) * moment(state, 1) / dim), t - now)
        k1 = rate(state)
        k2 = rate(state + step / 2 * k1)
        k3 = rate(state + step / 2 * k2)
        k4 = rate(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        now = t if step == t - now else now + step
    return RadialMap(float(state[0]), float(state[1]), moment(state, 1), moment(state, 2))


def _chi_squared(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for E f(r²), r² ~ χ²_d: the trapezoid rule in log r².

    It converges exponentially at one and the same rate for every f(s) = 1/(q + 2βs), where Gauss–Laguerre fails as the
    pole nears 0.
    """
    spacing = min(0.1, 0.3 * math.sqrt(2 / dim))
    centre = math.log(dim / 2)
    width = max(12 * math.sqrt(2 / dim), 2)
    u = np.arange(centre - max(width, 80 / dim), centre + width + 4, spacing)  # log(r²/2)
    log_weight = dim / 2 * (u - centre) - np.exp(u) + dim / 2
    weights = np.exp(log_weight)
    return 2 * np.exp(u), weights / weights.sum()
