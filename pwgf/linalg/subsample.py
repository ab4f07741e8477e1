"""Conjugate gradients preconditioned by the metric of a few samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from pwgf.linalg._attempts import attempt, iterate, metric_of
from pwgf.linalg._factor import damped_inverse
from pwgf.linalg._iterations import Iterate, conjugate_gradients
from pwgf.linalg.base import NormalEquations, Solution, TangentLike, check_settings

TARGET_ROWS, MAX_ROWS = 750, 1500


@dataclass(frozen=True)
class SubsamplePCG:
    """Conjugate gradients with the metric of m of the n samples as preconditioner.

    M = J_SᵀJ_S/m + s·I with s = shift·μ, inverted by Woodbury's identity on m·d rows:
    M⁻¹r = (r − J_Sᵀ (J_SJ_Sᵀ + s·m·I)⁻¹ J_S r)/s. The samples are evenly spaced ones, so equal inputs give equal bits.

    The preconditioner evens out the directions, so that the error in the displacement, |J(x − x*)|/|Jx*|, is .2 to 5
    times rtol for every ε from 1e-4 to 1e-7, where plain CG loses up to a factor 1/√ε.

    Cost: per iteration two products and two on the subset; the Gram matrix, Cholesky factor and inverse of the subset
    once, or once for many solves, see `for_interval`.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        num_subsample: m; None takes about 750 rows, m = 750/d, but at least 50. Never above n or 1500 rows.
        shift: s in units of μ, > 0; above 1 because the subset's metric overrates its own directions.
        mixed: products in float32 inside a float64 iteration where that is safe, see `_attempts.single_precision`.

    Returns:
        A `Solution` when called; `num_products` counts a product on the subset as m/n of one, rounded up. See
        `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Example:
        >>> SubsamplePCG(num_subsample=50).name
        'pcg'

    References:
        M. A. Woodbury, "Inverting modified matrices", 1950.
    """

    rtol: float = 1e-3
    max_iterations: int = 1000
    num_subsample: int | None = None
    shift: float = 20.0
    mixed: bool = True
    name: ClassVar[str] = "pcg"
    _kept: dict[torch.dtype, Callable[[Tensor], Tensor]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_settings(
            self,
            rtol=self.rtol,
            max_iterations=self.max_iterations,
            num_subsample=self.num_subsample,
            shift=self.shift,
        )

    def for_interval(self) -> SubsamplePCG:
        """The same solver, for solves at nearby θ on the same samples: builds M at the first one and keeps it."""
        solver = replace(self)
        object.__setattr__(solver, "_kept", {})
        return solver

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()

        def solve(inner: TangentLike, start: Tensor | None) -> Solution:
            return self._solve(problem, inner, damping, start)

        return attempt(problem, damping, self.rtol, self.mixed, solve)

    def _solve(self, problem: NormalEquations, inner: TangentLike, damping: float, start: Tensor | None) -> Solution:
        m = self.subset_size(inner.n, inner.d)
        kept = {} if self._kept is None else self._kept
        if inner.dtype not in kept:
            kept[inner.dtype] = self._preconditioner(problem, inner, damping, m)
        precondition = kept[inner.dtype]
        num_applied = 0

        def run(y0: Tensor | None) -> Iterate:
            nonlocal num_applied
            end = conjugate_gradients(
                metric_of(problem, inner),
                problem.b,
                start if y0 is None else y0,
                rtol=self.rtol,
                max_iterations=self.max_iterations,
                precondition=precondition,
                numbers=problem.numbers,
            )
            num_applied += end.num_iterations + 1
            return end

        solution = iterate(problem, self.rtol, run)
        on_subset = math.ceil(2 * num_applied * m / inner.n)
        return solution._replace(num_products=solution.num_products + on_subset)

    def subset_size(self, n: int, d: int) -> int:
        """m, the number of samples in the preconditioner for n samples in dimension d."""
        wanted = self.num_subsample if self.num_subsample is not None else max(50, round(TARGET_ROWS / d))
        return max(1, min(wanted, n, MAX_ROWS // d))

    def _preconditioner(
        self, problem: NormalEquations, inner: TangentLike, damping: float, m: int
    ) -> Callable[[Tensor], Tensor]:
        eps = torch.finfo(inner.dtype).eps
        # a relative shift near round-off would make M⁻¹ noise, most of all where J has a null space and damping = 0
        relative = max(self.shift * damping, 10 * eps, 1e-8)
        s = relative * problem.trace
        subset = inner.subset(torch.arange(m, device=inner.device) * inner.n // m)
        inverse = damped_inverse(problem, subset.gram_dual(), s * m, relative, explicit=True)

        def apply(r: Tensor) -> Tensor:
            r_inner = r.to(inner.dtype)
            rows = subset.jv(r_inner)
            return (r_inner - subset.jtu(inverse(rows.reshape(-1)).reshape(rows.shape))).to(r.dtype) / s

        return apply
