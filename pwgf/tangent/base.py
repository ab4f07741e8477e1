"""The tangent J = ∂_θT on a batch of samples: products, trace and Gram matrices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ..checks import entries_at_once
from ..maps.base import Layer, Linearisation
from ..parallel import ALONE, Group
from ._layers import CACHED, ENTRIES, add_product, joined, layer_pair, layer_squares, mirrored, row_gram, scaled

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
    weights: Tensor | None = None  # (n,) of every sample in every process; None: all count alike
    _root: Tensor  # of the weights, for each own row of J
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

    def weighted(self, weights: Tensor) -> Self:
        """The same with each sample's rows times the root of its weight, (n,) of every sample in every process."""
        found = copy.copy(self)
        for name in ("_diagonal", "_trace", "output_share"):
            found.__dict__.pop(name, None)
        found.weights = weights
        own = self.group.slice_rows(weights.sqrt()).repeat_interleave(self.num_directions).unsqueeze(1)
        found._root = own.repeat_interleave(self.d, 0)
        pieces = own.split(self.chunk_size * self.num_directions)
        found._parts = [scaled(part, piece) for part, piece in zip(self._parts, pieces, strict=True)]
        return found

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
        found = Tangent(self.map, self.theta, self._every_z[index], self.chunk_size)
        return found if self.weights is None else found.weighted(self.weights[index])

    def to(self, dtype: torch.dtype) -> Tangent:
        """The tangent at the same (θ, z) in another precision."""
        found = Tangent(self.map, self.theta.to(dtype), self._every_z.to(dtype), self.chunk_size, self.group)
        return found if self.weights is None else found.weighted(self.weights.to(dtype))

    @cached_property
    def _diagonal(self) -> Tensor:
        total = torch.zeros(self.p, dtype=self.dtype, device=self.device)
        if not self._once:
            count = min(self.n, _FEW_SAMPLES)
            few = self.subset(torch.arange(count, device=self.device) * self.n // count)
            return sum((rows.square().sum(0) for rows in few._rows()), total) / few.n
        for part, z in zip(self._parts, self.z.split(self.chunk_size), strict=True):
            known = part.diagonal
            total += layer_squares(part.layers(), total) if known is None else known(z.new_ones(len(z)))  # type: ignore[misc]
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
                add_product(gram, rows, rows)
            return self.group.sum(mirrored(gram)) / self.n
        for layers in self._layers():
            for k, one in enumerate(layers):
                for other in layers[k:]:
                    block = layer_pair(one, other)
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
        return [joined(group) for group in groups]

    def _rows(self) -> Iterator[Tensor]:
        """Rows of J in blocks of whole samples, (b·d, p), by differentiating T."""
        per_block = max(1, entries_at_once(ENTRIES, self.z) // max(self.d * self.p, 1))
        blocks = (self.map.tangent_rows(self.theta, block).reshape(-1, self.p) for block in self.z.split(per_block))
        yield from self._weighed(blocks)

    def _weighed(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Rows in blocks, times the roots of the weights."""
        start = 0
        for rows in blocks:
            yield rows if self.weights is None else self._root[start : start + len(rows)] * rows
            start += len(rows)

    def _layered_rows(self) -> Iterator[Tensor]:
        """The same from the factors."""
        q = self.num_directions
        size = max(1, entries_at_once(CACHED, self.z) // max(q * self.d * self.p, 1)) * q
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
        found = SlopeTangent(self.map, self.theta, self._every_z[index], self._every_xi[index], self.chunk_size)
        return found if self.weights is None else found.weighted(self.weights[index])

    def to(self, dtype: torch.dtype) -> SlopeTangent:
        """D at the same (θ, z, ξ) in another precision."""
        z, xi = self._every_z.to(dtype), self._every_xi.to(dtype)
        found = SlopeTangent(self.map, self.theta.to(dtype), z, xi, self.chunk_size, self.group)
        return found if self.weights is None else found.weighted(self.weights.to(dtype))

    def _rows(self) -> Iterator[Tensor]:
        per_block = max(1, entries_at_once(ENTRIES, self.z) // max(self.num_directions * self.d * self.p, 1))
        pairs = self._pairs(per_block)
        yield from self._weighed(self.map.slope_rows(self.theta, z, xi).reshape(-1, self.p) for z, xi in pairs)
