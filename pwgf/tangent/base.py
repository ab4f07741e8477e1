"""The tangent J = ∂_θT on a batch of samples: products, trace and Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..checks import entries_at_once
from ..maps.base import Layer, Linearisation
from ..parallel import ALONE, Group

_ENTRIES = 2**24  # numbers held at once when rows of J or blocks of a Gram matrix are formed (128 MB in float64)
_CACHED = 2**20  # the same where they should stay in a core's cache
_FEW_SAMPLES = 64  # enough for the scale of J where each row costs a backward pass
_FEW_OUTPUTS = 3  # dimensions up to which JᵀJ is quicker by rows of J than by pairs of layers


class OutputBlocks(NamedTuple):
    """For each coordinate k of x, parameters that move x_k alone, and their blocks of Ĝ and of H.

    Args:
        places: (d,m) in θ.
        metric: (d,m,m).
        hessian: (d,m,m); None where there is none.
    """

    places: Tensor
    metric: Tensor
    hessian: Tensor | None = None

    def gram(self, h: float) -> Tensor:
        """The blocks of Ĝ + hH, (d,m,m)."""
        return self.metric if self.hessian is None else torch.add(self.metric, self.hessian, alpha=h)


class Linearisable(Protocol):
    """What a tangent asks of a map; see `PushForward`."""

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J at (θ, z)."""
        ...

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p)."""
        ...

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """∂_θ(∂_zT·ξ) at (θ, z) and directions ξ (n,d)."""
        ...

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """The same itself, (n,d,p)."""
        ...


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

    num_directions = 1  # factors of a sample
    h = 0.0  # the rows are those of Ĝ alone

    def __init__(
        self, map: Linearisable, theta: Tensor, z: Tensor, chunk_size: int | None = None, group: Group = ALONE
    ) -> None:
        self.map, self.theta, self.group, self._every_z = map, theta.detach(), group, z.detach()
        (self.n, self.d), self.p = z.shape, theta.numel()
        self.z = group.slice_rows(self._every_z)
        self.dtype, self.device = theta.dtype, theta.device
        self.chunk_size = chunk_size or max(len(self.z), 1)
        self._parts = self._linearised()
        self.layered = all(part.layers is not None for part in self._parts)
        self._once = self.layered and not any(part.repeats for part in self._parts)  # no cross terms within a matrix

    def _linearised(self) -> list[Linearisation]:
        return [self.map.linearise(self.theta, part) for part in self.z.split(self.chunk_size)]

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
            count = min(self.n, _FEW_SAMPLES)
            few = self.subset(torch.arange(count, device=self.device) * self.n // count)
            return sum((rows.square().sum(0) for rows in few._rows()), total) / few.n
        for part in self._parts:
            total += part.diagonal() if part.diagonal is not None else _layer_squares(part.layers(), total)  # type: ignore[misc]
        return self.group.sum(total) / self.n

    def diagonal(self) -> Tensor:
        """The diagonal of Ĝ, (p,): exact where every matrix acts once, else from at most 64 samples."""
        return self._diagonal

    def trace(self) -> Tensor:
        """tr Ĝ = |J|²/n, a scalar on the CPU: as exact as `diagonal`, the damping's scale needs no more."""
        return self._trace

    @cached_property
    def _trace(self) -> Tensor:
        return self._diagonal.sum().cpu()

    def gram_dual(self) -> Tensor:
        """JJᵀ, (n·d, n·d), rows ordered (sample, coordinate): Σ_layers (a_i·a_j)(g_ik·g_jl)."""
        if self.group.size > 1:  # few samples: every process forms the whole
            return self.subset(torch.arange(self.n, device=self.device)).gram_dual()
        if not self.layered:
            rows = torch.cat(list(self._rows()))
            return rows @ rows.T
        layers = self.all_layers()
        return row_gram(layers, layers, self.d)

    @property
    def _transposed(self) -> bool:
        """Whether a matrix acts by its transpose: pairs of layers cost 2 to 13 times the rows of J then."""
        return any(layer.transposed for layers in self._layers() for layer in layers)

    def gram_primal(self) -> Tensor:
        """Ĝ = JᵀJ/n, (p,p): blocks Σ_i (Σ_k g_ik g′_ikᵀ) ⊗ (a_i a′_iᵀ) for each pair of layers."""
        gram = torch.zeros(self.p, self.p, dtype=self.dtype, device=self.device)
        if not self._once or self.d <= _FEW_OUTPUTS or self._transposed:
            for rows in self.rows():
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

    def output_columns(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each coordinate k: the parameters that move x_k alone, (m,) sorted, and how each does, (own samples, m).

        From the layers whose outputs are the coordinates of T, or a single one of them.
        """
        layers = [layer for layer in self.all_layers() if not layer.transposed] if self.layered else []
        for k in range(self.d):
            columns: dict[int, Tensor] = {}
            for layer in layers:
                if layer.g is None or layer.output == k:
                    start = layer.offset + (k * layer.shape[1] if layer.g is None else 0)
                    columns[start] = columns[start] + layer.a if start in columns else layer.a
            index = [torch.zeros(0, dtype=torch.long)]
            found = [torch.zeros(len(self.z) * self.num_directions, 0, dtype=self.dtype, device=self.device)]
            for start, a in sorted(columns.items(), key=lambda item: item[0]):
                index.append(torch.arange(start, start + a.shape[1]))
                found.append(a)
            yield torch.cat(index), torch.cat(found, 1)

    def output_blocks(self) -> OutputBlocks:
        """The blocks of Ĝ between the parameters of `output_columns`."""
        found = [(index, columns.T @ columns) for index, columns in self.output_columns()]
        metric = self.group.sum(torch.stack([gram for _, gram in found])) / self.n
        return OutputBlocks(torch.stack([index for index, _ in found]).to(self.device), metric)

    @cached_property
    def output_share(self) -> float:
        """Share of the parameters that move a single coordinate each, and all others of J not at all."""
        if not self.layered or not self.d:
            return 0.0
        return self.d * len(next(self.output_columns())[0]) / max(self.p, 1)

    def dense(self) -> Tensor:
        """J itself, (n·d, p): for tests and small problems."""
        return torch.cat(list(self._rows()))

    def rows(self) -> Iterator[Tensor]:
        """Rows of J in blocks of whole samples, (b·d, p), from the factors where there are any."""
        return self._layered_rows() if self.layered else self._rows()

    def all_layers(self) -> list[Layer]:
        """The factors of all own samples; of a layered tangent."""
        groups = zip(*self._layers(), strict=True)
        return [_joined(group) for group in groups]

    def _rows(self) -> Iterator[Tensor]:
        """Rows of J in blocks of whole samples, (b·d, p), by differentiating T."""
        per_block = max(1, entries_at_once(_ENTRIES, self.z) // max(self.d * self.p, 1))
        for block in self.z.split(per_block):
            yield self.map.tangent_rows(self.theta, block).reshape(-1, self.p)

    def _layered_rows(self) -> Iterator[Tensor]:
        """The same from the factors."""
        q = self.num_directions
        size = max(1, entries_at_once(_CACHED, self.z) // max(q * self.d * self.p, 1)) * q
        identity = torch.eye(self.d, dtype=self.dtype, device=self.device)
        for layers in self._layers():
            for start in range(0, len(layers[0].a), size):
                part = slice(start, start + size)
                make = torch.empty if self._once else torch.zeros  # slopes need not move with every parameter
                rows = make(len(layers[0].a[part]), self.d, self.p, dtype=self.dtype, device=self.device)
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


class SlopeTangent(Tangent):
    """D = ∂_θ(∂_zT·ξ), how the map's slopes along directions ξ move with θ, as an (n·q·d, p) matrix.

    `jv` gives and `jtu` takes (n, q·d): for each sample its q directions, d numbers each.

    Args:
        map, theta, z, chunk_size, group: as for `Tangent`.
        xi: (n,q,d) directions at every sample, the same in every process.
    """

    def __init__(
        self,
        map: Linearisable,
        theta: Tensor,
        z: Tensor,
        xi: Tensor,
        chunk_size: int | None = None,
        group: Group = ALONE,
    ) -> None:
        self._every_xi, self.num_directions = xi.detach(), xi.shape[1]
        self.xi = group.slice_rows(self._every_xi)
        super().__init__(map, theta, z, chunk_size, group)

    def _linearised(self) -> list[Linearisation]:
        return [self.map.linearise_slope(self.theta, at, along) for at, along in self._pairs(self.chunk_size)]

    def _pairs(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """z and ξ, (b·q, d) each, in blocks of so many samples."""
        for z, xi in zip(self.z.split(size), self.xi.split(size), strict=True):
            yield z.repeat_interleave(self.num_directions, 0), xi.flatten(0, 1)

    def jv(self, eta: Tensor) -> Tensor:
        """Dη: (p,) → (n, q·d)."""
        return super().jv(eta).view(len(self.z), -1)

    def jtu(self, u: Tensor) -> Tensor:
        """Dᵀu: (n, q·d) → (p,), summed over the samples."""
        pieces = u.reshape(-1, self.d).split(self.chunk_size * self.num_directions)
        own = torch.stack([part.jtu(piece) for part, piece in zip(self._parts, pieces, strict=True)]).sum(0)
        return self.group.sum(own)

    def subset(self, index: Tensor) -> SlopeTangent:
        """D at some of the samples, index (m,); whole on every process."""
        return SlopeTangent(self.map, self.theta, self._every_z[index], self._every_xi[index], self.chunk_size)

    def to(self, dtype: torch.dtype) -> SlopeTangent:
        """D at the same (θ, z, ξ) in another precision."""
        z, xi = self._every_z.to(dtype), self._every_xi.to(dtype)
        return SlopeTangent(self.map, self.theta.to(dtype), z, xi, self.chunk_size, self.group)

    def _rows(self) -> Iterator[Tensor]:
        per_block = max(1, entries_at_once(_ENTRIES, self.z) // max(self.num_directions * self.d * self.p, 1))
        for z, xi in self._pairs(per_block):
            yield self.map.slope_rows(self.theta, z, xi).reshape(-1, self.p)


def row_gram(left: list[Layer], right: list[Layer], dim: int) -> Tensor:
    """A Bᵀ, (n·d, m·d), of the rows A and B that two lists of factors stand for.

    Two layers of one matrix W add (a_i·ā_j)(g_ik·ḡ_jl); where one of them acts by Wᵀ they add (g_ik·ā_j)(a_i·ḡ_jl).
    """
    n, m = len(left[0].a), len(right[0].a)
    total = left[0].a.new_zeros(n, dim, m, dim)
    identity = torch.eye(dim, dtype=total.dtype, device=total.device)
    shared: dict[tuple[int, int], tuple[Layer, Layer, Tensor]] = {}  # a weight and its bias share g
    for one in left:
        for other in (layer for layer in right if layer.offset == one.offset):
            if one.transposed == other.transposed:
                key, inputs = (id(one.g), id(other.g)), one.a @ other.a.T
                shared[key] = (one, other, inputs + shared[key][2] if key in shared else inputs)
                continue
            g, back_g = one.outputs(dim).reshape(n * dim, -1), other.outputs(dim).reshape(m * dim, -1)
            total += (g @ other.a.T).view(n, dim, m, 1) * (one.a @ back_g.T).view(n, 1, m, dim)
    for one, other, inputs in shared.values():
        if one.g is None and other.g is None:
            outputs = identity[None, :, None, :]
        else:
            g, other_g = one.outputs(dim).reshape(n * dim, -1), other.outputs(dim).reshape(m * dim, -1)
            outputs = (g @ other_g.T).view(n, dim, m, dim)
        total += outputs * inputs[:, None, :, None]
    return total.view(n * dim, m * dim)


def _joined(group: tuple[Layer, ...]) -> Layer:
    """One layer from its blocks of samples."""
    if len(group) == 1:
        return group[0]
    g = None if group[0].g is None else torch.cat([layer.g for layer in group if layer.g is not None])
    return group[0]._replace(a=torch.cat([layer.a for layer in group]), g=g)


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
