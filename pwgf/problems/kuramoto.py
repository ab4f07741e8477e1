"""Noisy phase oscillators that attract each other, in the limit of infinitely many."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_positive, is_real, plain_numbers
from ..energies import Entropy, Interaction
from ..energies.base import Energy
from ..errors import ConfigError
from ..maps import OnTorus
from ..measures import CosineSeries
from .base import Problem

_MODES = 32  # and more for narrow laws
_NARROWEST = 200.0  # K/τ


class Kuramoto(Problem):
    """F(ρ) = −½K∬cos(x−y) dρ dρ + τ∫ρ log ρ on the circle, from the density (1 + a cos x)/2π.

    The mean-field limit of the noisy Kuramoto model of identical oscillators, dx_i = K/N Σ_j sin(x_j − x_i) dt + √(2τ)
    dW_i. Its order parameter r = E cos x tends to 0 for K ≤ 2τ, and above this onset to the solution of r =
    I₁(Kr/τ)/I₀(Kr/τ). The moments m_k = E cos kx, r = m_1, of the law at t obey ṁ_k = −τk²m_k + ½kKr(m_{k−1} −
    m_{k+1}); these are integrated to about nine digits. The flow needs a map on the circle, `needed_map`.

    Args:
        K: coupling ≥ 0.
        temperature: τ > 0; K/τ ≤ 200.
        amplitude: a, with 0 < |a| < 1.
        end_time: last of the problem's times.
        dim: 1.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> round(Kuramoto(K=4.0, temperature=1.0).stationary_order, 6)
        0.831462

    References:
        H. Sakaguchi, Cooperative phenomena in coupled oscillator systems under external fields, 1988.
        L. Bertini, G. Giacomin, K. Pakdaman, Dynamical aspects of mean field plane rotators and the Kuramoto model,
        2010, arXiv 0911.1499.
    """

    @plain_numbers
    def __init__(
        self, K: float = 4.0, temperature: float = 1.0, amplitude: float = 0.5, end_time: float = 4.0, dim: int = 1
    ) -> None:
        if dim != 1:
            rule = "an integer ≥ 1, and here 1" if not isinstance(dim, int) or dim < 1 else "1, an angle"
            raise ConfigError(f"Kuramoto(dim=…): dim must be {rule}; got {dim!r}. Leave it out.")
        self.dim = 1
        self._temperature = check_positive(temperature, "temperature", "Kuramoto")
        if not (is_real(K) and 0 <= K <= _NARROWEST * self._temperature):
            raise ConfigError(
                f"Kuramoto(K=…) must lie between 0 and {_NARROWEST:g} times the temperature; got {K!r} and "
                f"{self._temperature:g}. Above, all oscillators are one; raise the temperature."
            )
        if not (is_real(amplitude) and 0 < abs(amplitude) < 1):
            raise ConfigError(f"Kuramoto(amplitude=…) must lie in (−1, 1), and not be 0; got {amplitude!r}.")
        self.K, self.amplitude = float(K), float(amplitude)
        self.end_time = check_positive(end_time, "end_time", "Kuramoto")
        self._moments_at: dict[float, np.ndarray] = {}

    @property
    def temperature(self) -> float:
        """τ."""
        return self._temperature

    @property
    def reference(self) -> CosineSeries:
        """(1 + a cos x)/2π on [−π, π]."""
        return _law(np.array([self.amplitude / 2]))

    @property
    def energy(self) -> Energy:
        """−½K∬cos(x−y) + τ∫ρ log ρ."""
        K = self.K

        def attraction(x: Tensor) -> Tensor:
            return -K * x.cos().sum(-1)

        return Interaction(attraction) + self.temperature * Entropy()

    @property
    def needed_map(self) -> OnTorus:
        """A residual map of the circle."""
        return OnTorus(1, 2 * math.pi, -math.pi)

    @property
    def times(self) -> np.ndarray:
        """Nine times from 0 to `end_time`."""
        return np.linspace(0, self.end_time, 9)

    @cached_property
    def stationary_order(self) -> float:
        """The r ≥ 0 to which the order parameter tends, in absolute value."""
        from scipy.optimize import brentq  # noqa: PLC0415
        from scipy.special import ive  # noqa: PLC0415

        ratio = self.K / self.temperature
        if ratio <= 2:
            return 0.0
        least = 0.5 * math.sqrt(1 - 2 / ratio)  # below the root, where I₁/I₀ > r
        return float(brentq(lambda r: ive(1, ratio * r) / ive(0, ratio * r) - r, least, 1, xtol=1e-15))

    def moments(self, t: float) -> np.ndarray:
        """E cos kx, k = 1, 2, …, of the law at t ≥ 0; kept once computed."""
        t = self._check_time(t)
        if t not in self._moments_at:
            self._moments_at[t] = self._integrated(t)
        return self._moments_at[t]

    def _integrated(self, t: float) -> np.ndarray:
        from scipy.integrate import solve_ivp  # noqa: PLC0415

        count = _MODES + int(2 * math.sqrt(40 * self.K / self.temperature))  # I_k(κ)/I_0(κ) ≈ exp(−k²/2κ)
        k = np.arange(1, count + 1)

        def rate(_: float, m: np.ndarray) -> np.ndarray:
            around = np.concatenate([[1.0], m, [0.0]])
            return -self.temperature * k**2 * m + 0.5 * self.K * m[0] * k * (around[:-2] - around[2:])

        start = np.zeros(count)
        start[0] = self.amplitude / 2
        if t == 0:
            return start
        return np.asarray(solve_ivp(rate, (0, t), start, method="BDF", rtol=1e-10, atol=1e-13).y[:, -1])

    def order_parameter(self, t: float) -> float:
        """r = E cos x at time t ≥ 0."""
        return float(self.moments(t)[0])

    def exact(self, t: float) -> CosineSeries:
        """The law at time t ≥ 0, on the circle."""
        return _law(self.moments(t))

    def exact_energy(self, t: float) -> float:
        """−½Kr² + τ∫ρ log ρ."""
        return -0.5 * self.K * self.order_parameter(t) ** 2 + self.temperature * self.exact(t).mean_log_density()

    def _arguments(self) -> dict[str, Any]:
        return {
            "K": self.K, "temperature": self.temperature, "amplitude": self.amplitude, "end_time": self.end_time,
            "dim": 1,
        }  # fmt: skip


def _law(moments: np.ndarray) -> CosineSeries:
    """(1 + 2Σ m_k cos kx)/2π as a series in u = (x + π)/2π: cos kx = (−1)^k cos 2πku."""
    kept = max(1, int((abs(moments) > 1e-16).sum()))
    coefficients = torch.zeros(2 * kept, dtype=torch.float64)
    signs = (-1.0) ** np.arange(1, kept + 1)
    coefficients[1::2] = torch.from_numpy(2 * signs * moments[:kept])
    return CosineSeries(-math.pi, math.pi, coefficients.tolist(), periodic=True)
