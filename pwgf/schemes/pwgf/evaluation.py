"""The figures of a row, measured on fresh samples: energy by term, projection residual, dissipation, folds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...energies import Energy
from ...errors import ConfigError
from ...measures import PushedMeasure
from ...tangent import Tangent
from .._mobility import Frame
from ..base import standard_error
from .setup import Setup


def evaluate_row(
    setup: Setup, theta: Tensor, theta_dot: Tensor, blocks: list[Tensor], t: float, frame: Frame
) -> dict[str, float]:
    """Averages over blocks of fresh samples z at (θ, θ̇) and t; all from the velocity as it is, also near folds.

    Returns:
        energy and energy_TERM; energy_stderr, the standard error of energy (NaN for a single block);
        projection_residual = E|Jθ̇ − v|²/E|v|² (0 where v vanishes); dissipation = E[v·Jθ̇] ≈ −dF/dt where F does not
        depend on time and v is its gradient; velocity_rms = √E|v|²; fold_fraction, the share of samples with
        det ∂_zT ≤ 0. For driven flows also power, the rate of work ∂F/∂t at ρ, where F depends on time, and, at a
        constant temperature τ, entropy_production = E|v|²/τ and heat = E[f·v], the rate at which the force f that acts
        on particles (−∇V, and a drift) heats the bath: the energy without its entropy rises by power − heat, plus the
        work E[b·v] of a drift b. With a mobility M, known at one ρ by `frame`, v is M times
        the force −∇δF/δρ, the norm of all but velocity_rms is that of M⁻¹, and dissipation = E[−∇δF/δρ·Jθ̇].
    """
    terms = setup.energy.terms()
    sums: dict[str, float] = {}
    total = sum(len(z) for z in blocks)
    energies = []
    for z in blocks:
        values = _block(setup, theta_dot, setup.pushed(theta, z, t), setup.tangent(theta, z), frame)
        energies.append(sum(c * values[f"energy_{name}"] for name, c, _ in terms))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(z) / total
    row = {f"energy_{name}": c * sums[f"energy_{name}"] for name, c, _ in terms}
    row["energy"] = sum(row.values())
    row["energy_stderr"] = standard_error(energies)
    row["projection_residual"] = sums["miss2"] / sums["falling"] if sums["falling"] > 0 else 0.0
    row["velocity_rms"] = math.sqrt(sums["v2"])
    row.update({name: sums[name] for name in ("dissipation", "fold_fraction")})
    if setup.energy.time:
        row["power"] = sums["power"]
    temperature, _ = _bath(setup.energy)
    if temperature > 0:
        row["entropy_production"] = sums["falling"] / temperature
        row["heat"] = sums["heat"]
    return row


def _bath(energy: Energy) -> tuple[float, list[tuple[float, Energy]]]:
    """The one constant temperature of the noise of a driven flow, 0 for any other, and the forces on particles."""
    if not energy.time and energy.has_value:
        return 0.0, []
    try:
        forces, temperature = energy.particle_form()
    except ConfigError:
        return 0.0, []
    return (0.0, []) if energy.noises() else (temperature, forces)


def _block(setup: Setup, theta_dot: Tensor, rho: PushedMeasure, tangent: Tangent, known: Frame) -> dict[str, float]:
    force, frame = setup.energy.velocity(rho), setup.frame(rho, known)
    v, w = frame.velocity(force), tangent.jv(theta_dot)
    with torch.no_grad():
        values = {f"energy_{name}": part(rho) for name, _, part in setup.energy.terms()}
        values["v2"], values["falling"] = (rho.mean(u.square().sum(1)) for u in (v, frame.pull(force)))
        values["miss2"] = rho.mean(frame.inside(w - v).square().sum(1))
        values["dissipation"] = rho.mean((force * w).sum(1))
        values["fold_fraction"] = rho.mean((rho.det_sign <= 0).to(v.dtype))
        if setup.energy.time:
            values["power"] = setup.energy.power(rho)
    temperature, forces = _bath(setup.energy)
    if temperature > 0:
        values["heat"] = sum((c * rho.mean((term.velocity(rho) * v).sum(1)) for c, term in forces), v.new_zeros(()))
    numbers = torch.stack([value.detach().to(v.dtype) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
