"""What a GPU would wait for: waits of the host, uploads and kernels, counted on a pretended device.

    python -m benchmarks.device                # about a minute

Values are true, times are not measured: the device of `tests/pretend_device.py` computes on the CPU. Counted is the
second call, or the second sampling interval of a double-well flow; the first has tried functions and filled caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import pwgf
from experiments.common import table
from pwgf import energies, integrate, maps
from pwgf.tangent import Tangent
from tests.pretend_device import DEVICE, PretendedDevice


class Sizes(NamedTuple):
    """Samples of the intervals, those of the kernels that grew with n, and units of the widest map."""

    num_samples: int
    many: int
    width: int


FULL = Sizes(100, 4000, 64)
TINY = Sizes(12, 40, 4)


def double_well() -> energies.Energy:
    """With a Laplacian."""
    potential = energies.Potential(lambda x: (x.square().sum(-1) - 4).square() / 16 + x[:, 0])
    return potential + 0.5 * energies.Entropy()


def _flow(map: maps.PushForward, n: int, **settings: object) -> pwgf.PWGF:
    made: dict[str, object] = {"num_samples": n, "num_eval": n, "device": DEVICE, "solver": "primal", **settings}
    return pwgf.PWGF(double_well(), map, pwgf.Gaussian(map.dim), **made)  # type: ignore[arg-type]


def _second_step(scheme: pwgf.schemes.Scheme) -> Callable[[], object]:
    state, _ = scheme.step(scheme.start(), 0.05)
    return lambda: scheme.step(state, 0.1)


def _inverse(n: int) -> Callable[[], object]:
    generator, map = torch.Generator().manual_seed(1), maps.NeuralODE(2, width=4)
    theta = map.initial() + 0.05 * torch.randn(map.num_params, generator=generator, dtype=torch.float64)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64).to(DEVICE)
    theta = theta.to(DEVICE)
    return lambda: map.inverse(theta, x)


def _pairs(n: int) -> Callable[[], object]:
    energy = energies.Interaction(lambda r: -(r.square().sum(-1) + 0.1).log() / 2)
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    return lambda: energy.velocity(pwgf.measures.Cloud(x))


def _gram(n: int, width: int) -> Callable[[], object]:
    map = maps.ResidualMLP(2, width=width)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    return Tangent(map, map.initial().to(DEVICE), z).gram_primal


def _cases(sizes: Sizes) -> Iterator[tuple[str, Callable[[], Callable[[], object]]]]:
    """What is counted, and what makes it ready."""
    n, many = sizes.num_samples, sizes.many
    small = maps.ResidualMLP(2, width=sizes.width)
    ode, wide = maps.NeuralODE(2, width=4, num_steps=1), maps.ResidualMLP(5, width=sizes.width)
    yield "interval: one Euler step", lambda: _second_step(_flow(small, n, integrator=integrate.Euler(0.01)))
    yield "interval: bosh3", lambda: _second_step(_flow(small, n, integrator="bosh3"))
    yield "interval: implicit", lambda: _second_step(_flow(small, n, integrator="implicit"))
    yield (
        "interval: implicit, block-pcg, d = 5",
        lambda: _second_step(_flow(wide, n, integrator="implicit", solver="block-pcg")),
    )
    yield "interval: implicit, NeuralODE", lambda: _second_step(_flow(ode, n, integrator="implicit"))
    particles = {"num_samples": n, "dt": 0.01, "device": DEVICE}
    yield (
        "step of particles",
        lambda: _second_step(pwgf.EulerMaruyama(double_well(), pwgf.Gaussian(2), **particles)),  # type: ignore[arg-type]
    )
    yield f"inverse of NeuralODE at {n} points", lambda: _inverse(n)
    yield f"velocity of pairs, n = {many}", lambda: _pairs(many)
    yield f"Gram matrix, n = {many}", lambda: _gram(many, sizes.width)


def _counts(sizes: Sizes) -> Iterator[list[str]]:
    for name, ready in _cases(sizes):
        with PretendedDevice(strict=False) as device:
            counted = ready()
            counted()
            device.clear()
            counted()
        yield [name, *(str(n) for n in (device.waits.total(), device.uploads.total(), device.kernels))]


def main(sizes: Sizes = FULL) -> None:
    """Prints the table."""
    table(["", "waits", "uploads", "kernels"], _counts(sizes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
