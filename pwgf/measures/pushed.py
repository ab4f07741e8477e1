"""The pushed measure ρ_θ = (T_θ)#λ: on a batch of samples, and as a law."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ..checks import as_points, density_at, private
from ..maps.base import Pushed, PushForward
from ..parallel import ALONE, Group, Shared
from .base import Reference
from .law import NUM_FOR_MOMENTS, Law, as_generator, finite_score, sample_cov

_CHUNK = 2000  # points at once


class PushedMeasure(Shared):
    """ρ_θ = (T_θ)#λ on the samples x = T_θ(z); every quantity is computed when first asked for, and once.

    Args:
        map, reference: T and λ.
        theta: (p,). When it requires a gradient, x and log_density stay differentiable in it.
        z: (n,d) samples of λ.
        chunk_size: samples per block for densities and scores; bounds the memory at chunk_size·(d² + width).
        group: processes that share the samples; all give the same z, and each keeps its own part: below, n counts that
            part. `mean` and `gather` extend over all.
        t: the time, for energies that depend on it; None where none is known.
        weights: (n,) of the samples in means, with mean 1; None where z are samples of λ itself.
    """

    def __init__(
        self,
        map: PushForward,
        reference: Reference,
        theta: Tensor,
        z: Tensor,
        chunk_size: int | None = None,
        group: Group = ALONE,
        t: float | None = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(len(z), group)
        self.t = t
        self.weights = None if weights is None else group.slice_rows(weights)
        self.map, self.reference, self.theta, self.z = map, reference, theta, group.slice_rows(z)
        self.chunk_size = chunk_size or max(len(self.z), 1)

    def at(self, t: float) -> Self:
        """The same measure at another time; what is computed already is shared."""
        found = copy.copy(self)
        found.t = t
        return found

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
        inverses = [part.inverse for part in parts if part.inverse is not None]
        return Pushed(
            torch.cat([part.score for part in parts]),
            torch.cat([part.det_sign for part in parts]),
            torch.cat([part.log_abs_det for part in parts]),
            torch.cat(inverses) if inverses else None,
        )

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
        """Sign and logarithm of |det ∂_zT|, from the score if that is known already; without it they cost half."""
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
    def traced_score(self) -> Tensor:
        """The score (n,d), differentiable in θ where that requires a gradient."""
        if not self.theta.requires_grad:
            return self.score
        with torch.enable_grad():
            parts = [self._score_along(self.theta, z.clone().requires_grad_())[0] for z in self._blocks]
        return torch.cat(parts)

    def score_derivatives(self) -> tuple[Tensor, Tensor]:
        """∇s (n,d,d) and ∇(∇·s) (n,d) of the score s at the samples, in x, detached.

        Cost: a graph of four derivatives of T in z, and d + 1 backward passes through it; for d up to about 10.
        """
        slopes, bends = [], []
        for block in self._blocks:
            with torch.enable_grad():
                z = block.clone().requires_grad_()
                score, jacobian = self._score_along(self.theta.detach(), z)
                by_z = torch.stack([_gradient(s, z) for s in score.unbind(1)], 1)
                slope = torch.linalg.solve(jacobian.mT.unsqueeze(1), by_z.unsqueeze(-1)).squeeze(-1)
                bend = _gradient(slope.diagonal(dim1=1, dim2=2).sum(1), z)
                bends.append(torch.linalg.solve(jacobian.mT, bend.unsqueeze(-1)).squeeze(-1).detach())
                slopes.append(slope.detach())
        return torch.cat(slopes), torch.cat(bends)

    @property
    def _blocks(self) -> tuple[Tensor, ...]:
        return self.z.detach().split(self.chunk_size)

    def _score_along(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The score at T(z), differentiable in θ and z (n,d), which requires a gradient, and ∂_zT."""
        log_density = self.reference.log_density(private(z)) - self.map.log_abs_det(theta, z)
        jacobian = self.map.jacobian(theta, z)
        slope = _gradient(log_density, z)
        return torch.linalg.solve(jacobian.mT, slope.unsqueeze(-1)).squeeze(-1), jacobian

    @property
    def det_sign(self) -> Tensor:
        """Sign of det ∂_zT, (n,); −1 or 0 where the map folds and the density is wrong."""
        return self._volume[0]

    @property
    def log_abs_det(self) -> Tensor:
        """log|det ∂_zT|, (n,)."""
        return self._volume[1]


def _gradient(values: Tensor, z: Tensor) -> Tensor:
    """∇ of values (n,), one a sample, in z (n,d); zeros where they do not depend on it."""
    if not values.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(values.sum(), z, create_graph=True, materialize_grads=True)[0]


class PushedLaw(Law):
    """The law ρ_θ = (T_θ)#λ; its density at given points takes an inverse of the map.

    Args:
        map, reference, theta: T, λ and θ (p,).
    """

    def __init__(self, map: PushForward, reference: Reference, theta: Tensor) -> None:
        self.map, self.reference, self.theta, self.dim = map, reference, theta, map.dim

    def push(self, z: Tensor) -> Tensor:
        """T_θ(z), (n,d)."""
        with torch.no_grad():
            return torch.cat([self.map(self.theta, part) for part in z.to(self.theta).split(_CHUNK)]).cpu()

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d), in θ's dtype."""
        return self.push(self.reference.sample(n, as_generator(seed, "PushedLaw.sample")))

    def _at(self, x: Tensor) -> list[PushedMeasure]:
        """The measure on blocks of points x."""
        blocks = x.detach().to(self.theta).split(_CHUNK)
        z = [self.map.inverse(self.theta, block) for block in blocks]
        return [PushedMeasure(self.map, self.reference, self.theta, block) for block in z]

    def log_density(self, x: Tensor) -> Tensor:
        """log ρ_θ(x) by the inverse of the map, (n,d) → (n,), detached.

        Raises:
            ShapeError: x is not (n,d).
            SolverError: the map cannot be inverted at some x.
        """

        def log_density(x: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([rho.log_density.cpu() for rho in self._at(x)])

        return density_at(as_points(x, self.dim, "PushedLaw.log_density(x): x"), log_density)

    def score(self, x: Tensor) -> Tensor:
        """∇ log ρ_θ(x), (n,d); errors as `log_density`, and NonFiniteError where ρ vanishes."""
        x = as_points(x, self.dim, "PushedLaw.score(x): x").cpu()
        finite_score(x, x[:, 0], x)  # no map is inverted at infinity
        measures = self._at(x)
        score = torch.cat([rho.score.cpu() for rho in measures])
        return finite_score(score, torch.cat([rho.log_density.detach().cpu() for rho in measures]), x)

    def moments(self, n: int = NUM_FOR_MOMENTS) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d,d), from n evenly spread samples."""
        x = self.push(self.reference.matched_sample(n, 0)).double()
        return x.mean(0), sample_cov(x)

    def mean(self) -> Tensor:
        """(d,) float64 from `moments()`; for an affine map of a Gaussian exact but for rounding."""
        return self.moments()[0]

    def cov(self) -> Tensor:
        """(d,d) float64 from `moments()`; for an affine map of a Gaussian good to 1e-5 of it."""
        return self.moments()[1]
