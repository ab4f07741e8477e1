"""Laws on a box or a torus whose density is a cosine series in every coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import Constants, as_points, density_at
from ..errors import ConfigError
from ..maps._box import check_box
from .base import Reference, even_uniforms
from .law import as_generator

_GRID = 4096  # intervals of a grid on [0, 1] on which the density is looked at
_HALVINGS = 30  # of the interval in which a quantile lies; Newton steps do the rest


class CosineSeries(Reference):
    r"""The law on a box with density Π_i f(u_i)/edge_i, f(u) = 1 + Σ_{k≥1} a_k cos kπu, u = (x − lower)/edge.

    Under heat flow between reflecting walls a_k decays as e^{−(kπ/edge)²t}. With `periodic` it is a law on the torus
    with these edges as periods: all odd a_k are 0, and the density is that of x and x + edge alike.

    Args:
        lower, upper: corners of the box, d numbers or one for all coordinates, in units of x.
        coefficients: a_1, a_2, …; f must be positive.
        periodic: whether the density continues beyond the box, where it is 0 otherwise.

    Raises:
        ConfigError: f is not positive, a coefficient is not finite, or the corners make no box.
        ShapeError: the corners do not fit each other.

    Example:
        >>> import torch
        >>> from pwgf.measures import CosineSeries
        >>> CosineSeries(0.0, 1.0, [0.5]).log_density(torch.tensor([[0.0], [1.0], [2.0]])).exp()
        tensor([1.5000, 0.5000, 0.0000])
    """

    edge: ClassVar[str] = "jump"

    def __init__(self, lower: Any, upper: Any, coefficients: Sequence[float], periodic: bool = False) -> None:
        self._lower, self._upper = check_box(lower, upper, "CosineSeries")
        self.dim, self.periodic = len(self._lower), bool(periodic)
        self._a = torch.tensor([float(a) for a in coefficients], dtype=torch.float64)
        self._pi_k = math.pi * torch.arange(1, len(self._a) + 1, dtype=torch.float64)
        self._constants = Constants(self._lower, self._upper, self._a, self._pi_k)
        least = float(self._series(torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)).min())
        if not least > 0:
            raise ConfigError(
                f"CosineSeries(coefficients=…) needs a density 1 + Σ a_k cos kπu > 0; got "
                f"{self._a.tolist()[:4]!r:.80}, with a least value of {least:.3g}. Give smaller coefficients."
            )
        if self.periodic and bool(self._a[::2].any()):
            raise ConfigError(
                "CosineSeries(periodic=True) needs a_1 = a_3 = … = 0, or values and slopes differ between the ends "
                f"of a period; got {self._a.tolist()[:4]!r:.80}."
            )

    def _series(self, u: Tensor) -> Tensor:
        """f(u), of the shape of u."""
        a, pi_k = self._constants.like(u)[2:]
        return 1 + torch.cos(u.unsqueeze(-1) * pi_k) @ a

    def _cdf(self, u: Tensor) -> Tensor:
        return u + torch.sin(u.unsqueeze(-1) * self._pi_k) @ (self._a / self._pi_k)

    def _quantile(self, level: Tensor) -> Tensor:
        """u with ∫₀ᵘ f = level, in [0, 1]."""
        low, high = torch.zeros_like(level), torch.ones_like(level)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = self._cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        u = (low + high) / 2
        return torch.minimum(torch.maximum(u - (self._cdf(u) - level) / self._series(u), low), high)

    def _at(self, level: Tensor) -> Tensor:
        return torch.minimum(self._lower + (self._upper - self._lower) * self._quantile(level), self._upper)

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """lower and upper, (d,) float64 each."""
        return self._lower.clone(), self._upper.clone()

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d) in the box, quantiles of uniform numbers."""
        generator = as_generator(seed, "CosineSeries.sample")
        return self._at(torch.rand(n, self.dim, generator=generator, dtype=torch.float64))

    def matched_sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n evenly spread samples (n,d), quantiles of a scrambled Sobol set; plain samples above d = 21 201."""
        level = even_uniforms(n, self.dim, seed, "CosineSeries.matched_sample")
        return self.sample(n, seed) if level is None else self._at(level)

    def log_density(self, x: Tensor) -> Tensor:
        """Σ_i log f(u_i) − log of the volume: (n,d) → (n,); −inf outside, unless it is periodic."""

        def inside(x: Tensor) -> Tensor:
            lower, upper, *_ = self._constants.like(x)
            value = self._series((x - lower) / (upper - lower)).log().sum(1) - (upper - lower).log().sum()
            return value if self.periodic else torch.where(((x < lower) | (x > upper)).any(1), -math.inf, value)

        return density_at(as_points(x, self.dim, "CosineSeries.log_density(x): x"), inside)

    def mean(self) -> Tensor:
        """lower + edge·(½ + Σ_k a_k((−1)^k − 1)/(kπ)²), (d,); of the samples in the box."""
        signs = torch.cos(self._pi_k).round()
        return self._lower + (self._upper - self._lower) * (0.5 + float((self._a * (signs - 1) / self._pi_k**2).sum()))

    def cov(self) -> Tensor:
        """edge²·(E u² − (E u)²) on the diagonal, E u² = ⅓ + 2Σ_k a_k(−1)^k/(kπ)², (d,d)."""
        signs = torch.cos(self._pi_k).round()
        first = 0.5 + float((self._a * (signs - 1) / self._pi_k**2).sum())
        second = 1 / 3 + 2 * float((self._a * signs / self._pi_k**2).sum())
        return (second - first**2) * torch.diag((self._upper - self._lower).square())

    def mean_log_density(self) -> float:
        """∫ρ log ρ, by the trapezoid rule, which is exact to rounding for a smooth f even about both ends."""
        f = self._series(torch.linspace(0, 1, _GRID + 1, dtype=torch.float64))
        each = float(torch.trapezoid(f * f.log(), dx=1 / _GRID))
        return self.dim * each - float((self._upper - self._lower).log().sum())

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        corners = {"lower": self._lower.tolist(), "upper": self._upper.tolist()}
        return {"name": "CosineSeries", **corners, "coefficients": self._a.tolist(), "periodic": self.periodic}
