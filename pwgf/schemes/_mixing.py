"""Anderson's acceleration of an iteration for the parameters of a map."""

from __future__ import annotations

import torch
from torch import Tensor

_SECANTS = 5  # remembered


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
            weights = torch.linalg.lstsq(columns, moved.reshape(-1, 1), driver="gelsd").solution[:, 0]
            taken = change - torch.stack([way for way, _ in self._secants], 1) @ weights
        self._last = change, moved, taken
        return taken
