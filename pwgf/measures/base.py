"""What a reference measure is, and what its members share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Reference(Protocol):
    """A measure λ with a density that can be sampled.

    Where its density has an edge a reference says so by `edge`: "none", "continuous" (it falls to 0 there) or "jump"; a
    jump is refused under a diffusion, which samples inside would not see. Without it there is none.

    A reference may also offer `matched_sample(n, generator)`: antithetic and moment-matched points, whose averages of
    quadratic functions are exact; energies of pairs use it to keep their sampling noise down.
    """

    @property
    def dim(self) -> int:
        """d."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples, (n,d) float64 on the CPU."""
        ...

    def log_density(self, z: Tensor) -> Tensor:
        """log λ(z): (n,d) → (n,), differentiable, in z's dtype and on its device."""
        ...


def antithetic(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """n points of a law symmetric about 0 whose mean is 0 (n even) or nearly so."""
    half = draw((n + 1) // 2)
    return torch.cat([half, -half])[:n]
