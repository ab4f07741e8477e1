"""A map of a box onto itself: no mass crosses its walls."""

from __future__ import annotations

import math
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

    With the angle α_i = π(z_i − lower_i)/(upper_i − lower_i) and c_i = cos α_i, T is

    tan(½α_i(T)) = tan(½α_i(z))·exp(h_i),  h = M_θ(c) − c,

    M the given map. No sample leaves the box, whatever θ; walls are mapped onto themselves; displacements and slopes of
    log ρ along the normal vanish there, as in the exact flow of an energy with an entropy; and T continues by
    reflection outside the box. For small h, T_i − z_i = (upper_i − lower_i)/π · sin(α_i)·h_i: a constant h is the first
    mode of heat in a box.

    Energies of the density may start from a law that ends at the walls, such as `UniformBox(lower, upper)`. All samples
    of the reference must lie in the box. For densities outside it, log λ should be −∞ there.

    Args:
        map: M, of the dimension of the box; it sees c ∈ [−1, 1]^d.
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

    def _angle(self, z: Tensor) -> Tensor:
        lower, _, edge = self._box(z)
        return math.pi * ((z - lower) / edge)

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
        """c."""
        return self._angle(z).cos()

    def features_along(self, z: Tensor, xi: Tensor) -> Tensor:
        """−sin α·π ξ/edge."""
        return -self._angle(z).sin() * (math.pi / self._box(z)[2]) * xi

    def displaced(self, z: Tensor, h: Tensor) -> Tensor:
        """z + edge/π·(α(T) − α(z)), the difference by its sine and cosine; rounding stays inside, too."""
        lower, upper, edge = self._box(z)
        angle = self._angle(z)
        s, c, sh, less = angle.sin(), angle.cos(), h.sinh(), 2 * (h / 2).sinh().square()
        moved = torch.atan2(s * (sh - c * less), 1 + c * (c * less - sh))
        x = z + edge / math.pi * moved
        inside = (z >= lower) & (z <= upper)
        return torch.where(inside, torch.minimum(torch.maximum(x, lower), upper), x)

    def _ratio(self, z: Tensor, h: Tensor) -> Tensor:
        """sin α(T)/sin α(z) = 1/(cosh h − c sinh h) > 0, (n,d)."""
        return 1 / (h.cosh() - self.features(z) * h.sinh())

    def weights(self, z: Tensor, h: Tensor) -> Weights:
        """∂T_i/∂h_i = edge_i/π·sin α_i(T)."""
        return [self._box(z)[2] / math.pi * self._angle(z).sin() * self._ratio(z, h)]

    def weights_along(self, z: Tensor, h: Tensor, jacobian: Tensor, xi: Tensor) -> Weights:
        """cos α(T)·∂_zT·ξ."""
        c = self.features(z)
        cosine = (c * h.cosh() - h.sinh()) * self._ratio(z, h)
        return [cosine * (jacobian @ xi.unsqueeze(2)).squeeze(2)]

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂T_i/∂z_j = r_i[δ_ij − edge_i s_i (∂M − I)_ij s_j/edge_j], s = sin α(z), r = sin α(T)/s."""
        edge, s, c = self._box(z)[2], self._angle(z).sin(), self.features(z)
        identity = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        inner = self.map.jacobian(theta, c) - identity
        bent = (edge * s).unsqueeze(2) * inner * (s / edge).unsqueeze(1)
        return self._ratio(z, self.map(theta, c) - c).unsqueeze(2) * (identity - bent)

    def to_config(self) -> dict[str, Any]:
        """The configuration of M and the corners."""
        config = {"lower": list(self.lower), "upper": list(self.upper)}
        return {"name": "InBox", "map": self.map.to_config(), **config}
