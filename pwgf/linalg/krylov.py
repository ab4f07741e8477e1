"""Iterative solvers that need products alone: CG, LSMR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pwgf.linalg._conjugate import Conjugate, iterate
from pwgf.linalg._iterations import Iterate, conjugate_gradients, lsmr
from pwgf.linalg.base import EquationSolver, NormalEquations, Prepared, Solution, check_settings


@dataclass(frozen=True)
class CG(Conjugate):
    """Conjugate gradients on the normal equations; no set-up, any right side.

    The error in the displacement, |J(x − x*)|/|Jx*|, grows like rtol/√ε at worst. On tangents of random two-layer maps
    and on spectra falling by 4 and 8 decades it was, at rtol = 1e-5: 2e-5–1e-4 at ε = 1e-4, 6e-5–4e-4 at 1e-6, 3e-4–
    3e-3 at 1e-8; ten times that at rtol = 1e-4 for a fifth to two thirds fewer iterations.

    Without damping a right side outside range(Jᵀ) makes it diverge (converged False); primal does not.

    Cost: two products per iteration, three or four around.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        mixed: products in float32 inside a float64 iteration where that is safe, see `_conjugate.single_precision`.

    Example:
        >>> CG(max_iterations=50).name
        'cg'

    References:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """

    rtol: float = 1e-5
    mixed: bool = False
    name: ClassVar[str] = "cg"


@dataclass(frozen=True)
class LSMR(EquationSolver):
    """LSMR on J itself, with the damping rotated into its factorisation; keeps most digits of an ill-conditioned J.

    The error in the displacement, |J(x − x*)|/|Jx*|, was at rtol = 1e-5: 3e-5–9e-5 at ε = 1e-4, 3e-4–1e-3 at 1e-6,
    3e-3–1e-2 at 1e-8 on the tangents that `CG` names. A free right side is refused.

    Cost: two products per iteration, four or five around.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.

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
    takes_rhs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self, rtol=self.rtol, max_iterations=self.max_iterations)

    def answer(self, problem: NormalEquations, state: Prepared) -> Solution:
        """From zero; damped LSMR starts nowhere else, so the rare second run is by conjugate gradients."""
        root = math.sqrt(state.tangent.n)
        settings: dict[str, Any] = {
            "rtol": self.rtol,
            "max_iterations": self.max_iterations,
            "numbers": problem.numbers,
        }

        def run(y0: Tensor | None) -> Iterate:
            if y0 is not None:
                return conjugate_gradients(problem.matvec, problem.b, y0, **settings)
            return lsmr(
                lambda y: problem.jv(y) / root,
                lambda u: problem.jtu(u) / root,
                problem.start_misfit / root,
                damp=math.sqrt(problem.shift),
                norm=lambda u: problem.sample_norms(u)[0],
                **settings,
            )

        return iterate(problem, self.rtol, run)
