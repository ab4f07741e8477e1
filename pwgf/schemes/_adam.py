"""Adam, the descent inside a minimising movement."""

from __future__ import annotations

import torch
from torch import Tensor

_MEAN, _SQUARE = 0.9, 0.99  # memories of gradients and of their squares; short, since a step takes some 100 iterations
_TINY = 1e-12  # keeps 0/0 from the step; gradients are far larger


class Adam:
    """Adam's memory of gradients (p,); who calls it sets the learning rate and decides when to begin anew.

    References:
        D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, arXiv 1412.6980.
    """

    def __init__(self, theta: Tensor) -> None:
        self._first = torch.zeros_like(theta)
        self._second = torch.zeros_like(theta)
        self._age = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """What to subtract from θ at learning rate 1, (p,)."""
        self._age += 1
        self._first.lerp_(gradient, 1 - _MEAN)
        self._second.lerp_(gradient.square(), 1 - _SQUARE)
        size = (self._second / (1 - _SQUARE**self._age)).sqrt() + _TINY
        return self._first / (1 - _MEAN**self._age) / size
