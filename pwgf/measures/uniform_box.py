"""The uniform law on a box."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import Constants, as_points
from ..maps._box import check_box
from .base import Reference, even_uniforms
from .law import as_generator


class UniformBox(Reference):
    """The uniform law on the box lower ≤ x ≤ upper.

    Its density jumps to 0 at the walls. An energy of the density would act there first, which samples inside do not
    see: under `PWGF` such an energy needs a map that keeps the mass in the box, `maps.InBox` with the same walls, or
    `maps.OnTorus`, whose periods are the edges of the box. Potential and interaction need none.

    Args:
        lower, upper: corners of the box, d numbers, or one for all coordinates; two numbers make an interval, d = 1.
            In units of x.

    Raises:
        ConfigError: a lower bound is not below the upper one, or not finite.
        ShapeError: the corners do not have the same number of coordinates.

    Example:
        >>> import torch, pwgf
        >>> law = pwgf.UniformBox(lower=[0.0, -1.0], upper=[1.0, 1.0])
        >>> law.log_density(torch.tensor([[0.5, 0.5], [0.5, 2.0]])).exp()
        tensor([0.5000, 0.0000])
    """

    edge: ClassVar[str] = "jump"

    def __init__(self, lower: Any, upper: Any) -> None:
        self._lower, self._upper = check_box(lower, upper, "UniformBox")
        self.dim = len(self._lower)
        self._constants = Constants(self._lower, self._upper)

    def __repr__(self) -> str:
        return f"UniformBox(lower={self._lower.tolist()}, upper={self._upper.tolist()})"

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """lower and upper, (d,) float64 each."""
        return self._lower.clone(), self._upper.clone()

    def mean(self) -> Tensor:
        """The centre of the box, (d,)."""
        return (self._lower + self._upper) / 2

    def cov(self) -> Tensor:
        """diag((upper − lower)²/12), (d,d)."""
        return torch.diag((self._upper - self._lower).square() / 12)

    def _at(self, uniform: Tensor) -> Tensor:
        return torch.minimum(self._lower + (self._upper - self._lower) * uniform, self._upper)

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d)."""
        generator = as_generator(seed, "UniformBox.sample")
        return self._at(torch.rand(n, self.dim, generator=generator, dtype=torch.float64))

    def matched_sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n evenly spread samples (n,d): a scrambled Sobol set; plain samples above d = 21 201."""
        uniform = even_uniforms(n, self.dim, seed, "UniformBox.matched_sample")
        return self.sample(n, seed) if uniform is None else self._at(uniform)

    def log_density(self, z: Tensor) -> Tensor:
        """−log of the box's volume: (n,d) → (n,); −inf outside, NaN where z is."""
        z = as_points(z, self.dim, "UniformBox.log_density(z): z")
        lower, upper = self._constants.like(z)
        inside = 0 * z.sum(1) - float((self._upper - self._lower).log().sum())  # 0·z: differentiable, slope 0
        return torch.where(((z < lower) | (z > upper)).any(1), -math.inf, inside)

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "UniformBox", "lower": self._lower.tolist(), "upper": self._upper.tolist()}
