"""The harmonic oscillator for measures: every sample swings about the origin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ..checks import check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.potential import Potential
from ..errors import ConfigError
from ..measures import Gaussian
from .base import Problem

_FOCUS = 1e-6  # |cos ωt| below which the law is a point


class HarmonicHamiltonian(Problem):
    """F(ρ) = ∫½ω²|x|² dρ, the Hamiltonian flow from N(𝟏, I) at rest: T_t = cos(ωt)·T₀.

    The law at t is N(cos(ωt)·𝟏, cos²(ωt)·I). Where cos(ωt) = 0 all samples meet in a point, the focus, which the flow
    passes, as it needs no density; the law has none there.

    Args:
        dim: d ≥ 1.
        omega: ω > 0, in units of 1/t.

    Raises:
        ConfigError: an argument out of range; from `exact`: t at a focus.

    Example:
        >>> problem = HarmonicHamiltonian(dim=1)
        >>> round(float(problem.exact(math.pi).mean()), 6)
        -1.0

    References:
        Wu, Liu, Ye, Zhou, Parameterized Wasserstein Hamiltonian flow, 2023, arXiv 2306.00191.
    """

    flow = "Hamiltonian"

    @plain_numbers
    def __init__(self, dim: int, omega: float = 1.0) -> None:
        check_dim(dim, "HarmonicHamiltonian(dim)")
        self.dim, self.omega = dim, check_positive(omega, "omega", "HarmonicHamiltonian")

    def potential(self, x: Tensor) -> Tensor:
        """V(x) = ½ω²|x|², (n, d) -> (n,)."""
        return 0.5 * self.omega**2 * x.square().sum(-1)

    @property
    def reference(self) -> Gaussian:
        """N(𝟏, I)."""
        return Gaussian(self.dim, mean=1.0)

    @property
    def energy(self) -> Energy:
        """The potential."""
        return Potential(self.potential)

    @property
    def times(self) -> np.ndarray:
        """Seventeen times over eight ninths of a period, none of them at a focus."""
        return np.linspace(0, 16 * math.pi / (9 * self.omega), 17)

    def exact(self, t: float) -> Gaussian:
        """N(cos(ωt)·𝟏, cos²(ωt)·I)."""
        scale = math.cos(self.omega * self._check_time(t))
        if abs(scale) < _FOCUS:
            raise ConfigError(
                f"HarmonicHamiltonian.exact(t={t:g}): at ωt = π/2 + kπ the law is a point, without a density. Choose a "
                "time away from there."
            )
        return Gaussian(self.dim, scale, scale**2)

    def exact_energy(self, t: float) -> float:
        """½ω² E|x|² = ω² d cos²(ωt)."""
        return self.omega**2 * self.dim * math.cos(self.omega * self._check_time(t)) ** 2

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "omega": self.omega}
