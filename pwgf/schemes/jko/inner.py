"""One JKO step as a minimisation: the objective on samples, and Adam with a plateau rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...energies import Energy
from ...errors import ConfigError, NonFiniteError, SolverError
from ...maps.base import inverse_of_factor
from ...maps.convex import ConvexGradient
from ...parallel import Shared
from .._adam import Adam
from ..base import read

_LOWER = 0.25  # factor of the rate at a plateau
_GAIN = 1e-3  # share of the step's descent that counts as progress between two looks
_LANCZOS = 10
_NO_SCORE = "JKOICNN minimises values of an energy, which must not read rho.score; use scheme PWGF for such an energy."


class Cloud(NamedTuple):
    """Samples x (n,d) of a law and its log density there, (n,)."""

    x: Tensor
    log_density: Tensor

    def rows(self, index: slice) -> Cloud:
        """A part of it."""
        return Cloud(self.x[index], self.log_density[index])


class Seen(Shared):
    """A cloud as energies want to see a measure; `read` tells whether its density was asked for."""

    t: float | None = None  # its energies do not depend on it

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(len(cloud.x))
        self.x, self._log_density, self.read = cloud.x, cloud.log_density, False

    @property
    def log_density(self) -> Tensor:
        """log ρ(x), (n,)."""
        self.read = True
        return self._log_density

    @property
    def score(self) -> Tensor:
        """ConfigError: the steps carry the density along, not its gradient."""
        raise ConfigError(_NO_SCORE)


class _Moved(Shared):
    """∇ψ#ρ on samples; differentiable in θ. `log_det` (θ, x) → (T, log det ∂T), or None where no density is read."""

    t: float | None = None

    def __init__(self, map: ConvexGradient, theta: Tensor, cloud: Cloud, log_det: LogDet | None) -> None:
        super().__init__(len(cloud.x))
        self._map, self._theta, self._cloud, self._log_det = map, theta, cloud, log_det

    @cached_property
    def _moved(self) -> tuple[Tensor, Tensor | None]:
        if self._log_det is None:
            return self._map(self._theta, self._cloud.x), None
        return self._log_det(self._map, self._theta, self._cloud.x)

    @property
    def x(self) -> Tensor:
        """∇ψ(x), (n,d)."""
        return self._moved[0]

    @property
    def log_density(self) -> Tensor:
        """log ρ(x) − log det ∇²ψ(x), (n,)."""
        volume = self._moved[1]
        if volume is None:
            volume = exact_log_det(self._map, self._theta, self._cloud.x)[1]
        return self._cloud.log_density - volume

    @property
    def score(self) -> Tensor:
        """ConfigError, as in `Seen`."""
        raise ConfigError(_NO_SCORE)


LogDet = Callable[[ConvexGradient, Tensor, Tensor], tuple[Tensor, Tensor]]


