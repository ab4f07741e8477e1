"""A map of a torus onto itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import Constants, as_float64, check_dim
from ..errors import ConfigError, ShapeError
from ._box import check_box
from ._displaced import Displaced, Weights, refuse_beyond
from .base import PushForward, newton_inverse
from .residual import ResidualMLP


@dataclass(frozen=True)
class OnTorus(Displaced):
    r"""A map of the torus with the given periods onto itself: T(z + period) = T(z) + period in every coordinate.

    With the angles α_i = 2π(z_i − lower_i)/period_i and the points f = (cos α, sin α) ∈ ℝ^{2d}, a map M of ℝ^{2d}
    displaces f by h = M_θ(f) − f = (h_c, h_s), and T is

    T_i(z) = z_i + period_i/2π · (cos α_i·h_s,i − sin α_i·h_c,i),

    the part of h along the circle. Rotations are exact.

    Samples of the reference must lie in the cell lower ≤ z ≤ lower + period; a law that ends at its edges, such as the
    uniform one, has no edge on the torus. Samples x = T(z) are *not* wrapped: a displacement is a path on the line, and
    x may lie outside the cell; `lower + (x - lower) % period` wraps them. Densities and scores are those on the torus,
    the same at x and x + period, for `inverse` gives the z in the cell. Energies must have the periods.

    Args:
        dim: d ≥ 1.
        periods: > 0, d numbers or one for all coordinates, in units of x.
        lower: the lower corner of the cell, d numbers or one for all.
        map: M, of dimension 2d; None means `ResidualMLP(2·dim)`.

    Raises:
        ConfigError: a period is not positive and finite, or map is none.
        ShapeError: periods or lower have another number of coordinates.

    Example:
        >>> import torch, math
        >>> from pwgf import maps
        >>> map = maps.OnTorus(dim=1, periods=2 * math.pi)
        >>> z = torch.tensor([[0.5]], dtype=torch.float64)
        >>> torch.equal(map(map.initial(), z), z)
        True
    """

    periodic: ClassVar[bool] = True
    dim: int
    periods: Any
    lower: Any = 0.0
    map: PushForward = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_dim(self.dim, "OnTorus(dim, periods)")
        named = {"periods": self.periods, "lower": self.lower}
        expected = f"a number or {self.dim} of them"
        for name, value in named.items():
            values = as_float64(value, f"OnTorus(dim={self.dim}, {name}=…) must be {expected}")
            if values.ndim > 1 or (values.ndim == 1 and len(values) != self.dim):
                raise ShapeError(
                    f"OnTorus(dim={self.dim}, {name}=…) must be {expected}; got shape {tuple(values.shape)}."
                )
            named[name] = values.expand(self.dim).clone()
        periods, lower = named["periods"], named["lower"]
        if not bool(((periods > 0) & torch.isfinite(periods)).all()):
            raise ConfigError(f"OnTorus(periods=…) must be positive and finite; got {self.periods!r}.")
        check_box(lower, lower + periods, "OnTorus", self.dim)
        if self.map is None:
            object.__setattr__(self, "map", ResidualMLP(2 * self.dim))
        self.check_of_map(2 * self.dim, f"OnTorus(dim={self.dim}, map=…), a cosine and a sine for each coordinate")
        object.__setattr__(self, "periods", tuple(periods.tolist()))
        object.__setattr__(self, "lower", tuple(lower.tolist()))
        object.__setattr__(self, "_constants", Constants(lower, periods))

    def _cell(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """lower and periods, (d,) each."""
        return self._constants.like(z)  # type: ignore[attr-defined]  # set in __post_init__

    def _circle(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """cos α and sin α, (n,d), and the length of a unit of angle, (d,)."""
        lower, periods = self._cell(z)
        angle = 2 * math.pi * ((z - lower) / periods)
        return angle.cos(), angle.sin(), periods / (2 * math.pi)

    def seen(self, z: Tensor) -> Tensor:
        """The cell as [−1, 1]^d."""
        lower, periods = self._cell(z)
        return 2 * (z - lower) / periods - 1

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether that box is its cell."""
        start, periods = self._cell(lower)
        near = 1e-12 * periods
        return bool(((lower - start).abs() <= near).all() & ((upper - lower - periods).abs() <= near).all())

    def check_domain(self, z: Tensor, call: str) -> None:
        """ConfigError where a sample z (n,d) lies outside the cell."""
        lower, periods = self._cell(z)
        beyond = (z - lower - periods / 2).abs() > periods / 2 * (1 + 10 * torch.finfo(z.dtype).eps)
        cell = "one cell of the torus, lower ≤ z ≤ lower + period"
        refuse_beyond(beyond, z, lower, lower + periods, f"{call}(map=OnTorus(…))", cell, "be counted in two cells")

    def wound(self, x: Tensor) -> Tensor:
        """x (n,d) with every other sample moved by one period in all coordinates: the same points of the torus."""
        turns = torch.arange(len(x), device=x.device).remainder(2).to(x)
        return x + turns.unsqueeze(1) * self._cell(x)[1]

    def features(self, z: Tensor) -> Tensor:
        """(cos α, sin α), (n, 2d)."""
        return torch.cat(self._circle(z)[:2], 1)

    def features_along(self, z: Tensor, xi: Tensor) -> Tensor:
        """(−sin α, cos α)·α̇."""
        c, s, unit = self._circle(z)
        return torch.cat([-s * xi / unit, c * xi / unit], 1)

    def displaced(self, z: Tensor, h: Tensor) -> Tensor:
        """z + period/2π·(cos α·h_s − sin α·h_c)."""
        across, along = self.weights(z, h)
        of_cosine, of_sine = h.chunk(2, 1)
        return z + (across * of_cosine + along * of_sine)

    def weights(self, z: Tensor, h: Tensor) -> Weights:
        """−period/2π·sin α and period/2π·cos α."""
        c, s, unit = self._circle(z)
        return [-unit * s, unit * c]

    def weights_along(self, z: Tensor, h: Tensor, jacobian: Tensor, xi: Tensor) -> Weights:
        """−cos α·ξ and −sin α·ξ."""
        c, s, _ = self._circle(z)
        return [-c * xi, -s * xi]

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """I − diag(cos α·h_c + sin α·h_s) + N(∂M − I)∂f with N = ∂T/∂h."""
        c, s, unit = self._circle(z)
        f = torch.cat([c, s], 1)
        of_cosine, of_sine = (self.map(theta, f) - f).chunk(2, 1)
        bent = self.map.jacobian(theta, f) - torch.eye(2 * self.dim, dtype=z.dtype, device=z.device)
        by_angle = bent[:, :, : self.dim] * -s.unsqueeze(1) + bent[:, :, self.dim :] * c.unsqueeze(1)
        top, bottom = by_angle.chunk(2, 1)
        along = c.unsqueeze(2) * bottom - s.unsqueeze(2) * top
        return torch.diag_embed(1 - (c * of_cosine + s * of_sine)) + unit.unsqueeze(1) * along / unit

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """z in the cell with T(z) = x up to periods, by Newton's method; raises SolverError where it fails."""
        z = newton_inverse(self, theta, x)
        lower, periods = self._cell(z)
        return lower + torch.remainder(z - lower, periods)

    def to_config(self) -> dict[str, Any]:
        """Dimension, periods, lower corner and the configuration of M."""
        config = {"dim": self.dim, "periods": list(self.periods), "lower": list(self.lower)}
        return {"name": "OnTorus", **config, "map": self.map.to_config()}
