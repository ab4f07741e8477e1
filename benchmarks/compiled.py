"""Whether `torch.compile` pays on a CPU: parts of a right side as they are, and compiled.

python -m benchmarks.compiled              # about a minute; needs a C++ compiler
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import pwgf
from benchmarks.common import in_turn, milliseconds
from experiments.common import table
from pwgf import energies, maps


class Sizes(NamedTuple):
    """d and n; turns of the medians; what compiles."""

    dim: int = 5
    num_samples: int = 1000
    turns: int = 15
    backend: str = "inductor"


FULL, TINY = Sizes(), Sizes(2, 20, 1, "eager")


def _rows(sizes: Sizes) -> Iterator[list[str]]:
    map, reference = maps.ResidualMLP(sizes.dim), pwgf.Gaussian(sizes.dim)
    energy = energies.Potential(lambda x: (x.square().sum(-1) - 4).square() / 16 + x[:, 0]) + 0.5 * energies.Entropy()
    theta, z = map.initial(), reference.sample(sizes.num_samples)

    def velocity(theta: Tensor, z: Tensor) -> Tensor:
        return energy.velocity(pwgf.measures.PushedMeasure(map, reference, theta, z))

    for name, part in {"T(z)": map.__call__, "∂_zT(z)": map.jacobian, "velocity": velocity}.items():
        compiled = torch.compile(part, backend=sizes.backend)
        calls = {"plain": lambda f=part: f(theta, z), "compiled": lambda f=compiled: f(theta, z)}
        yield [name, *(milliseconds(spent) for spent in in_turn(calls, sizes.turns).values())]


def main(sizes: Sizes = FULL) -> None:
    """Prints the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, where it cannot compile a line
        table(["", "plain", "compiled"], _rows(sizes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
