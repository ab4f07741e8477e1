"""Conjugate gradients preconditioned by the parameters of each coordinate of x."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pwgf.linalg._conjugate import Conjugate
from pwgf.linalg.base import Prepared
from pwgf.maps.base import inverse_of_factor

_LEAST_DAMPING = 1e-8  # of the preconditioner: nearer to rounding its inverse would be noise


@dataclass(frozen=True)
class BlockPCG(Conjugate):
    """Conjugate gradients with the blocks of Ĝ + hH that belong to one coordinate of x each as preconditioner.

    Most parameters of a layered map, its last layer and its functions of single coordinates, move one coordinate of x
    alone: Ĝ + hH has a block for each coordinate among them, formed from n rows and inverted exactly. The remaining
    parameters are scaled by their diagonal. On the default map in d = 10 and 12 this takes 3 to 7 iterations where
    plain CG takes 12 to 105, and the error in the displacement, |J(x − x*)|/|Jx*|, is 1e-5 to 5e-4 at rtol = 1e-3,
    where that of plain CG is 4e-3 to 2e-2.

    Cost: two products per iteration; the blocks once, and no more at nearby θ: 2·n·d·m² flops for m parameters a
    coordinate, twice that with slopes; d·m³/3 once for a J.

    Args:
        rtol: relative residual of the normal equations, |b − (Ĝ+μI)y| ≤ rtol |b|.
        max_iterations: cap; at it the last iterate is returned with converged False.
        mixed: products in float32 inside a float64 iteration where that is safe, see `_conjugate.single_precision`.

    Example:
        >>> BlockPCG(rtol=1e-4).name
        'block-pcg'

    References:
        Y. Saad, Iterative methods for sparse linear systems, 2003 (block Jacobi preconditioning).
    """

    name: ClassVar[str] = "block-pcg"

    def preconditioned(self, state: Prepared, kept: Any) -> Prepared:
        """With M⁻¹ from the blocks; the diagonal of H, not known, is taken to exceed that of Ĝ as in the blocks."""
        tangent: Any = state.tangent
        blocks, diagonal = kept = kept or (tangent.output_blocks(), tangent.diagonal())
        index, gram = blocks.places, blocks.gram(tangent.h)
        sizes = gram.diagonal(dim1=1, dim2=2)
        tiny = torch.finfo(gram.dtype).tiny ** 0.5  # for a J that vanishes
        shift = max(max(state.damping, _LEAST_DAMPING) * state.trace, tiny)
        stiffened = sizes.sum() / blocks.metric.diagonal(dim1=1, dim2=2).sum().clamp_min(1e-300)
        identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        factor, info = torch.linalg.cholesky_ex(gram + shift * identity)
        inverse = torch.where((info == 0).view(-1, 1, 1), inverse_of_factor(factor), torch.nan)
        scale = 1 / (stiffened.clamp_min(1.0) * diagonal + shift)

        def apply(r: Tensor) -> Tensor:
            found = r * scale
            found[index] = torch.bmm(inverse, r[index].unsqueeze(2)).squeeze(2)
            return found

        return replace(state, inverse=apply, kept=kept)
