"""The default map: an affine part, a function of each single coordinate, and a small network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, check_positive, is_real, plain_fields
from ..errors import ConfigError
from ._axis import axis_slopes, axis_slopes_and_bends, axis_start, axis_values
from ._networks import first_layer
from ._residual_layers import Activations, SlopeActivations
from .base import Block, Layer, Linearisation, Pushed, PushForward, blocks


@dataclass(frozen=True)
class ResidualMLP(PushForward):
    r"""T_θ(z) = A z + b + axis_gain · Σ_k φ_k(z_k) e_k + gain · W_out h_L,  h_l = tanh(W_l [h_{l−1}, 1]),  h_0 = z.

    The affine part represents Gaussian and self-similar flows exactly. φ_k(s) = Σ_u o_ku tanh(w_ku s + c_ku) is a
    function of one coordinate with `axis_units` units of its own; the network couples the coordinates. φ and W_out
    start at zero, so T_θ₀ is the identity *exactly* and ρ_θ₀ = λ.

    Functions of single coordinates are essential in high dimension: most potentials of interest are nearly sums over
    coordinates, which random directions resolve only at a width that grows fast with d, and units with free weights in
    all coordinates fit noise (d parameters each). For double wells in d = 50 (Styblinski–Tang, c = .06, t = 1) the
    energy per dimension was .012 above the exact one with them, .205 with 600 free units that start on axes.

    Cost: 2nd(d + 2·width + 3·axis_units) flops for T with one hidden layer, 2n·width·d² for ∂_zT.

    Args:
        dim: d ≥ 1.
        width: units of each hidden layer; None means 16·d, at least 32, 12·d + 40 above d = 10, and at most 200: with
            more weights than a quarter of the coordinates of 1000 samples the network fitted noise.
        depth: number of hidden layers ≥ 1; one is the fastest and was the most accurate.
        axis_share: share of first-layer units that start on a single coordinate, in [0, 1]; their weights are free to
            change.
        scale: typical distance of reference samples from their centre per coordinate; φ and the first layer start on
            that scale.
        gain: > 0, weight of the network beside the affine part; None means .1, in d < 3 .3/d. The damping is relative
            to the trace of the metric, which a wide network with gain 1 would dominate: the affine part would be damped
            far more than necessary. On Gaussian flows in d = 12 a gain of .1 is 200 times more accurate than 1
            (symmetric KL 6e-7 and 1.5e-4). In d = 1 the trace is small anyway, and so small a gain would leave steep
            double wells underdamped.
        axis_units: units of each φ_k ≥ 0; 0 omits φ.
        axis_gain: > 0, weight of φ beside the affine part, for the same reason; None means .3, from d = 17 on 5/d. The
            noise that φ can fit grows with d: double wells in d = 50 (c = .06, t = 1, n = 1000) end with a symmetric KL
            of .19 at .3 and of .008 at .1.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.ResidualMLP(dim=2)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.equal(map(map.initial(), z), z)
        True

    References:
        Jin, Liu, Wu, Ye, Zhou, Parameterized Wasserstein gradient flow, 2024, arXiv 2404.19133 (residual maps).
    """

    dim: int
    width: int | None = None
    depth: int = 1
    axis_share: float = 0.0
    scale: float = 1.0
    gain: float | None = None
    axis_units: int = 16
    axis_gain: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "ResidualMLP(dim, width, depth)")
        if self.width is None:
            object.__setattr__(self, "width", max(32, min(16 * self.dim, 12 * self.dim + 40, 200)))
        for name in ("width", "depth"):
            check_integer(getattr(self, name), name, "ResidualMLP")
        if not (is_real(self.axis_share) and 0 <= self.axis_share <= 1):
            raise ConfigError(f"ResidualMLP(axis_share=…) must lie in [0, 1]; got {self.axis_share!r}.")
        check_positive(self.scale, "scale", "ResidualMLP")
        if self.gain is None:
            object.__setattr__(self, "gain", max(0.1, 0.3 / self.dim))
        if self.axis_gain is None:
            object.__setattr__(self, "axis_gain", min(0.3, 5 / self.dim))
        if not (is_real(self.gain) and self._weight > 0):
            raise ConfigError(f"ResidualMLP(gain=…) must be positive and finite; got {self.gain!r}.")
        check_integer(self.axis_units, "axis_units", "ResidualMLP", least=0)
        if not (is_real(self.axis_gain) and self._axis_weight > 0):
            raise ConfigError(f"ResidualMLP(axis_gain=…) must be positive and finite; got {self.axis_gain!r}.")

    @property
    def units(self) -> int:
        """Units of a hidden layer."""
        return int(self.width)  # type: ignore[arg-type]  # set in __post_init__

    @property
    def _weight(self) -> float:
        return float(self.gain)  # type: ignore[arg-type]  # set in __post_init__

    @property
    def _axis_weight(self) -> float:
        return float(self.axis_gain)  # type: ignore[arg-type]  # set in __post_init__

    @property
    def numbers_per_sample(self) -> int:
        """A few activations per layer and Jacobians; with more layers those of all units."""
        deep = self.depth * self.dim if self.depth > 1 else 0
        return 4 * self.dim**2 + (4 + 2 * deep) * self.depth * self.units + 6 * self.dim * self.axis_units

    def layout(self) -> list[Block]:
        """[A b], W_1 … W_L each with its bias as last column, W_out; w, c and o of φ."""
        d, w = self.dim, self.units
        hidden = [(f"hidden{k}", (w, (d if k == 1 else w) + 1)) for k in range(1, self.depth + 1)]
        single = [("axis", (d, 3, self.axis_units))] if self.axis_units else []
        return blocks([("affine", (d, d + 1)), *hidden, ("out", (d, w)), *single])

    def _split(self, theta: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
        """Affine part, hidden layers, W_out, functions of single coordinates."""
        parts = self.unpack(theta)
        single = parts.pop() if self.axis_units else None
        affine, *hidden, out = parts
        return affine, hidden, out, single

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity; the first layer's directions and the deeper layers depend on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        affine, (first, *deeper), _, single = self._split(theta)
        if single is not None:
            single.copy_(axis_start(self.dim, self.axis_units, self.scale))
        affine[:, :-1] = torch.eye(self.dim, dtype=torch.float64)
        first.copy_(first_layer(self.dim, self.units, self.axis_share, generator))
        first[:, :-1] /= self.scale
        for w in deeper:
            w.copy_(torch.randn(w.shape, generator=generator, dtype=torch.float64) / math.sqrt(w.shape[1]))
        return theta

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """A z + b + φ(z) + W_out h_L(z)."""
        affine, hidden, out, single = self._split(theta)
        out = self._weight * out
        h = z
        for w in hidden:
            h = torch.tanh(torch.addmm(w[:, -1], h, w[:, :-1].T))
        x = torch.addmm(affine[:, -1], z, affine[:, :-1].T) + h @ out.T
        return x if single is None else x + self._axis_weight * axis_values(single, z)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT = A + diag φ′ + W_out D_L W_L … D_1 W_1 with D = diag(1 − h²), in products over the batch."""
        affine, (first, *deeper), out, single = self._split(theta)
        out = self._weight * out
        n, d = z.shape
        own = affine[:, :-1]
        if single is not None:
            own = own + torch.diag_embed(self._axis_weight * axis_slopes(single, z))
        h = torch.tanh(torch.addmm(first[:, -1], z, first[:, :-1].T))
        if not deeper:  # one matrix product: each unit contributes slope × (column of W_out ⊗ row of W_1)
            outer = out.T.unsqueeze(2) * first[:, :-1].unsqueeze(1)
            return own + ((1 - h * h) @ outer.reshape(-1, d * d)).view(n, d, d)
        tangents = (1 - h * h).unsqueeze(2) * first[:, :-1]
        for w in deeper:
            h = torch.tanh(torch.addmm(w[:, -1], h, w[:, :-1].T))
            tangents = (1 - h * h).unsqueeze(2) * (w[:, :-1] @ tangents)
        return own + out @ tangents

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """In closed form for one hidden layer: two matrix products of 2n·width·d² flops and n inverses of size d.

        ∂_zT = A + diag φ′ + Σ_u s_u o_u w_uᵀ over the units u with slopes s = 1 − h², whence, with s′ = −2hs,
        ∇_z log|det| = Σ_u (w_uᵀ (∂_zT)⁻¹ o_u) s′_u w_u + φ″ ∘ diag (∂_zT)⁻¹.
        """
        if self.depth > 1:
            return super().push_score(theta, z, slope)
        affine, (first,), out, single = self._split(theta.detach())
        (n, d), out = z.shape, self._weight * out
        h = torch.tanh(torch.addmm(first[:, -1], z, first[:, :-1].T))
        outer = (out.T.unsqueeze(2) * first[:, :-1].unsqueeze(1)).reshape(-1, d * d)
        slopes = 1 - h * h
        jacobian = affine[:, :-1] + (slopes @ outer).view(n, d, d)
        if single is not None:
            own, bends = axis_slopes_and_bends(single, z)
            jacobian.diagonal(dim1=1, dim2=2).add_(own, alpha=self._axis_weight)
        lu, pivots, info = torch.linalg.lu_factor_ex(jacobian)
        diagonal = lu.diagonal(dim1=1, dim2=2)
        swaps = (pivots != torch.arange(1, d + 1, dtype=pivots.dtype, device=pivots.device)).sum(1)
        sign = diagonal.sign().prod(1) * (1 - 2 * (swaps % 2))
        transposed = torch.linalg.lu_solve(
            lu, pivots, torch.eye(d, dtype=z.dtype, device=z.device).expand(n, d, d), adjoint=True
        )
        weights = transposed.reshape(n, d * d) @ outer.T
        slope = slope - (weights.mul_(slopes).mul_(h).mul_(-2)) @ first[:, :-1]
        if single is not None:
            slope = slope - self._axis_weight * bends * transposed.diagonal(dim1=1, dim2=2)
        score = (transposed @ slope.unsqueeze(-1)).squeeze(-1)
        return Pushed(score, sign, diagonal.abs().log().sum(1), transposed.mT)

    has_factors: ClassVar[bool] = True

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """Those of `linearise`."""
        return Activations(self, theta, z).layers()

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J from cached activations: four matrix products per layer for one Jη and one Jᵀu."""
        return Activations(self, theta.detach(), z.detach()).linearisation()

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """The slope's tangent from cached activations with one hidden layer: five matrix products each way."""
        if self.depth > 1:
            return super().linearise_slope(theta, z, xi)
        kept = SlopeActivations(self, theta.detach(), z.detach(), xi)
        return Linearisation(kept.jv, kept.jtu, kept.layers, repeats=True)
