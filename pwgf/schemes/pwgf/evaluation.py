"""The figures of a row, measured on fresh samples: energy by term, projection residual, dissipation, folds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...measures import PushedMeasure
from ...tangent import Tangent
from ..base import standard_error
from .setup import Setup


def evaluate_row(setup: Setup, theta: Tensor, theta_dot: Tensor, blocks: list[Tensor], t: float) -> dict[str, float]:
    """Averages over blocks of fresh samples z at (θ, θ̇) and t; all from the velocity as it is, also near folds.

    Returns:
        energy and energy_TERM; energy_stderr, the standard error of energy (NaN for a single block);
        projection_residual = E|Jθ̇ − v|²/E|v|² (0 where v vanishes); dissipation = E[v·Jθ̇] ≈ −dF/dt;
        velocity_rms = √E|v|²; fold_fraction, the share of samples with det ∂_zT ≤ 0.
    """
    terms = setup.energy.terms()
    sums: dict[str, float] = {}
    total = sum(len(z) for z in blocks)
    energies = []
    for z in blocks:
        values = _block(setup, theta_dot, setup.pushed(theta, z, t), setup.tangent(theta, z))
        energies.append(sum(c * values[f"energy_{name}"] for name, c, _ in terms))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(z) / total
    row = {f"energy_{name}": c * sums[f"energy_{name}"] for name, c, _ in terms}
    row["energy"] = sum(row.values())
    row["energy_stderr"] = standard_error(energies)
    row["projection_residual"] = sums["miss2"] / sums["v2"] if sums["v2"] > 0 else 0.0
    row["velocity_rms"] = math.sqrt(sums["v2"])
    row.update({name: sums[name] for name in ("dissipation", "fold_fraction")})
    return row


def _block(setup: Setup, theta_dot: Tensor, rho: PushedMeasure, tangent: Tangent) -> dict[str, float]:
    v = setup.energy.velocity(rho)
    w = tangent.jv(theta_dot)
    with torch.no_grad():
        values = {f"energy_{name}": part(rho) for name, _, part in setup.energy.terms()}
        values["v2"], values["miss2"] = rho.mean(v.square().sum(1)), rho.mean((w - v).square().sum(1))
        values["dissipation"] = rho.mean((v * w).sum(1))
        values["fold_fraction"] = rho.mean((rho.det_sign <= 0).to(v.dtype))
    numbers = torch.stack([value.detach().to(v.dtype) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
