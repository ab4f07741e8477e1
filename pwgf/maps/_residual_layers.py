"""The tangent of a `ResidualMLP`, and of its slopes, from activations that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._axis import axis_features, axis_layers, axis_slope_features
from ._networks import samples_per_block, with_ones
from .base import Layer, Linearisation


class Activations:
    """The inputs [h_{l−1}, 1] of every layer at (θ, z), and the products that follow from them.

    Moving memory is what limits a product at small d. So arrays are transposed, (units, samples), in blocks of samples
    that stay in a core's cache together with one scratch array per layer, and slopes 1 − h² are formed on the way.
    """

    def __init__(self, map: Any, theta: Tensor, z: Tensor) -> None:
        self.map = map
        self.n = len(z)
        _, self.hidden, out, single = map._split(theta)
        self.out = map._weight * out
        self.block = samples_per_block(map.units, z)
        self.inputs: list[list[Tensor]] = []
        self.features: list[Tensor] = []
        for part in z.split(self.block):
            inputs = [with_ones(part).T.contiguous()]
            for w in self.hidden:
                h = torch.tanh(w @ inputs[-1])
                inputs.append(torch.cat([h, torch.ones_like(h[:1])]))
            self.inputs.append(inputs)
            if single is not None:
                self.features.append(axis_features(single, part, map._axis_weight))
        size = min(self.block, self.n)
        self.scratch = [torch.empty(len(w) * size, dtype=z.dtype, device=z.device) for w in self.hidden]

    def linearisation(self) -> Linearisation:
        """J as its products and factors."""
        return Linearisation(self.jv, self.jtu, self.layers, self.diagonal if self.map.depth == 1 else None)

    def _room(self, k: int, columns: int) -> Tensor:
        rows = len(self.hidden[k])
        return self.scratch[k][: rows * columns].view(rows, columns)

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n,d)."""
        e_affine, e_hidden, e_out, e_single = self.map._split(eta)
        e_out, moved = self.map._weight * e_out, []
        for i, inputs in enumerate(self.inputs):
            size = inputs[0].shape[1]
            dh = _times_slope(torch.mm(e_hidden[0], inputs[0], out=self._room(0, size)), inputs[1])
            for k in range(1, self.map.depth):
                dh = torch.mm(self.hidden[k][:, :-1], dh, out=self._room(k, size))
                dh = _times_slope(dh.addmm_(e_hidden[k], inputs[k]), inputs[k + 1])
            step = (e_affine @ inputs[0]).addmm_(e_out, inputs[-1][:-1]).addmm_(self.out, dh)
            if e_single is not None:
                step += torch.bmm(e_single.reshape(len(step), 1, -1), self.features[i]).squeeze(1)
            moved.append(step)
        return torch.cat(moved, 1).T.contiguous()

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,)."""
        g = torch.zeros(self.map.num_params, dtype=u.dtype, device=u.device)
        g_affine, g_hidden, g_out, g_single = self.map._split(g)
        g_outT = torch.zeros(g_out.shape[::-1], dtype=u.dtype, device=u.device)
        for i, (inputs, part) in enumerate(zip(self.inputs, u.split(self.block), strict=True)):
            if g_single is not None:
                g_single += torch.bmm(self.features[i], part.T.unsqueeze(2)).view_as(g_single)
            g_outT.addmm_(inputs[-1][:-1], part)
            back = torch.mm(self.out.T, part.T, out=self._room(-1, len(part)))
            for k in reversed(range(self.map.depth)):
                g_hidden[k].addmm_(_times_slope(back, inputs[k + 1]), inputs[k].T)
                if k:
                    back = torch.mm(self.hidden[k][:, :-1].T, back, out=self._room(k - 1, len(part)))
            g_affine.addmm_(part.T, inputs[0].T)
        torch.mul(g_outT.T, self.map._weight, out=g_out)
        return g

    def diagonal(self, weights: Tensor) -> Tensor:
        """Σ_i w_i Σ_k J_ik², (p,), for one hidden layer: there |∂T/∂(unit u)|² = s_u² |o_u|²."""
        total = torch.zeros(self.map.num_params, dtype=self.out.dtype, device=self.out.device)
        affine, (first,), out, single = self.map._split(total)
        pieces = weights.unsqueeze(1).split(self.block)
        if single is not None:
            for part, w in zip(self.features, pieces, strict=True):
                single += (part.square() @ w).view_as(single)
        for (z, h), w in zip(self.inputs, pieces, strict=True):
            z2, h2 = z.square() * w.T, h[:-1].square()
            affine += z2.sum(1)
            first += self.out.square().sum(0).unsqueeze(1) * ((1 - h2).square() @ z2.T)
            out += self.map._weight**2 * (h2 @ w).T
        return total

    def layers(self) -> list[Layer]:
        """The factors (a, g) of every layer."""
        spots = self.map.layout()
        inputs = [torch.cat(group, 1).T for group in zip(*self.inputs, strict=True)]
        last = -2 if self.features else -1
        single = axis_layers(spots[-1].offset, torch.cat(self.features, 2)) if self.features else []
        found = [*single, Layer(spots[last].offset, spots[last].shape, self.map._weight * inputs[-1][:, :-1], None)]
        g = self.out.expand(self.n, -1, -1)
        for k in reversed(range(self.map.depth)):
            g = g * (1 - inputs[k + 1][:, :-1].square()).unsqueeze(1)
            found.append(Layer(spots[k + 1].offset, spots[k + 1].shape, inputs[k], g))
            if k:
                g = g @ self.hidden[k][:, :-1]
        found.append(Layer(0, spots[0].shape, inputs[0], None))
        return found[::-1]


class SlopeActivations:
    """The tangent of y = ∂_zT·ξ = Aξ + axis_gain·φ′∘ξ + gain·W_out(s∘ω), with s = 1 − h² and ω = W_1ξ, at (θ, z, ξ).

    ẏ = Ȧξ + … + gain·[Ẇ_out(s∘ω) + W_out(s′ω∘Ẇ_1[z,1] + s∘Ẇ_1[ξ,0])] with s′ = −2hs. Arrays are transposed,
    (units, samples), in blocks that stay in a core's cache.
    """

    def __init__(self, map: Any, theta: Tensor, z: Tensor, xi: Tensor) -> None:
        self.map = map
        self.n = len(z)
        _, (first,), out, single = map._split(theta)
        self.out = map._weight * out
        self.block = samples_per_block(2 * map.units, z)
        self.parts: list[tuple[Tensor, ...]] = []
        self.features: list[Tensor] = []
        for at, along in zip(z.split(self.block), xi.split(self.block), strict=True):
            points, directions = with_ones(at).T.contiguous(), along.T.contiguous()
            h = torch.tanh(first @ points)
            slopes = 1 - h.square()
            change = first[:, :-1] @ directions
            bends = (slopes * h).mul_(change).mul_(-2)
            self.parts.append((points, directions, slopes, bends, slopes * change))
            if single is not None:
                self.features.append(axis_slope_features(single, at, along, map._axis_weight))

    def jv(self, eta: Tensor) -> Tensor:
        """ẏ, (n,d)."""
        e_affine, (e_first,), e_out, e_single = self.map._split(eta)
        e_out, moved = self.map._weight * e_out, []
        for i, (points, directions, slopes, bends, outputs) in enumerate(self.parts):
            hidden = (e_first @ points).mul_(bends).addcmul_(e_first[:, :-1] @ directions, slopes)
            step = (e_affine[:, :-1] @ directions).addmm_(e_out, outputs).addmm_(self.out, hidden)
            if e_single is not None:
                step += torch.bmm(e_single.reshape(len(step), 1, -1), self.features[i]).squeeze(1)
            moved.append(step)
        return torch.cat(moved, 1).T.contiguous()

    def jtu(self, u: Tensor) -> Tensor:
        """The adjoint, (n,d) → (p,)."""
        g = torch.zeros(self.map.num_params, dtype=u.dtype, device=u.device)
        g_affine, (g_first,), g_out, g_single = self.map._split(g)
        for i, ((points, directions, slopes, bends, outputs), part) in enumerate(
            zip(self.parts, u.split(self.block), strict=True)
        ):
            if g_single is not None:
                g_single += torch.bmm(self.features[i], part.T.unsqueeze(2)).view_as(g_single)
            back = self.out.T @ part.T
            g_first.addmm_(back * bends, points.T)
            g_first[:, :-1].addmm_(back.mul_(slopes), directions.T)
            g_out.addmm_(part.T, outputs.T, alpha=self.map._weight)
            g_affine[:, :-1].addmm_(part.T, directions.T)
        return g

    def layers(self) -> list[Layer]:
        """The factors (a, g): the first layer is fed z with slope s′ω and ξ with slope s."""
        spots = self.map.layout()
        points, directions, slopes, bends, outputs = (torch.cat(group, 1).T for group in zip(*self.parts, strict=True))
        still = torch.cat([directions, torch.zeros_like(directions[:, :1])], 1)
        last = -2 if self.features else -1
        single = axis_layers(spots[-1].offset, torch.cat(self.features, 2)) if self.features else []
        return [
            Layer(0, spots[0].shape, still, None),
            Layer(spots[1].offset, spots[1].shape, points, self.out * bends.unsqueeze(1)),
            Layer(spots[1].offset, spots[1].shape, still, self.out * slopes.unsqueeze(1)),
            Layer(spots[last].offset, spots[last].shape, self.map._weight * outputs, None),
            *single,
        ]


def _times_slope(x: Tensor, inputs: Tensor) -> Tensor:
    """x · (1 − h²) in place, for the units h (all rows but the last, which is the bias's ones) of the next inputs."""
    torch.ops.aten.tanh_backward.grad_input(x, inputs[:-1], grad_input=x)
    return x