class _CholeskyLogDet(torch.autograd.Function):
    """log det of symmetric positive definite matrices, NaN where they are not; its gradient is the inverse."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(matrices)
        ctx.save_for_backward(factor)
        value = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return value.masked_fill(info != 0, math.nan)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Tensor:
        (lower,) = ctx.saved_tensors
        return factor.view(-1, 1, 1) * inverse_of_factor(lower)


def exact_log_det(map: ConvexGradient, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """T(x) (n,d) and log det ∂T (n,) by Cholesky, differentiable in θ once; NaN where ∂T is not positive definite."""
    moved, jacobian = map.with_jacobian(theta, x)
    return moved, _CholeskyLogDet.apply(jacobian)


def stochastic_log_det(generator: torch.Generator) -> LogDet:
    """An estimator of `exact_log_det`: E over signs u of uᵀ(log ∂T)u, by Lanczos with products ∂T·u alone.

    Value by Gauss quadrature, gradient by uᵀ(∂T)⁻¹ ∂_θ(∂T) u, both from the same min(d, 10) products, which for min = d
    leave no error but that of u. Cost: about 2·min(d, 10) evaluations of T instead of `with_jacobian` and nd³/3 flops.
    """

    def estimate(map: ConvexGradient, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        signs = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            moved = map(theta, leaf)

            def product(u: Tensor) -> Tensor:  # ∂T is symmetric
                return torch.autograd.grad(moved, leaf, u, retain_graph=True)[0]

            value, solved = _lanczos(product, signs, min(x.shape[1], _LANCZOS))
            (slope,) = torch.autograd.grad(moved, leaf, solved, create_graph=True)
            form = (slope * signs).sum(1)  # uᵀ(∂T)⁻¹ ∂T u, whose gradient in θ is that of log det
        return moved, value + form - form.detach()

    return estimate


def _lanczos(product: Callable[[Tensor], Tensor], u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """uᵀ(log A)u (n,) and A⁻¹u (n,d) in the Krylov space of each u, (n,d); fully reorthogonalised."""
    size, small = u.norm(dim=1), 100 * torch.finfo(u.dtype).eps
    basis, alive = [u / size.unsqueeze(1)], torch.ones_like(size, dtype=torch.bool)
    alpha, beta = [], []
    for k in range(steps):
        w = product(basis[k])
        alpha.append((w * basis[k]).sum(1).where(alive, torch.ones_like(size)))  # an exhausted space: any node serves
        for q in basis:
            w = w - (w * q).sum(1, keepdim=True) * q
        norm = w.norm(dim=1)
        alive = alive & (norm > small * alpha[k].abs())
        beta.append(norm.where(alive, torch.zeros_like(norm)))
        basis.append((w / norm.unsqueeze(1)).where(alive.unsqueeze(1), torch.zeros_like(w)))
    tridiagonal = torch.diag_embed(torch.stack(alpha, 1))
    if steps > 1:
        side = torch.diag_embed(torch.stack(beta[:-1], 1), offset=1)
        tridiagonal = tridiagonal + side + side.transpose(1, 2)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    first = vectors[:, 0, :]
    value = size.square() * (first.square() * nodes.clamp_min(torch.finfo(u.dtype).tiny).log()).sum(1)
    weights = (vectors @ (first / nodes).unsqueeze(2)).squeeze(2) * size.unsqueeze(1)
    solved = (torch.stack(basis[:steps], 2) @ weights.unsqueeze(2)).squeeze(2)
    return value, solved


@dataclass(frozen=True)
class Objective:
    """J(θ) = ½E|∇ψ(x) − x|² + h·F(∇ψ#ρ) on samples of ρ; `dense` says whether F reads the density."""

    map: ConvexGradient
    energy: Energy
    h: float
    dense: bool

    def __call__(self, theta: Tensor, cloud: Cloud, log_det: LogDet = exact_log_det) -> Tensor:
        """A scalar, differentiable in θ."""
        moved = _Moved(self.map, theta, cloud, log_det if self.dense else None)
        transport = 0.5 * (moved.x - cloud.x).square().sum(1).mean()
        return transport + self.h * self.energy(moved)


@dataclass(frozen=True)
class InnerSettings:
    """Settings of the inner minimisation; see `JKOICNN`."""

    learning_rate: float
    max_iterations: int
    num_decays: int
    patience: int


class Minimum(NamedTuple):
    """θ (p,), J there and at the warm start on the held-out samples, the iterations made and the last rate."""

    theta: Tensor
    value: float
    start: float
    iterations: int
    rate: float


def minimise(
    objective: Objective,
    theta: Tensor,
    batch: Callable[[int], Cloud],
    held_out: Cloud,
    settings: InnerSettings,
    *,
    identity: float,
    log_det: LogDet = exact_log_det,
    where: str = "",
) -> Minimum:
    """Adam from θ, its rate lowered at plateaus of J on held-out samples, which also choose the best θ on the way.

    Every `patience` iterations J is looked at, at the mean of the iterates since the last look. When it has fallen by
    less than 1e-3 of the whole descent from the identity, θ goes on from that mean at a quarter of the rate; after
    `num_decays` such falls the search ends.

    Args:
        objective: J.
        theta: where to begin, (p,).
        batch: the samples of iteration i.
        held_out: samples that no iteration sees.
        settings: rates and limits.
        identity: J at the identity on the held-out samples, h·F(ρ).
        log_det: exact, or an estimator, for the iterations; looks are exact.
        where: tells errors which step this is.

    Raises:
        SolverError: J is not finite, with the iteration and the rate.
    """
    project = getattr(objective.map, "project", None)
    theta = theta.detach().clone()
    adam = Adam(theta)
    with torch.no_grad():
        start = float(objective(theta, held_out))
    best = last = start if math.isfinite(start) else math.inf
    found, rate, decays, iteration = theta.clone(), settings.learning_rate, 0, 0
    mean, looked = theta.clone(), 0  # of the iterates since the last look: it averages the noise of the batches
    while iteration < settings.max_iterations and decays <= settings.num_decays:
        value, slope, finite = _slope(objective, theta, batch(iteration), log_det)
        if not (math.isfinite(value) and finite):
            raise SolverError(_diverged(where, iteration, rate, value, best))
        iteration += 1
        theta -= rate * adam.direction(slope)
        if project is not None:
            project(theta)
        mean.lerp_(theta, 1 / (iteration - looked))
        if iteration % settings.patience and iteration < settings.max_iterations:
            continue
        with torch.no_grad():
            value = float(objective(mean, held_out))
        if value < best:
            best, found = value, mean.clone()
        if not value < last - _GAIN * abs(identity - best):
            rate, decays = rate * _LOWER, decays + 1
            theta.copy_(mean)
        looked = iteration
        last = min(value, last) if math.isfinite(value) else last
    return Minimum(found, best, start, iteration, rate)


def _slope(objective: Objective, theta: Tensor, cloud: Cloud, log_det: LogDet) -> tuple[float, Tensor, bool]:
    """J, its gradient, and whether that is finite; NaN where the energy itself says that it is not finite."""
    leaf = theta.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            value = objective(leaf, cloud, log_det)
            (slope,) = torch.autograd.grad(value, leaf)
    except NonFiniteError:
        return math.nan, torch.zeros_like(theta), False
    return read(value, slope)


def _diverged(where: str, iteration: int, rate: float, value: float, best: float) -> str:
    return (
        f"JKOICNN: the inner minimisation diverged{where}: the objective or its gradient is not finite (objective "
        f"{value}) at inner iteration {iteration}, learning rate {rate:.2g}; the best value before was {best:.6g}. "
        "Causes: (a) too long strides: smaller learning_rate; (b) the energy is not finite where the samples were "
        "moved to: check it there; (c) a law too steep for this precision: dtype=torch.float64, or smaller h."
    )
