"""The gradient of an input-convex network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, plain_fields
from ._networks import first_layer
from .base import Block, blocks
from .convex import ConvexGradient, check_bends, softplus

_ROW = 1.5  # length of a row of W_l at the start
_SHARE = 0.5  # of the identity at the start that the network makes, the linear part makes the rest


@dataclass(frozen=True)
class GradientICNN(ConvexGradient):
    r"""T_θ = ∇ψ,  ψ(z) = ½ε|z|² + b·z + ½|Lz|² + Σ_u [p_u h_u(z) + q_u (½K_u|z|² − h_u(z))],  p, q ≥ 0.

    h = h_L is the last layer of an input-convex network, h_l = softplus(P_l h_{l−1} + W_l z + β_l) with P_l ≥ 0, hence
    convex in z. K_u ≥ |∇²h_u| everywhere, a bound that follows from the weights layer by layer, so the second term is
    convex too, and ψ is strictly convex for *every* θ: T cannot fold. At the start p = q, both terms together are
    quadratic, and L is such that T_θ₀ is the identity up to rounding; every h_u can bend T either way from there.

    It represents more than `ConvexRidge`, whose units see one direction each, and costs more: its tangent goes through
    automatic differentiation, so solves use J itself or LSMR.

    Cost: about 4n·depth·width² flops for T, 2n·depth·width·d(d + width) for ∂_zT, nd³/3 for log det.

    Args:
        dim: d ≥ 1.
        width: units of each layer.
        depth: number of layers ≥ 1.
        axis_share: share of each layer's units whose W starts on a single coordinate, in [0, 1].
        gain: > 0, speed of p and q in θ beside the linear part.
        floor: ε in (0, ½], the smallest slope of T.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.GradientICNN(dim=2, width=16)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> bool((map(map.initial(), z) - z).abs().max() < 1e-13)
        True

    References:
        Amos, Xu, Kolter, Input convex neural networks, 2017, arXiv 1609.07152. Huang, Chen, Tsirigotis, Courville,
        Convex potential flows: universal probability distributions with optimal transport and convex optimization,
        2021, arXiv 2012.05942.
    """

    dim: int
    width: int = 64
    depth: int = 2
    axis_share: float = 0.5
    gain: float = 0.3
    floor: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "GradientICNN(dim, width, depth)")
        for name in ("width", "depth"):
            check_integer(getattr(self, name), name, "GradientICNN")
        check_bends("GradientICNN", self.floor, self.axis_share, gain=self.gain)

    def layout(self) -> list[Block]:
        """b; L; [W_l β_l] of every layer; the parameters of P_2 … P_L; those of p and q."""
        d, w = self.dim, self.width
        inputs = [(f"input{k}", (w, d + 1)) for k in range(1, self.depth + 1)]
        inner = [(f"inner{k}", (w, w)) for k in range(2, self.depth + 1)]
        return blocks([("shift", (d,)), ("linear", (d, d)), *inputs, *inner, ("weights", (2, w))])

    @property
    def numbers_per_sample(self) -> int:
        """The Jacobians of all units, and what automatic differentiation keeps of them."""
        return 4 * self.dim**2 + 6 * self.depth * self.width * (self.dim + 1)

    @property
    def _start_weight(self) -> float:
        """p and q at the start, where all units share one K: rows of P_l sum to one and rows of W_l have one length."""
        bound = _ROW**2 / 4 * sum(k * k for k in range(1, self.depth + 1))
        return _SHARE / (bound * self.width)

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity up to rounding; the network's weights depend on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        _, linear, *network, _ = self.unpack(theta)
        linear.copy_(math.sqrt(1 - self.floor - _SHARE) * torch.eye(self.dim, dtype=torch.float64))
        for rows in network[: self.depth]:
            rows.copy_(first_layer(self.dim, self.width, self.axis_share, generator))
        for raw in network[self.depth :]:
            weight = 0.5 + torch.rand(raw.shape, generator=generator, dtype=torch.float64)
            weight *= self.width / weight.sum(1, keepdim=True)
            raw.copy_(weight.expm1().log())
        return theta

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Tensor, Tensor]:
        """b, L, [W_l β_l], P_l, and p, q (w,)."""
        shift, linear, *network, raw = self.unpack(theta)
        inner = [softplus(block) / self.width for block in network[self.depth :]]
        knee = self._start_weight / math.log(2)
        p, q = knee * softplus(raw * (self.gain / knee))
        return shift, linear, network[: self.depth], inner, p, q

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """∇ψ(z), by a forward and a backward pass written out."""
        shift, linear, inputs, inner, p, q = self._parts(theta)
        sums = _sums(inputs, inner, z)
        back, x = (p - q) * torch.sigmoid(sums[-1]), shift + z @ (linear.T @ linear)
        for k in reversed(range(self.depth)):
            x = x + back @ inputs[k][:, :-1]
            if k:
                back = (back @ inner[k - 1]) * torch.sigmoid(sums[k - 1])
        return x + (self.floor + (q * _curvature(inputs, inner)).sum()) * z

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """(ε + Σ qK) I + LᵀL + Σ_l Σ_u r_lu σ″ ∇s_lu ∇s_luᵀ, σ = softplus, s_l the sums, r_l = ∂(p − q)·h/∂h_l."""
        _, linear, inputs, inner, p, q = self._parts(theta)
        sums = _sums(inputs, inner, z)
        slopes = [torch.sigmoid(s) for s in sums]
        tangents = [inputs[0][:, :-1].expand(len(z), -1, -1)]
        for rows, weight, slope in zip(inputs[1:], inner, slopes, strict=False):
            tangents.append(rows[:, :-1] + weight @ (slope.unsqueeze(2) * tangents[-1]))
        eye = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        total = linear.T @ linear + (self.floor + (q * _curvature(inputs, inner)).sum()) * eye
        pulled = (p - q).expand(len(z), -1)
        for k in reversed(range(self.depth)):
            bend = pulled * slopes[k] * (1 - slopes[k])
            total = total + tangents[k].transpose(1, 2) @ (bend.unsqueeze(2) * tangents[k])
            if k:
                pulled = (pulled * slopes[k]) @ inner[k - 1]
        return total


def _sums(inputs: list[Tensor], inner: list[Tensor], z: Tensor) -> list[Tensor]:
    """s_l = P_l h_{l−1} + W_l z + β_l of every layer, (n,w) each."""
    sums = [torch.addmm(inputs[0][:, -1], z, inputs[0][:, :-1].T)]
    for rows, weight in zip(inputs[1:], inner, strict=True):
        sums.append(torch.addmm(rows[:, -1], z, rows[:, :-1].T) + softplus(sums[-1]) @ weight.T)
    return sums


def _curvature(inputs: list[Tensor], inner: list[Tensor]) -> Tensor:
    """K (w,) ≥ |∇²h_L,u| at every z: from |∇s_l| ≤ G_l = |W_l| + P_l G_{l−1}, as softplus′ ≤ 1 and softplus″ ≤ ¼."""
    slope = inputs[0][:, :-1].norm(dim=1)
    bound = slope.square() / 4
    for rows, weight in zip(inputs[1:], inner, strict=True):
        slope = rows[:, :-1].norm(dim=1) + weight @ slope
        bound = slope.square() / 4 + weight @ bound
    return bound
