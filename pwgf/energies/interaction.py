"""Interaction energy ½∬W(x−y) dρ dρ: over all pairs of samples, or by moments where W is a radial polynomial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import entries_at_once, is_real, plain_fields
from ..errors import ConfigError
from ..measures import Sampled
from ._timed import Timed, slope_in_time, time_of
from .base import Energy, Once, evaluate, shares, slope
from .hessian import Hessian, hessian_of, second_derivatives

_BLOCK = 2**18  # numbers in one block of differences: 2 MB in float64, so that the values of W stay in cache
_PARTNERS = 64  # of a sample, over which ∇²W is averaged

_ONCE = (
    "Interaction(W) can be differentiated once; got a second derivative of its value. Use a RadialPolynomial for W, or "
    "write the sum over pairs in a Functional."
)


@dataclass(frozen=True)
class RadialPolynomial:
    """The kernel W(r) = quadratic·|r|² + quartic·|r|⁴, whose `Interaction` costs O(n·d²) instead of n² evaluations.

    With u = x − x̄ and, over the n samples, s = E|u|², C = E[uuᵀ], q = E[|u|²u], the sum over pairs is exactly
    (n−1)⁻¹ Σ_{j≠i} ∇W(x_i − x_j) = n/(n−1)·(2·quadratic·u + 4·quartic·(|u|²u + su + 2Cu − q)). With weights of mean 1
    all means are weighted, and n/(n−1) becomes n²/(n² − Σw²).

    Args:
        quadratic: coefficient of |r|²; positive attracts.
        quartic: coefficient of |r|⁴.

    Raises:
        ConfigError: a coefficient is not a finite number.

    Example:
        >>> from pwgf import energies
        >>> aggregation = energies.Interaction(energies.RadialPolynomial(quadratic=-0.5, quartic=0.25))
    """

    quadratic: float = 0.0
    quartic: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("quadratic", "quartic"):
            value = getattr(self, name)
            if not is_real(value):
                raise ConfigError(
                    f"RadialPolynomial({name}=…) must be a finite number; got {value!r}. For any other W pass a "
                    "function to Interaction."
                )

    def __call__(self, r: Tensor) -> Tensor:
        """W(r), (…,d) → (…,)."""
        squared = r.square().sum(-1)
        return squared * (self.quadratic + self.quartic * squared)

    def energy(self, x: Tensor, w: Tensor) -> Tensor:
        """½ the mean of W over the pairs i ≠ j of the samples x (n,d) of weights w (n,1): scalar, differentiable."""
        n, u = len(x), x - (w * x).mean(0)
        squared = u.square().sum(-1, keepdim=True)
        s, C = (w * squared).mean(), (w * u).T @ u / n
        quartic = (w * squared.square()).mean() + s.square() + 2 * C.square().sum()
        return n * n / _num_pairs(w) * (self.quadratic * s + self.quartic * quartic)

    def pull(self, x: Tensor, w: Tensor) -> Tensor:
        """(n−1)⁻¹ Σ_{j≠i} ∇W(x_i − x_j), (n,d)."""
        n, u = len(x), x - (w * x).mean(0)
        squared = u.square().sum(-1, keepdim=True)
        cubic = squared * u
        quartic = cubic + (w * squared).mean() * u + 2 * u @ ((w * u).T @ u / n) - (w * cubic).mean(0)
        return n * n / _num_pairs(w) * (2 * self.quadratic * u + 4 * self.quartic * quartic)

    def curvature(self, x: Tensor, w: Tensor, own: slice) -> Tensor:
        """(n−1)⁻¹ Σ_{j≠i} ∇²W(x_i − x_j) for the rows `own` of x (n,d): (rows,d,d)."""
        n, u = len(x), x - (w * x).mean(0)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        squared = u.square().sum(-1, keepdim=True)
        isotropic = (squared[own] + (w * squared).mean()).unsqueeze(2) * eye
        outer = u[own].unsqueeze(2) * u[own].unsqueeze(1) + (w * u).T @ u / n
        return 2 * self.quadratic * eye + n * n / _num_pairs(w) * 4 * self.quartic * (isotropic + 2 * outer)


class Interaction(Energy):
    r"""F(ρ) = ½∬W(x−y) ρ(x)ρ(y), velocity −(∇W ∗ ρ)(x), with W made even: (W(r)+W(−r))/2.

    On n samples the average runs over the pairs i ≠ j and divides by n−1, so W may be singular at 0. A pair of samples
    with weights counts by their product. Cost: n²
    evaluations of W, and for the velocity a gradient of every second one (of each one if W is not even), in blocks of
    bounded memory, also when the value is differentiated. A `RadialPolynomial` costs O(n·d²).

    Args:
        W: (…,d) → (…,), differentiable away from 0; a `RadialPolynomial` is evaluated by moments.
        time: whether W depends on time: then it is called as W(t, r), t a 0-d tensor.

    Raises:
        ConfigError, ShapeError: W is not callable, or takes other arguments; at the first use: it fails, or
            returns another shape.

    Example:
        >>> from pwgf import energies
        >>> gas = energies.Interaction(lambda r: -r.square().sum(-1).log() / 2)
    """

    pairwise = True
    weighable = True

    def __init__(self, W: Callable[..., Tensor], time: bool = False) -> None:
        self._function = Timed(W, "Interaction", "W", "r", time)
        self.W = W
        if time:
            self.time = True

    def _kernel(self, rho: Sampled) -> Callable[..., Tensor]:
        """W at the time of rho."""
        return _AtTime(self.W, time_of(rho, self._function.call)) if self.time else self.W

    def try_functions(self, rho: Sampled) -> None:
        """W, pair by pair."""
        x = rho.x.detach()
        self._function.try_at(rho, x - x.roll(1, 0))

    def __call__(self, rho: Sampled) -> Tensor:
        """½ the mean of W over pairs i ≠ j."""
        if shares(rho).group.size > 1:
            return self._shared_value(rho)
        w = _weights(rho)
        if isinstance(self.W, RadialPolynomial):
            return self.W.energy(rho.x, w)
        value: Tensor = _PairEnergy.apply(rho.x, w, self._kernel(rho))
        return value

    def power(self, rho: Sampled) -> Tensor:
        """½ the mean of ∂ₜW over pairs; NaN where W reads t outside torch."""
        if not self.time:
            return super().power(rho)
        own, share, w = rho.x.detach(), shares(rho), _weights(rho)
        x = share.gather(own)

        def total(t: Tensor) -> Tensor:
            return sum_of_values(_AtTime(self.W, t), own, x, w, share.own.start)

        found = slope_in_time(total, own.new_tensor(time_of(rho, self._function.call)))
        return share.group.sum(found) / (2 * _num_pairs(w))

    def _shared_value(self, rho: Sampled) -> Tensor:
        """The value where several processes share the samples, differentiable in those of this process."""
        own, share, w = rho.x.detach(), shares(rho), _weights(rho)
        x = share.gather(own)
        if isinstance(self.W, RadialPolynomial):
            value = self.W.energy(x, w)
        else:
            total = share.group.sum(sum_of_values(self._kernel(rho), own, x, w, share.own.start))
            value = total / (2 * _num_pairs(w))
        if not rho.x.requires_grad:
            return value
        return value - (w[share.own] * self.velocity(rho) * (rho.x - own)).sum() / len(x)  # n ∂F/∂x_i = −w_i v_i

    def velocity(self, rho: Sampled) -> Tensor:
        """−(n−1)⁻¹ Σ_{j≠i} ∇W(x_i − x_j), (n,d)."""
        own, share, w = rho.x.detach(), shares(rho), _weights(rho)
        x = share.gather(own)
        if isinstance(self.W, RadialPolynomial):
            return -self.W.pull(x, w)[share.own]
        return -len(x) / _num_pairs(w) * sum_of_slopes(self._kernel(rho), own, x, w, share.own.start)

    def hessian(self, rho: Sampled) -> Hessian:
        """C_i = the mean over partners j of ∇²W(x_i − x_j), times n/(n−1) as in the value.

        The second variation is ½E_{x,y}(u−u′)·∇²W(x−y)(u−u′). For a quadratic W that is E(u−ū)·C(u−ū) exactly; for a
        convex W the latter is at least half of it, for any other W its diagonal part. A `RadialPolynomial` takes all
        pairs by moments. Any other W is differentiated at no more than 64 partners of each sample, whose distances in
        the order of the samples are evenly spaced: O(64·n·d) numbers, d backward passes.
        """
        own, share, w = rho.x.detach(), shares(rho), _weights(rho)
        x = share.gather(own)
        n, W = len(x), self._kernel(rho)
        if n < 2:
            return Hessian(centred=own.new_zeros(*own.shape, own.shape[1]))

        def fields() -> dict[str, Tensor]:
            if isinstance(W, RadialPolynomial):
                return {"centred": n / (n - 1) * W.curvature(x, w, share.own)}
            return {"centred": n / (n - 1) * mean_curvature(W, x, w, share.own)}

        return hessian_of(self.label, share, fields)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0

    def to_config(self) -> dict[str, Any]:
        """JSON that names W, with the coefficients of a `RadialPolynomial`."""
        coefficients = vars(self.W) if isinstance(self.W, RadialPolynomial) else {}
        return {**super().to_config(), **coefficients}


@dataclass(frozen=True)
class _AtTime:
    """The kernel r ↦ W(t, r); evaluated by `_kernel`."""

    W: Callable[..., Tensor]
    t: float | Tensor

    def __call__(self, r: Tensor) -> Tensor:
        """W(t, r)."""
        return _kernel(self, r)


class _PairEnergy(torch.autograd.Function):
    """½ the mean of W over pairs. Its gradient is known, −v/n, so that no graph of n² pairs is ever kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, W: Callable[..., Tensor]) -> Tensor:
        ctx.W = W
        ctx.save_for_backward(x, w)
        return sum_of_values(W, x, x, w, 0) / (2 * _num_pairs(w))

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        x, w = ctx.saved_tensors
        total = w * sum_of_slopes(ctx.W, x.detach(), x.detach(), w, 0)
        return factor * Once.apply(total, x, _ONCE) / _num_pairs(w), None, None


