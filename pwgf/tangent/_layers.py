"""Gram matrices and sums of squares of rows given by the factors of their layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..maps.base import Layer, Linearisation

CACHED = 2**20
"""Numbers held at once where they should stay in a core's cache."""

ENTRIES = 2**24
"""Numbers held at once when rows of J or blocks of a Gram matrix are formed (128 MB in float64)."""

_STRIP = 96  # columns of a Gram matrix formed at a time: narrower ones than p/2, wide enough for matrix products


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


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds leftᵀ right, a symmetric (p,p) product of rows (m,p), to a total; on a CPU to its upper triangle alone.

    By strips of columns there, which saves a quarter to a third of the time; `mirrored` fills in the rest.
    """
    p = len(total)
    width = _STRIP if total.device.type == "cpu" else p
    for start in range(0, p, width):
        total[start : start + width, start:].addmm_(left[:, start : start + width].T, right[:, start:])


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix of this upper triangle."""
    return total.triu() + total.triu(1).T


def scaled(part: Linearisation, roots: Tensor) -> Linearisation:
    """The same with the rows of each sample times a number, (n,1)."""
    layers, diagonal = part.layers, part.diagonal

    return Linearisation(
        lambda eta: roots * part.jv(eta),
        lambda u: part.jtu(roots * u),
        None if layers is None else lambda: [layer._replace(a=roots * layer.a) for layer in layers()],
        None if diagonal is None else lambda weights: diagonal(roots.squeeze(1).square() * weights),
        part.repeats,
    )


def joined(group: tuple[Layer, ...]) -> Layer:
    """One layer from its blocks of samples."""
    if len(group) == 1:
        return group[0]
    g = None if group[0].g is None else torch.cat([layer.g for layer in group if layer.g is not None])
    return group[0]._replace(a=torch.cat([layer.a for layer in group]), g=g)


def _both_ways(layers: list[Layer]) -> list[tuple[Layer, Layer]]:
    """The layers of each matrix that acts both ways: (as it is, transposed)."""
    plain = {layer.offset: layer for layer in layers if not layer.transposed}
    return [(plain[layer.offset], layer) for layer in layers if layer.transposed and layer.offset in plain]


def layer_squares(layers: list[Layer], like: Tensor) -> Tensor:
    """Σ_rows J², (p,): for each layer Σ_i (Σ_k g_ik²) ⊗ a_i²; products of two layers where a matrix acts both ways."""
    total = torch.zeros_like(like)
    for layer in layers:
        a2, outputs = layer.a.square(), layer.shape[layer.transposed]
        square = a2.sum(0).expand(outputs, -1) if layer.g is None else layer.g.square().sum(1).T @ a2
        total[layer.offset : layer.offset + square.numel()] += (square.T if layer.transposed else square).reshape(-1)
    for one, back in _both_ways(layers):
        d, mixed = one.shape[1] if back.g is None else back.g.shape[1], total[one.offset :][: math.prod(one.shape)]
        g, back_g, block = one.outputs(d), back.outputs(d), max(1, CACHED // mixed.numel())
        for part in (slice(start, start + block) for start in range(0, len(one.a), block)):
            pairs = g[part].transpose(1, 2) @ back_g[part] * back.a[part].unsqueeze(2) * one.a[part].unsqueeze(1)
            mixed += 2 * pairs.sum(0).reshape(-1)
    return total


def layer_pair(one: Layer, other: Layer) -> Tensor:
    """Σ_i (Σ_k g_ik g′_ikᵀ) ⊗ (a_i a′_iᵀ), (out·in, out′·in′), in blocks of samples."""
    (o, i), (o2, i2) = one.shape, other.shape
    if one.g is None and other.g is None:
        inputs = one.a.T @ other.a
        eye = torch.eye(o, dtype=inputs.dtype, device=inputs.device)
        return (eye[:, None, :, None] * inputs[None, :, None, :]).reshape(o * i, o2 * i2)
    total = one.a.new_zeros(o * o2, i * i2)
    block = max(1, ENTRIES // max(o * o2 + i * i2, 1))
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
