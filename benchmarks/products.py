"""One product Ĝη = Jᵀ(Jη) with the metric, and its share of the machine's matrix-product rate, for kinds of maps.

    python -m benchmarks.products              # about 20 seconds

A product is counted as 8·n·p flops: forward and backward, two products of n × p numbers each. A single hidden layer
needs fewer, 6·n·p, because nothing is passed on between hidden layers. The rate is that of a 2048³ product in the same
turns. The last map is one whose layers `FromModule` cannot find, so that it is differentiated plainly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import gemm_shares, heading, milliseconds
from experiments.common import table
from pwgf import maps
from pwgf.maps import PushForward
from pwgf.tangent import Tangent


class Sizes(NamedTuple):
    """d, n, and the widths of the maps with one and with two hidden layers; turns of the medians."""

    dim: int = 10
    num_samples: int = 1000
    width1: int = 457
    width2: int = 88
    turns: int = 15


FULL, TINY = Sizes(), Sizes(2, 20, 8, 8, 2)


class PlainMLP(nn.Module):
    """tanh layers whose weights are parameters of the module itself instead of `nn.Linear`'s."""

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        ends = [dim, *[width] * depth, dim]
        shapes = list(zip(ends[1:], ends[:-1], strict=True))
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList([torch.randn(s, generator=generator) / math.sqrt(s[1]) for s in shapes])
        self.biases = nn.ParameterList([torch.zeros(s[0]) for s in shapes])

    def forward(self, z: Tensor) -> Tensor:
        """(n,d) → (n,d)."""
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = torch.addmm(bias, torch.tanh(z) if k else z, weight.T)
        return z


def linear_layers(dim: int, width: int, depth: int) -> nn.Module:
    """The same made of `nn.Linear`."""
    ends = [dim, *[width] * depth]
    hidden = [part for a, b in zip(ends[:-1], ends[1:], strict=True) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(width, dim))


def cases(sizes: Sizes) -> dict[str, PushForward]:
    """The maps by name."""
    d = sizes.dim
    found: dict[str, PushForward] = {}
    for depth, width in ((1, sizes.width1), (2, sizes.width2)):
        tag = f"{depth} × {width}"
        found[f"ResidualMLP, {tag}"] = maps.ResidualMLP(d, width=width, depth=depth)
        found[f"FromModule with layers, {tag}"] = maps.FromModule(linear_layers(d, width, depth), d)
        found[f"FromModule without, {tag}"] = maps.FromModule(PlainMLP(d, width, depth), d)
    return found


def product(map: PushForward, n: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    """η ↦ Jᵀ(Jη) with cached activations, to be timed, and its flops."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, map.dim, generator=generator, dtype=torch.float64).to(dtype)
    eta = torch.randn(map.num_params, generator=generator, dtype=torch.float64)
    tangent = Tangent(map, (map.initial() + 0.1 * eta).to(dtype), z)
    eta = eta.to(dtype)
    return lambda: tangent.jtu(tangent.jv(eta)), 8.0 * n * map.num_params


def main(sizes: Sizes = FULL) -> None:
    """A table: map, p, and milliseconds with the share of the GEMM rate in either precision."""
    heading(f"Products Ĝη, n = {sizes.num_samples}, d = {sizes.dim}")
    chosen = cases(sizes)
    columns = []
    for dtype in (torch.float32, torch.float64):
        calls = {name: product(map, sizes.num_samples, dtype) for name, map in chosen.items()}
        columns.append(gemm_shares(calls, dtype, sizes.turns))
    rows = [
        [name, str(map.num_params), *(f"{milliseconds(c[name][0])} ms | {100 * c[name][1]:.0f} %" for c in columns)]
        for name, map in chosen.items()
    ]
    table(["map", "p", "float32", "of GEMM", "float64", "of GEMM"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
