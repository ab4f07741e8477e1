"""One right side: where energy, tangent and linear solve meet to give θ̇ = argmin E|J θ̇ − v|²."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..energies import Energy
from ..errors import ConfigError, NonFiniteError, SolverError
from ..linalg import LinearSolver, Solution, for_interval
from ..maps.base import PushForward
from ..measures import PushedMeasure, Reference
from ..parallel import ALONE, Group
from ..tangent import Tangent


@dataclass(frozen=True)
class Problem:
    """The fixed part of a right side: what is solved, and how; `group` shares the samples out."""

    energy: Energy
    map: PushForward
    reference: Reference
    solver: LinearSolver
    form: str
    clip: float | None
    chunk_size: int | None
    group: Group = ALONE

    def pushed(self, theta: Tensor, z: Tensor) -> PushedMeasure:
        """ρ_θ on the samples z (n,d), the same z in every process."""
        return PushedMeasure(self.map, self.reference, theta, z, self.chunk_size, self.group.for_samples(len(z)))

    def tangent(self, theta: Tensor, z: Tensor) -> Tangent:
        """J at θ and the samples z (n,d), the same z in every process."""
        return Tangent(self.map, theta, z, self.chunk_size, self.group.for_samples(len(z)))


class RightSide:
    """θ̇(θ) on frozen samples z (n,d), damped towards momentum × `last`; counts its calls and keeps the latest stage.

    Args:
        problem: what is solved.
        z: (n,d) samples of λ, the same in every process.
        last: last accepted θ̇ (p,), from other samples; zeros when there is none.
        momentum, damping: of the solve.
        t: time, for messages.

    After the first stage `first_fit` holds the share of v that its solve missed on z, and `held_out` the share that
    `last` misses there, which never saw z: the gap between the two is what the solve overfits. NaN where not known.
    """

    def __init__(self, problem: Problem, z: Tensor, last: Tensor, t: float, *, momentum: float, damping: float) -> None:
        self.problem, self.z, self.t, self.damping = problem, z, t, damping
        self.solver = for_interval(problem.solver)
        self.last, self.prior = last, momentum * last
        self.first_fit = self.held_out = math.nan
        self.num_stages, self.num_products, self.clipped = 0, 0, 0.0
        self.residual, self.fit = 0.0, 0.0
        self.start: tuple[float, float] | None = None

    def __call__(self, theta: Tensor) -> Tensor:
        """One least-squares solve."""
        self.num_stages += 1
        self.tangent = self.problem.tangent(theta, self.z)
        self.rho = self.problem.pushed(theta, self.z)
        solution = self._gradient_form() if self.problem.form == "gradient" else self._velocity_form()
        solution = agreed(solution, self.problem.group)
        self.num_products += solution.num_products
        self.residual, self.fit = solution.residual, solution.fit
        if not bool(torch.isfinite(solution.x).all()):
            raise NonFiniteError(f"the linear solve gave NaN or infinite θ̇ at t = {self.t:.6g}")
        if not solution.converged:
            raise SolverError(
                f"the linear solve stopped at relative residual {solution.residual:.1e} after {solution.num_products} "
                f"products at t = {self.t:.6g}"
            )
        return solution.x

    def _velocity_form(self) -> Solution:
        v = finite_velocity(self.problem.energy, self.rho, self.t)
        if self.start is None:
            energy = float(self.problem.energy(self.rho).detach())
            self.start = (energy, float(self.rho.mean(v.square().sum(1))))
        v, self.clipped = clip_folded(v, self.rho, self.problem.clip, self.rho.group)
        solution = self.solver(self.tangent, v, damping=self.damping, prior=self.prior)
        if self.num_stages == 1 and bool(self.last.any()):
            missed = (self.tangent.jv(self.last) - v).square().sum()
            missed, whole = self.rho.group.sum(torch.stack([missed, v.square().sum()]))
            self.first_fit, self.held_out = solution.fit, float(missed / whole)
        return solution

    def _gradient_form(self) -> Solution:
        """The paper's right side: −∇_θF of the sampled energy instead of Jᵀv/n."""
        with torch.enable_grad():
            theta = self.rho.theta.detach().requires_grad_(True)
            energy = self.problem.energy(self.problem.pushed(theta, self.z))
            gradient = self.rho.group.sum(torch.autograd.grad(energy, theta)[0])
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the energy's gradient in θ is NaN or infinite at t = {self.t:.6g}")
        if self.start is None:
            self.start = (float(energy.detach()), float("nan"))
        unused = torch.zeros_like(self.rho.x)
        return self.solver(self.tangent, unused, damping=self.damping, prior=self.prior, rhs=-gradient)

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the latest stage."""
        return self.rho.mean(self.tangent.jv(e.to(self.z)).square().sum(1)).sqrt()

    def energy_at(self, theta: Tensor) -> float:
        """F on the same samples."""
        same = torch.allclose(theta, self.rho.theta, rtol=1e-12, atol=1e-14)
        return float(self.problem.energy(self.rho if same else self.problem.pushed(theta, self.z)))


def agreed(solution: Solution, group: Group) -> Solution:
    """The solution of rank 0 in all processes: rounding may differ between machines, θ may not."""
    if group.size == 1:
        return solution
    residual, fit, num_products, converged = group.numbers_from_first(*solution[1:])
    return Solution(group.from_first(solution.x), residual, fit, int(num_products), bool(converged))


def finite_velocity(energy: Energy, rho: PushedMeasure, t: float) -> Tensor:
    """v (n,d) at ρ's samples.

    Raises:
        NonFiniteError: in all processes, where one has a sample without a finite v; names the term, the time, the
            causes and the cures.
    """
    v = energy.velocity(rho)
    if not rho.group.any(not bool(torch.isfinite(v).all())):
        return v
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
        f"t = {t:.6g}, first at x = {_first(points, bad)}. Causes: (a) the energy itself is not finite or not "
        "differentiable there: check it at this x; (b) the map folds there, so the density is lost: use more samples "
        "(num_samples) or clip=5; (c) the step was too long: lower tolerance or dt."
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
            f"{_first(rho.gather(rho.z), singular)}: the map squeezes them into fewer dimensions, so ρ has no density "
            "there. Causes: (a) the map has not full rank, whatever θ: use maps.ResidualMLP, or "
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
            f"{_first(rho.gather(rho.z), folded)}. Causes: (a) a module that folds space: use "
            "maps.FromModule(module, dim, residual=True), which starts as the identity, or another map of "
            "pwgf.maps; (b) an energy that could do without: Potential and Interaction need no density."
        )


def _first(points: Tensor, chosen: Tensor) -> str:
    """The first chosen point, up to four of its coordinates."""
    values = points.detach()[int(chosen.nonzero()[0])].tolist()
    return "(" + ", ".join(f"{value:.4g}" for value in values[:4]) + (", …)" if len(values) > 4 else ")")


def clip_folded(v: Tensor, rho: PushedMeasure, clip: float | None, group: Group = ALONE) -> tuple[Tensor, float]:
    """Limits |v_i| to clip × rms|v| at samples where det ∂_zT ≤ 0 or nearly so; returns v and the clipped fraction.

    All other samples stay as they are: over a barrier the few fast ones *are* the transition. The rms and the fraction
    are of all processes of the group.
    """
    if clip is None:
        return v, 0.0
    speed, det_sign, log_abs_det = (group.gather_rows(a) for a in (v.norm(dim=1), rho.det_sign, rho.log_abs_det))
    folded = (det_sign <= 0) | (log_abs_det < log_abs_det.median() - 7)
    sound = speed[~folded] if bool((~folded).any()) else speed
    limit = clip * sound.square().mean().sqrt()
    too_fast = folded & (speed > limit)
    factor = torch.where(too_fast, limit / speed.clamp_min(torch.finfo(v.dtype).tiny), torch.ones_like(speed))
    return v * group.slice_rows(factor).unsqueeze(1), float(too_fast.to(v.dtype).mean())


def check_shared(problem: Problem, theta: Tensor, z: Tensor) -> None:
    """Whether several processes would compute one flow: the same energy in all, and terms that go over all samples.

    Raises:
        ConfigError: in all processes, where the energy differs between them, or a term is a mean over own samples only.
    """
    group = problem.group
    if group.size == 1:
        return
    whole = PushedMeasure(problem.map, problem.reference, theta, z, problem.chunk_size)
    rtol = 1e-3 if theta.dtype == torch.float32 else 1e-9
    v = problem.energy.velocity(whole)
    if group.any(not torch.allclose(v, group.from_first(v), rtol=rtol, atol=rtol)):
        raise ConfigError(
            f"PWGF(energy=…) must be the same in all {group.size} processes; at the same samples its velocity differs "
            "between them. Give its random numbers a fixed seed (torch.Generator().manual_seed(0)), and load the same "
            "data in all."
        )
    shared = problem.pushed(theta, z)
    for name, _, part in problem.energy.terms():
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
