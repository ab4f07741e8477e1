"""The uniform law on a ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import as_points, check_dim, check_positive, plain_fields
from .base import Isotropic
from .law import as_generator


@dataclass(frozen=True)
class UniformBall(Isotropic):
    """The uniform law on the ball |x| < radius.

    Its density is constant inside and 0 outside. The score inside is 0, and samples do not see the effect of an energy
    of the density at the jump: with an entropy, start from a law with smooth tails. Suited to interaction and
    potential.

    Args:
        dim: d ≥ 1.
        radius: > 0.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch, pwgf
        >>> pwgf.UniformBall(dim=1, radius=2.0).log_density(torch.tensor([[1.0], [3.0]])).exp()
        tensor([0.2500, 0.0000])
    """

    dim: int
    radius: float = 1.0
    edge: ClassVar[str] = "jump"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "UniformBall(dim, radius)")
        check_positive(self.radius, "radius", "UniformBall")

    @property
    def second_moment(self) -> float:
        """E|x|² = radius²·d/(d+2)."""
        return self.radius**2 * self.dim / (self.dim + 2)

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d): a direction times radius·U^{1/d}, U uniform on (0, 1)."""
        generator = as_generator(seed, "UniformBall.sample")
        direction = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        return direction * (self.radius * uniform ** (1 / self.dim) / direction.norm(dim=1)).unsqueeze(1)

    def log_density(self, z: Tensor) -> Tensor:
        """−log of the ball's volume: (n,d) → (n,); −inf outside, NaN where z is."""
        z = as_points(z, self.dim, "UniformBall.log_density(z): z")
        log_volume = 0.5 * self.dim * math.log(math.pi) - math.lgamma(0.5 * self.dim + 1)
        inside = 0 * z.sum(1) - (log_volume + self.dim * math.log(self.radius))  # 0·z: differentiable, slope 0
        return torch.where(z.square().sum(1) >= self.radius**2, -math.inf, inside)

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "UniformBall", "dim": self.dim, "radius": self.radius}
