"""The self-similar solution of the porous-medium equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import as_points, check_dim, is_real, plain_fields
from ..errors import ConfigError
from .base import Isotropic
from .law import as_generator


@dataclass(frozen=True)
class Barenblatt(Isotropic):
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

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d): a direction times radius·√Beta(d/2, q+1).

        Beta(α, β) is drawn as the quantile of a uniform number, so that one generator drives all.
        """
        from scipy.special import betaincinv  # noqa: PLC0415, a quarter of a second

        generator = as_generator(seed, "Barenblatt.sample")
        direction = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        share = torch.from_numpy(betaincinv(self.dim / 2, self.q + 1, uniform.numpy()))
        radius = self.radius * share.sqrt()
        return direction * (radius / direction.norm(dim=1)).unsqueeze(1)

    def log_density(self, z: Tensor) -> Tensor:
        """log ρ(z): (n,d) → (n,); −inf outside the ball."""
        z = as_points(z, self.dim, "Barenblatt.log_density(z): z")
        height = self.C - self.k * self.t ** (-2 * self.b) * z.square().sum(1)
        return self.q * torch.log(height.clamp_min(0.0)) - self.dim * self.b * math.log(self.t)

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "Barenblatt", "dim": self.dim, "m": self.m, "t": self.t}
