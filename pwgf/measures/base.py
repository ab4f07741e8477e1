"""What a reference measure is, and what its members share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .law import Law, as_generator


@runtime_checkable
class Reference(Law, Protocol):
    """A law λ that a run starts from. Its `log_density` is differentiable, in z's dtype and on its device.

    A subclass gives `dim`, `sample` (float64) and `log_density`.
    """

    edge: ClassVar[str] = "none"
    """Where the density ends: "none", "continuous" (it falls to 0 there) or "jump". A diffusion acts on a jump at
    once, which samples inside do not see; it is refused under one."""

    @property
    def box(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper corner, (d,) each, of the box outside which the density is 0; None where there is none."""
        return None

    def matched_sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n samples (n,d) spread more evenly than independent ones where the law knows how; here independent ones.

        Right sides, and energies of pairs, average over them: their sampling noise is smaller.
        """
        return self.sample(n, seed)

    def wide_sample(self, n: int, seed: int | torch.Generator = 0) -> tuple[Tensor, Tensor | None]:
        """n samples (n,d) of a wider law and the weights (n,), of mean 1, by which they stand for this one.

        They show a map more of the tails, where 1000 samples of the law itself are few. Here, where no wider law is
        known, `matched_sample` and None: all count alike.
        """
        return self.matched_sample(n, seed), None


class Isotropic(Reference):
    """A law that is symmetric under rotations about 0; a subclass adds E|x|²."""

    @property
    @abstractmethod
    def second_moment(self) -> float:
        """E|x|²."""

    def matched_sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n antithetic samples (n,d); their mean is exactly zero for even n."""
        half = self.sample((n + 1) // 2, as_generator(seed, f"{type(self).__name__}.matched_sample"))
        return torch.cat([half, -half])[:n]

    def mean(self) -> Tensor:
        """Zeros (d,)."""
        return torch.zeros(self.dim, dtype=torch.float64)

    def cov(self) -> Tensor:
        """E|x|²/d times the unit matrix, (d,d)."""
        return self.second_moment / self.dim * torch.eye(self.dim, dtype=torch.float64)


def even_uniforms(n: int, dim: int, seed: int | torch.Generator, call: str) -> Tensor | None:
    """A scrambled Sobol set of n points (n,d) in [0, 1)^d; None in dimensions in which torch has none."""
    if dim > torch.quasirandom.SobolEngine.MAXDIM:
        return None
    scramble = int(torch.randint(2**62, (1,), generator=as_generator(seed, call)))
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=scramble)
    first = engine.quasi.double() / 2**engine.MAXBIT  # which torch rounds to its default dtype
    uniform = engine.draw(n, dtype=torch.float64)
    uniform[:1] = first
    return uniform


def effective_share(log_w: Tensor) -> float:
    """Effective sample size as a share of n, (Σw)²/(nΣw²), from log weights (n,) up to a constant."""
    return float(1 / (len(log_w) * torch.softmax(log_w, 0).square().sum()))
