"""The samples of λ that a run draws: for right sides, for rows, for checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import ShapeError
from .setup import Setup


@dataclass(frozen=True)
class Draws:
    """Draws samples of the reference of a setup, on the device and in the dtype of the run.

    Args:
        setup: energy, map, reference.
        num_samples: of a right side.
        num_eval: fresh ones of a row.
        dtype, device: of the run.
    """

    setup: Setup
    num_samples: int
    num_eval: int
    dtype: torch.dtype
    device: str

    def samples(self, n: int, generator: torch.Generator, *, even: bool = False) -> Tensor:
        """n samples (n,d); evenly spread ones where asked for, and where the energy couples the samples."""
        reference = self.setup.reference
        draw = reference.matched_sample if even or self.setup.energy.pairwise else reference.sample
        return self._checked(draw(n, generator), n)

    def of_side(self, generator: torch.Generator, n: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Samples z (n,d) of a right side, of a law wider than λ where the energy takes weights (n,), and these."""
        n = self.num_samples if n is None else n
        if not self._reaches_further:
            return self.samples(n, generator, even=True), None
        z, weights = self.setup.reference.wide_sample(n, generator)
        return self._checked(z, n), None if weights is None else self._placed(weights)

    @cached_property
    def _reaches_further(self) -> bool:
        """Whether right sides take a wider law: the energy takes weights and, where the map starts, has a value there.

        A target may have none beyond an edge that samples of λ do not reach. Pairs alone, without a density, gain
        nothing: what the tail does there moves no other sample.
        """
        setup = self.setup
        if not setup.energy.weighable or setup.form == "gradient":
            return False
        z, weights = setup.reference.wide_sample(self.num_samples, torch.Generator().manual_seed(0))
        if weights is None or setup.energy.time:
            return not setup.energy.pairwise
        theta = self._placed(setup.map.initial())
        rho = setup.pushed(theta, self._checked(z, len(z)), 0.0)
        finite = bool(torch.isfinite(setup.energy(rho)))
        return finite and (rho.asked_for_density or not setup.energy.pairwise)

    def blocks(self, generator: torch.Generator) -> list[Tensor]:
        """Fresh samples of a row in blocks of at most num_samples (energies of pairs couple only within a block)."""
        size, total = max(self.num_samples, 100), self.num_eval
        return [self.samples(min(size, total - start), generator) for start in range(0, total, size)]

    def _checked(self, z: Tensor, n: int) -> Tensor:
        """Samples where the run computes, if they have the shape that they should."""
        dim = self.setup.map.dim
        if not isinstance(z, Tensor) or z.shape != (n, dim):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(
                f"reference.sample(n={n}, generator) must return a tensor of shape ({n}, {dim}); got {got}. Return a "
                "row per sample."
            )
        self.setup.map.check_domain(z, "PWGF")
        return self._placed(z)

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).to(self.device)
