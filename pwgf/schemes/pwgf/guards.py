"""What several processes must agree on."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ConfigError
from ...measures import PushedMeasure
from .setup import Setup


def check_shared(setup: Setup, theta: Tensor, z: Tensor) -> None:
    """Whether several processes would compute one flow: the same energy in all, and terms that go over all samples.

    Raises:
        ConfigError: in all processes, where the energy differs between them, or a term is a mean over own samples only.
    """
    group = setup.group
    if group.size == 1:
        return
    whole = PushedMeasure(setup.map, setup.reference, theta, z, setup.chunk_size)
    rtol = 1e-3 if theta.dtype == torch.float32 else 1e-9
    v = setup.energy.velocity(whole)
    if group.any(not torch.allclose(v, group.from_first(v), rtol=rtol, atol=rtol)):
        raise ConfigError(
            f"PWGF(energy=…) must be the same in all {group.size} processes; at the same samples its velocity differs "
            "between them. Give its random numbers a fixed seed (torch.Generator().manual_seed(0)), and load the same "
            "data in all."
        )
    shared = setup.pushed(theta, z)
    for name, _, part in setup.energy.terms():
        value, same = float(part(whole)), float(part(shared))
        moved = shared.gather(part.velocity(shared)) - part.velocity(whole)
        apart = abs(value - same) > rtol * (1 + abs(value)) or float(moved.abs().max()) > rtol * (
            1 + float(v.abs().max())
        )
        if group.any(apart):
            raise ConfigError(
                f"PWGF(energy=…): term '{name}' is {value:.6g} in one process and {same:.6g} when {group.size} share "
                f"the samples out (its velocity then differs by up to {float(moved.abs().max()):.2g}). An energy of "
                "your own must average by rho.mean(values), or see all samples as rho.gather(rho.x); or set "
                "PWGF_PARALLEL=0."
            )
