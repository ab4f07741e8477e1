"""The pushed measure with its slopes kept away from zero, so that a sample near a fold of the map stays finite."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import private
from .pushed import PushedMeasure

FLOOR = 0.03
"""Smallest slope of the map that counts as sound, relative to its median over the samples."""

THIN = 10.0
"""Slope of the map, relative to its floor, below which it is thin: .3 of the median."""


class _Repair(NamedTuple):
    """After the repair at the unsound samples `at` (n,): (∂_zT)⁻¹ (m,d,d), log|det ∂_zT| (m,), the score (m,d)."""

    at: Tensor
    inverse: Tensor
    log_abs_det: Tensor
    score: Tensor


class FlooredMeasure(PushedMeasure):
    r"""ρ_θ, but where ∂_zT is (nearly) singular or reverses orientation, as if its singular values had a floor.

    A map that is squeezed in the tail of λ folds at single samples. The score there grows as 1/slope² and carries no
    information about ρ: one such sample in a thousand would dominate E|v|². A sample is unsound if det ∂_zT ≤ 0 or its
    slope 1/|(∂_zT)⁻¹| lies below the floor. There, singular values below the floor are raised to it (the smallest one
    also where the orientation is reversed), and the score is that of λ pushed by this matrix, without the gradient of
    log|det ∂_zT|: a finite velocity that unfolds the map. `det_sign` is not changed.

    Args:
        floor: in units of x over z; None: `FLOOR` times the median slope over these samples.
        *arguments, **options: those of `PushedMeasure`.
    """

    def __init__(self, *arguments: Any, floor: float | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._floor = floor

    @cached_property
    def _slopes(self) -> Tensor:
        """1/|(∂_zT)⁻¹|, (n,): the smallest singular value up to √d."""
        size = self.inverse_jacobian_at_samples.square().sum((1, 2)).sqrt()
        return torch.where(torch.isfinite(size), 1 / size, 0.0)

    @cached_property
    def typical_slope(self) -> float:
        """√d times the median of 1/|(∂_zT)⁻¹| over the samples."""
        return self.map.dim**0.5 * float(self.group.gather_rows(self._slopes).median())

    @property
    def floor(self) -> float:
        """The floor in use."""
        if self._floor is None:
            self._floor = FLOOR * self.typical_slope / self.map.dim**0.5
        return self._floor

    @cached_property
    def unsound(self) -> Tensor:
        """Samples at which the map has folded or nearly so, (n,) bool."""
        return (self._slopes < self.floor) | (self.det_sign <= 0)

    @property
    def thin(self) -> Tensor:
        """Samples at which the map squeezes much more than elsewhere, (n,) bool."""
        return self._slopes < THIN * self.floor

    @cached_property
    def _repaired(self) -> _Repair | None:
        at = self.unsound
        if not bool(at.any()):
            return None
        z, theta = self.z[at], self.theta.detach()
        jacobian = self.map.jacobian(theta, z).detach()
        left, values, right = torch.linalg.svd(torch.where(torch.isfinite(jacobian), jacobian, 0.0))
        turned = torch.linalg.det(left).sign() * torch.linalg.det(right).sign()
        values = values.clamp_min(self.floor)
        values[:, -1] = torch.where(self.det_sign[at] < 0, self.floor, values[:, -1])
        signed = values.clone()
        signed[:, -1] *= torch.where(turned < 0, -1.0, 1.0)
        inverse = (right.mT / signed.unsqueeze(1)) @ left.mT
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.reference.log_density(leaf).sum(), leaf)
        return _Repair(at, inverse, values.log().sum(1), (inverse.mT @ slope.unsqueeze(2)).squeeze(2))

    @property
    def inverse_jacobian(self) -> Tensor:
        """(∂_zT)⁻¹ after the repair, (n,d,d)."""
        return self._with_repair(self.inverse_jacobian_at_samples, "inverse")

    @property
    def log_density(self) -> Tensor:
        """log ρ_θ(x) after the repair, (n,)."""
        log_abs_det = self._with_repair(self._volume[1], "log_abs_det")
        return self.reference.log_density(private(self.z)) - log_abs_det

    @property
    def score(self) -> Tensor:
        """∇ log ρ_θ(x) after the repair, (n,d)."""
        return self._with_repair(self._pushed.score, "score")

    def _with_repair(self, values: Tensor, name: str) -> Tensor:
        repair = self._repaired
        if repair is None:
            return values
        values = values.clone()
        values[repair.at] = getattr(repair, name)
        return values
