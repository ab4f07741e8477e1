"""The default map: an affine part plus a small network whose first layer looks at single coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .affine import with_ones
from .base import Block, Layer, Linearisation, PushForward, blocks, check_dim, is_real


@dataclass(frozen=True)
class ResidualMLP(PushForward):
    r"""T_θ(z) = A z + b + gain · W_out h_L,  h_l = tanh(W_l [h_{l−1}, 1]),  h_0 = z.

    The affine part represents Gaussian and self-similar flows exactly. W_out starts at zero, so T_θ₀ is the identity
    *exactly* and ρ_θ₀ = λ. A share `axis_share` of the first layer's units starts on one coordinate each, with centres
    spread over the bulk of a standard normal law, the rest in random directions; all weights stay free. Axis-aligned
    units are what makes high dimension work: most potentials of interest are nearly sums over coordinates, and random
    directions resolve such sums only at a width that grows fast with d; the dense units serve what couples the
    coordinates.

    Cost: 2nd(d + 2·width) flops for T with one hidden layer, 2n·width·d² for ∂_zT.

    Args:
        dim: d ≥ 1.
        width: units of each hidden layer; None means 24·d, at least 64.
        depth: number of hidden layers ≥ 1; one is the fastest and, with axis-aligned units, was the most accurate.
        axis_share: share of first-layer units that start on a single coordinate, in [0, 1].
        scale: typical distance of reference samples from their centre per coordinate; the first layer starts on that
            scale.
        gain: > 0, weight of the network beside the affine part; None means .3/d, at least .1. The solve's damping is
            relative to the trace of the metric, which a wide network with gain 1 would fill: the affine part would be
            damped far more than needed. On Gaussian flows in d = 12 a gain of .1 is 200 times more accurate than 1
            (symmetric KL 6e-7 against 1.5e-4, 192 units). In d = 1 the trace is small anyway, and so small a gain would
            leave steep double wells underdamped.

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
    axis_share: float = 0.5
    scale: float = 1.0
    gain: float | None = None

    def __post_init__(self) -> None:
        check_dim(self.dim, "ResidualMLP(dim, width, depth)")
        for name in ("width", "depth"):
            value = getattr(self, name)
            if name == "width" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"ResidualMLP({name}=…) must be an integer ≥ 1; got {value!r}.")
        if not (is_real(self.axis_share) and 0 <= self.axis_share <= 1):
            raise ConfigError(f"ResidualMLP(axis_share=…) must lie in [0, 1]; got {self.axis_share!r}.")
        if not (is_real(self.scale) and self.scale > 0):
            raise ConfigError(f"ResidualMLP(scale=…) must be positive and finite; got {self.scale!r}.")
        if self.gain is None:
            object.__setattr__(self, "gain", max(0.1, 0.3 / self.dim))
        if not (is_real(self.gain) and self._weight > 0):
            raise ConfigError(f"ResidualMLP(gain=…) must be positive and finite; got {self.gain!r}.")

    @property
    def units(self) -> int:
        """Units of a hidden layer: `width`, or its default."""
        return self.width if self.width is not None else max(64, 24 * self.dim)

    @property
    def _weight(self) -> float:
        return float(self.gain)  # type: ignore[arg-type]  # set in __post_init__

    def layout(self) -> list[Block]:
        """[A b], W_1 … W_L each with its bias as last column, W_out."""
        d, w = self.dim, self.units
        hidden = [(f"hidden{k}", (w, (d if k == 1 else w) + 1)) for k in range(1, self.depth + 1)]
        return blocks([("affine", (d, d + 1)), *hidden, ("out", (d, w))])

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity; the first layer's directions and the deeper layers depend on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        affine, first, *deeper, _ = self.unpack(theta)
        affine[:, :-1] = torch.eye(self.dim, dtype=torch.float64)
        first.copy_(self._first_layer(generator))
        first[:, :-1] /= self.scale
        for w in deeper:
            w.copy_(torch.randn(w.shape, generator=generator, dtype=torch.float64) / math.sqrt(w.shape[1]))
        return theta

    def _first_layer(self, generator: torch.Generator) -> Tensor:
        """Rows [direction, bias] of the first layer on the scale of a standard normal law."""
        d, w = self.dim, self.units
        on_axis = round(self.axis_share * w)
        rows = torch.randn(w, d + 1, generator=generator, dtype=torch.float64)
        rows[:, :-1] *= 1.5 / rows[:, :-1].norm(dim=1, keepdim=True)
        rows[:on_axis] = 0
        # Unit k looks at coordinate k mod d; the units of an axis have evenly spread centres.
        for axis in range(min(d, on_axis)):
            mine = torch.arange(axis, on_axis, d)
            centres = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / max(len(mine), 1) * 5 - 2.5
            rows[mine, axis] = 1.5
            rows[mine, -1] = -1.5 * centres
        return rows

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """A z + b + W_out h_L(z)."""
        affine, *hidden, out = self.unpack(theta)
        out = self._weight * out
        h = z
        for w in hidden:
            h = torch.tanh(torch.addmm(w[:, -1], h, w[:, :-1].T))
        return torch.addmm(affine[:, -1], z, affine[:, :-1].T) + h @ out.T

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT = A + W_out D_L W_L … D_1 W_1 with D = diag(1 − h²), in matrix products over the whole batch."""
        affine, first, *deeper, out = self.unpack(theta)
        out = self._weight * out
        n, d = z.shape
        h = torch.tanh(torch.addmm(first[:, -1], z, first[:, :-1].T))
        if not deeper:  # one matrix product: each unit contributes slope × (column of W_out ⊗ row of W_1)
            outer = out.T.unsqueeze(2) * first[:, :-1].unsqueeze(1)
            return affine[:, :-1] + ((1 - h * h) @ outer.reshape(-1, d * d)).view(n, d, d)
        tangents = (1 - h * h).unsqueeze(2) * first[:, :-1]
        for w in deeper:
            h = torch.tanh(torch.addmm(w[:, -1], h, w[:, :-1].T))
            tangents = (1 - h * h).unsqueeze(2) * (w[:, :-1] @ tangents)
        return affine[:, :-1] + out @ tangents

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J from cached activations: four matrix products a layer for one Jη and one Jᵀu."""
        theta, z = theta.detach(), z.detach()
        _, *hidden, out = self.unpack(theta)
        out = self._weight * out
        inputs, slopes = [with_ones(z)], []
        for w in hidden:
            h = torch.tanh(inputs[-1] @ w.T)
            slopes.append(1 - h * h)
            inputs.append(with_ones(h))

        def jv(eta: Tensor) -> Tensor:
            e_affine, *e_hidden, e_out = self.unpack(eta)
            dh = slopes[0] * (inputs[0] @ e_hidden[0].T)
            for w, e, a, slope in zip(hidden[1:], e_hidden[1:], inputs[1:-1], slopes[1:], strict=True):
                dh = slope * torch.addmm(dh @ w[:, :-1].T, a, e.T)
            return torch.addmm(
                torch.addmm(inputs[0] @ e_affine.T, self._weight * inputs[-1][:, :-1], e_out.T), dh, out.T
            )

        def jtu(u: Tensor) -> Tensor:
            grads = [self._weight * (u.T @ inputs[-1][:, :-1])]
            back = u @ out
            for k in reversed(range(self.depth)):
                back = back * slopes[k]
                grads.append(back.T @ inputs[k])
                if k:
                    back = back @ hidden[k][:, :-1]
            grads.append(u.T @ inputs[0])
            return torch.cat([g.reshape(-1) for g in reversed(grads)])

        def layers() -> list[Layer]:
            spots = self.layout()
            found = [Layer(spots[-1].offset, spots[-1].shape, self._weight * inputs[-1][:, :-1], None)]  # type: ignore[arg-type]
            g = out.expand(len(z), -1, -1)
            for k in reversed(range(self.depth)):
                g = g * slopes[k].unsqueeze(1)
                found.append(Layer(spots[k + 1].offset, spots[k + 1].shape, inputs[k], g))  # type: ignore[arg-type]
                if k:
                    g = g @ hidden[k][:, :-1]
            found.append(Layer(0, spots[0].shape, inputs[0], None))  # type: ignore[arg-type]
            return found[::-1]

        return Linearisation(jv, jtu, layers)
