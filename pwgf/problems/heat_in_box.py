"""Heat in a box with reflecting walls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import check_dim, check_positive, is_real, plain_numbers
from ..energies import Entropy
from ..energies.base import Energy
from ..errors import ConfigError
from ..maps import InBox, ResidualMLP
from ..measures import CosineSeries
from .base import Problem


class HeatInBox(Problem):
    """F(ρ) = τ∫ρ log ρ, the heat flow ∂ₜρ = τΔρ without flux through the walls of [0, 1]^d, from Π(1 + a cos πx_i).

    The law at t is Π(1 + a e^{−π²τt} cos πx_i). The flow needs a map that keeps the mass in the box, `needed_map`.

    Args:
        dim: d ≥ 1.
        amplitude: a, with 0 < |a| < 1.
        temperature: τ > 0.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> round(float(HeatInBox(dim=1).exact(0.1).mean()), 6)
        0.462237
    """

    @plain_numbers
    def __init__(self, dim: int, amplitude: float = 0.5, temperature: float = 1.0) -> None:
        check_dim(dim, "HeatInBox(dim)")
        self.dim = dim
        if not (is_real(amplitude) and 0 < abs(amplitude) < 1):
            raise ConfigError(f"HeatInBox(amplitude=…) must lie in (−1, 1), and not be 0; got {amplitude!r}.")
        self.amplitude = float(amplitude)
        self._temperature = check_positive(temperature, "temperature", "HeatInBox")

    @property
    def temperature(self) -> float:
        """τ."""
        return self._temperature

    @property
    def reference(self) -> CosineSeries:
        """Π(1 + a cos πx_i)."""
        return self.exact(0.0)

    @property
    def energy(self) -> Energy:
        """τ∫ρ log ρ."""
        return self.temperature * Entropy()

    @property
    def needed_map(self) -> InBox:
        """A residual map between the walls."""
        return InBox(ResidualMLP(self.dim), [0.0] * self.dim, [1.0] * self.dim)

    @property
    def times(self) -> np.ndarray:
        """0, .01/τ, …, .1/τ, in which a decays to .37 a."""
        return np.linspace(0, 0.1 / self.temperature, 11)

    @property
    def convexity(self) -> float:
        """0: the entropy is convex along geodesics of a convex set."""
        return 0.0

    def exact(self, t: float) -> CosineSeries:
        """The law at time t ≥ 0."""
        a = self.amplitude * math.exp(-(math.pi**2) * self.temperature * self._check_time(t))
        return CosineSeries([0.0] * self.dim, [1.0] * self.dim, [a])

    def exact_energy(self, t: float) -> float:
        """dτ(log((1 + b)/2) + 1 − b) with b = √(1 − a²), a the amplitude at t."""
        a = self.amplitude * math.exp(-(math.pi**2) * self.temperature * self._check_time(t))
        less = a**2 / (1 + math.sqrt(1 - a**2))  # 1 − b
        return self.dim * self.temperature * (math.log1p(-less / 2) + less)

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "amplitude": self.amplitude, "temperature": self.temperature}
