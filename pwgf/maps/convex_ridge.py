"""The gradient of a convex ridge function: a map that cannot fold, with batched closed forms throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, plain_fields
from ._networks import first_layer
from ._ridge_layers import RidgeActivations
from .base import Block, Layer, Linearisation, Pushed, blocks, inverse_of_factor, slope_layers
from .convex import (
    SHARE,
    ConvexGradient,
    check_bends,
    checked_directions,
    cholesky,
    linear_start,
    log_det,
    squares,
    weights,
)

_SPREAD = 1.2  # outer centres of the three units along a preferred direction, for scale 1
_SLOPE = 1.5  # κ of a unit at the start, for scale 1


@dataclass(frozen=True)
class ConvexRidge(ConvexGradient):
    r"""T_θ(z) = ε z + b + LᵀL z + Vᵀ[p ∘ tanh(κ ∘ y) + q ∘ (y − tanh(κ ∘ y)/κ)],  y = V z + β,  p, q, κ > 0.

    T = ∇ψ with ψ a sum of convex functions of single directions v·z, the rows of V. Since both functions of y increase,
    ∂_zT = εI + LᵀL + Vᵀ diag(κp sech² κy + q tanh² κy) V is symmetric positive definite for *every* θ: T cannot fold,
    whatever the flow does, and it is the Brenier map of ρ_θ. A unit with κp = q is linear; that is the start, with L
    such that T_θ₀ is the identity up to rounding. Each unit can bend either way from there. θ holds log κ, so that a
    unit becomes a cliff, as wells that tear a law apart require, at the rate at which the cliff steepens.

    p and q are softplus functions of θ whose knee lies at their start; a share `axis_share` of the directions starts on
    single coordinates, see `ResidualMLP`.

    The map can follow a velocity as far as it is the gradient of a function of z. From λ = N(0, I) this holds for
    targets that are products, radial, or Gaussian. Where the motion of the samples is not a Brenier map,
    `projection_residual` shows it, and `Composed([Affine(d), ConvexRidge(d)])` or a free map can follow further.

    Cost: 4nd(d + width) flops for T, 2n(d + width)d² for ∂_zT, nd³/3 for log det.

    Args:
        dim: d ≥ 1.
        width: units; None means 24·d, at least 64.
        axis_share: share of units that start on a single coordinate, in [0, 1].
        scale: typical distance of reference samples from their centre per coordinate.
        gain: > 0, speed of p and q in θ beside the linear part; see `ResidualMLP`.
        floor: ε in (0, ½], the smallest slope of T.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.ConvexRidge(dim=2)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> bool((map(map.initial(), z) - z).abs().max() < 1e-13)
        True

    References:
        Huang, Chen, Tsirigotis, Courville, Convex potential flows: universal probability distributions with optimal
        transport and convex optimization, 2021, arXiv 2012.05942. Brenier, Polar factorization and monotone
        rearrangement of vector-valued functions, 1991.
    """

    dim: int
    width: int | None = None
    axis_share: float = 0.5
    scale: float = 1.0
    gain: float = 0.3
    floor: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "ConvexRidge(dim, width)")
        if self.width is not None:
            check_integer(self.width, "width", "ConvexRidge")
        check_bends("ConvexRidge", self.floor, self.axis_share, scale=self.scale, gain=self.gain)

    @property
    def units(self) -> int:
        """Number of units: `width`, or its default."""
        return self.width if self.width is not None else max(64, 24 * self.dim)

    @property
    def numbers_per_sample(self) -> int:
        """A few activations and Jacobians."""
        return 4 * self.dim**2 + 6 * (self.units + self.dim)

    def layout(self) -> list[Block]:
        """b; the rows of L and V; β; log κ; the parameters ω of p, then of q."""
        d, m = self.dim, self.units
        tail = [("centres", (m, 1)), ("sharpness", (m, 1)), ("weights", (2 * m, 1))]
        return blocks([("shift", (d, 1)), ("units", (d + m, d)), *tail])

    def initial(self, seed: int = 0, directions: Tensor | None = None) -> Tensor:
        """θ₀ with T = identity up to rounding; the directions that are not on an axis depend on the seed.

        Args:
            seed: of directions and centres.
            directions: (k,d) rows; three units start along each, as far as there are units. Give those in which the law
                is going to bend, such as `LogisticRegression.coordinates().directions(k)`; in d = 30 random directions
                find none of them. Rows of zeros are ignored; None: no direction is preferred.

        Raises:
            ShapeError: directions of another shape, or not finite.
        """
        d = self.dim
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        shift, units, centres, sharpness, raw = self.unpack(theta)
        rows = first_layer(d, self.units, self.axis_share, torch.Generator().manual_seed(seed)) / _SLOPE
        v, centres[:] = rows[:, :-1], self.scale * rows[:, -1:]
        if directions is not None:
            _look_along(v, centres, directions, _SPREAD * self.scale)
        units[d:], sharpness[:] = v, math.log(_SLOPE / self.scale)
        units[:d], shift[:], raw.view(2, -1)[:] = linear_start(v, centres, self.floor, self._knees, self.gain)
        return theta

    @property
    def _knees(self) -> tuple[float, float]:
        """About p and q at the start over log 2: κp = q, and units of length one give `SHARE` of the identity."""
        knee = SHARE * self.dim / self.units / math.log(2)
        return knee * self.scale / _SLOPE, knee

    def _weights(self, raw: Tensor) -> Tensor:
        """p and q, (2,m)."""
        return weights(raw, self._knees, self.gain)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """∇ψ(z)."""
        shift, units, centres, sharpness, raw = self.unpack(theta)
        kappa, (p, q) = sharpness.view(-1).exp(), self._weights(raw)
        y = torch.addmm(centres.view(-1), z, units[self.dim :].T)
        bent = torch.addcmul(q * y, p - q / kappa, torch.tanh(kappa * y))
        return torch.addmm(shift.view(-1), torch.cat([z @ units[: self.dim].T, bent], 1), units) + self.floor * z

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT = εI + LᵀL + Σ_u (q + (κp − q) sech² κy)_u v vᵀ, in one matrix product over the whole batch."""
        _, units, centres, sharpness, raw = self.unpack(theta)
        kappa, (p, q) = sharpness.view(-1).exp(), self._weights(raw)
        h = torch.tanh(kappa * torch.addmm(centres.view(-1), z, units[self.dim :].T))
        return self._jacobian(units, q + (kappa * p - q) * (1 - h * h))

    def _jacobian(self, units: Tensor, slopes: Tensor) -> Tensor:
        """The same from the slopes of the units, (n,m)."""
        d, linear, v = self.dim, units[: self.dim], units[self.dim :]
        constant = linear.T @ linear + self.floor * torch.eye(d, dtype=units.dtype, device=units.device)
        return constant + (slopes @ squares(v)).view(-1, d, d)

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """In closed form: two matrix products of 2n·width·d² flops, n Cholesky factorisations and inverses of size d.

        ∇_z log det = Σ_u (vᵀ(∂_zT)⁻¹v) φ″_u v with φ″ = −2κ(κp − q) tanh κy sech² κy.

        Raises:
            NonFiniteError, SolverError: see `convex.cholesky`.
        """
        _, units, centres, sharpness, raw = self.unpack(theta.detach())
        kappa, (p, q) = sharpness.view(-1).exp(), self._weights(raw)
        v = units[self.dim :]
        h = torch.tanh(kappa * torch.addmm(centres.view(-1), z, v.T))
        bend = (kappa * p - q) * (1 - h * h)
        factor = cholesky(self._jacobian(units, q + bend), z, "ConvexRidge")
        inverse = inverse_of_factor(factor)
        curvature = inverse.reshape(-1, self.dim**2) @ squares(v).T
        slope = slope - (curvature.mul_(bend).mul_(h).mul_(-2 * kappa)) @ v
        score = (inverse @ slope.unsqueeze(-1)).squeeze(-1)
        log_abs_det = log_det(factor)
        return Pushed(score, torch.ones_like(log_abs_det), log_abs_det, inverse)

    has_factors: ClassVar[bool] = True

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """Those of `linearise`."""
        return RidgeActivations(self, theta, z).layers()

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J from cached activations: three matrix products for one Jη and three for one Jᵀu."""
        kept = RidgeActivations(self, theta.detach(), z.detach())
        return Linearisation(kept.jv, kept.jtu, kept.layers, kept.diagonal)

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """The slope's tangent from cached activations: five matrix products one way, six the other."""
        theta, z, xi = theta.detach(), z.detach(), xi.detach()
        kept = RidgeActivations(self, theta, z, xi)
        return Linearisation(kept.jv, kept.jtu, lambda: slope_layers(self, theta, z, xi), repeats=True)


def _look_along(v: Tensor, centres: Tensor, directions: Tensor, spread: float) -> None:
    """Turns the first units, rows of v (m,d) with centres (m,1), along the directions (k,d), three along each."""
    rows = checked_directions("ConvexRidge", directions, v.shape[1])
    rows = rows[rows.norm(dim=1) > 0]
    count = min(3 * len(rows), len(v))
    v[:count] = (rows / rows.norm(dim=1, keepdim=True)).repeat_interleave(3, 0)[:count]
    centres[:count, 0] = torch.tensor([0.0, -spread, spread], dtype=v.dtype).repeat(len(rows))[:count]
