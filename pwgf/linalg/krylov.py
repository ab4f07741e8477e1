"""Iterative solvers that need products alone: CG, MINRES, LSMR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pwgf.linalg._attempts import attempt, iterate, metric_of
from pwgf.linalg._iterations import Iterate, conjugate_gradients, lsmr, minres
from pwgf.linalg.base import NormalEquations, Solution, TangentLike, check_settings, refuse_rhs


@dataclass(frozen=True)
class CG:
    """Conjugate gradients on the normal equations; no set-up, any right side.

    The error in the displacement, |J(x − x*)|/|Jx*|, grows like rtol/√ε at worst. On tangents of random two-layer maps
    and on spectra falling by 4 and 8 decades it was, at rtol = 1e-5: 2e-5–1e-4 at ε = 1e-4, 6e-5–4e-4 at 1e-6, 3e-4–
    3e-3 at 1e-8; ten times that at rtol = 1e-4 for a fifth to two thirds fewer iterations.

    Without damping a right side outside range(Jᵀ) makes it diverge (converged False); MINRES and primal do not.

    Cost: two products per iteration, three or four around.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        mixed: products in float32 inside a float64 iteration where that is safe, see `single_precision`.

    Returns:
        A `Solution` when called; see `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Example:
        >>> CG(max_iterations=50).name
        'cg'

    References:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """

    rtol: float = 1e-5
    max_iterations: int = 1000
    mixed: bool = False
    name: ClassVar[str] = "cg"

    def __post_init__(self) -> None:
        check_settings(self, rtol=self.rtol, max_iterations=self.max_iterations)

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()

        def solve(inner: TangentLike, start: Tensor | None) -> Solution:
            def run(y0: Tensor | None) -> Iterate:
                return conjugate_gradients(
                    metric_of(problem, inner),
                    problem.b,
                    start if y0 is None else y0,
                    rtol=self.rtol,
                    max_iterations=self.max_iterations,
                    numbers=problem.numbers,
                )

            return iterate(problem, self.rtol, run)

        return attempt(problem, damping, self.rtol, self.mixed, solve)


@dataclass(frozen=True)
class MINRES:
    """MINRES on the normal equations: the smallest residual of all Krylov methods, any right side.

    Without damping and with a right side outside range(Jᵀ) it stops at the least-squares solution and says
    converged False.

    It stops earlier than CG at the same rtol, at a larger error in the displacement |J(x − x*)|/|Jx*|: at rtol = 1e-5
    that was 3e-5–1e-4 at ε = 1e-4 and 3e-4–1e-3 at 1e-6 on the tangents that `CG` names.

    Cost: two products per iteration, three or four around.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.

    Returns:
        A `Solution` when called; see `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Example:
        >>> MINRES(max_iterations=50).name
        'minres'

    References:
        C. C. Paige, M. A. Saunders, "Solution of sparse indefinite systems of linear equations", 1975.
    """

    rtol: float = 1e-5
    max_iterations: int = 1000
    name: ClassVar[str] = "minres"

    def __post_init__(self) -> None:
        check_settings(self, rtol=self.rtol, max_iterations=self.max_iterations)

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()

        null_rtol = damping / 10 if damping > 0 else None  # ε > 0 leaves no null space: |Ar| ≥ ε tr Ĝ |r|

        def run(y0: Tensor | None) -> Iterate:
            return minres(
                problem.matvec,
                problem.b,
                y0,
                rtol=self.rtol,
                max_iterations=self.max_iterations,
                null_rtol=null_rtol,
                numbers=problem.numbers,
            )

        return iterate(problem, self.rtol, run)


@dataclass(frozen=True)
class LSMR:
    """LSMR on J itself, with the damping rotated into its factorisation; keeps most digits of an ill-conditioned J.

    It stops where MINRES does. The error in the displacement, |J(x − x*)|/|Jx*|, was at rtol = 1e-5: 3e-5–9e-5 at
    ε = 1e-4, 3e-4–1e-3 at 1e-6, 3e-3–1e-2 at 1e-8 on the tangents that `CG` names.

    Cost: two products per iteration, four or five around.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.

    Returns:
        A `Solution` when called; see `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Raises:
        ConfigError: `rhs` is given; it need not lie in range(Jᵀ), which this method needs.

    Example:
        >>> LSMR(max_iterations=50).name
        'lsmr'

    References:
        D. C.-L. Fong, M. A. Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", 2011, arXiv
        1006.0758.
    """

    rtol: float = 1e-5
    max_iterations: int = 1000
    name: ClassVar[str] = "lsmr"

    def __post_init__(self) -> None:
        check_settings(self, rtol=self.rtol, max_iterations=self.max_iterations)

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        refuse_rhs(self.name, rhs)
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()
        root = math.sqrt(tangent.n)

        def run(y0: Tensor | None) -> Iterate:
            if y0 is not None:  # damped LSMR starts at zero alone, so the rare second run is by conjugate gradients
                return conjugate_gradients(
                    problem.matvec,
                    problem.b,
                    y0,
                    rtol=self.rtol,
                    max_iterations=self.max_iterations,
                    numbers=problem.numbers,
                )
            return lsmr(
                lambda y: problem.jv(y) / root,
                lambda u: problem.jtu(u) / root,
                problem.start_misfit / root,
                damp=math.sqrt(problem.shift),
                rtol=self.rtol,
                max_iterations=self.max_iterations,
                numbers=problem.numbers,
                norm=lambda u: problem.sample_norms(u)[0],
            )

        return iterate(problem, self.rtol, run)
