"""What several networks share: blocks of samples, a column of ones for biases, the first layer, the weight beside T."""

from __future__ import annotations

import torch
from torch import Tensor

_CACHE = 2**20  # bytes of one activation array that share a core's cache with two others


def samples_per_block(units: int, z: Tensor) -> int:
    """Samples whose activations (units,) of one kind stay, with those of others, in a core's cache; elsewhere all n."""
    return max(256, _CACHE // (units * z.element_size())) if z.device.type == "cpu" else max(len(z), 1)


def with_ones(z: Tensor) -> Tensor:
    """[z, 1]: (n,k) → (n,k+1), so that a bias is the last column of its matrix."""
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1)


def default_gain(dim: int) -> float:
    """Weight of a network beside an affine part, as `ResidualMLP(gain=…)` explains.

    In high dimension the affine part alone dominates the trace (d² of it), and a small gain would suppress a network
    that has to move coordinates one by one; so it rises to 1 from d = 14 to 50, as (d − 10)/40.
    """
    return max(0.1, 0.3 / dim, min(1.0, (dim - 10) / 40))


def first_layer(dim: int, units: int, axis_share: float, generator: torch.Generator) -> Tensor:
    """Rows [direction, bias] of a first layer on the scale of a standard normal law, (units, dim + 1).

    A share `axis_share` depends on single coordinates, with evenly spread centres; the rest has random directions.
    """
    on_axis = round(axis_share * units)
    rows = torch.randn(units, dim + 1, generator=generator, dtype=torch.float64)
    rows[:, :-1] *= 1.5 / rows[:, :-1].norm(dim=1, keepdim=True)
    rows[:on_axis] = 0
    # Unit k depends on coordinate k mod d; the units of an axis have evenly spread centres.
    for k in range(min(dim, on_axis)):
        mine = torch.arange(k, on_axis, dim)
        centres = (torch.arange(len(mine), dtype=torch.float64) + 0.5) / max(len(mine), 1) * 5 - 2.5
        rows[mine, k] = 1.5
        rows[mine, -1] = -1.5 * centres
    return rows
