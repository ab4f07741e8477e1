"""One iteration after another: in single precision first, and once more where the recursion was too hopeful."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pwgf.linalg._iterations import Iterate, conjugate_gradients
from pwgf.linalg.base import (
    EquationSolver,
    NormalEquations,
    Prepared,
    Solution,
    TangentLike,
    check_settings,
    non_finite,
    spread_of,
)


def iterate(problem: NormalEquations, rtol: float, run: Callable[[Tensor | None], Iterate]) -> Solution:
    """Runs an iteration, computes the true residual, and starts once more where the recursion was too hopeful.

    Args:
        problem: the equations, with b ≠ 0.
        rtol: relative tolerance; a true residual above ten times it is not accepted.
        run: start y (p,), or None for zero ↦ the iterate.

    Raises:
        NonFiniteError: a product was NaN or infinite.
    """
    start: Tensor | None = None
    for _ in range(2):
        end = run(start)
        if not math.isfinite(end.residual):
            raise non_finite(problem.solver, "the tangent product")
        check = problem.check(end.x)
        accepted = check.residual <= 10 * rtol
        if accepted or not end.converged:
            break
        start = end.x
    return problem.solution(end.x, check, end.converged and accepted)


def single_precision(tangent: TangentLike, damping: float, rtol: float) -> TangentLike | None:
    """The tangent in float32 where a float64 iteration may use its products, else None.

    Safe from damping 1e-7 and rtol 1e-5 on: the right side, the iterates and the final residual stay in float64, and
    what a product loses is then far below what the iteration is asked for. It halves the time of a product.
    """
    safe = tangent.dtype == torch.float64 and damping >= 1e-7 * spread_of(tangent) and rtol >= 1e-5
    return tangent.to(torch.float32) if safe else None


@dataclass(frozen=True)
class Conjugate(EquationSolver):
    """Conjugate gradients on the normal equations; a subclass gives the preconditioner, or leaves it out.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        mixed: products in float32 inside a float64 iteration where that is safe, see `single_precision`.
    """

    rtol: float = 1e-3
    max_iterations: int = 1000
    mixed: bool = True

    def __post_init__(self) -> None:
        check_settings(self, rtol=self.rtol, max_iterations=self.max_iterations)

    def made(self, state: Prepared, last: Prepared | None) -> Prepared:
        """The tangent in single precision where that is safe, and the preconditioner."""
        single = single_precision(state.tangent, state.damping, self.rtol) if self.mixed else None
        return self.preconditioned(replace(state, single=single), None if last is None else last.kept)

    def preconditioned(self, state: Prepared, kept: object) -> Prepared:
        """The state with M⁻¹ as `inverse`, made of what is `kept` from a nearby θ unless that is None."""
        return state

    def num_preconditioning(self, n: int, d: int) -> int:
        """Samples whose products M⁻¹ takes, two each."""
        return 0

    def answer(self, problem: NormalEquations, state: Prepared) -> Solution:
        """In single precision where that is safe; goes on from there in full where it fell short."""
        solution = self._run(problem, state, None)
        if solution.converged or state.single is None:
            return solution
        in_full = self.preconditioned(replace(state, single=None), state.kept)
        return self._run(problem, in_full, solution.x - problem.prior)

    def _run(self, problem: NormalEquations, state: Prepared, start: Tensor | None) -> Solution:
        inner, num_applied = state.single or state.tangent, 0

        def metric(y: Tensor) -> Tensor:
            problem.num_products += 2
            product = inner.jtu(inner.jv(y.to(inner.dtype))).to(y.dtype)
            return (product / inner.n).add_(y, alpha=problem.shift)

        def run(y0: Tensor | None) -> Iterate:
            nonlocal num_applied
            end = conjugate_gradients(
                metric,
                problem.b,
                start if y0 is None else y0,
                rtol=self.rtol,
                max_iterations=self.max_iterations,
                precondition=state.inverse,
                numbers=problem.numbers,
            )
            num_applied += end.num_iterations + 1
            return end

        solution = iterate(problem, self.rtol, run)
        beside = math.ceil(2 * num_applied * self.num_preconditioning(inner.n, inner.d) / inner.n)
        return solution._replace(num_products=solution.num_products + beside)