def _weights(rho: Sampled) -> Tensor:
    """Those of all samples, (n,1); ones where all count alike."""
    share = shares(rho)
    if share.weights is None:
        return rho.x.new_ones(share.num_samples, 1)
    return share.gather(share.weights).unsqueeze(1)


def _num_pairs(w: Tensor) -> Tensor:
    """Σ_{i≠j} w_i w_j of weights of mean 1: n(n−1) where all count alike; not quite 0 for a single sample."""
    return (len(w) ** 2 - w.square().sum()).clamp(min=torch.finfo(w.dtype).tiny)


def sum_of_values(W: Callable[..., Tensor], rows: Tensor, samples: Tensor, w: Tensor, start: int) -> Tensor:
    """Σ_i Σ_{j≠start+i} w_{start+i} w_j W(rows_i − samples_j): scalar. Row i is sample start + i.

    Args:
        W: kernel, (…,d) → (…,).
        rows: (m,d), a contiguous part of the samples.
        samples: (n,d).
        w: weights of the samples, (n,1).
        start: index of rows[0] among the samples.
    """
    total = rows.new_zeros(())
    for i, j in _blocks(rows, samples):
        r, diagonal = _differences(rows[i], samples[j], start + i.start - j.start)
        value = _kernel(W, r)
        value = value if diagonal is None else value.masked_fill(diagonal, 0.0)
        total += (w[start + i.start : start + i.stop][: len(value)].T @ value @ w[j]).sum()
    return total


