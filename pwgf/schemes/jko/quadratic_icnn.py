"""The gradient of an input-convex network with quadratic skips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_dim, check_integer, check_positive, is_real, plain_fields
from ...errors import ConfigError
from ...maps._networks import first_layer
from ...maps.base import Block, blocks
from ...maps.convex import ConvexGradient, softplus

_BEND = 0.5  # size of the quadratic skips beside the linear ones at the start


@dataclass(frozen=True)
class QuadraticICNN(ConvexGradient):
    r"""T_θ = ∇ψ,  ψ(z) = ½ε|z|² + b·z + ½|Lz|² + Σ_u p_u h_u(z),  p ≥ 0, h the second of two convex layers.

    h¹ = softplus(s¹) and h = softplus(s² + P h¹) with s(z) = ½|B_u z|² + W z + β in each unit, B_u of `rank` rows, and
    P ≥ 0: ψ is strictly convex for every θ, so T cannot fold. This is the network of Mokrov et al. (2021), with a full
    quadratic, which Gaussian steps need, beside those of low rank. p = gain/width · max(θ, 0) starts at 0, where T is
    the identity up to rounding and no pretraining is due; an optimiser keeps these entries at or above 0 by `project`,
    as below 0 they have no gradient. (Not for `PWGF`, which would leave them there: use `maps.ConvexRidge`.)

    All of ∂_zT is written out: batched matrix products, with no automatic differentiation in z.

    Cost: about 4n·width·d(d + width) flops for T and ∂_zT, nd³/3 for log det.

    Args:
        dim: d ≥ 1.
        width: units of each layer.
        rank: rows of each B_u ≥ 1.
        gain: > 0, speed of p in θ beside the linear part.
        floor: ε in (0, ½], the smallest slope of T.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf.schemes.jko import QuadraticICNN
        >>> map = QuadraticICNN(dim=2, width=16)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> bool((map(map.initial(), z) - z).abs().max() < 1e-13)
        True

    References:
        Mokrov, Korotin, Li, Genevay, Solomon, Burnaev, Large-scale Wasserstein gradient flows, 2021, arXiv 2106.00736.
        Korotin, Egiazarian, Asadulaev, Safin, Burnaev, Wasserstein-2 generative networks, 2021, arXiv 1909.13082.
    """

    dim: int
    width: int = 64
    rank: int = 5
    gain: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "QuadraticICNN(dim, width, rank)")
        for name in ("width", "rank"):
            check_integer(getattr(self, name), name, "QuadraticICNN")
        check_positive(self.gain, "gain", "QuadraticICNN")
        if not (is_real(self.floor) and 0 < self.floor <= 0.5):
            raise ConfigError(f"QuadraticICNN(floor=…) must lie in (0, 0.5]; got {self.floor!r}.")

    def layout(self) -> list[Block]:
        """b; L; [W β] of both layers; their B; the parameters of P; those of p."""
        d, w = self.dim, self.width
        quadratic = ("quadratic", (2 * w, self.rank, d))
        return blocks(
            [("shift", (d,)), ("linear", (d, d)), ("input", (2 * w, d + 1)), quadratic]
            + [("inner", (w, w)), ("weights", (w,))]
        )

    @property
    def numbers_per_sample(self) -> int:
        """The slopes of all units, and what automatic differentiation keeps of them."""
        return 4 * self.dim**2 + 12 * self.width * (self.dim + 1)

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity up to rounding; the network's weights depend on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        _, linear, rows, quadratic, inner, _ = self.unpack(theta)
        linear.copy_(math.sqrt(1 - self.floor) * torch.eye(self.dim, dtype=torch.float64))
        for part in rows.view(2, self.width, -1):
            part.copy_(first_layer(self.dim, self.width, 0.5, generator))
        quadratic.copy_(torch.randn(quadratic.shape, generator=generator, dtype=torch.float64))
        quadratic *= _BEND / math.sqrt(self.rank * self.dim)
        weight = 0.5 + torch.rand(inner.shape, generator=generator, dtype=torch.float64)
        weight *= self.width / weight.sum(1, keepdim=True)
        inner.copy_(weight.expm1().log())
        return theta

    def project(self, theta: Tensor) -> None:
        """Sets negative entries of p to 0, in place: T stays the same."""
        self.unpack(theta)[-1].clamp_(min=0.0)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """∇ψ(z)."""
        return self._evaluated(theta, z, False)[0]

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """εI + LᵀL + Σ_units r (∇²s + (1 − σ) ∇f ∇fᵀ), see `with_jacobian`."""
        return self._evaluated(theta, z, True)[1]

    def with_jacobian(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """T (n,d) and ∂_zT (n,d,d) from the same activations."""
        return self._evaluated(theta, z, True)

    def _evaluated(self, theta: Tensor, z: Tensor, with_jacobian: bool) -> tuple[Tensor, Tensor]:
        """T and ∂_zT (or something else, unless asked for).

        With σ the sigmoid of a unit's sum and r = ∂ψ/∂sum: ∇ψ = Σ r ∇s over both layers and
        ∇²ψ = Σ r BᵀB + Σ r (1 − σ) ∇f ∇fᵀ, where ∇f is the gradient of the whole sum, for the second layer
        ∇s² + P(σ¹ ∘ ∇s¹). Gradients lie as (n,d,units), so that P acts in one product.
        """
        shift, linear, rows, quadratic, inner, raw = self.unpack(theta)
        n, d, w = len(z), self.dim, self.width
        weight, p = softplus(inner) / w, (self.gain / w) * raw.clamp_min(0.0)
        squares = (quadratic.transpose(1, 2) @ quadratic).permute(1, 2, 0)  # BᵀB, (d,d,2w)
        curved = (z @ squares.reshape(d, -1)).view(n, d, -1)
        sums = torch.addmm(rows[:, -1], z, rows[:, :-1].T) + 0.5 * (z.unsqueeze(2) * curved).sum(1)
        slopes = curved + rows[:, :-1].T
        first, second = sums[:, :w], sums[:, w:] + softplus(sums[:, :w]) @ weight.T
        sigma = torch.sigmoid(torch.cat([first, second], 1))
        outer = p * sigma[:, w:]
        r = torch.cat([(outer @ weight) * sigma[:, :w], outer], 1)
        constant = linear.T @ linear + self.floor * torch.eye(d, dtype=z.dtype, device=z.device)
        x = shift + z @ constant + (slopes @ r.unsqueeze(2)).squeeze(2)
        if not with_jacobian:
            return x, x
        early, late = slopes[:, :, :w], slopes[:, :, w:]
        late = late + ((sigma[:, :w].unsqueeze(1) * early).reshape(n * d, w) @ weight.T).view(n, d, w)
        full, bend = torch.cat([early, late], 2), (r * (1 - sigma)).unsqueeze(1)
        flat = r @ squares.permute(2, 0, 1).reshape(2 * w, d * d)
        return x, constant + flat.view(n, d, d) + (bend * full) @ full.transpose(1, 2)
