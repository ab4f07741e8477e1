"""How far the law may be from the exact one, by the velocity that the map misses."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...energies import Hessian
from .._mobility import Frame
from .setup import Setup

TAIL = 0.005
"""Share of the samples, the fastest, that are left out: a few can carry nearly all of E|v|²."""

MAX_DIM = 128
"""Dimension up to which the estimate is made; it takes 2 s there."""

_NUM_FIELDS = 200  # gradient fields beside the affine ones
_SHARPEST = 32.0  # largest slope of a field, over the spread of ρ
_BLOCK = 100  # samples whose fields are held at a time
_RANK = 1e-9  # smallest eigenvalue of the fields' Gram matrix that counts, relative to the largest
_MAP, _STEPS = 6.0, 5.0  # with these, measured errors lay below `error_95` in 79 of 80 rows


class Estimate(NamedTuple):
    """W₂ to the exact law, about, and the spread √tr cov of ρ, both in units of x."""

    error: float
    spread: float


def samples_for(dim: int, pairwise: bool) -> int:
    """How many samples suffice: at most 4000, fewer in high dimension, where each tells more, and where pairs count."""
    return min(2000 if pairwise else 4000, max(500, 40_000 // dim))


def error_estimate(
    setup: Setup,
    theta: Tensor,
    theta_dot: Tensor,
    z: Tensor,
    elapsed: float,
    t: float = 0.0,
    known: Frame | None = None,
) -> Estimate:
    r"""The displacement by which ρ lags behind, from the velocity r = v − Jθ̇ that the map misses.

    A displacement u that decays at the rate κ under the flow, and is fed by r, stays near r/κ; after the time T it is
    no larger than r·T. All modes at once: u = argmin ½Q(u) + E|u|²/(2T) − E[r·u] over gradient fields, with Q the
    second variation of F. Only gradient fields move ρ. Rough parts of r, which diffusion removes at once, count
    little; smooth ones fully. A share of E|v|² tells neither: at equilibrium v vanishes, and any r is all of it. With a
    mobility M = RRᵀ (its mean over the samples) all this is done in the coordinates R⁻¹x.

    The estimate sees what the map misses now, and not what is no longer felt: mass on the wrong side of a barrier, or
    errors of time steps. It is no bound: measured errors were .2 to 10 times as large (docs/method.md).

    Cost: 2n·d·K(K + d) flops with K ≤ 400 + 2d fields; NaN for d > `MAX_DIM`.

    Args:
        setup: of a single process.
        theta, theta_dot: θ and the rate θ̇ fitted there, (p,) each.
        z: (n,d) samples of λ, fresh to that fit.
        elapsed: T since the start of the flow; 0 gives 0.
        t: the time.
        known: the frame of the fit, for a mobility that is the same at all samples.

    Source:
        Hierarchical a-posteriori estimates: R. Bank, R. Smith, A posteriori error estimates based on hierarchical
        bases, 1993; the choice of fields is ours.
    """
    rho = setup.floored(theta, z, None, t)
    frame = setup.frame(rho, known)
    v = frame.velocity(setup.energy.velocity(rho).detach())
    missed = v - setup.tangent(theta, z).jv(theta_dot)
    frame = frame.uniform()
    with torch.no_grad():
        form = frame.form(setup.energy.hessian(rho))
    size = v.square().sum(1) + missed.square().sum(1)
    slow = size.topk(len(z) - math.ceil(TAIL * len(z)), largest=False).indices
    x, missed = rho.x.detach()[slow].double(), missed[slow].double()
    spread = float((x - x.mean(0)).square().sum(1).mean().sqrt())
    if x.shape[1] > MAX_DIM:
        return Estimate(math.nan, spread)
    if not elapsed > 0 or not spread > 0:
        return Estimate(0.0, spread)
    y = frame.inside(x)
    fields = _gradient_fields(y, float((y - y.mean(0)).square().mean().sqrt()))
    along = fields.along.T @ fields.along / len(x)
    gram = fields.directions @ fields.directions.T * along
    curvature = _curvature(fields, form, slow)
    load = ((frame.inside(missed) @ fields.directions.T) * fields.along).mean(0)
    sizes, vectors = torch.linalg.eigh(gram)
    kept = sizes > _RANK * sizes[-1]
    basis = vectors[:, kept] / sizes[kept].sqrt()  # orthonormal in E|u|²
    rates, modes = torch.linalg.eigh(basis.T @ curvature @ basis)
    lag = basis @ modes @ ((modes.T @ (basis.T @ load)) / (rates.clamp(min=0) + 1 / elapsed))
    in_x = frame.outside(fields.directions)
    size2 = (lag * (((in_x @ in_x.T) * along) @ lag)).sum()
    return Estimate(float(size2.clamp(min=0).sqrt()), spread)


def error_95(estimate: float, step_error: float) -> float:
    """What W₂ to the exact law stays below by experience: in 79 of the 80 rows of eight flows that chose the factors.

    Args:
        estimate: of `error_estimate`.
        step_error: root of the sum of the squared errors of the steps, as the integrator estimates them; NaN: unknown.
            Both and the result are in units of x.
    """
    return math.hypot(_MAP * estimate, _STEPS * step_error)


class _Fields(NamedTuple):
    """u_k(x) = a_k(w_k·x) w_k, the gradient of a function of w_k·x: a (n,K) at the samples, a′ (n,K), w (K,d)."""

    along: Tensor
    slope: Tensor
    directions: Tensor


def _gradient_fields(x: Tensor, unit: float) -> _Fields:
    """Affine fields, and steps of many widths that lie at samples; half of them along axes."""
    n, d = x.shape
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(d, dtype=x.dtype)
    turned = torch.randn(_NUM_FIELDS, d, generator=generator, dtype=x.dtype)
    turned = turned / turned.norm(dim=1, keepdim=True)
    turned[: _NUM_FIELDS // 2] = axes[torch.arange(_NUM_FIELDS // 2) % d]
    sharpness = 2 ** (torch.rand(_NUM_FIELDS, generator=generator, dtype=x.dtype) * math.log2(2 * _SHARPEST) - 1)
    at = torch.randint(n, (_NUM_FIELDS,), generator=generator)
    axes, turned, sharpness = axes.to(x), turned.to(x), sharpness.to(x) / unit
    steps = torch.tanh((x @ turned.T - (turned * x[at.to(x.device)]).sum(1)) * sharpness)
    linear = torch.cat([axes, turned.flip(0)[: d * (d - 1) // 2]])  # those off the axes lie last
    lengths = (x - x.mean(0)) @ linear.T / unit
    ones = torch.ones_like(lengths)
    return _Fields(
        torch.cat([steps, ones[:, :d], lengths], 1),
        torch.cat([(1 - steps.square()) * sharpness, 0 * ones[:, :d], ones / unit], 1),
        torch.cat([turned, axes, linear]),
    )


def _curvature(fields: _Fields, form: Hessian, at: Tensor) -> Tensor:
    """Q of the fields, (K,K): that of the form at the samples `at`."""
    along, slope, directions = fields
    n, overlap = len(along), directions @ directions.T
    total = torch.zeros_like(overlap)
    if form.slope is not None:
        total = total + overlap.square() * (slope.T @ (form.slope[at].double().unsqueeze(1) * slope))
    if form.divergence is not None:  # |w|² = 1
        total = total + slope.T @ (form.divergence[at].double().unsqueeze(1) * slope)
    for matrices, values in ((form.point, along), (form.centred, along - along.mean(0))):
        if matrices is not None:
            for part in range(0, n, _BLOCK):
                here = slice(part, part + _BLOCK)
                u = values[here].unsqueeze(2) * directions  # (block,K,d)
                total = total + torch.tensordot(u @ matrices[at[here]].double(), u, dims=([0, 2], [0, 2]))
    return (total + total.T) / (2 * n)
