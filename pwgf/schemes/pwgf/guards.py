"""What an energy, a map and several processes must fulfil at a start or a stage; each refusal names cause and cure."""

from __future__ import annotations

import torch
from torch import Tensor

from ...energies import Energy
from ...errors import ConfigError, NonFiniteError, SolverError
from ...measures import PushedMeasure
from .setup import Setup


def finite_velocity(energy: Energy, rho: PushedMeasure) -> Tensor:
    """v (n,d) at ρ's samples.

    Raises:
        NonFiniteError: in all processes, where one has a sample without a finite v; names the term, the time, the
            causes and the cures.
    """
    v = energy.velocity(rho)
    if not rho.group.any(not bool(torch.isfinite(v).all())):
        return v
    t = float(rho.t or 0.0)
    term, bad = "the sum", _bad_samples(v, rho)
    _refuse_singular(rho, bad, t)
    for name, _, part in energy.terms():
        wrong = _bad_samples(part.velocity(rho), rho)
        if bool(wrong.any()):
            term, bad = name, wrong
            break
    points = rho.gather(rho.x.detach())
    raise NonFiniteError(
        f"the velocity of energy term '{term}' is NaN or infinite at {int(bad.sum())} of {len(points)} samples at "
        f"t = {t:.6g}, first at x = {first_point(points, bad)}. Causes: (a) the energy itself is not finite or not "
        "differentiable there: check it at this x; (b) the map folds there, so the density is lost: use more samples "
        "(num_samples) or a map that cannot fold (maps.ConvexRidge); (c) the step was too long: lower tolerance or dt."
    )


def _bad_samples(v: Tensor, rho: PushedMeasure) -> Tensor:
    """Where v is not finite, (n,) over the samples of all processes."""
    return rho.gather(~torch.isfinite(v).all(1))


def _refuse_singular(rho: PushedMeasure, bad: Tensor, t: float) -> None:
    """NonFiniteError when det ∂_zT vanishes at bad samples: ρ has no density there, so terms that need one are lost."""
    singular = bad & (rho.gather(rho.det_sign.detach()) == 0)
    if bool(singular.any()):
        raise NonFiniteError(
            f"det ∂_zT = 0 at {int(singular.sum())} of {rho.num_samples} samples at t = {t:.6g}, first at z = "
            f"{first_point(rho.gather(rho.z), singular)}: the map squeezes them into fewer dimensions, so ρ has no "
            "density there. Causes: (a) the map has not full rank, whatever θ: use maps.ResidualMLP, or "
            "maps.FromModule(module, dim, residual=True); (b) theta0 is singular: start at map.initial(); (c) the step "
            "was too long: lower tolerance or dt."
        )


def refuse_folded(rho: PushedMeasure) -> None:
    """ConfigError when an energy has asked for a density that ρ has not: det ∂_zT changes its sign over the samples.

    A map that turns space over everywhere, det < 0, is invertible and passes.
    """
    if not rho.asked_for_density:
        return
    signs = rho.gather(rho.det_sign.detach())
    folded = signs <= 0
    if bool(folded.any()) and bool((signs >= 0).any()):
        raise ConfigError(
            f"PWGF(energy, map): this energy needs the density of ρ, but the map is not invertible at its start: "
            f"det ∂_zT ≤ 0 at {int(folded.sum())} of {rho.num_samples} samples, first at z = "
            f"{first_point(rho.gather(rho.z), folded)}. Causes: (a) a module that folds space: use "
            "maps.FromModule(module, dim, residual=True), which starts as the identity, or another map of "
            "pwgf.maps; (b) an energy that could do without: Potential and Interaction need no density."
        )


def first_point(points: Tensor, chosen: Tensor) -> str:
    """The first chosen point, up to four of its coordinates."""
    values = points.detach()[int(chosen.nonzero()[0])].tolist()
    return "(" + ", ".join(f"{value:.4g}" for value in values[:4]) + (", …)" if len(values) > 4 else ")")


def check_shared(setup: Setup, theta: Tensor, z: Tensor, t: float) -> None:
    """Whether several processes would compute one flow: the same energy in all, and terms that go over all samples.

    Raises:
        ConfigError: in all processes, where the energy differs between them, or a term is a mean over own samples only.
    """
    group = setup.group
    if group.size == 1:
        return
    whole = PushedMeasure(setup.map, setup.reference, theta, z, setup.chunk_size, t=t)
    rtol = 1e-3 if theta.dtype == torch.float32 else 1e-9
    v = setup.energy.velocity(whole)
    if group.any(not torch.allclose(v, group.from_first(v), rtol=rtol, atol=rtol)):
        raise ConfigError(
            f"PWGF(energy=…) must be the same in all {group.size} processes; at the same samples its velocity differs "
            "between them. Give its random numbers a fixed seed (torch.Generator().manual_seed(0)), and load the same "
            "data in all."
        )
    shared = setup.pushed(theta, z, t)
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


def stalled(steps: int, dt: float, t: float, measured: str, rejection: str) -> SolverError:
    """The error of a run whose steps stay tiny."""
    return SolverError(
        f"the step has stayed below {dt:.1e} for {steps} steps up to t = {t:.6g}, where the state is good. Measured: "
        f"{measured}; last rejection: {rejection or 'none'}. If few samples carry the velocity or the map folds, it is "
        "too small there: a wider map, another family (maps.ConvexRidge cannot fold), more samples (num_samples). If "
        "all are fast, the energy is steep: check it at that x, or raise the tolerance."
    )


def gave_up(error: Exception, t: float, dt: float, redraws: int) -> Exception:
    """The error of a run in which no interval from t succeeds, of the kind of the last failure."""
    kind = type(error) if isinstance(error, (SolverError, NonFiniteError)) else SolverError
    return kind(
        f"no step from t = {t:.6g} succeeded (last tried dt = {dt:.2e}, {redraws} redraws): {error}. The state at "
        f"t = {t:.6g} is good. Causes: (a) the energy is not finite or not differentiable on the way: check it at the "
        "samples there; (b) the map is too small for the flow, or folds: a wider map, another family (maps.ConvexRidge "
        "cannot fold), more samples (num_samples); (c) the linear system is too ill-conditioned: larger damping; (d) "
        "explicit steps on a stiff flow, or fixed ones too long: integrator='auto'."
    )
