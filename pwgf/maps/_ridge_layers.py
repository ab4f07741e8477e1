"""The tangent of a `ConvexRidge`, and of its slopes, from activations that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._networks import samples_per_block
from .base import Layer
from .convex import weight_slopes


class _Part:
    """Activations of a block of samples, transposed to (units, samples) so that they stay in a core's cache.

    `values` is what Wᵀ acts on; `sharper`, `h` and `rest` are the derivatives of φ by log κ, p and q. Along ξ all of
    them, and φ′ as `bends`, are differentiated: φ′ and φ″ times the rates Vξ of the units' arguments.
    """

    def __init__(
        self, units: Tensor, centres: Tensor, kappa: Tensor, p: Tensor, q: Tensor, z: Tensor, xi: Tensor | None
    ) -> None:
        d = z.shape[1]
        self.z = z.T.contiguous()
        self.xi = None if xi is None else xi.T.contiguous()
        self.values = units @ self.z  # Lz, and the outputs of the units
        y = self.values[d:] + centres
        self.h = torch.tanh(kappa * y)
        steep = 1 - self.h.square()
        bend = (kappa * p - q) * steep
        self.slopes = q + bend
        if self.xi is None:
            self.rest = torch.addcmul(y, self.h, 1 / kappa, value=-1)
            self.sharper = torch.addcmul(y * bend, self.h, q / kappa)
            self.values[d:] = p * self.h + q * self.rest
            return
        self.values = units @ self.xi
        rates = self.values[d:].clone()
        self.values[d:] *= self.slopes
        self.bends = -2 * kappa * self.h * bend * rates
        self.sharper = torch.addcmul((bend + q * steep) * rates, y, self.bends)
        self.rest = (1 - steep) * rates
        self.h = kappa * steep * rates


class RidgeActivations:
    """The units at (θ, z), and the products that follow from them; with ξ, those of ∂_zT·ξ in place of T's.

    The units act twice, by W = [L; V] and by Wᵀ: T = εz + b + Wᵀφ(Wz + β), whence
    Jη = ḃ + Ẇᵀφ + Wᵀ(φ′(Ẇz + β̇) + φ̇), and along ξ: Ẇᵀ(φ′Wξ) + Wᵀ(φ′Ẇξ + φ″Wξ(Ẇz + β̇) + φ̇′Wξ).
    """

    def __init__(self, map: Any, theta: Tensor, z: Tensor, xi: Tensor | None = None) -> None:
        self.map = map
        self.along = xi is not None
        _, self.units, centres, sharpness, raw = map.unpack(theta)
        self.rates = weight_slopes(raw, map._knees, map.gain).view(2, -1, 1)
        p, q = map._weights(raw).view(2, -1, 1)
        self.block = samples_per_block((2 if self.along else 1) * map.units, z)
        points = z.split(self.block)
        directions = [None] * len(points) if xi is None else xi.split(self.block)
        at = self.units, centres, sharpness.exp(), p, q
        self.parts = [_Part(*at, *pair) for pair in zip(points, directions, strict=True)]

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n,d)."""
        d, moved = self.map.dim, []
        e_shift, e_units, e_centres, e_sharpness, e_raw = self.map.unpack(eta)
        e_p, e_q = self.rates * e_raw.view(2, -1, 1)
        for part in self.parts:
            change = e_units @ (part.z if part.xi is None else part.xi)
            ridge = change[d:]
            if part.xi is None:
                ridge.add_(e_centres).mul_(part.slopes)
            else:
                ridge.mul_(part.slopes).addcmul_((e_units[d:] @ part.z).add_(e_centres), part.bends)
            ridge.addcmul_(e_sharpness, part.sharper).addcmul_(e_p, part.h).addcmul_(e_q, part.rest)
            step = (e_units.T @ part.values).addmm_(self.units.T, change)
            moved.append(step if self.along else step.add_(e_shift))
        return torch.cat(moved, 1).T.contiguous()

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,)."""
        d, total = self.map.dim, torch.zeros(self.map.num_params, dtype=u.dtype, device=u.device)
        shift, units, centres, sharpness, raw = self.map.unpack(total)
        by_p, by_q = raw.view(2, -1, 1)
        for part, piece in zip(self.parts, u.split(self.block), strict=True):
            back = self.units @ piece.T
            ridge = back[d:]
            for block, factor in ((sharpness, part.sharper), (by_p, part.h), (by_q, part.rest)):
                block += torch.linalg.vecdot(ridge, factor).unsqueeze(1)
            units.addmm_(part.values, piece)
            if part.xi is None:
                centres += ridge.mul_(part.slopes).sum(1, keepdim=True)
                units.addmm_(back, part.z.T)
                shift += piece.sum(0).unsqueeze(1)
            else:
                bent = ridge * part.bends
                centres += bent.sum(1, keepdim=True)
                units[d:].addmm_(bent, part.z.T)
                ridge.mul_(part.slopes)
                units.addmm_(back, part.xi.T)
        raw *= self.rates.view(-1, 1)
        return total

    def diagonal(self, weights: Tensor) -> Tensor:
        """Σ_i w_i Σ_k J_ik², (p,)."""
        d, total = self.map.dim, torch.zeros(self.map.num_params, dtype=self.units.dtype, device=self.units.device)
        shift, units, centres, sharpness, raw = self.map.unpack(total)
        by_p, by_q = raw.view(2, -1, 1)
        squares = self.units.square().sum(1, keepdim=True)
        for part, w in zip(self.parts, weights.unsqueeze(1).split(self.block), strict=True):
            slopes = torch.cat([torch.ones_like(part.values[:d]), part.slopes])
            units += part.values.square() @ w
            units += 2 * self.units * ((part.values * slopes * w.T) @ part.z.T)
            units += squares * ((slopes.square() * w.T) @ part.z.square().T)
            own = ((centres, part.slopes), (sharpness, part.sharper), (by_p, part.h), (by_q, part.rest))
            for block, factor in own:
                block += squares[d:] * (factor.square() @ w)
            shift += w.sum()
        raw *= self.rates.square().view(-1, 1)
        return total

    def layers(self) -> list[Layer]:
        """The factors (a, g): W with input z, W transposed with input φ, and what has a constant input."""
        d, m = self.map.dim, self.map.units
        shift, units, centres, sharpness, _ = self.map.layout()
        z, values, h, rest, slopes, sharper = (
            torch.cat([getattr(part, name) for part in self.parts], 1).T
            for name in ("z", "values", "h", "rest", "slopes", "sharper")
        )
        ones, (p_rate, q_rate) = torch.ones_like(z[:, :1]), self.rates.view(2, -1)
        g_units = torch.cat([torch.ones_like(z), slopes], 1).unsqueeze(1) * self.units.T
        own = torch.cat([sharper, p_rate * h, q_rate * rest], 1)  # log κ, ω of p and q lie one after another in θ
        g_own = own.unsqueeze(1) * self.units[d:].T.repeat(1, 3)
        return [
            Layer(shift.offset, (d, 1), ones, None),
            Layer(units.offset, (d + m, d), z, g_units),
            Layer(units.offset, (d + m, d), values, None, transposed=True),
            Layer(centres.offset, (m, 1), ones, g_units[:, :, d:]),
            Layer(sharpness.offset, (3 * m, 1), ones, g_own),
        ]
