"""The direct solve in sample space, for few samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pwgf.linalg._factor import damped_inverse, refine
from pwgf.linalg.base import Check, EquationSolver, NormalEquations, Prepared, Solution, group_of


@dataclass(frozen=True)
class Dual(EquationSolver):
    """Cholesky of the kernel of the samples: (JJᵀ/n + μI) w = v − J prior, x = prior + Jᵀw/n.

    The same minimiser as the primal's, in n·d unknowns instead of p. Without damping and with a rank-deficient J the
    minimiser nearest to the prior is returned. A free right side is refused.

    Cost: the Gram matrix, (n·d)³/3 flops and (n·d)² memory, once for a J; four products a solve.

    Example:
        >>> Dual().name
        'dual'

    References:
        A. Chen, M. Heyl, "Empowering deep neural quantum states through efficient optimization", 2024, arXiv
        2302.01941 (the same exchange of JᵀJ for JJᵀ).
    """

    name: ClassVar[str] = "dual"
    takes_rhs: ClassVar[bool] = False

    def made(self, state: Prepared, last: Prepared | None) -> Prepared:
        """The factor of JJᵀ/n + μI; of few samples every process solves the whole, with J of all of them."""
        tangent, group = state.tangent, group_of(state.tangent)
        if group.size > 1:
            tangent = tangent.subset(torch.arange(tangent.n, device=tangent.device))
        inverse = damped_inverse(self.name, tangent.gram_dual() / tangent.n, state.shift, state.damping)
        return replace(state, tangent=tangent, inverse=inverse, kept=group)

    def solve(self, state: Prepared, v: Tensor, prior: Tensor | None = None, rhs: Tensor | None = None) -> Solution:
        """See `LinearSolver.solve`; v are this process's rows."""
        return super().solve(state, state.kept.gather_rows(v), prior, rhs)

    def answer(self, problem: NormalEquations, state: Prepared) -> Solution:
        """By the factor, refined."""
        v, n = problem.v, state.tangent.n
        w = state.inverse(problem.start_misfit.reshape(-1))

        def pulled(weights: Tensor) -> Tensor:
            return problem.jtu(weights.reshape(v.shape)) / n

        def correction(y: Tensor, check: Check) -> Tensor:
            defect = check.misfit.reshape(-1) - problem.shift * w  # v − Jx − μw, zero at the solution
            step = state.inverse(defect)
            w.add_(step)
            return pulled(step)

        return refine(problem, pulled(w), correction)
