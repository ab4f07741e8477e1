"""Factors of J = ∂_θT for modules whose parameters all sit in `nn.Linear` layers, seen through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._products import products
from .base import Block, Layer, Linearisation


class Spot(NamedTuple):
    """A linear layer y = W a + b and where W (out, in) and b (out,) start in θ; `bias` is None where it has none."""

    child: nn.Module
    weight: int
    bias: int | None


class Record(NamedTuple):
    """The input of one call of a linear layer, (n, in), its output, and the zeros that were added to that.

    `version` counts the changes in place of `fed` until the call; a later one would invalidate it.
    """

    fed: Tensor
    version: int
    given: Tensor
    probe: Tensor


def linear_spots(
    module: nn.Module, layout: Sequence[Block], kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> list[Spot] | None:
    """The layers y = W a + b of these kinds that hold all parameters, each its own; None where there is another one.

    A layer with hooks of its own counts as another kind, and so does every subclass; shared parameters give None too.
    """
    offsets = {block.name: block.offset for block in layout}  # of a shared parameter only its first name is listed
    spots = []
    for path, child in module.named_modules():
        own = dict(child.named_parameters(recurse=False))
        if not own:
            continue
        at = {name: offsets.get(f"{path}.{name}" if path else name) for name in own}
        if type(child) not in kinds or child._forward_hooks or child._forward_pre_hooks:
            return None
        if "weight" not in own or own["weight"].ndim != 2 or None in at.values():
            return None
        spots.append(Spot(child, at["weight"], at.get("bias")))  # type: ignore[arg-type]
    return spots


def record(spots: Sequence[Spot], call: Callable[[], Tensor]) -> tuple[Tensor, list[Record]] | None:
    """x = call() with zeros added to the output of every layer, so that ∂x/∂(output) is a gradient by these zeros.

    None unless each layer is called exactly once, on one row per sample that is not overwritten later.
    """
    records: list[list[Record]] = [[] for _ in spots]

    def hook(seen: list[Record]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_probe(child: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> Tensor:
            probe = torch.zeros_like(given, requires_grad=True)
            seen.extend(Record(fed, fed._version, given, probe) for fed in args)  # no args: it was called by keyword
            return given + probe

        return add_probe

    handles = []
    try:
        for spot, seen in zip(spots, records, strict=True):
            handles.append(spot.child.register_forward_hook(hook(seen)))
        x = call()
    finally:
        for handle in handles:
            handle.remove()
    once = [seen[0] for seen in records if len(seen) == 1]
    fits = all(r.fed.ndim == 2 and len(r.fed) == len(x) and r.fed._version == r.version for r in once)
    return (x, once) if fits and len(once) == len(spots) else None


def used_elsewhere(x: Tensor, records: Sequence[Record], parameters: Sequence[Tensor]) -> bool:
    """Whether x depends on some parameter along a way that does not enter through its recorded layer.

    Walks the graph of x backwards; a recorded output is left through the layer's input alone.
    """
    ids = {id(q) for q in parameters}
    if any(id(r.fed) in ids for r in records):
        return True
    inputs = {r.given.grad_fn: r.fed.grad_fn for r in records}
    open_, done = [x.grad_fn], set()
    while open_:
        node = open_.pop()
        if node is None or node in done:
            continue
        done.add(node)
        if id(getattr(node, "variable", None)) in ids:
            return True
        open_ += [inputs[node]] if node in inputs else [source for source, _ in node.next_functions]
    return False


def linearise_layers(
    spots: Sequence[Spot], parameters: Sequence[Tensor], num_params: int, call: Callable[[], Tensor]
) -> Linearisation | None:
    """J from the inputs of the layers, a, and gradients by their outputs, g: ∂T_k/∂W[o, j] = g[k, o] a[j].

    Jη is one backward pass through the pulled-back graph from the directions (η_W a + η_b) of the layers' outputs, Jᵀu
    one backward pass to them; the factors g take d such passes and are computed only when asked for.

    Args:
        spots: the layers, from `linear_spots`.
        parameters: leaves that require gradients, which `call` runs the module with.
        num_params: p.
        call: T_θ(z), (n,d).

    Returns:
        None where the run was not of the form that `record` and `used_elsewhere` check.
    """
    with torch.enable_grad():
        seen = record(spots, call)
        if seen is None or used_elsewhere(*seen, parameters):
            return None
        x, records = seen
        push, pull = products(x, [r.probe for r in records])
    ones = torch.ones_like(x[:, :1]).detach()
    inputs = [  # [a, 1]: one matrix product serves weight and bias
        r.fed.detach() if spot.bias is None else torch.cat([r.fed.detach(), ones], dim=1)
        for spot, r in zip(spots, records, strict=True)
    ]

    def jv(eta: Tensor) -> Tensor:
        directions = []
        for spot, a in zip(spots, inputs, strict=True):
            weight, bias = _blocks(spot, eta)
            directions.append(a @ (weight if bias is None else torch.cat([weight, bias], dim=1)).T)
        return push(directions)

    def jtu(u: Tensor) -> Tensor:
        out = u.new_empty(num_params)
        for spot, a, back in zip(spots, inputs, pull(u), strict=True):
            (weight, bias), found = _blocks(spot, out), back.T @ a
            weight.copy_(found[:, : weight.shape[1]])
            if bias is not None:
                bias.copy_(found[:, -1:])
        return out

    def layers() -> list[Layer]:
        found = []
        for spot, a, g in zip(spots, inputs, _slopes(x, pull), strict=True):
            shape = _size(spot)
            found.append(Layer(spot.weight, shape, a[:, : shape[1]], g))
            if spot.bias is not None:  # shares g, which `Tangent` makes use of
                found.append(Layer(spot.bias, (shape[0], 1), ones, g))
        return found

    return Linearisation(jv, jtu, layers)


def _size(spot: Spot) -> tuple[int, int]:
    return spot.child.out_features, spot.child.in_features  # type: ignore[return-value]


def _blocks(spot: Spot, flat: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out, 1) of a layer as views of a vector in the format of θ."""
    out, into = _size(spot)
    weight = flat[spot.weight : spot.weight + out * into].view(out, into)
    return weight, None if spot.bias is None else flat[spot.bias : spot.bias + out].view(out, 1)


def _slopes(x: Tensor, pull: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """∂T_k/∂(output) of every layer, (n, d, out), one pass per coordinate k."""
    seeds = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return [torch.stack(by_k, dim=1) for by_k in zip(*(pull(seed.expand_as(x)) for seed in seeds), strict=True)]
