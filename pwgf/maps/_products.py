"""Products with a Jacobian and its transpose, from the retained graph of a computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def times(matrices: Tensor | None, u: Tensor) -> Tensor:
    """A matrix (n,d,d) for each sample times its u (n,d); None is the unit one."""
    return u if matrices is None else (matrices @ u.unsqueeze(2)).squeeze(2)


def products(
    x: Tensor, sources: Sequence[Tensor]
) -> tuple[Callable[[Sequence[Tensor]], Tensor], Callable[[Tensor], tuple[Tensor, ...]]]:
    """(ṡ ↦ Σ_s ∂x/∂s·ṡ, u ↦ (uᵀ∂x/∂s)_s) for the tensors s that x was computed from, on the retained graph of x.

    The second is a backward pass; it is linear in u, and the backward pass through it is the first ("double backward").
    Call it with gradients enabled.
    """
    seed = torch.zeros_like(x, requires_grad=True)
    pulled = torch.autograd.grad(x, sources, seed, create_graph=True, materialize_grads=True)
    used = [k for k, gradient in enumerate(pulled) if gradient.requires_grad]  # the others are zeros

    def push(directions: Sequence[Tensor]) -> Tensor:
        return torch.autograd.grad(
            [pulled[k] for k in used], seed, [directions[k] for k in used], retain_graph=True, materialize_grads=True
        )[0]

    def pull(u: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(x, sources, u, retain_graph=True, materialize_grads=True)

    return push, pull
