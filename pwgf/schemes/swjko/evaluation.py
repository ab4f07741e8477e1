"""The figures of a row of a scheme that does not solve for θ̇, measured on fresh samples or on its particles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...energies import Energy
from ...measures import PushedMeasure, Sampled
from ..base import standard_error


def evaluate_law(energy: Energy, laws: Sequence[Sampled]) -> dict[str, float]:
    """Averages over laws on blocks of fresh samples (or one of particles), for schemes that do not solve for θ̇.

    Returns:
        energy and energy_TERM; energy_stderr, NaN for a single block; velocity_rms = √E|v|²; second_moment = E|x|²;
        and for maps fold_fraction.
    """
    sums: dict[str, float] = {}
    energies, total = [], sum(len(rho.x) for rho in laws)
    for rho in laws:
        with torch.no_grad():
            values = {f"energy_{name}": c * float(part(rho)) for name, c, part in energy.terms()}
            values["second_moment"] = float(rho.x.square().sum(1).mean())
        energies.append(sum(value for name, value in values.items() if name.startswith("energy_")))
        values["v2"] = float(energy.velocity(rho).square().sum(1).mean())
        if isinstance(rho, PushedMeasure):
            values["fold_fraction"] = float((rho.det_sign <= 0).double().mean())
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(rho.x) / total
    speed = math.sqrt(sums.pop("v2"))
    row = {**sums, "energy": sum(value for name, value in sums.items() if name.startswith("energy_"))}
    return {**row, "energy_stderr": standard_error(energies), "velocity_rms": speed}