def sum_of_slopes(W: Callable[..., Tensor], rows: Tensor, samples: Tensor, w: Tensor, start: int) -> Tensor:
    """Σ_{j≠start+i} w_j ∇W(rows_i − samples_j) for W made even, (m,d); arguments as in `sum_of_values`.

    When rows are all the samples each unordered pair is visited once and counts on both sides.
    """
    total, whole = torch.zeros_like(rows), len(rows) == len(samples)
    for i, j in _blocks(rows, samples):
        if whole and j.start < i.start:
            continue
        r, diagonal = _differences(rows[i], samples[j], start + i.start - j.start)
        g = _even_slope(W, r)
        if diagonal is not None:
            g = g.masked_fill(diagonal.unsqueeze(-1), 0.0)
        total[i] += (w[j] * g).sum(1)
        if whole and j.start > i.start:
            total[j] -= (w[i].unsqueeze(1) * g).sum(0)
    if not bool(total.any()):  # legal for a flat W, else W cannot be differentiated: `slope` distinguishes the two
        with torch.enable_grad():
            r = (samples - samples.roll(1, 0)).requires_grad_(True)
            slope(_kernel(W, r), r, "Interaction: W(r)", on_device=True)
    return total


def mean_curvature(W: Callable[..., Tensor], samples: Tensor, w: Tensor, own: slice) -> Tensor:
    """Mean of ∇²W(x_i − x_j), W made even, by the weights w (n,1) of at most 64 partners j ≠ i of `own`: (rows,d,d)."""
    n, d = samples.shape
    count = min(_PARTNERS, n - 1)
    shifts = torch.linspace(1, n - 1, count, dtype=torch.float64, device=samples.device).round().long()
    rows = torch.arange(own.start, own.stop, device=samples.device)
    parts = [samples.new_zeros(0, d, d)]
    for i in rows.split(max(1, entries_at_once(_BLOCK, samples) // (count * d))):
        partners = (i.unsqueeze(1) + shifts) % n
        r = samples[i].unsqueeze(1) - samples[partners]
        parts.append(_even_curvature(W, r, w[partners].squeeze(2)))
    return torch.cat(parts)


def _even_curvature(W: Callable[..., Tensor], r: Tensor, w: Tensor) -> Tensor:
    """Mean over partners of weights w (b,c) of (∇²W(r) + ∇²W(−r))/2, r (b,c,d) → (b,d,d); −r is skipped for even W."""
    shift = torch.zeros_like(r[:, 0]).requires_grad_(True)  # the same for all partners of a sample: their sum at once

    def value(sign: float) -> Tensor:
        with torch.enable_grad():
            return _kernel(W, sign * (r + shift.unsqueeze(1)))

    forward, backward = value(1.0), value(-1.0)
    total = forward if torch.equal(forward, backward) else (forward + backward) / 2
    found = second_derivatives((total * w).sum(1) / w.sum(1), shift)
    return r.new_zeros(len(r), r.shape[2], r.shape[2]) if found is None else found


def _even_slope(W: Callable[..., Tensor], r: Tensor) -> Tensor:
    """(∇W(r) − ∇W(−r))/2, (b,c,d); the second gradient is skipped where W(r) = W(−r) to the last bit."""

    def value_and_slope(r: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            value = _kernel(W, r.requires_grad_(True))
            g = torch.autograd.grad(value.sum(), r, allow_unused=True)[0] if value.requires_grad else None
        return value.detach(), torch.zeros_like(r) if g is None else g

    value, g = value_and_slope(r)
    mirrored = -r.detach()
    with torch.no_grad():
        even = torch.equal(value, _kernel(W, mirrored))
    return g if even else (g - value_and_slope(mirrored)[1]) / 2


def _kernel(W: Callable[..., Tensor], r: Tensor) -> Tensor:
    if isinstance(W, _AtTime):
        return evaluate(W.W, "Interaction: W(t, r)", r.shape[:-1], r, r, t=W.t)
    return evaluate(W, "Interaction: W(r)", r.shape[:-1], r, r)


def _blocks(rows: Tensor, samples: Tensor) -> Iterator[tuple[slice, slice]]:
    """Square blocks of pairs: slices of rows and of samples."""
    size = max(1, math.isqrt(entries_at_once(_BLOCK, rows) // max(rows.shape[1], 1)))
    for i in range(0, len(rows), size):
        for j in range(0, len(samples), size):
            yield slice(i, i + size), slice(j, j + size)


def _differences(rows: Tensor, samples: Tensor, offset: int) -> tuple[Tensor, Tensor | None]:
    """r[i, j] = rows_i − samples_j, (b,c,d), but 1 at its diagonal j = i + offset; the mask (b,c) of that, if any."""
    r = rows.unsqueeze(1) - samples
    diagonal = torch.zeros(r.shape[:2], dtype=torch.bool, device=r.device)
    if not len(diagonal.diagonal(offset)):
        return r, None
    diagonal.diagonal(offset).fill_(True)
    return r.masked_fill_(diagonal.unsqueeze(-1), 1.0), diagonal
