"""The porous-medium flow from its self-similar solution."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.local import PorousMedium
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
        profile = self.exact(t)
        height = profile.C - profile.k * profile.t ** (-2 * profile.b) * profile.second_moment
        return profile.t ** (-self.dim * (self.m - 1) * profile.b) * height / (self.m - 1)

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "m": self.m, "t0": self.t0, "t1": self.t1}
