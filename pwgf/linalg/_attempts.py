"""One iteration after another: in single precision first, and once more where the recursion was too hopeful."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pwgf.linalg._iterations import Iterate
from pwgf.linalg.base import NormalEquations, Solution, TangentLike, spread_of


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
            raise problem.non_finite("the tangent product")
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


def metric_of(problem: NormalEquations, inner: TangentLike) -> Callable[[Tensor], Tensor]:
    """y ↦ (Ĝ + μI) y with the products of `inner`, the problem's tangent in its own or in single precision."""

    def apply(y: Tensor) -> Tensor:
        problem.num_products += 2
        product = inner.jtu(inner.jv(y.to(inner.dtype))).to(y.dtype)
        return (product / inner.n).add_(y, alpha=problem.shift)

    return apply


def attempt(
    problem: NormalEquations, damping: float, rtol: float, mixed: bool, solve: Callable[..., Solution]
) -> Solution:
    """solve(inner, start) in single precision where allowed; goes on from there in full where that fell short."""
    inner = single_precision(problem.tangent, damping, rtol) if mixed else None
    if inner is None:
        return solve(problem.tangent, None)
    solution = solve(inner, None)
    return solution if solution.converged else solve(problem.tangent, solution.x - problem.prior)
