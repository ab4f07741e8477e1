"""A map of a box onto itself: no mass crosses its walls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import Constants
from ._box import check_box
from ._displaced import Displaced, Weights, refuse_beyond
from .base import PushForward


@dataclass(frozen=True)
class InBox(Displaced):
    r"""A map of the box lower ≤ z ≤ upper onto itself, for flows between reflecting walls (no flux through them).

    With s_i = 2(z_i − lower_i)/(upper_i − lower_i) − 1, T is

    artanh s_i(T) = artanh s_i(z) + ½h_i,  h = M_θ(s) − s,

    M the given map. No sample leaves the box, whatever θ, and walls are mapped onto themselves. For small h,
    T_i − z_i = (upper_i − lower_i)·¼(1 − s_i²)·h_i. The slope of log ρ along the normal of a wall is free: zero flux
    means ∂ₙ log ρ = v·n/τ there, v the drift, τ the temperature, and `PWGF` finds it as a natural boundary condition.
    Outside the box T continues by reflection.

    Energies of the density may start from a law that ends at the walls, such as `UniformBox(lower, upper)`. All samples
    of the reference must lie in the box. For densities outside it, log λ should be −∞ there.

    Args:
        map: M, of the dimension of the box; it sees s ∈ [−1, 1]^d.
        lower, upper: corners of the box, d numbers or one for all coordinates, in units of x.

    Raises:
        ConfigError: map is none, a lower bound is not below the upper one, or one is not finite.
        ShapeError: a corner has another number of coordinates than map.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.InBox(maps.ResidualMLP(dim=2), lower=[0.0, 0.0], upper=[1.0, 2.0])
        >>> theta = map.initial() + torch.randn(map.num_params, dtype=torch.float64)
        >>> x = map(theta, torch.rand(100, 2, dtype=torch.float64))
        >>> bool(((x >= 0) & (x <= torch.tensor([1.0, 2.0]))).all())
        True
    """

    map: PushForward
    lower: Any
    upper: Any

    def __post_init__(self) -> None:
        self.check_of_map(getattr(self.map, "dim", 0), "InBox(map, lower, upper)")
        lower, upper = check_box(self.lower, self.upper, "InBox", self.map.dim)
        object.__setattr__(self, "lower", tuple(lower.tolist()))
        object.__setattr__(self, "upper", tuple(upper.tolist()))
        object.__setattr__(self, "_constants", Constants(lower, upper))

    @property
    def dim(self) -> int:  # type: ignore[override]
        """d."""
        return self.map.dim

    def _box(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """lower, upper and the edges' lengths, (d,) each."""
        lower, upper = self._constants.like(z)  # type: ignore[attr-defined]  # set in __post_init__
        return lower, upper, upper - lower

    def _reflected(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """s of z, or of its mirror image in the box, and the sign of the slope of s, (n,d) each."""
        lower, _, edge = self._box(z)
        y = torch.remainder((z - lower) / edge, 2.0)
        beyond = y > 1
        return 2 * torch.where(beyond, 2 - y, y) - 1, torch.where(beyond, -1.0, 1.0).to(z)

    def seen(self, z: Tensor) -> Tensor:
        """The box as [−1, 1]^d."""
        lower, _, edge = self._box(z)
        return 2 * (z - lower) / edge - 1

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether these are its walls."""
        return lower.tolist() == list(self.lower) and upper.tolist() == list(self.upper)

    def check_domain(self, z: Tensor, call: str) -> None:
        """ConfigError where a sample z (n,d) lies outside the box."""
        lower, upper, edge = self._box(z)
        beyond = torch.maximum(lower - z, z - upper) > 10 * torch.finfo(z.dtype).eps * (lower.abs() + upper.abs())
        refuse_beyond(beyond, z, lower, upper, f"{call}(map=InBox(…))", "the box", "flow into it through the walls")

    def features(self, z: Tensor) -> Tensor:
        """s."""
        return self._reflected(z)[0]

    def features_along(self, z: Tensor, xi: Tensor) -> Tensor:
        """2ξ/edge, negative in a mirror image."""
        return 2 * self._reflected(z)[1] * xi / self._box(z)[2]

    def displaced(self, z: Tensor, h: Tensor) -> Tensor:
        """z + ½edge·(s(T) − s(z)); rounding stays inside, too."""
        lower, upper, edge = self._box(z)
        s, sign = self._reflected(z)
        x = z + edge / 2 * sign * (1 - s.square()) * (h / 2).sinh() / self._stretched(s, h)
        inside = (z >= lower) & (z <= upper)
        return torch.where(inside, torch.minimum(torch.maximum(x, lower), upper), x)

    @staticmethod
    def _stretched(s: Tensor, h: Tensor) -> Tensor:
        """cosh ½h + s·sinh ½h > 0; (1 − s²)/(1 − s(T)²) is its square."""
        return ((1 + s) * (h / 2).exp() + (1 - s) * (-h / 2).exp()) / 2

    def weights(self, z: Tensor, h: Tensor) -> Weights:
        """∂T_i/∂h_i = edge_i·¼(1 − s_i(T)²)."""
        s, sign = self._reflected(z)
        return [self._box(z)[2] / 4 * sign * (1 - s.square()) / self._stretched(s, h).square()]

    def weights_along(self, z: Tensor, h: Tensor, jacobian: Tensor, xi: Tensor) -> Weights:
        """−s(T)·∂_zT·ξ."""
        s = self._reflected(z)[0]
        moved = ((1 + s) * (h / 2).exp() - (1 - s) * (-h / 2).exp()) / (2 * self._stretched(s, h))
        return [-moved * (jacobian @ xi.unsqueeze(2)).squeeze(2)]

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂T_i/∂z_j = [δ_ij + ½edge_i(1 − s_i²)(∂M − I)_ij/edge_j]·(1 − s_i(T)²)/(1 − s_i²)."""
        edge, (s, sign) = self._box(z)[2], self._reflected(z)
        identity = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        inner = self.map.jacobian(theta, s) - identity
        bent = (edge / 2 * sign * (1 - s.square())).unsqueeze(2) * inner * (sign / edge).unsqueeze(1)
        stretched = self._stretched(s, self.map(theta, s) - s)
        return (identity + bent) / stretched.square().unsqueeze(2)

    def to_config(self) -> dict[str, Any]:
        """The configuration of M and the corners."""
        config = {"lower": list(self.lower), "upper": list(self.upper)}
        return {"name": "InBox", "map": self.map.to_config(), **config}
