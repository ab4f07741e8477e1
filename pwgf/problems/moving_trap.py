"""A harmonic trap that is dragged along: Gaussian at all times, with known work and entropy production."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_dim, check_positive, plain_numbers
from ..energies.base import Energy
from ..energies.local import Entropy
from ..energies.potential import Potential
from ..measures import Gaussian
from .base import Problem


class MovingTrap(Problem):
    """F(ρ) = ∫½k|x − ut e₁|² dρ + τ∫ρ log ρ from its equilibrium at t = 0: the trap moves along e₁ with speed u.

    The mean lags behind, m = u(t − (1 − e^{−kt})/k) e₁; the covariance stays τ/k. The work done on average is
    u²(t − (1 − e^{−kt})/k), at the rate u²(1 − e^{−kt}); the entropy production rate is u²(1 − e^{−kt})²/τ.

    Args:
        dim: d ≥ 1.
        speed: u > 0.
        stiffness: k > 0.
        temperature: τ > 0.

    Raises:
        ConfigError: dim < 1, or a number not positive.

    Example:
        >>> from pwgf import problems
        >>> trap = problems.MovingTrap(dim=1)
        >>> round(trap.work(1.0), 4), round(float(trap.exact(1.0).mean()), 4)
        (0.3679, 0.3679)

    References:
        O. Mazonka, C. Jarzynski, Exactly solvable model illustrating far-from-equilibrium predictions, 1999, arXiv
        cond-mat/9912121.
    """

    @plain_numbers
    def __init__(self, dim: int = 1, speed: float = 1.0, stiffness: float = 1.0, temperature: float = 1.0) -> None:
        check_dim(dim, "MovingTrap(dim)")
        self.dim = dim
        self.speed = check_positive(speed, "speed", "MovingTrap")
        self.stiffness = check_positive(stiffness, "stiffness", "MovingTrap")
        self.heat = check_positive(temperature, "temperature", "MovingTrap")

    def potential(self, t: Tensor, x: Tensor) -> Tensor:
        """V(t, x) = ½k|x − ut e₁|², (n,d) -> (n,)."""
        across = x[:, 1:].square().sum(-1)
        return 0.5 * self.stiffness * ((x[:, 0] - self.speed * t).square() + across)

    @property
    def reference(self) -> Gaussian:
        """N(0, τ/k I)."""
        return Gaussian(self.dim, cov=self.heat / self.stiffness * np.eye(self.dim))

    @property
    def energy(self) -> Energy:
        """The potential, which depends on time, and the entropy."""
        return Potential(self.potential, time=True) + self.heat * Entropy()

    @property
    def times(self) -> np.ndarray:
        """0, .5, …, 3."""
        return np.linspace(0, 3, 7)

    @property
    def temperature(self) -> float:
        """τ."""
        return self.heat

    @property
    def convexity(self) -> float:
        """k."""
        return self.stiffness

    def work(self, t: float) -> float:
        """The mean work done by the trap up to t."""
        return self.speed**2 * (t - self._share(t) / self.stiffness)

    def power(self, t: float) -> float:
        """Its rate, E ∂ₜV."""
        return self.speed**2 * self._share(t)

    def entropy_production(self, t: float) -> float:
        """The rate E|v|²/τ."""
        return (self.speed * self._share(t)) ** 2 / self.heat

    def _share(self, t: float) -> float:
        return -math.expm1(-self.stiffness * t)

    def exact(self, t: float) -> Gaussian:
        """The Gaussian law at time t ≥ 0."""
        mean = torch.zeros(self.dim, dtype=torch.float64)
        mean[0] = self.work(self._check_time(t)) / self.speed
        return Gaussian(self.dim, mean, self.reference.cov())

    def exact_energy(self, t: float) -> float:
        """½k|m − ut e₁|² + ½dτ − ½dτ log(2πe τ/k)."""
        lag = self.speed * self._share(self._check_time(t)) / self.stiffness
        width = self.heat / self.stiffness
        entropy = -0.5 * self.dim * math.log(2 * math.pi * math.e * width)
        return 0.5 * self.stiffness * lag**2 + self.heat * (0.5 * self.dim + entropy)

    def _arguments(self) -> dict[str, Any]:
        numbers = {"speed": self.speed, "stiffness": self.stiffness, "temperature": self.heat}
        return {"dim": self.dim, **numbers}
