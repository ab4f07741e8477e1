"""The pushed measure ρ_θ = (T_θ)#λ on a batch of samples."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..checks import private
from ..maps.base import Pushed, PushForward
from ..parallel import ALONE, Group, Shared
from .base import Reference


class PushedMeasure(Shared):
    """ρ_θ = (T_θ)#λ on the samples x = T_θ(z); every quantity is computed when first asked for, and once.

    Args:
        map, reference: T and λ.
        theta: (p,). When it requires a gradient, x and log_density stay differentiable in it.
        z: (n,d) samples of λ.
        chunk_size: samples per block for densities and scores; bounds the memory at chunk_size·(d² + width).
        group: processes that share the samples out; all give the same z, and each keeps its own rows: from here on n
            counts those. `mean` and `gather` go over all.
    """

    def __init__(
        self,
        map: PushForward,
        reference: Reference,
        theta: Tensor,
        z: Tensor,
        chunk_size: int | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__(len(z), group)
        self.map, self.reference, self.theta, self.z = map, reference, theta, group.slice_rows(z)
        self.chunk_size = chunk_size or max(len(self.z), 1)

    @cached_property
    def x(self) -> Tensor:
        """Samples T_θ(z), (n,d)."""
        return self.map(self.theta, self.z)

    @cached_property
    def _slogdet(self) -> tuple[Tensor, Tensor]:
        parts = [self.map.volume(self.theta, z) for z in self.z.split(self.chunk_size)]
        return torch.cat([sign for sign, _ in parts]), torch.cat([log_abs_det for _, log_abs_det in parts])

    @cached_property
    def _pushed(self) -> Pushed:
        parts = []
        for z in self.z.detach().split(self.chunk_size):
            with torch.enable_grad():
                leaf = z.clone().requires_grad_(True)
                (slope,) = torch.autograd.grad(self.reference.log_density(leaf).sum(), leaf)
            parts.append(self.map.push_score(self.theta.detach(), z, slope))
        joined = [None if group[0] is None else torch.cat(group) for group in zip(*parts, strict=True)]
        return Pushed(*joined)  # type: ignore[arg-type]

    @cached_property
    def inverse_jacobian_at_samples(self) -> Tensor:
        """(∂_zT)⁻¹, (n,d,d), detached; infinite where ∂_zT is singular."""
        if self._pushed.inverse is not None:
            return self._pushed.inverse
        parts = [self.map.jacobian(self.theta.detach(), z).detach() for z in self.z.detach().split(self.chunk_size)]
        inverse, info = torch.linalg.inv_ex(torch.cat(parts))
        return torch.where((info == 0).view(-1, 1, 1), inverse, torch.inf)

    @property
    def asked_for_density(self) -> bool:
        """Whether a density or a score has been computed."""
        return "_pushed" in vars(self) or "_slogdet" in vars(self)

    @property
    def _volume(self) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of |det ∂_zT|, from the score where that is known already; without it they cost half."""
        if "_pushed" in vars(self) and not self.theta.requires_grad:
            return self._pushed.det_sign, self._pushed.log_abs_det
        return self._slogdet

    @property
    def log_density(self) -> Tensor:
        """log ρ_θ(x) = log λ(z) − log|det ∂_zT(z)|, (n,)."""
        return self.reference.log_density(private(self.z)) - self._volume[1]

    @property
    def score(self) -> Tensor:
        """∇ log ρ_θ(x) = (∂_zT)^{−T} ∇_z[log λ(z) − log|det ∂_zT(z)|], (n,d)."""
        return self._pushed.score

    @property
    def det_sign(self) -> Tensor:
        """Sign of det ∂_zT, (n,); −1 or 0 where the map folds and the density is not to be trusted."""
        return self._volume[0]

    @property
    def log_abs_det(self) -> Tensor:
        """log|det ∂_zT|, (n,)."""
        return self._volume[1]
