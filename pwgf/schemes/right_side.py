"""One right side: where energy, tangent and linear solve meet to give θ̇ = argmin E|J θ̇ − v|²."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..energies import Energy
from ..errors import NonFiniteError, SolverError
from ..linalg import LinearSolver, Solution
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
    damping: float
    form: str
    clip: float | None
    chunk_size: int | None

    def pushed(self, theta: Tensor, z: Tensor) -> PushedMeasure:
        """ρ_θ on the samples z."""
        return PushedMeasure(self.map, self.reference, theta, z, self.chunk_size)


class RightSide:
    """θ̇(θ) on frozen samples z (n,d), damped towards `prior` (p,); counts its calls and keeps the latest stage."""

    def __init__(self, problem: Problem, z: Tensor, prior: Tensor, t: float) -> None:
        self.problem, self.z, self.prior, self.t = problem, z, prior, t
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
            self.start = (float(self.problem.energy(self.rho)), float(v.square().sum(1).mean()))
        v, self.clipped = clip_folded(v, self.rho, self.problem.clip)
        return self.problem.solver(self.tangent, v, damping=self.problem.damping, prior=self.prior)

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
        return self.problem.solver(self.tangent, unused, damping=self.problem.damping, prior=self.prior, rhs=-gradient)

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the latest stage."""
        return self.tangent.jv(e.to(self.z)).square().sum(1).mean().sqrt()

    def energy_at(self, theta: Tensor) -> float:
        """F on the same samples."""
        same = torch.allclose(theta, self.rho.theta, rtol=1e-12, atol=1e-14)
        return float(self.problem.energy(self.rho if same else self.problem.pushed(theta, self.z)))


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
