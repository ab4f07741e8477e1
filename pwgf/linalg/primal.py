"""The direct solve in parameter space, for few parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pwgf.linalg._factor import damped_inverse, refine
from pwgf.linalg.base import NormalEquations, Solution, TangentLike


@dataclass(frozen=True)
class Primal:
    """Cholesky of the metric, (Ĝ + μI) y = b; the symmetric spectrum where that fails or there is no damping.

    Without damping and with a rank-deficient J the minimiser nearest to the prior is returned.

    Cost: the Gram matrix, p³/3 flops and p² memory, three products.

    Returns:
        A `Solution` when called; see `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Example:
        >>> Primal().name
        'primal'
    """

    name: ClassVar[str] = "primal"

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()
        inverse = damped_inverse(problem, tangent.gram_primal(), problem.shift, damping)
        return refine(problem, inverse(problem.b), lambda y, check: inverse(check.gradient))
