"""Interaction energy ½∬W(x−y) dρ dρ over all pairs of samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..measures import PushedMeasure
from .base import Energy, check_callable, evaluate, slope

_BLOCK = 2**21  # numbers in one block of differences: bounds the memory at about 100 MB


class Interaction(Energy):
    r"""F(ρ) = ½∬W(x−y) ρ(x)ρ(y), velocity −(∇W ∗ ρ)(x), with W made even: (W(r)+W(−r))/2.

    On n samples the average runs over the pairs i ≠ j and divides by n−1, so W may be singular at 0. Cost: n² pairs, in
    blocks of bounded memory.

    Args:
        W: (…,d) → (…,), differentiable away from 0.

    Raises:
        ConfigError, ShapeError: W is not callable; at the first use: it fails, or returns another shape.

    Example:
        >>> from pwgf import energies
        >>> aggregation = energies.Interaction(lambda r: r.square().sum(-1) ** 2 / 4 - r.square().sum(-1) / 2)
    """

    pairwise = True

    def __init__(self, W: Callable[[Tensor], Tensor]) -> None:
        check_callable(W, "Interaction(W)")
        self.W = W

    def _kernel(self, r: Tensor) -> Tensor:
        return evaluate(self.W, "Interaction: W(r)", r.shape[:-1], r, r)

    def __call__(self, rho: PushedMeasure) -> Tensor:
        """½ the mean of W over pairs i ≠ j."""
        x, total = rho.gather(rho.x), rho.x.new_zeros(())
        for start, rows in _row_blocks(x, rho.own):
            r, off_diagonal = _differences(rows, x, start)
            total = total + torch.where(off_diagonal, self._kernel(r), 0.0).sum()
        value = total / (2 * max(len(x) * (len(x) - 1), 1))
        if rho.group.size == 1:
            return value
        value = rho.group.sum(value)
        if not rho.x.requires_grad:
            return value
        return value - (self.velocity(rho) * (rho.x - rho.x.detach())).sum() / len(x)  # n ∂F/∂x_i = −v_i

    def velocity(self, rho: PushedMeasure) -> Tensor:
        """−(n−1)⁻¹ Σ_{j≠i} ∇W(x_i − x_j), (n,d)."""
        x = rho.gather(rho.x.detach())
        total = torch.zeros_like(x)
        for start, rows in _row_blocks(x, rho.own):
            with torch.enable_grad():
                r, off_diagonal = _differences(rows, x, start)
                r.requires_grad_(True)
                g = slope(self._kernel(r), r, "Interaction: W(r)")
            g = torch.where(off_diagonal.unsqueeze(-1), g, 0.0)
            total[start : start + len(rows)] += g.sum(1)
            total -= g.sum(0)
        return -0.5 * rho.group.sum(total)[rho.own] / max(len(x) - 1, 1)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0


def _row_blocks(x: Tensor, own: slice) -> list[tuple[int, Tensor]]:
    """The own rows of x in blocks, each with the position of its first row."""
    size = max(1, _BLOCK // max(x.numel(), 1))
    return [(start, x[start : min(start + size, own.stop)]) for start in range(own.start, own.stop, size)]


def _differences(rows: Tensor, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """r[i, j] = rows_i − x_j (b,n,d) with the diagonal moved away from 0, and the mask (b,n) of the true pairs."""
    index = torch.arange(len(rows), device=x.device)
    off_diagonal = torch.ones(len(rows), len(x), dtype=torch.bool, device=x.device)
    off_diagonal[index, index + start] = False
    r = rows.unsqueeze(1) - x.unsqueeze(0)
    return torch.where(off_diagonal.unsqueeze(-1), r, torch.ones_like(r)), off_diagonal
