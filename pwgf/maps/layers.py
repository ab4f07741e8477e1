"""A map that grows in layers, each begun as the identity where the law then lies."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import ConfigError
from .base import Block, Linearisation, Pushed, PushForward, blocks
from .composed import Composed
from .standardised import Standardised

MOVING = 2
"""Layers that move: a layer that has just begun has slopes only once it has moved."""


@dataclass(frozen=True)
class Layers(PushForward):
    r"""T = S_K ∘ … ∘ S_1 with S_k(y) = c_k + s_k·M(θ_k, (y − c_k)/s_k); only the last two layers begun move.

    The velocity of a flow is a smooth function of x. Where T is steep, as where mass is torn apart, it is none of z,
    and J, which holds functions of z, does not reach it. A layer that begins as the identity at a later time holds
    functions of the x of that time. `PWGF` begins one where its error estimate says that it helps; ρ stays the same.

    θ holds θ_1 … θ_K for all K = `count` layers, their centres and spreads, and how many are begun. Those that are not
    yet begun are the identity and cost nothing.

    Args:
        map: M; `initial` must be the identity. Between walls it is an `InBox`: layers inside one do not grow.
        count: K ≥ 1, the largest number of layers.

    Raises:
        ConfigError: M does not begin as the identity, or K < 1.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.Layers(maps.ResidualMLP(2), count=3)
        >>> theta = map.initial()
        >>> z = torch.randn(100, 2, dtype=torch.float64)
        >>> theta = map.grown(theta, z)
        >>> map.begun(theta), torch.allclose(map(theta, z), z)
        (2, True)
    """

    map: PushForward
    count: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.map, PushForward):
            raise ConfigError(f"Layers(map): map must be one from pwgf.maps; got {type(self.map).__name__}.")
        check_integer(self.count, "count", "Layers")
        w = torch.linspace(-2, 2, 5 * self.dim, dtype=torch.float64).view(5, self.dim)
        if not torch.allclose(self.map(self.map.initial(), w), w, rtol=1e-6, atol=1e-6):
            raise ConfigError(
                f"Layers(map={type(self.map).__name__}): map.initial() must be the identity, so that a layer can begin "
                "without a jump of ρ. Take maps.ResidualMLP(dim), or another map that starts there."
            )

    @property
    def dim(self) -> int:  # type: ignore[override]
        """d."""
        return self.map.dim

    @property
    def needs_damping(self) -> bool:  # type: ignore[override]
        """As M."""
        return self.map.needs_damping

    @property
    def periodic(self) -> bool:  # type: ignore[override]
        """As M."""
        return self.map.periodic

    @property
    def own_coordinates(self) -> bool:  # type: ignore[override]
        """Whether M sees its own, and all layers then see those."""
        return self.map.own_coordinates

    @functools.cached_property
    def _blocks(self) -> list[Block]:
        own = [(block.name, block.shape) for block in self.map.layout()]
        layers = [(f"{k}.{name}", shape) for k in range(self.count) for name, shape in own]
        return blocks([*layers, ("centre", (self.count, self.dim)), ("spread", (self.count,)), ("begun", (1,))])

    def layout(self) -> list[Block]:
        """Those of M for each layer, named number.block; centres (K,d), spreads (K,), and the number begun (1,)."""
        return list(self._blocks)

    @property
    def numbers_per_sample(self) -> int:
        """That of M, and Jacobians of the earlier layers."""
        return self.map.numbers_per_sample + 2 * self.dim**2

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity and one layer begun; layer k starts as M from seed + k."""
        own = [self.map.initial(seed + k) for k in range(self.count)]
        ones = torch.ones(self.count + 1, dtype=torch.float64)
        return torch.cat([*own, torch.zeros(self.count * self.dim, dtype=torch.float64), ones])

    def begun(self, theta: Tensor) -> int:
        """How many layers are."""
        return min(max(math.ceil(float(theta.detach()[-1])), 1), self.count)

    def grown(self, theta: Tensor, z: Tensor) -> Tensor | None:
        """θ (p,) of the same T with one more layer begun, about the law of T(z), z (n,d); None where all are."""
        k = self.begun(theta)
        if k == self.count:
            return None
        found = theta.detach().clone()
        *_, centre, spread, begun = self.unpack(found)
        if not self.own_coordinates:
            x = self(found, z.to(found))
            centre[k:], spread[k:] = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
        begun.fill_(k + 1)
        return found

    def moving_at(self, theta: Tensor) -> tuple[PushForward, slice]:
        """The composition of the layers begun, whose last two move, and where their parameters lie in θ."""
        parts, p = self._parts(theta), self.map.num_params
        k = max(len(parts) - MOVING, 0)
        where = slice(k * p, len(parts) * p)
        if len(parts) == 1:
            return parts[0], where
        before = list(theta.detach()[: k * p].split(p)) if k else []
        return Composed(parts, moving=range(k, len(parts)), thetas=[*before, *[None] * (len(parts) - k)]), where

    def _parts(self, theta: Tensor) -> list[PushForward]:
        """S_1 … S_k for the k layers begun."""
        k, fixed = self.begun(theta), theta.detach()
        *_, centre, spread, _ = self.unpack(fixed)
        at, sizes = centre[:k].tolist(), spread[:k].tolist()
        return [
            self.map if size == 1 and not any(place) else Standardised(self.map, place, size)
            for place, size in zip(at, sizes, strict=True)
        ]

    def _whole(self, theta: Tensor) -> tuple[PushForward, Tensor]:
        """The composition of the layers begun, all with parameters of their own, and these."""
        parts = self._parts(theta)
        whole = parts[0] if len(parts) == 1 else Composed(parts)
        return whole, theta[: len(parts) * self.map.num_params]

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """S_k(… S_1(z)) for the k layers begun."""
        whole, own = self._whole(theta)
        return whole(own, z)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """The product of the layers' Jacobians."""
        whole, own = self._whole(theta)
        return whole.jacobian(own, z)

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the layers' signs and the sum of their log|det|."""
        whole, own = self._whole(theta)
        return whole.volume(own, z)

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """From layer to layer."""
        whole, own = self._whole(theta)
        return whole.push_score(own, z, slope)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """Layer by layer, the last first; raises what M raises."""
        whole, own = self._whole(theta)
        return whole.inverse(own, x)

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J; its columns are zero but for the parameters of the layers begun."""
        whole, own = self._whole(theta)
        found, rest = whole.linearise(own, z), self.num_params - len(own)
        return Linearisation(
            lambda eta: found.jv(eta[: len(own)]),
            lambda u: torch.cat([found.jtu(u), u.new_zeros(rest)]),
            found.layers,
            repeats=True,  # columns of layers that are not begun are zero
        )

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p)."""
        whole, own = self._whole(theta)
        return self._padded(whole.tangent_rows(own, z))

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """∂_θ(∂_zT·ξ) itself, (n,d,p); torch 2.4 cannot read where layers lie while it differentiates."""
        whole, own = self._whole(theta)
        return self._padded(whole.slope_rows(own, z, xi))

    def _padded(self, rows: Tensor) -> Tensor:
        """With zeros for the parameters of layers that are not begun, (n,d,p)."""
        return torch.cat([rows, rows.new_zeros(*rows.shape[:2], self.num_params - rows.shape[2])], 2)

    def check_domain(self, z: Tensor, call: str) -> None:
        """That of M."""
        self.map.check_domain(z, call)

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether M does."""
        return self.map.closes(lower, upper)

    def to_config(self) -> dict[str, Any]:
        """The configuration of M, and K."""
        return {"name": "Layers", "map": self.map.to_config(), "count": self.count}
