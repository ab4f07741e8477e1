"""Porous-medium flows from the self-similar solution: free, and in a quadratic potential."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.local import PorousMedium
from ..energies.potential import Potential
from ..errors import ConfigError
from ..measures import Barenblatt
from .base import Problem


class BarenblattFlow(Problem):
    """F(ρ) = ∫ρ^m/(m−1), the flow ∂ₜρ = Δρ^m, from the Barenblatt profile at t₀.

    The law at t is the profile at t: the push-forward of the first by x ↦ (t/t₀)^b x, b = 1/(d(m−1)+2).

    Args:
        dim: d ≥ 1.
        m: exponent > 1.
        t0: time of the reference, > 0; the flow runs from t0, not from 0.
        t1: last of the problem's times, > t0.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> problem = BarenblattFlow(dim=2)
        >>> round(problem.exact(1.0).second_moment, 6)
        1.063846

    References:
        J. L. Vázquez, The Porous Medium Equation, 2006, §4.4.
    """

    @plain_numbers
    def __init__(self, dim: int, m: float = 2, t0: float = 1, t1: float = 2) -> None:
        check_dim(dim, "BarenblattFlow(dim)")
        self.dim = dim
        self.m, self.t0, self.t1 = (
            check_positive(v, k, "BarenblattFlow") for k, v in (("m", m), ("t0", t0), ("t1", t1))
        )
        if self.m <= 1:
            raise ConfigError(f"BarenblattFlow(m=…) needs m > 1; got {m}. For m = 1 use an OrnsteinUhlenbeck flow.")
        if self.t1 <= self.t0:
            raise ConfigError(f"BarenblattFlow(t0, t1) needs t1 > t0; got t0={t0}, t1={t1}. Times run forwards.")

    @property
    def reference(self) -> Barenblatt:
        """The profile at t₀."""
        return Barenblatt(self.dim, self.m, self.t0)

    @property
    def energy(self) -> Energy:
        """∫ρ^m/(m−1)."""
        return PorousMedium(self.m)

    @property
    def times(self) -> np.ndarray:
        """Eleven times from t₀ to t₁."""
        return np.linspace(self.t0, self.t1, 11)

    @property
    def convexity(self) -> float:
        """0: the energy is convex along geodesics as m ≥ 1 − 1/d (McCann 1997)."""
        return 0.0

    def exact(self, t: float) -> Barenblatt:
        """The profile at time t ≥ t₀."""
        return Barenblatt(self.dim, self.m, self._check_time(t))

    def exact_energy(self, t: float) -> float:
        """E[ρ^{m−1}]/(m−1) = t^{−d(m−1)b} (C − k t^{−2b} E|x|²)/(m−1)."""
        return _internal_energy(self.exact(t))

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "m": self.m, "t0": self.t0, "t1": self.t1}


class ConfinedPorousMedium(Problem):
    """F(ρ) = ∫ρ^m/(m−1) + E|x|²/2, the flow ∂ₜρ = ∇·(xρ) + Δρ^m, from a Barenblatt profile.

    The law stays a Barenblatt profile. With q = d(m−1) + 2 its radius obeys R^q = R∞^q + (R₀^q − R∞^q)e^{−qt}, so it is
    the profile of the free flow at time s = s∞ + (s₀ − s∞)e^{−qt}, s∞ = 1/q.

    Args:
        dim: d ≥ 1.
        m: exponent > 1.
        ratio: R₀/R∞ > 0, not 1.
        end_time: last of the problem's times.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> round(ConfinedPorousMedium(dim=1).exact(100.0).radius ** 3, 6)  # R∞³ = 3
        3.0

    References:
        J. A. Carrillo, G. Toscani, Asymptotic L¹-decay of solutions of the porous medium equation to self-similarity,
        2000, Indiana Univ. Math. J. 49, 113.
    """

    @plain_numbers
    def __init__(self, dim: int, m: float = 2, ratio: float = 0.5, end_time: float = 1.0) -> None:
        check_dim(dim, "ConfinedPorousMedium(dim)")
        self.dim = dim
        self.m, self.ratio, self.end_time = (
            check_positive(v, k, "ConfinedPorousMedium")
            for k, v in (("m", m), ("ratio", ratio), ("end_time", end_time))
        )
        if self.m <= 1:
            raise ConfigError(f"ConfinedPorousMedium(m=…) needs m > 1; got {m}. For m = 1 use OrnsteinUhlenbeck.")
        if self.ratio == 1:
            raise ConfigError("ConfinedPorousMedium(ratio=1) starts at the equilibrium; give another, such as 0.5.")

    @property
    def rate(self) -> float:
        """q = d(m−1) + 2."""
        return self.dim * (self.m - 1) + 2

    @property
    def reference(self) -> Barenblatt:
        """The profile of radius R₀."""
        return self.exact(0.0)

    @property
    def energy(self) -> Energy:
        """∫ρ^m/(m−1) + E|x|²/2."""
        return PorousMedium(self.m) + Potential(_half_square)

    @property
    def times(self) -> np.ndarray:
        """Eleven times from 0 to `end_time`."""
        return np.linspace(0, self.end_time, 11)

    @property
    def convexity(self) -> float:
        """1, that of the potential."""
        return 1.0

    def exact(self, t: float) -> Barenblatt:
        """The profile at time t ≥ 0."""
        left = math.exp(-self.rate * self._check_time(t))
        return Barenblatt(self.dim, self.m, (1 + (self.ratio**self.rate - 1) * left) / self.rate)

    def exact_energy(self, t: float) -> float:
        """E[ρ^{m−1}]/(m−1) + E|x|²/2."""
        profile = self.exact(t)
        return _internal_energy(profile) + 0.5 * profile.second_moment

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "m": self.m, "ratio": self.ratio, "end_time": self.end_time}


def _half_square(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def _internal_energy(profile: Barenblatt) -> float:
    """E[ρ^{m−1}]/(m−1) = t^{−d(m−1)b} (C − k t^{−2b} E|x|²)/(m−1)."""
    height = profile.C - profile.k * profile.t ** (-2 * profile.b) * profile.second_moment
    return profile.t ** (-profile.dim * (profile.m - 1) * profile.b) * height / (profile.m - 1)
