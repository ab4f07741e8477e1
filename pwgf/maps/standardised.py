"""A map in coordinates in which the reference measure has mean near 0 and spread near 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import Constants, check_points, check_positive
from ..errors import ConfigError, ShapeError
from .base import Block, Layer, Linearisation, Pushed, PushForward

_BASE = 8.0  # spreads are rounded to powers of it, so that scaling is exact and spreads from .36 to 2.8 count as 1


@dataclass(frozen=True)
class Standardised(PushForward):
    """T_θ(z) = centre + spread·M_θ((z − centre)/spread), with M the given map.

    Where M is the identity, so is T; ∂_zT is that of M. M's features and the damping of a solve are made for a
    reference with mean near 0 and spread near 1: a flow by T is the same at every scale and origin of λ. `PWGF` takes
    it for a λ that is far from there, unless it is given a `theta0`, which belongs to the map as it is.

    Args:
        map: M.
        centre: (d,), in units of x.
        spread: > 0, in units of x, the same for all coordinates.

    Raises:
        ConfigError: map is none, or spread is not positive and finite.
        ShapeError: centre is not made of d finite numbers.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.Standardised(maps.Affine(dim=2), centre=[100.0, 0.0], spread=8.0)
        >>> map(map.initial(), torch.tensor([[104.0, 1.0]], dtype=torch.float64))
        tensor([[104.,   1.]], dtype=torch.float64)
    """

    own_coordinates: ClassVar[bool] = True

    map: PushForward
    centre: Sequence[float]
    spread: float

    def __post_init__(self) -> None:
        if not isinstance(self.map, PushForward):
            raise ConfigError(
                f"Standardised(map, centre, spread): map must be one from pwgf.maps; got {type(self.map).__name__}."
            )
        check_positive(self.spread, "spread", "Standardised")
        centre = tuple(float(value) for value in self.centre)
        if len(centre) != self.map.dim or not all(math.isfinite(value) for value in centre):
            raise ShapeError(
                f"Standardised(centre=…) needs the {self.map.dim} finite coordinates of a point; got {len(centre)} "
                "numbers. Give e.g. reference.mean().tolist()."
            )
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "_constants", Constants(torch.tensor(centre, dtype=torch.float64)))

    @classmethod
    def about(cls, map: PushForward, z: Tensor) -> PushForward:
        """The map in the coordinates of the samples z (n,d) of λ; the map itself where these are near standard ones.

        So it is where `map.initial()` is not the identity: such a start, of a module for instance, means z itself.
        """
        z = z.double()
        spread = float((z - z.mean(0)).square().mean().sqrt())
        if map.own_coordinates or not 0 < spread < math.inf:
            return map
        spread = _BASE ** round(math.log(spread, _BASE))
        centre = 2 * spread * (z.mean(0) / (2 * spread)).round()
        if spread == 1 and not bool(centre.any()):
            return map
        with torch.no_grad():
            w = (z[:8] - centre) / spread
            starts_as_identity = torch.allclose(map(map.initial(), w), w, rtol=1e-6, atol=1e-6)
        return cls(map, centre.tolist(), spread) if starts_as_identity else map

    @property
    def dim(self) -> int:  # type: ignore[override]
        """d."""
        return self.map.dim

    def seen(self, z: Tensor) -> Tensor:
        """(z − centre)/spread, as M sees it."""
        return self.map.seen(self._inside(z))

    def check_domain(self, z: Tensor, call: str) -> None:
        """That of M, in its coordinates."""
        self.map.check_domain(self._inside(z), call)

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether M does, in its coordinates."""
        return self.map.closes(self._inside(lower), self._inside(upper))

    def moving_at(self, theta: Tensor) -> tuple[PushForward, slice]:
        """That of M, in these coordinates."""
        map, where = self.map.moving_at(theta)
        return self if map is self.map else replace(self, map=map), where

    def grown(self, theta: Tensor, z: Tensor) -> Tensor | None:
        """That of M, in its coordinates."""
        return self.map.grown(theta, self._inside(z))

    @property
    def numbers_per_sample(self) -> int:
        """That of M."""
        return self.map.numbers_per_sample

    def layout(self) -> list[Block]:
        """That of M."""
        return self.map.layout()

    def initial(self, *arguments: Any, **named: Any) -> Tensor:
        """That of M."""
        return self.map.initial(*arguments, **named)

    def _inside(self, x: Tensor) -> Tensor:
        return (x - self._constants.like(x)[0]) / self.spread  # type: ignore[attr-defined]  # set in __post_init__

    def _outside(self, w: Tensor) -> Tensor:
        return self._constants.like(w)[0] + self.spread * w  # type: ignore[attr-defined]

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """centre + spread·M(w) with w = (z − centre)/spread."""
        return self._outside(self.map(theta, self._inside(z)))

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂M at w."""
        return self.map.jacobian(theta, self._inside(z))

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """That of M at w."""
        return self.map.volume(theta, self._inside(z))

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        """That of M at w."""
        return self.map.log_abs_det(theta, self._inside(z))

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """That of M for the law of w, whose slope is spread·slope, divided by spread."""
        pushed = self.map.push_score(theta, self._inside(z), self.spread * slope)
        return pushed._replace(score=pushed.score / self.spread)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """By that of M; raises what it raises."""
        check_points(x, self.dim, "Standardised.inverse(theta, x): x", finite=True)
        return self._outside(self.map.inverse(theta, self._inside(x)))

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """spread times that of M."""
        own, s = self.map.linearise(theta, self._inside(z)), self.spread
        layers, diagonal = own.layers, own.diagonal
        return Linearisation(
            lambda eta: s * own.jv(eta),
            lambda u: own.jtu(s * u),
            None if layers is None else lambda: [layer._replace(a=s * layer.a) for layer in layers()],
            None if diagonal is None else lambda weights: s**2 * diagonal(weights),
            own.repeats,
        )

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """spread times those of M."""
        return self.spread * self.map.tangent_rows(theta, self._inside(z))

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """That of M, whose Jacobian is that of T."""
        return self.map.linearise_slope(theta, self._inside(z), xi)

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """Those of M."""
        return self.map.slope_rows(theta, self._inside(z), xi)

    @property
    def needs_damping(self) -> bool:  # type: ignore[override]
        """As M."""
        return self.map.needs_damping

    @property
    def has_factors(self) -> bool:  # type: ignore[override]
        """Whether M has."""
        return self.map.has_factors

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """spread times those of M."""
        return [layer._replace(a=self.spread * layer.a) for layer in self.map.factors(theta, self._inside(z))]

    def to_config(self) -> dict[str, Any]:
        """The configuration of M, centre and spread."""
        return {
            "name": "Standardised",
            "map": self.map.to_config(),
            "centre": list(self.centre),
            "spread": self.spread,
        }
