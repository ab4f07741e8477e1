"""An isothermal gas that expands into empty space from a Gaussian at rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.local import Entropy
from ..measures import Gaussian
from .base import Problem


class IsothermalGas(Problem):
    """F(ρ) = τ∫ρ log ρ, the Hamiltonian flow from N(0, I) at rest: N(0, σ(t)²I) with σ̈ = τ/σ.

    These are the isothermal Euler equations, ∂ₜu + (u·∇)u = −τ∇log ρ. From ½σ̇² = τ log σ follows σ = exp(w²) with
    erfi(w) = t√(2τ/π).

    Args:
        dim: d ≥ 1.
        temperature: τ > 0.

    Raises:
        ConfigError: an argument out of range.

    Example:
        >>> round(float(IsothermalGas(dim=1).exact(1.0).cov()), 4)
        2.1484

    References:
        Chow, Li, Zhou, Wasserstein Hamiltonian flows, 2019, arXiv 1903.01088.
    """

    flow = "Hamiltonian"

    @plain_numbers
    def __init__(self, dim: int, temperature: float = 1.0) -> None:
        check_dim(dim, "IsothermalGas(dim)")
        self.dim, self._temperature = dim, check_positive(temperature, "temperature", "IsothermalGas")

    @property
    def temperature(self) -> float:
        """τ."""
        return self._temperature

    @property
    def reference(self) -> Gaussian:
        """N(0, I)."""
        return Gaussian(self.dim)

    @property
    def energy(self) -> Energy:
        """The entropy, times τ."""
        return self.temperature * Entropy()

    @property
    def times(self) -> np.ndarray:
        """Eleven times up to 2/√τ."""
        return np.linspace(0, 2 / math.sqrt(self.temperature), 11)

    def spread(self, t: float) -> float:
        """σ(t)."""
        from scipy.optimize import brentq  # noqa: PLC0415
        from scipy.special import erfi  # noqa: PLC0415

        goal = self._check_time(t) * math.sqrt(2 * self.temperature / math.pi)
        most = 1.0
        while erfi(most) < goal:
            most *= 2
        return math.exp(brentq(lambda w: erfi(w) - goal, 0.0, most, xtol=1e-15) ** 2)

    def exact(self, t: float) -> Gaussian:
        """N(0, σ(t)²I)."""
        return Gaussian(self.dim, cov=self.spread(t) ** 2)

    def exact_energy(self, t: float) -> float:
        """−τ(d/2) log(2πe σ²)."""
        return -0.5 * self.temperature * self.dim * math.log(2 * math.pi * math.e * self.spread(t) ** 2)

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "temperature": self.temperature}
