"""The direct solve in sample space, for few samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pwgf.linalg._factor import damped_inverse, refine
from pwgf.linalg.base import Check, NormalEquations, Solution, TangentLike, group_of, refuse_rhs


@dataclass(frozen=True)
class Dual:
    """Cholesky of the kernel of the samples: (JJᵀ/n + μI) w = v − J prior, x = prior + Jᵀw/n.

    The same minimiser as the primal's, in n·d unknowns instead of p. Without damping and with a rank-deficient J the
    minimiser nearest to the prior is returned.

    Cost: the Gram matrix, (n·d)³/3 flops and (n·d)² memory, four products.

    Returns:
        A `Solution` when called; see `pwgf.linalg.base.NormalEquations` for the arguments and the errors.

    Raises:
        ConfigError: `rhs` is given; it need not lie in range(Jᵀ), which this form needs.

    Example:
        >>> Dual().name
        'dual'

    References:
        A. Chen, M. Heyl, "Empowering deep neural quantum states through efficient optimization", 2024, arXiv
        2302.01941 (the same exchange of JᵀJ for JJᵀ).
    """

    name: ClassVar[str] = "dual"

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        refuse_rhs(self.name, rhs)
        if group_of(tangent).size > 1:  # few samples: every process solves the whole
            v = group_of(tangent).gather_rows(v)
            tangent = tangent.subset(torch.arange(tangent.n))
        problem = NormalEquations(self.name, tangent, v, damping, prior, rhs)
        if problem.solved:
            return problem.prior_solution()
        n = tangent.n
        inverse = damped_inverse(problem, tangent.gram_dual() / n, problem.shift, damping)
        w = inverse(problem.start_misfit.reshape(-1))

        def pulled(weights: Tensor) -> Tensor:
            return problem.jtu(weights.reshape(v.shape)) / n

        def correction(y: Tensor, check: Check) -> Tensor:
            defect = check.misfit.reshape(-1) - problem.shift * w  # v − Jx − μw, zero at the solution
            step = inverse(defect)
            w.add_(step)
            return pulled(step)

        return refine(problem, pulled(w), correction)
