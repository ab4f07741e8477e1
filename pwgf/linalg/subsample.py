"""Conjugate gradients preconditioned by the metric of a few samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pwgf.linalg._conjugate import Conjugate
from pwgf.linalg._factor import damped_inverse
from pwgf.linalg.base import Prepared, check_settings

TARGET_ROWS, MAX_ROWS = 750, 1500


@dataclass(frozen=True)
class SubsamplePCG(Conjugate):
    """Conjugate gradients with the metric of m of the n samples as preconditioner.

    M = J_SᵀJ_S/m + s·I with s = shift·μ, inverted by Woodbury's identity on m·d rows:
    M⁻¹r = (r − J_Sᵀ (J_SJ_Sᵀ + s·m·I)⁻¹ J_S r)/s. The samples are evenly spaced ones, so equal inputs give equal bits.

    The preconditioner evens out the directions, so that the error in the displacement, |J(x − x*)|/|Jx*|, is .2 to 5
    times rtol for every ε from 1e-4 to 1e-7, where plain CG loses up to a factor 1/√ε.

    Cost: per iteration two products and two on the subset; the Gram matrix, Cholesky factor and inverse of the subset
    once, and no more at nearby θ.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        mixed: products in float32 inside a float64 iteration where that is safe, see `_conjugate.single_precision`.
        num_subsample: m; None takes about 750 rows, m = 750/d, but at least 50. Never above n or 1500 rows.
        shift: s in units of μ, > 0; above 1 because the subset's metric overrates its own directions.

    The `num_products` of a `Solution` counts a product on the subset as m/n of one, rounded up.

    Example:
        >>> SubsamplePCG(num_subsample=50).name
        'pcg'

    References:
        M. A. Woodbury, "Inverting modified matrices", 1950.
    """

    num_subsample: int | None = None
    shift: float = 20.0
    name: ClassVar[str] = "pcg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, num_subsample=self.num_subsample, shift=self.shift)

    def num_preconditioning(self, n: int, d: int) -> int:
        """m, the number of samples in the preconditioner for n samples in dimension d."""
        wanted = self.num_subsample if self.num_subsample is not None else max(50, round(TARGET_ROWS / d))
        return max(1, min(wanted, n, MAX_ROWS // d))

    def preconditioned(self, state: Prepared, kept: Any) -> Prepared:
        """With M⁻¹ in the precision of the products."""
        dtype = (state.single or state.tangent).dtype
        kept = kept or {}
        if dtype not in kept:
            kept = {**kept, dtype: self._inverse(state)}
        return replace(state, inverse=kept[dtype], kept=kept)

    def _inverse(self, state: Prepared) -> Callable[[Tensor], Tensor]:
        inner = state.single or state.tangent
        m = self.num_preconditioning(inner.n, inner.d)
        # a relative shift near round-off would make M⁻¹ noise, most of all where J has a null space and damping = 0
        relative = max(self.shift * state.damping, 10 * torch.finfo(inner.dtype).eps, 1e-8)
        s = relative * state.trace
        subset = inner.subset(torch.arange(m, device=inner.device) * inner.n // m)
        inverse = damped_inverse(self.name, subset.gram_dual(), s * m, relative, explicit=True)

        def apply(r: Tensor) -> Tensor:
            r_inner = r.to(inner.dtype)
            rows = subset.jv(r_inner)
            return (r_inner - subset.jtu(inverse(rows.reshape(-1)).reshape(rows.shape))).to(r.dtype) / s

        return apply
