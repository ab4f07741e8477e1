"""Solves with a damped Gram matrix: Cholesky where it is safe, the symmetric spectrum where it is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pwgf.linalg.base import Check, NormalEquations, Solution, non_finite

NUM_REFINEMENTS = 2


def damped_inverse(
    solver: str, gram: Tensor, shift: float, damping: float, explicit: bool = False
) -> Callable[[Tensor], Tensor]:
    """The map r ↦ (K + shift·I)⁻¹ r for a positive semi-definite K, factorised once, in float64 for every dtype.

    The error of a float32 Gram matrix is about ε tr K/√k in norm, harmless against a damping of 1e-7, while a float32
    factorisation of it is not (displacement off by 20 % there); for k of one or two thousand float64 is cheap.

    A damping at or above a tenth of the round-off ε of K's dtype takes Cholesky, k³/3 flops. Below it (then Cholesky
    of a singular K returns noise without complaint), or where Cholesky fails, K = QΛQᵀ, about 9k³ flops: the spectrum
    is clamped at 0, and with such a small damping eigenvalues under k·ε·max Λ are dropped: the pseudo-inverse.

    Args:
        solver: its name, for the message.
        gram: K, (k, k).
        shift: added to the diagonal, ≥ 0, in the units of K.
        damping: shift relative to tr K, decides between the two.
        explicit: form the inverse where the damping is 1e-9 or more: for many applications of moderate accuracy, each
            then several times quicker than two triangular solves.

    Raises:
        NonFiniteError: K holds NaN or infinity.
    """
    dtype, eps = gram.dtype, torch.finfo(gram.dtype).eps
    K, safe = gram.double(), damping >= eps / 10
    checks = [torch.isfinite(gram).all()]
    if safe:
        factor, info = torch.linalg.cholesky_ex(K + shift * torch.eye(len(K), dtype=K.dtype, device=K.device))
        checks.append(info == 0)
    passed = torch.stack(checks).tolist()  # one wait for the device
    if not passed[0]:
        raise non_finite(solver, "the Gram matrix")
    if all(passed[1:]) and safe:
        if explicit and damping >= 1e-9:
            inverse_matrix = torch.cholesky_inverse(factor)
            return lambda r: (inverse_matrix @ r.double()).to(dtype)
        return lambda r: torch.cholesky_solve(r.double()[:, None], factor)[:, 0].to(dtype)
    spectrum, basis = torch.linalg.eigh(K)
    spectrum = spectrum.clamp(min=0)
    inverse = 1 / (spectrum + shift)
    if damping < eps / 10:
        inverse = torch.where(spectrum > len(K) * eps * spectrum[-1], inverse, 0.0)
    return lambda r: (basis @ (inverse * (basis.T @ r.double()))).to(dtype)


def refine(problem: NormalEquations, first: Tensor, correction: Callable[[Tensor, Check], Tensor]) -> Solution:
    """Improves a direct solution by iterative refinement until the true residual is √ε, at most twice.

    In float64 it is almost always there at once; float32 with a damping near 1e-7 needs the help. A step that does not
    lower the residual is dropped.

    Args:
        problem: the equations.
        first: y from the factorisation, (p,).
        correction: (y, check) ↦ δ (p,), an approximate solution of (Ĝ+μI) δ = check.gradient.

    Returns:
        The solution; converged if the residual is at most 10 √ε (1.5e-7 in float64, 3.5e-3 in float32).
    """
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    y, check = first, problem.check(first)
    for _ in range(NUM_REFINEMENTS):
        if check.residual <= tolerance:
            break
        trial = y + correction(y, check)
        trial_check = problem.check(trial)
        if trial_check.residual >= check.residual:
            break
        y, check = trial, trial_check
    return problem.solution(y, check, check.residual <= 10 * tolerance)
