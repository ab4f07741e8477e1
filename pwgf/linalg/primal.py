"""The direct solve in parameter space, for few parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pwgf.linalg._factor import damped_inverse, refine
from pwgf.linalg.base import EquationSolver, NormalEquations, Prepared, Solution


@dataclass(frozen=True)
class Primal(EquationSolver):
    """Cholesky of the metric, (Ĝ + μI) y = b; the symmetric spectrum where that fails or there is no damping.

    Without damping and with a rank-deficient J the minimiser nearest to the prior is returned.

    Cost: the Gram matrix, p³/3 flops and p² memory, once for a J; three products a solve.

    Example:
        >>> Primal().name
        'primal'
    """

    name: ClassVar[str] = "primal"

    def made(self, state: Prepared, last: Prepared | None) -> Prepared:
        """The factor of Ĝ + μI."""
        gram = state.tangent.gram_primal()
        return replace(state, inverse=damped_inverse(self.name, gram, state.shift, state.damping))

    def answer(self, problem: NormalEquations, state: Prepared) -> Solution:
        """By the factor, refined."""
        return refine(problem, state.inverse(problem.b), lambda y, check: state.inverse(check.gradient))
