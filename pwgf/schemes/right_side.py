"""One right side: where energy, tangent and linear solve meet to give θ̇ = argmin E|J θ̇ − v|²."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..energies import Energy
from ..errors import NonFiniteError, SolverError
from ..linalg import LinearSolver, Solution, for_interval
from ..maps.base import PushForward
from ..measures import PushedMeasure, Reference
from ..tangent import Tangent


@dataclass(frozen=True)
class Problem:
    """The fixed part of a right side: what is solved, and how."""

    energy: Energy
    map: PushForward
    reference: Reference
    solver: LinearSolver
    form: str
    clip: float | None
    chunk_size: int | None

    def pushed(self, theta: Tensor, z: Tensor) -> PushedMeasure:
        """ρ_θ on the samples z."""
        return PushedMeasure(self.map, self.reference, theta, z, self.chunk_size)


class RightSide:
    """θ̇(θ) on frozen samples z (n,d), damped towards momentum × `last`; counts its calls and keeps the latest stage.

    Args:
        problem: what is solved.
        z: (n,d) samples of λ.
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
        self.tangent = Tangent(self.problem.map, theta, self.z, self.problem.chunk_size)
        self.rho = self.problem.pushed(theta, self.z)
        solution = self._gradient_form() if self.problem.form == "gradient" else self._velocity_form()
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
            self.start = (float(self.problem.energy(self.rho).detach()), float(v.square().sum(1).mean()))
        v, self.clipped = clip_folded(v, self.rho, self.problem.clip)
        solution = self.solver(self.tangent, v, damping=self.damping, prior=self.prior)
        if self.num_stages == 1 and bool(self.last.any()):
            self.first_fit = solution.fit
            self.held_out = float((self.tangent.jv(self.last) - v).square().sum() / v.square().sum())
        return solution

    def _gradient_form(self) -> Solution:
        """The paper's right side: −∇_θF of the sampled energy instead of Jᵀv/n."""
        with torch.enable_grad():
            theta = self.rho.theta.detach().requires_grad_(True)
            energy = self.problem.energy(self.problem.pushed(theta, self.z))
            (gradient,) = torch.autograd.grad(energy, theta)
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the energy's gradient in θ is NaN or infinite at t = {self.t:.6g}")
        if self.start is None:
            self.start = (float(energy.detach()), float("nan"))
        unused = torch.zeros_like(self.z)
        return self.solver(self.tangent, unused, damping=self.damping, prior=self.prior, rhs=-gradient)

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the latest stage."""
        return self.tangent.jv(e.to(self.z)).square().sum(1).mean().sqrt()

    def energy_at(self, theta: Tensor) -> float:
        """F on the same samples."""
        same = torch.allclose(theta, self.rho.theta, rtol=1e-12, atol=1e-14)
        return float(self.problem.energy(self.rho if same else self.problem.pushed(theta, self.z)))


def adapted_damping(damping: float, low: float, high: float, first_fit: float, held_out: float) -> float:
    """The damping of the next interval, within [low, high].

    A notch up while the last solve missed clearly more of v on fresh samples than a solve misses on its own (it fitted
    noise), or missed a third of it anyway (what is left is beyond the map: a few fast samples near a fold, which small
    damping chases); a notch down when the two agree to 30 % or less than 1 % is held out; else unchanged.
    """
    if held_out > max(2 * first_fit, 0.03) or held_out > 0.33:
        damping = 4 * damping
    elif held_out < max(1.3 * first_fit, 0.01):
        damping = damping / 4
    return min(max(damping, low), high)


def finite_velocity(energy: Energy, rho: PushedMeasure, t: float) -> Tensor:
    """v (n,d) at ρ's samples.

    Raises:
        NonFiniteError: names the term, the time, the causes and the cures.
    """
    v = energy.velocity(rho)
    if bool(torch.isfinite(v).all()):
        return v
    term, bad = "the sum", ~torch.isfinite(v).all(1)
    _refuse_singular(rho, bad, t)
    for name, _, part in energy.terms():
        wrong = ~torch.isfinite(part.velocity(rho)).all(1)
        if bool(wrong.any()):
            term, bad = name, wrong
            break
    first = int(bad.nonzero()[0])
    x = ", ".join(f"{value:.4g}" for value in rho.x[first, :4].tolist()) + (", …" if rho.x.shape[1] > 4 else "")
    raise NonFiniteError(
        f"the velocity of energy term '{term}' is NaN or infinite at {int(bad.sum())} of {len(v)} samples at "
        f"t = {t:.6g}, first at x = ({x}). Causes: (a) the energy itself is not finite or not differentiable there: "
        "check it at this x; (b) the map folds there, so the density is lost: use more samples (num_samples) or "
        "clip=5; (c) the step was too long: lower tolerance or dt."
    )


def _refuse_singular(rho: PushedMeasure, bad: Tensor, t: float) -> None:
    """NonFiniteError when det ∂_zT vanishes at bad samples: ρ has no density there, so terms that need one are lost."""
    singular = int((bad & (rho.det_sign == 0)).sum())
    if singular:
        raise NonFiniteError(
            f"det ∂_zT = 0 at {singular} of {len(rho.x)} samples at t = {t:.6g}: the map squeezes them into fewer "
            "dimensions, so ρ has no density there. Causes: (a) the map has not full rank, whatever θ: use "
            "maps.ResidualMLP, or maps.FromModule(module, dim, residual=True); (b) theta0 is singular: start at "
            "map.initial(); (c) the step was too long: lower tolerance or dt."
        )


def clip_folded(v: Tensor, rho: PushedMeasure, clip: float | None) -> tuple[Tensor, float]:
    """Limits |v_i| to clip × rms|v| at samples where det ∂_zT ≤ 0 or nearly so; returns v and the clipped fraction.

    All other samples stay as they are: over a barrier the few fast ones *are* the transition.
    """
    if clip is None:
        return v, 0.0
    speed = v.norm(dim=1)
    folded = (rho.det_sign <= 0) | (rho.log_abs_det < rho.log_abs_det.median() - 7)
    sound = speed[~folded] if bool((~folded).any()) else speed
    limit = clip * sound.square().mean().sqrt()
    too_fast = folded & (speed > limit)
    factor = torch.where(too_fast, limit / speed.clamp_min(torch.finfo(v.dtype).tiny), torch.ones_like(speed))
    return v * factor.unsqueeze(1), float(too_fast.to(v.dtype).mean())
