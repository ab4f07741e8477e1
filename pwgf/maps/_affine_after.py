"""Maps T(z) = A Φ_θ(z) + b whose Φ is made of matrices that act on each sample separately."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_points
from ._networks import with_ones
from ._products import products
from .base import Layer, Linearisation, PushForward, solve_affine

Act = Callable[[int, Tensor], Tensor]  # (k, fed (n,in)) → (n,out)


class Call(NamedTuple):
    """One use of block k of θ: its input, [fed, 1] (n, in + 1), and the zeros that were added to its output."""

    k: int
    fed: Tensor
    probe: Tensor


class AffineAfter(PushForward):
    """T_θ(z) = A Φ_θ(z) + b, with [A b] the first block of θ.

    The affine part follows Gaussian and self-similar flows exactly, whatever Φ. A subclass writes Φ with `act(k, fed)`
    = W_k [fed, 1], where W_k is block k ≥ 1 of θ; the tangent follows from the inputs of the blocks and from gradients
    by their outputs, as factors where each block acts once. At the start Φ is the identity.
    """

    @abstractmethod
    def inner(self, act: Act, z: Tensor) -> Tensor:
        """Φ(z), (n,d)."""

    def traced(self, act: Act, z: Tensor) -> Tensor:
        """Φ(z) on a graph that is differentiated once in what `act` gives; a subclass may know a shorter one."""
        return self.inner(act, z)

    @abstractmethod
    def inner_inverse(self, theta: Tensor, y: Tensor) -> Tensor:
        """Φ⁻¹(y), (n,d)."""

    def acting(self, theta: Tensor) -> Act:
        """`act` at θ."""
        weights = self.unpack(theta)
        return lambda k, fed: apply(weights[k], fed)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """A Φ(z) + b."""
        return apply(self.unpack(theta)[0], self.inner(self.acting(theta), z))

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """Φ⁻¹(A⁻¹(x − b)); raises SolverError where A is singular."""
        check_points(x, self.dim, f"{type(self).__name__}.inverse(theta, x): x", finite=True)
        theta, x = theta.detach(), x.detach()
        return self.inner_inverse(theta, solve_affine(self.unpack(theta)[0], x, type(self).__name__))

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J from one run of T: a backward pass for a product, d of them for the factors."""
        theta, z = theta.detach(), z.detach()
        weights, calls = self.unpack(theta), []

        def act(k: int, fed: Tensor) -> Tensor:
            given = apply(weights[k], fed)
            calls.append(Call(k, with_ones(fed).detach(), torch.zeros_like(given, requires_grad=True)))
            return given + calls[-1].probe

        with torch.enable_grad():
            y = self.traced(act, z)
            x = apply(weights[0], y)
        return _Run(self, calls, with_ones(y).detach(), x).linearisation()

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p), from the factors. Cost: T, d backward passes and p numbers per row."""
        rows = torch.zeros(len(z), self.dim, len(theta), dtype=z.dtype, device=z.device)
        for layer in self.linearise(theta, z).layers():  # type: ignore[misc]  # they are always there
            block = rows[:, :, layer.offset : layer.offset + layer.shape[0] * layer.shape[1]].unflatten(2, layer.shape)
            block += layer.outputs(self.dim).unsqueeze(3) * layer.a[:, None, None, :]
        return rows


class _Run:
    """One run of T with probes at the outputs of its blocks."""

    def __init__(self, map: AffineAfter, calls: list[Call], features: Tensor, x: Tensor) -> None:
        self.layout = map.layout()
        self.num_params = map.num_params
        self.calls = calls
        self.features = features
        self.x = x
        with torch.enable_grad():
            self.push, self.pull = products(x, [call.probe for call in calls])

    def linearisation(self) -> Linearisation:
        """J as its products and factors."""
        repeats = len({call.k for call in self.calls}) < len(self.calls)
        return Linearisation(self.jv, self.jtu, self.layers, repeats=repeats)

    def _block(self, flat: Tensor, k: int) -> Tensor:
        (out, into), offset = self.layout[k].shape, self.layout[k].offset
        return flat[offset : offset + out * into].view(out, into)

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n,d)."""
        moved = self.push([call.fed @ self._block(eta, call.k).T for call in self.calls])
        return torch.addmm(moved, self.features, self._block(eta, 0).T)

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,)."""
        out = torch.zeros(self.num_params, dtype=u.dtype, device=u.device)
        self._block(out, 0).addmm_(u.T, self.features)
        for call, back in zip(self.calls, self.pull(u), strict=True):
            self._block(out, call.k).addmm_(back.T, call.fed)
        return out

    def layers(self) -> list[Layer]:
        """The factors of [A b], and of every use of the other blocks."""
        d = self.x.shape[1]
        seeds = torch.eye(d, dtype=self.x.dtype, device=self.x.device)
        slopes = zip(*(self.pull(seed.expand_as(self.x)) for seed in seeds), strict=True)
        found = [Layer(0, (d, d + 1), self.features, None)]
        for call, by_k in zip(self.calls, slopes, strict=True):
            block = self.layout[call.k]
            out, into = block.shape
            found.append(Layer(block.offset, (out, into), call.fed, torch.stack(by_k, dim=1)))
        return found


def apply(weight: Tensor, fed: Tensor) -> Tensor:
    """W [fed, 1]: (out, in + 1), (n,in) → (n,out)."""
    return torch.addmm(weight[:, -1], fed, weight[:, :-1].T)
