"""Anderson's acceleration of an iteration for the parameters of a map."""

from __future__ import annotations

import torch
from torch import Tensor

_SECANTS = 5  # remembered
_RTOL = 1e-12  # of the Gram matrix of normalised secants, below which they count as dependent


class Mixing:
    """Anderson's acceleration of w ← w + f(w), in the norm |Jf|: the secants of the latest iterates replace f′.

    References:
        Walker, Ni, Anderson acceleration for fixed-point iterations, 2011.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._secants: list[tuple[Tensor, Tensor]] = []

    def __call__(self, change: Tensor, moved: Tensor) -> Tensor:
        """The step to take where f = change (p,) and Jf = moved (n,d)."""
        if self._last is not None:
            before, before_moved, step = self._last
            self._secants = [*self._secants, (step + change - before, (moved - before_moved).reshape(-1))][-_SECANTS:]
        taken = change
        if self._secants:
            columns = torch.stack([secant for _, secant in self._secants], 1)
            lengths = columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
            columns = columns / lengths
            gram, seen = (columns.T @ columns).double().cpu(), (columns.T @ moved.reshape(-1)).double().cpu()
            weights = (torch.linalg.pinv(gram, rtol=_RTOL, hermitian=True) @ seen).to(change)
            ways = torch.stack([way for way, _ in self._secants], 1)
            taken = change - ways @ (weights / lengths)
        self._last = change, moved, taken
        return taken
