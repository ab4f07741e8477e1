"""The self-similar solution of the porous-medium equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_dim, is_real, plain_fields
from ..errors import ConfigError
from .base import antithetic


@dataclass(frozen=True)
class Barenblatt:
    r"""The self-similar solution of the porous-medium equation ∂ₜρ = Δρ^m at time t.

    ρ(x) = t^{−a}(C − k|x|²t^{−2b})₊^{q} with q = 1/(m−1), a = d/(d(m−1)+2), b = a/d, k = b(m−1)/(2m) and C set by unit
    mass. Its support is a ball of radius `radius` = √(C t^{2b}/k); |x| = radius·√B with B ~ Beta(d/2, q+1).

    Args:
        dim: d ≥ 1.
        m: exponent > 1.
        t: time > 0.

    Raises:
        ConfigError: an argument outside its range.

    References:
        Barenblatt, On some unsteady motions of a liquid and gas in a porous medium, 1952; Vázquez, The Porous Medium
        Equation, 2006, §4.4.
    """

    dim: int
    m: float
    t: float
    edge: ClassVar[str] = "continuous"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "Barenblatt(dim, m, t)")
        if not (is_real(self.m) and self.m > 1):
            raise ConfigError(
                f"Barenblatt(m=…) must be > 1 (m = 1 is the heat equation: use Gaussian); got {self.m!r}."
            )
        if not (is_real(self.t) and self.t > 0):
            raise ConfigError(f"Barenblatt(t=…) must be > 0 (at t = 0 all mass is in one point); got {self.t!r}.")

    @property
    def q(self) -> float:
        """Exponent 1/(m−1) of the profile."""
        return 1 / (self.m - 1)

    @property
    def b(self) -> float:
        """Rate of spreading: lengths grow as t^b."""
        return 1 / (self.dim * (self.m - 1) + 2)

    @property
    def k(self) -> float:
        """Curvature constant of the profile."""
        return self.b * (self.m - 1) / (2 * self.m)

    @property
    def C(self) -> float:
        """Height constant of the profile, from unit mass."""
        d, q = self.dim, self.q
        log_c = 0.5 * d * math.log(self.k / math.pi) + math.lgamma(q + 1 + d / 2) - math.lgamma(q + 1)
        return math.exp(log_c / (q + d / 2))

    @property
    def radius(self) -> float:
        """Radius of the support."""
        return math.sqrt(self.C / self.k) * self.t**self.b

    @property
    def second_moment(self) -> float:
        """E|x|²."""
        return self.radius**2 * self.dim / (self.dim + 2 * self.q + 2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples (n,d): a direction times radius·√Beta(d/2, q+1).

        Beta(α, β) is drawn as the quantile of a uniform number by bisection, so that one generator drives all.
        """
        direction = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        radius = self.radius * self._beta_quantile(uniform).sqrt()
        return direction * (radius / direction.norm(dim=1)).unsqueeze(1)

    def _beta_quantile(self, u: Tensor) -> Tensor:
        """Quantile of Beta(d/2, q+1): monotone interpolation of the integrated density in the angle s, B = sin²s."""
        angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
        density = torch.sin(angle) ** (self.dim - 1) * torch.cos(angle) ** (2 * self.q + 1)
        mass = torch.cumulative_trapezoid(density, angle)
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), mass / mass[-1]])
        index = torch.searchsorted(mass, u.contiguous(), right=True).clamp(1, len(mass) - 1)
        low, high = mass[index - 1], mass[index]
        share = (u - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.sin(angle[index - 1] + share * (angle[index] - angle[index - 1])) ** 2

    def matched_sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n antithetic samples (n,d); their mean is exactly zero for even n."""
        return antithetic(n, lambda k: self.sample(k, generator))

    def log_density(self, z: Tensor) -> Tensor:
        """log ρ(z): (n,d) → (n,); −inf outside the ball."""
        height = self.C - self.k * self.t ** (-2 * self.b) * z.square().sum(1)
        return self.q * torch.log(height.clamp_min(0.0)) - self.dim * self.b * math.log(self.t)

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "Barenblatt", "dim": self.dim, "m": self.m, "t": self.t}
