"""The figures of a row, measured on fresh samples: energy by term, projection residual, dissipation, folds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import standard_error
from .setup import Setup

TAIL = 1e-3
"""Share of the samples, the fastest, that bulk figures leave out."""


def evaluate_row(setup: Setup, theta: Tensor, theta_dot: Tensor, blocks: list[Tensor]) -> dict[str, float]:
    """Averages over blocks of fresh samples z at (θ, θ̇); all from the velocity as it is, also near folds.

    Returns:
        energy and energy_TERM; energy_stderr, the standard error of energy (NaN for a single block);
        projection_residual = E|Jθ̇ − v|²/E|v|² (0 where v vanishes); dissipation = E[v·Jθ̇] ≈ −dF/dt;
        velocity_rms = √E|v|²; bulk_residual and bulk_velocity_rms, the same without the fastest `TAIL` of the samples,
        of which a few can carry nearly all of E|v|²; fold_fraction, the share of samples with det ∂_zT ≤ 0.
    """
    terms = setup.energy.terms()
    sums: dict[str, float] = {}
    total = sum(len(z) for z in blocks)
    energies = []
    for z in blocks:
        values = _block(setup, theta, theta_dot, z)
        energies.append(sum(c * values[f"energy_{name}"] for name, c, _ in terms))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(z) / total
    row = {f"energy_{name}": c * sums[f"energy_{name}"] for name, c, _ in terms}
    row["energy"] = sum(row.values())
    row["energy_stderr"] = standard_error(energies)
    for part in ("", "bulk_"):
        v2, miss2 = sums[f"{part}v2"], sums[f"{part}miss2"]
        row["bulk_residual" if part else "projection_residual"] = miss2 / v2 if v2 > 0 else 0.0
        row[f"{part}velocity_rms"] = math.sqrt(v2)
    row.update({name: sums[name] for name in ("dissipation", "fold_fraction")})
    return row


def _block(setup: Setup, theta: Tensor, theta_dot: Tensor, z: Tensor) -> dict[str, float]:
    rho = setup.pushed(theta, z)
    v = setup.energy.velocity(rho)
    w = setup.tangent(theta, z).jv(theta_dot)
    with torch.no_grad():
        values = {f"energy_{name}": part(rho) for name, _, part in setup.energy.terms()}
        v2, miss2 = v.square().sum(1), (w - v).square().sum(1)
        values["v2"], values["miss2"] = rho.mean(v2), rho.mean(miss2)
        values["bulk_v2"], values["bulk_miss2"] = _bulk(rho.gather(v2), rho.gather(miss2))
        values["dissipation"] = rho.mean((v * w).sum(1))
        values["fold_fraction"] = rho.mean((rho.det_sign <= 0).to(v.dtype))
    numbers = torch.stack([value.detach().to(v.dtype) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _bulk(v2: Tensor, miss2: Tensor) -> tuple[Tensor, Tensor]:
    """Means of |v|² and |Jθ̇ − v|² (n,) without the samples where their sum is largest."""
    slow = (v2 + miss2).topk(len(v2) - math.ceil(TAIL * len(v2)), largest=False).indices
    return v2[slow].mean(), miss2[slow].mean()
