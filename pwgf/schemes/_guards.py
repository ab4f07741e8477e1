"""What an energy and a map must fulfil at a start or a stage; each refusal names cause and cure."""

from __future__ import annotations

import torch
from torch import Tensor

from ..energies import Energy
from ..errors import ConfigError, NonFiniteError
from ..measures import PushedMeasure


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


def refuse_folded(rho: PushedMeasure, call: str) -> None:
    """ConfigError when an energy has asked for a density that ρ has not: det ∂_zT changes its sign over the samples.

    A map that turns space over everywhere, det < 0, is invertible and passes.
    """
    if not rho.asked_for_density:
        return
    signs = rho.gather(rho.det_sign.detach())
    folded = signs <= 0
    if bool(folded.any()) and bool((signs >= 0).any()):
        raise ConfigError(
            f"{call}(energy, map): this energy needs the density of ρ, but the map is not invertible at its start: "
            f"det ∂_zT ≤ 0 at {int(folded.sum())} of {rho.num_samples} samples, first at z = "
            f"{first_point(rho.gather(rho.z), folded)}. Causes: (a) a module that folds space: use "
            "maps.FromModule(module, dim, residual=True), which starts as the identity, or another map of "
            "pwgf.maps; (b) an energy that could do without: Potential and Interaction need no density."
        )


def first_point(points: Tensor, chosen: Tensor) -> str:
    """The first chosen point, up to four of its coordinates."""
    values = points.detach()[int(chosen.nonzero()[0])].tolist()
    return "(" + ", ".join(f"{value:.4g}" for value in values[:4]) + (", …)" if len(values) > 4 else ")")
