"""What carries the law of an SW-JKO run: the parameters of a map, or particles. Two classes with one interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checks import check_theta0
from ...energies import Energy
from ...errors import ConfigError
from ...maps.base import Block, PushForward
from ...measures import Cloud, PushedMeasure, Reference, Sampled
from .._arguments import check_map
from ..base import MapReplay, member_config, tensor_config
from ..particles import ParticleReplay


class MapCarrier(MapReplay):
    """θ are the parameters of a map T; the law is seen at fresh samples of λ.

    Args:
        map, reference: T and λ.
        theta0: θ at the start, (p,); None means `map.initial(seed)`.
        dtype, device: of θ.
    """

    def __init__(
        self, map: PushForward, reference: Reference, theta0: Tensor | None, dtype: torch.dtype, device: str
    ) -> None:
        check_map(map, reference, "SWJKO")
        super().__init__(map, reference, dtype, device)
        self.theta0 = check_theta0(theta0, map.num_params, "SWJKO")

    def start(self, seed: int, generator: torch.Generator) -> Tensor:
        """θ at the start, (p,)."""
        return self.map.initial(seed) if self.theta0 is None else self.theta0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n samples of λ, (n,d), evenly spread where the reference has such."""
        z = self.reference.matched_sample(n, generator)
        self.map.check_domain(z, "SWJKO")
        return z.to(self.dtype).to(self.device)

    def law(self, theta: Tensor, z: Tensor) -> PushedMeasure:
        """The law of θ at samples z (n,d) of λ."""
        return PushedMeasure(self.map, self.reference, theta, z)

    def laws(self, theta: Tensor, total: int, size: int, generator: torch.Generator) -> list[PushedMeasure]:
        """The law of θ at `total` fresh samples, in blocks of at most `size`."""
        return [self.law(theta, self.draw(min(size, total - k), generator)) for k in range(0, total, size)]

    def few(self, theta: Tensor) -> PushedMeasure:
        """The law of θ at 16 fixed samples."""
        return self.law(theta, self.draw(16, torch.Generator().manual_seed(0)))

    def to_config(self) -> dict[str, Any]:
        """Map and start as JSON."""
        return {"map": member_config(self.map), "theta0": tensor_config(self.theta0)}


class ParticleCarrier(ParticleReplay):
    """θ are the particles, (num_samples·d,), which are their own samples; they have no density.

    Args:
        energy: F, which must not need one.
        reference: law of the particles at the start.
        num_samples: number of particles.
        theta0: must be None.
        dtype: of the particles.
    """

    def __init__(
        self, energy: Energy, reference: Reference, num_samples: int, theta0: Tensor | None, dtype: torch.dtype
    ) -> None:
        if energy.particle_form()[1] != 0:
            raise ConfigError(
                "SWJKO(map=None) moves particles, which have no density; this energy has an entropy. Give a map, e.g. "
                "maps.ResidualMLP(dim), or use EulerMaruyama."
            )
        if theta0 is not None:
            raise ConfigError(
                "SWJKO(theta0=…) belongs to a map; particles (map=None) start as samples of the reference."
            )
        super().__init__(reference, dtype)
        self.num_samples = num_samples

    def start(self, seed: int, generator: torch.Generator) -> Tensor:
        """Independent particles from the reference, (num_samples·d,)."""
        return self.reference.sample(self.num_samples, generator).reshape(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Nothing, (0,d): particles need no samples of λ."""
        return torch.empty(0, self.reference.dim, dtype=self.dtype)

    def law(self, theta: Tensor, z: Tensor) -> Sampled:
        """The particles."""
        return Cloud(theta.view(-1, self.reference.dim))

    def laws(self, theta: Tensor, total: int, size: int, generator: torch.Generator) -> list[Sampled]:
        """The particles, in one block."""
        return [self.law(theta, theta)]

    def few(self, theta: Tensor) -> Sampled:
        """The first 16 particles."""
        return self.law(theta[: 16 * self.reference.dim], theta)

    def layout(self) -> list[Block]:
        """The particles as one block."""
        return [Block("particles", (self.num_samples, self.reference.dim), 0)]

    def to_config(self) -> dict[str, Any]:
        """Nothing: the settings of the scheme say all."""
        return {}
