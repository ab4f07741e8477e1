"""The tangent J = ∂_θT on a batch of samples: products, trace and Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from .maps.base import Layer, Linearisation, PushForward
from .parallel import ALONE, Group

_ENTRIES = 2**24  # numbers held at once when rows of J or blocks of a Gram matrix are formed (128 MB in float64)
_CACHED = 2**20  # the same where they should stay in a core's cache
_FEW_SAMPLES = 64  # enough for the scale of J where each row costs a backward pass
_FEW_OUTPUTS = 3  # dimensions up to which JᵀJ is quicker by rows of J than by pairs of layers


class Tangent:
    """J at (θ, z), seen as an (n·d, p) matrix; Ĝ = JᵀJ/n is the pullback metric.

    Maps made of per-sample linear layers give Gram matrices from the layers' factors, without forming J; others form
    rows of J block by block.

    Args:
        map: T.
        theta: (p,).
        z: (n,d).
        chunk_size: samples per block of cached activations; None keeps all in one block.
        group: processes that share the samples out. All give the same z; `z` and the rows of `jv`, `jtu` and `dense`
            are then this process's, everything else (n, jtu's sum, trace, Grams, subset) is of all samples.
    """

    def __init__(
        self, map: PushForward, theta: Tensor, z: Tensor, chunk_size: int | None = None, group: Group = ALONE
    ) -> None:
        self.map, self.theta, self.group, self._every_z = map, theta.detach(), group, z.detach()
        (self.n, self.d), self.p = z.shape, theta.numel()
        self.z = group.slice_rows(self._every_z)
        self.dtype, self.device = theta.dtype, theta.device
        self.chunk_size = chunk_size or max(len(self.z), 1)
        self._parts: list[Linearisation] = [map.linearise(self.theta, part) for part in self.z.split(self.chunk_size)]
        self.layered = all(part.layers is not None for part in self._parts)
        self._once = self.layered and not any(part.repeats for part in self._parts)  # no cross terms within a matrix

    def jv(self, eta: Tensor) -> Tensor:
        """Jη: (p,) → (n,d), the velocities that θ̇ = η gives the samples."""
        return torch.cat([part.jv(eta) for part in self._parts])

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu: (n,d) → (p,), summed over the samples."""
        pieces = u.split(self.chunk_size)
        own = torch.stack([part.jtu(piece) for part, piece in zip(self._parts, pieces, strict=True)]).sum(0)
        return self.group.sum(own)

    def subset(self, index: Tensor) -> Tangent:
        """The tangent at some of the samples, index (m,); whole on every process."""
        return Tangent(self.map, self.theta, self._every_z[index], self.chunk_size)

    def to(self, dtype: torch.dtype) -> Tangent:
        """The tangent at the same (θ, z) in another precision."""
        return Tangent(self.map, self.theta.to(dtype), self._every_z.to(dtype), self.chunk_size, self.group)

    @cached_property
    def _diagonal(self) -> Tensor:
        total = torch.zeros(self.p, dtype=self.dtype, device=self.device)
        if not self._once:
            few = self.subset(torch.arange(min(self.n, _FEW_SAMPLES)) * self.n // min(self.n, _FEW_SAMPLES))
            return sum((rows.square().sum(0) for rows in few._rows()), total) / few.n
        for part in self._parts:
            total += part.diagonal() if part.diagonal is not None else _layer_squares(part.layers(), total)  # type: ignore[misc]
        return self.group.sum(total) / self.n

    def diagonal(self) -> Tensor:
        """The diagonal of Ĝ, (p,): exact where every matrix acts once, else from at most 64 samples."""
        return self._diagonal

    def trace(self) -> Tensor:
        """tr Ĝ = |J|²/n, a scalar: as exact as `diagonal`, the damping's scale needs no more."""
        return self._diagonal.sum()

    def gram_dual(self) -> Tensor:
        """JJᵀ, (n·d, n·d), rows ordered (sample, coordinate): Σ_layers (a_i·a_j)(g_ik·g_jl)."""
        if self.group.size > 1:  # few samples: every process forms the whole
            return self.subset(torch.arange(self.n)).gram_dual()
        if not self._once:
            rows = torch.cat(list(self._layered_rows() if self.layered else self._rows()))
            return rows @ rows.T
        identity = torch.eye(self.d, dtype=self.dtype, device=self.device)
        gram = torch.zeros(self.n, self.d, self.n, self.d, dtype=self.dtype, device=self.device)
        for g, inputs in self._input_grams():
            if g is None:
                gram += inputs[:, None, :, None] * identity[None, :, None, :]
            else:
                flat = g.reshape(self.n * self.d, -1)
                gram += (flat @ flat.T).view(gram.shape) * inputs[:, None, :, None]
        flat = gram.view(self.n * self.d, self.n * self.d)
        for cross in self._cross_grams():
            flat += cross.add_(cross.T.clone())
        return flat

    @property
    def _transposed(self) -> bool:
        """Whether a matrix acts by its transpose: pairs of layers cost 2 to 13 times the rows of J then."""
        return any(layer.transposed for layers in self._layers() for layer in layers)

    def gram_primal(self) -> Tensor:
        """Ĝ = JᵀJ/n, (p,p): blocks Σ_i (Σ_k g_ik g′_ikᵀ) ⊗ (a_i a′_iᵀ) for each pair of layers."""
        gram = torch.zeros(self.p, self.p, dtype=self.dtype, device=self.device)
        if not self._once or self.d <= _FEW_OUTPUTS or self._transposed:
            for rows in self._layered_rows() if self.layered else self._rows():
                gram.addmm_(rows.T, rows)
            return self.group.sum(gram) / self.n
        for layers in self._layers():
            for k, one in enumerate(layers):
                for other in layers[k:]:
                    block = _layer_pair(one, other)
                    down = slice(one.offset, one.offset + block.shape[0])
                    across = slice(other.offset, other.offset + block.shape[1])
                    gram[down, across] += block
                    if other is not one:
                        gram[across, down] += block.T
        return self.group.sum(gram) / self.n

    def dense(self) -> Tensor:
        """J itself, (n·d, p): for tests and small problems."""
        return torch.cat(list(self._rows()))

    def _rows(self) -> Iterator[Tensor]:
        """Rows of J in blocks of whole samples, (b·d, p), by differentiating T."""
        per_block = max(1, _ENTRIES // max(self.d * self.p, 1))
        for block in self.z.split(per_block):
            yield self.map.tangent_rows(self.theta, block).reshape(-1, self.p)

    def _layered_rows(self) -> Iterator[Tensor]:
        """The same from the factors."""
        size = max(1, _CACHED // max(self.d * self.p, 1))
        identity = torch.eye(self.d, dtype=self.dtype, device=self.device)
        for layers in self._layers():
            for start in range(0, len(layers[0].a), size):
                part = slice(start, start + size)
                rows = torch.empty(len(layers[0].a[part]), self.d, self.p, dtype=self.dtype, device=self.device)
                filled: set[int] = set()
                for layer in layers:
                    block = rows[:, :, layer.offset : layer.offset + math.prod(layer.shape)].unflatten(2, layer.shape)
                    g = identity[None] if layer.g is None else layer.g[part]
                    a = layer.a[part, None, :, None] if layer.transposed else layer.a[part, None, None, :]
                    outputs = g.unsqueeze(2 if layer.transposed else 3)
                    if layer.offset in filled:
                        block += outputs * a
                    else:
                        torch.mul(outputs, a, out=block)
                        filled.add(layer.offset)
                yield rows.reshape(-1, self.p)

    def _layers(self) -> Iterator[list[Layer]]:
        for part in self._parts:
            yield part.layers()  # type: ignore[misc]

    def _input_grams(self) -> list[tuple[Tensor | None, Tensor]]:
        """Every g with Σ aaᵀ (n,n) over the layers that share it, as a weight and its bias do."""
        found: dict[tuple[int, ...], tuple[Tensor | None, Tensor]] = {}
        groups = list(zip(*self._layers(), strict=True))  # a list, so that every g lives on and its id is its own
        for group in groups:
            a, outputs = torch.cat([layer.a for layer in group]), [layer.g for layer in group if layer.g is not None]
            shared = tuple(id(layer.g) for layer in group)
            if shared in found:
                found[shared][1].addmm_(a, a.T)
            else:
                found[shared] = torch.cat(outputs) if outputs else None, a @ a.T
        return list(found.values())

    def _cross_grams(self) -> Iterator[Tensor]:
        """What a matrix that acts both ways adds to JJᵀ beside its two layers: half of it, without the transpose.

        Its parts of row (i,k) are g_ik ⊗ a_i and ā_i ⊗ ḡ_ik, whence the entry (g_ik·ā_j)(a_i·ḡ_jl).
        """
        parts = [_both_ways(layers) for layers in self._layers()]
        for group in zip(*parts, strict=True):
            a, back_a = (torch.cat([pair[side].a for pair in group]) for side in (0, 1))
            g, back_g = (torch.cat([pair[side].outputs(self.d) for pair in group]) for side in (0, 1))
            left = (g.reshape(self.n * self.d, -1) @ back_a.T).view(self.n, self.d, self.n, 1)
            right = (a @ back_g.reshape(self.n * self.d, -1).T).view(self.n, 1, self.n, self.d)
            yield (left * right).view(self.n * self.d, self.n * self.d)


def _both_ways(layers: list[Layer]) -> list[tuple[Layer, Layer]]:
    """The layers of each matrix that acts both ways: (as it is, transposed)."""
    plain = {layer.offset: layer for layer in layers if not layer.transposed}
    return [(plain[layer.offset], layer) for layer in layers if layer.transposed and layer.offset in plain]


def _layer_squares(layers: list[Layer], like: Tensor) -> Tensor:
    """Σ_rows J², (p,): for each layer Σ_i (Σ_k g_ik²) ⊗ a_i²; products of two layers where a matrix acts both ways."""
    total = torch.zeros_like(like)
    for layer in layers:
        a2, outputs = layer.a.square(), layer.shape[layer.transposed]
        square = a2.sum(0).expand(outputs, -1) if layer.g is None else layer.g.square().sum(1).T @ a2
        total[layer.offset : layer.offset + square.numel()] += (square.T if layer.transposed else square).reshape(-1)
    for one, back in _both_ways(layers):
        d, mixed = one.shape[1] if back.g is None else back.g.shape[1], total[one.offset :][: math.prod(one.shape)]
        g, back_g, block = one.outputs(d), back.outputs(d), max(1, _CACHED // mixed.numel())
        for part in (slice(start, start + block) for start in range(0, len(one.a), block)):
            pairs = g[part].transpose(1, 2) @ back_g[part] * back.a[part].unsqueeze(2) * one.a[part].unsqueeze(1)
            mixed += 2 * pairs.sum(0).reshape(-1)
    return total


def _layer_pair(one: Layer, other: Layer) -> Tensor:
    """Σ_i (Σ_k g_ik g′_ikᵀ) ⊗ (a_i a′_iᵀ), (out·in, out′·in′), in blocks of samples."""
    (o, i), (o2, i2) = one.shape, other.shape
    if one.g is None and other.g is None:
        inputs = one.a.T @ other.a
        eye = torch.eye(o, dtype=inputs.dtype, device=inputs.device)
        return (eye[:, None, :, None] * inputs[None, :, None, :]).reshape(o * i, o2 * i2)
    total = one.a.new_zeros(o * o2, i * i2)
    block = max(1, _ENTRIES // max(o * o2 + i * i2, 1))
    for start in range(0, len(one.a), block):
        part = slice(start, start + block)
        if one.g is None:
            outputs = other.g[part]  # type: ignore[index]
        elif other.g is None:
            outputs = one.g[part].transpose(1, 2)
        else:
            outputs = one.g[part].transpose(1, 2) @ other.g[part]
        inputs = one.a[part].unsqueeze(2) * other.a[part].unsqueeze(1)
        total.addmm_(outputs.reshape(-1, o * o2).T, inputs.reshape(-1, i * i2))
    return total.view(o, o2, i, i2).transpose(1, 2).reshape(o * i, o2 * i2)
