"""The gradient of softened maxima of affine functions: a map that cannot fold and tears a law apart along many cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, plain_fields
from ._networks import first_layer, samples_per_block
from .base import Block, Layer, Linearisation, Pushed, blocks, inverse_of_factor
from .convex import (
    SHARE,
    ConvexGradient,
    check_bends,
    checked_directions,
    cholesky,
    linear_start,
    log_det,
    squares,
    weight_slopes,
    weights,
)

_LENGTH = 1.5  # of the directions of `first_layer`


@dataclass(frozen=True)
class ConvexMax(ConvexGradient):
    r"""T_θ(z) = ε z + b + LᵀL z + Σ_g V_gᵀ[p s + q (y − 2s/κ)]_g,  y = V z + β,  s = softmax(κ y) in each group.

    T = ∇ψ, where each group of `size` affine functions y_g adds (p/κ) log Σ_k exp(κ y_k) + q (½|y|² − (2/κ²) log Σ_k
    exp(κ y_k)) to ψ. Both terms are convex, since the covariance D_g = diag(s) − s sᵀ of a choice of one out of many is
    at most ½: ∂_zT = εI + LᵀL + Σ_g V_gᵀ[κp D + q (I − 2D)]V_g is symmetric positive definite for *every* θ, T cannot
    fold, and it is the Brenier map of ρ_θ. A group with κp = 2q is linear; that is the start, with L such that T_θ₀ is
    the identity up to rounding. Each group can bend either way from there. θ holds log κ.

    As κ grows, one group maps the cells of a power diagram to `size` different places. A law that splits into several
    parts needs this, and a sum over single directions (`ConvexRidge`, whose units are groups of two) cannot do it where
    more than two cells meet. For mixtures in d ≥ 6 it is the better choice of the two, elsewhere the slower one.

    Cost: 4nd(d + m) flops for T with m = groups·size, 2n(d + m + groups)d² for ∂_zT, nd³/3 for log det.

    Args:
        dim: d ≥ 1.
        groups: number of groups ≥ 1.
        size: affine functions of a group, ≥ 2.
        scale: typical distance of reference samples from their centre per coordinate.
        sharpness: > 0, κ·scale at the start: how sharply a group chooses, once it bends.
        gain: > 0, speed of p and q in θ beside the linear part; see `ResidualMLP`.
        floor: ε in (0, ½], the smallest slope of T.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.ConvexMax(dim=2)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> bool((map(map.initial(), z) - z).abs().max() < 1e-13)
        True

    References:
        Chaudhari, Pranav, Moura, Learning gradients of convex functions with monotone gradient networks, 2023,
        arXiv 2301.10862. Calafiore, Gaubert, Possieri, Log-sum-exp neural networks and posynomial models for convex and
        log-log-convex data, 2018, arXiv 1806.07850.
    """

    dim: int
    groups: int = 16
    size: int = 6
    scale: float = 1.0
    sharpness: float = 6.0
    gain: float = 0.3
    floor: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "ConvexMax(dim, groups, size)")
        for name, least in (("groups", 1), ("size", 2)):
            check_integer(getattr(self, name), name, "ConvexMax", least=least)
        check_bends("ConvexMax", self.floor, scale=self.scale, sharpness=self.sharpness, gain=self.gain)

    @property
    def units(self) -> int:
        """Number of affine functions, m."""
        return self.groups * self.size

    @property
    def numbers_per_sample(self) -> int:
        """A few activations, Jacobians, and a mean of each group's directions."""
        return 4 * self.dim**2 + 8 * (self.units + self.dim) + 2 * self.groups * self.dim

    def layout(self) -> list[Block]:
        """b; the rows of L and V; β; log κ; the parameters ω of p, then of q."""
        d, g, k = self.dim, self.groups, self.size
        tail = [("centres", (g * k, 1)), ("sharpness", (g, 1)), ("weights", (2 * g, 1))]
        return blocks([("shift", (d, 1)), ("units", (d + g * k, d)), *tail])

    def initial(self, seed: int = 0, directions: Tensor | None = None) -> Tensor:
        """θ₀ with T = identity up to rounding; the directions depend on the seed.

        Args:
            seed: of directions and centres.
            directions: (k,d) rows; every second affine function starts along a random combination of them. Give those
                in which the law will be torn, see `fitting.active_directions`. None, or all zero: none is preferred.

        Raises:
            ShapeError: directions of another shape, or not finite.
        """
        d, generator = self.dim, torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        shift, units, centres, sharpness, raw = self.unpack(theta)
        rows = first_layer(d, self.units, 0.0, generator) / _LENGTH
        v, centres[:] = rows[:, :-1], self.scale * rows[:, -1:]
        if directions is not None:
            _look_along(v[::2], directions, generator)
        units[d:], sharpness[:] = v, math.log(self.sharpness / self.scale)
        units[:d], shift[:], raw.view(2, -1)[:] = linear_start(v, centres, self.floor, self._knees, self.gain)
        return theta

    @property
    def _knees(self) -> tuple[float, float]:
        """About p and q at the start over log 2: κp = 2q, and rows of length one give `SHARE` of the identity."""
        knee = SHARE * self.dim / self.units / math.log(2)
        return 2 * knee * self.scale / self.sharpness, knee

    def _weights(self, raw: Tensor) -> Tensor:
        """p and q, (2,groups)."""
        return weights(raw, self._knees, self.gain)

    def _choice(self, units: Tensor, centres: Tensor, kappa: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """y and s, (n,groups,size) each."""
        y = torch.addmm(centres.view(-1), z, units[self.dim :].T).view(-1, self.groups, self.size)
        return y, torch.softmax(kappa * y, 2)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """∇ψ(z)."""
        shift, units, centres, sharpness, raw = self.unpack(theta)
        kappa, (p, q) = sharpness.exp(), self._weights(raw).unsqueeze(2)
        y, s = self._choice(units, centres, kappa, z)
        bent = torch.addcmul(q * y, p - 2 * q / kappa, s).flatten(1)
        return torch.addmm(shift.view(-1), torch.cat([z @ units[: self.dim].T, bent], 1), units) + self.floor * z

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT = εI + LᵀL + Σ_g V_gᵀ[q + (κp − 2q) D_g]V_g, by two matrix products over the whole batch."""
        _, units, centres, sharpness, raw = self.unpack(theta)
        kappa, (p, q) = sharpness.exp(), self._weights(raw).unsqueeze(2)
        return self._jacobian(units, q, kappa * p - 2 * q, self._choice(units, centres, kappa, z)[1])[0]

    def _jacobian(self, units: Tensor, q: Tensor, bend: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the choices s, and V_gᵀs_g, (n,d,groups)."""
        d, linear, v = self.dim, units[: self.dim], units[self.dim :]
        constant = linear.T @ linear + self.floor * torch.eye(d, dtype=units.dtype, device=units.device)
        means = _means(s, v)
        between = (means * bend.view(-1)) @ means.transpose(1, 2)
        return constant + ((q + bend * s).flatten(1) @ squares(v)).view(-1, d, d) - between, means

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """In closed form: matrix products of 2n(units + groups)d² flops, n Cholesky factorisations and inverses.

        ∇_z log det = Σ_g (κp − 2q)κ V_gᵀ D_g r with r_k = N_kk − 2(Ns)_k and N = V_g(∂_zT)⁻¹V_gᵀ.

        Raises:
            NonFiniteError, SolverError: see `convex.cholesky`.
        """
        _, units, centres, sharpness, raw = self.unpack(theta.detach())
        kappa, (p, q) = sharpness.exp(), self._weights(raw).unsqueeze(2)
        v, bend = units[self.dim :], kappa * p - 2 * q
        s = self._choice(units, centres, kappa, z)[1]
        jacobian, means = self._jacobian(units, q, bend, s)
        factor = cholesky(jacobian, z, "ConvexMax")
        inverse = inverse_of_factor(factor)
        diagonal = (inverse.reshape(-1, self.dim**2) @ squares(v).T).view_as(s)
        rows = v.view(self.groups, self.size, -1).transpose(1, 2)
        by_mean = (inverse @ means).permute(2, 0, 1) @ rows  # (groups,n,size)
        r = diagonal - 2 * by_mean.transpose(0, 1)
        slope = slope - (bend * kappa * _covariance(s, r, 2)).flatten(1) @ v
        score = (inverse @ slope.unsqueeze(-1)).squeeze(-1)
        log_abs_det = log_det(factor)
        return Pushed(score, torch.ones_like(log_abs_det), log_abs_det, inverse)

    has_factors: ClassVar[bool] = True

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """Those of `linearise`."""
        return _Activations(self, theta, z).layers()

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J from cached activations: three matrix products for one Jη and three for one Jᵀu."""
        kept = _Activations(self, theta.detach(), z.detach())
        return Linearisation(kept.jv, kept.jtu, kept.layers)


def _look_along(v: Tensor, directions: Tensor, generator: torch.Generator) -> None:
    """Fills v with unit vectors along normal combinations of the rows."""
    rows = checked_directions("ConvexMax", directions, v.shape[1])
    along = torch.randn(len(v), len(rows), generator=generator, dtype=torch.float64) @ rows
    if float(along.norm()) > 0:
        v[:] = along / along.norm(dim=1, keepdim=True)


def _means(s: Tensor, v: Tensor) -> Tensor:
    """V_gᵀs_g: (n,groups,size), (m,d) → (n,d,groups)."""
    return (s.transpose(0, 1) @ v.view(*s.shape[1:], -1)).permute(1, 2, 0)


def _covariance(s: Tensor, r: Tensor, dim: int) -> Tensor:
    """(diag(s) − s sᵀ) r along `dim`."""
    return s * (r - (s * r).sum(dim, keepdim=True))


class _Part:
    """Activations of a block of samples, (groups, size, samples) so that they stay in a core's cache."""

    def __init__(self, map: ConvexMax, theta: Tensor, z: Tensor) -> None:
        d, shape = map.dim, (map.groups, map.size, len(z))
        _, units, centres, sharpness, raw = map.unpack(theta)
        kappa, (p, self.q) = sharpness.exp().unsqueeze(2), map._weights(raw).view(2, -1, 1, 1)
        self.z = z.T.contiguous()
        self.values = units @ self.z  # Lz, and the outputs of the groups
        y = (self.values[d:] + centres).view(shape)
        self.s = torch.softmax(kappa * y, 1)
        self.bend = kappa * p - 2 * self.q
        self.sharper = (self.bend * _covariance(self.s, y, 1)).addcmul_(2 * self.q / kappa, self.s)
        self.rest = torch.addcmul(y, self.s, 1 / kappa, value=-2)
        self.values[d:] = (p * self.s + self.q * self.rest).view(-1, len(z))

    def slopes(self, change: Tensor) -> Tensor:
        """The change of φ that follows from a change of y (groups, size, samples), in place."""
        bent = self.bend * _covariance(self.s, change, 1)
        return change.mul_(self.q).add_(bent)


class _Activations:
    """The groups at (θ, z), and the products that follow from them.

    They act twice, by W = [L; V] and by Wᵀ: T = εz + b + Wᵀφ(Wz + β), whence
    Jη = ḃ + Ẇᵀφ + Wᵀ(φ′(Ẇz + β̇) + φ̇), φ̇ by log κ, p and q: `sharper`, `s`, `rest`.
    """

    def __init__(self, map: ConvexMax, theta: Tensor, z: Tensor) -> None:
        self.map = map
        _, self.units, _, _, raw = map.unpack(theta)
        self.rates = weight_slopes(raw, map._knees, map.gain).view(2, -1, 1)
        self.block = samples_per_block(map.units, z)
        self.parts = [_Part(map, theta, part) for part in z.split(self.block)]

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n,d)."""
        d, moved = self.map.dim, []
        e_shift, e_units, e_centres, e_sharpness, e_raw = self.map.unpack(eta)
        e_p, e_q = (self.rates * e_raw.view(2, -1, 1)).unsqueeze(3)
        for part in self.parts:
            change = e_units @ part.z
            groups = part.slopes(change[d:].add_(e_centres).view_as(part.s))
            groups.addcmul_(e_sharpness.unsqueeze(2), part.sharper).addcmul_(e_p, part.s).addcmul_(e_q, part.rest)
            moved.append((e_units.T @ part.values).addmm_(self.units.T, change).add_(e_shift))
        return torch.cat(moved, 1).T.contiguous()

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,)."""
        d, total = self.map.dim, torch.zeros(self.map.num_params, dtype=u.dtype, device=u.device)
        shift, units, centres, sharpness, raw = self.map.unpack(total)
        by_p, by_q = raw.view(2, -1, 1)
        for part, piece in zip(self.parts, u.split(self.block), strict=True):
            back = self.units @ piece.T
            groups = back[d:].view_as(part.s)
            for block, factor in ((sharpness, part.sharper), (by_p, part.s), (by_q, part.rest)):
                block += torch.linalg.vecdot(groups.flatten(1), factor.flatten(1)).unsqueeze(1)
            centres += part.slopes(groups).sum(2).view(-1, 1)
            units.addmm_(back, part.z.T).addmm_(part.values, piece)
            shift += piece.sum(0).unsqueeze(1)
        raw *= self.rates.view(-1, 1)
        return total

    def layers(self) -> list[Layer]:
        """The factors (a, g): W with input z, W transposed with input φ, and what has a constant input."""
        d, groups = self.map.dim, self.map.groups
        shift, units, centres, sharpness, _ = self.map.layout()
        z, values = (torch.cat([getattr(part, name) for part in self.parts], 1).T for name in ("z", "values"))
        s, sharper, rest = (
            torch.cat([getattr(part, name) for part in self.parts], 2).permute(2, 0, 1)
            for name in ("s", "sharper", "rest")
        )
        v, q, bend = self.units[d:], self.parts[0].q, self.parts[0].bend
        means = _means(s, v)
        own = [_means(sharper, v), self.rates[0].T * means, self.rates[1].T * _means(rest, v)]
        centred = v.T.view(1, d, groups, -1) - means.unsqueeze(3)
        g_groups = ((bend[:, :, 0] * s).unsqueeze(1) * centred + q[:, :, 0] * v.T.view(1, d, groups, -1)).flatten(2)
        g_units = torch.cat([self.units[:d].T.expand(len(z), d, d), g_groups], 2)
        ones = torch.ones_like(z[:, :1])
        return [
            Layer(shift.offset, (d, 1), ones, None),
            Layer(units.offset, (d + self.map.units, d), z, g_units),
            Layer(units.offset, (d + self.map.units, d), values, None, transposed=True),
            Layer(centres.offset, (self.map.units, 1), ones, g_groups),
            Layer(sharpness.offset, (3 * groups, 1), ones, torch.cat(own, 2)),  # log κ, ω of p and q, one after another
        ]
