"""Energies that attract ρ to a set of samples: ½ MMD², ½ sliced W₂², and the Sinkhorn divergence."""

from __future__ import annotations

import hashlib
import importlib
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_tensor, check_integer, entries_at_once, is_real, plain_numbers
from ..errors import ConfigError, ShapeError, nearest
from ..measures import Sampled
from .base import Energy, Once, shares
from .hessian import Hessian, hessian_of

_BLOCK = 2**20  # entries of a block of a distance matrix: 8 MB in float64
_PARTNERS = 256  # samples y over which a second derivative of the kernel is averaged


class ToSamples(Energy):
    """An energy of ρ's samples x (n,d) and of fixed samples y (m,d) of the target law.

    A subclass supplies `_value` and `_velocity` of all samples, which agree, and the curvature of the attraction to y;
    processes share the samples x.
    """

    pairwise = True

    def __init__(self, y: Tensor | np.ndarray) -> None:
        call, y = type(self).__name__, as_tensor(y)
        if not isinstance(y, Tensor) or y.ndim != 2 or len(y) < 2 or not y.is_floating_point():
            got = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(f"{call}(y) needs floating-point samples of shape (m, d) with m ≥ 2; got {got}.")
        if not bool(torch.isfinite(y).all()):
            bad = int((~torch.isfinite(y).all(1)).sum())
            raise ConfigError(f"{call}(y): {bad} of {len(y)} samples are NaN or infinite. Leave them out.")
        self.y = y.detach().clone()
        self._target_copies = Constants(self.y)

    @abstractmethod
    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        """F, a scalar."""

    @abstractmethod
    def _velocity(self, x: Tensor, y: Tensor, own: slice) -> Tensor:
        """−n ∂F/∂x_i for the rows `own` of all samples x."""

    @abstractmethod
    def _curvature(self, x: Tensor, y: Tensor) -> Tensor | None:
        """K (n,d,d) at the samples x, of the attraction to y; None where it is unknown."""

    def __call__(self, rho: Sampled) -> Tensor:
        """F on the samples, differentiable once."""
        share, own = shares(rho), rho.x.detach()
        x, y = share.gather(own), self._target(own)
        value = self._value(x, y)
        if not rho.x.requires_grad:
            return value
        v = self._velocity(x, y, share.own)
        return value + _FirstOrder.apply(rho.x, -v / len(x), type(self).__name__)

    def velocity(self, rho: Sampled) -> Tensor:
        """−n ∂F/∂x_i, (n,d)."""
        share, own = shares(rho), rho.x.detach()
        return self._velocity(share.gather(own), self._target(own), share.own)

    def hessian(self, rho: Sampled) -> Hessian:
        """K of the attraction to y; the repulsion between the samples is omitted."""
        x = rho.x.detach()
        K = self._curvature(x, self._target(x))
        if K is None:
            return Hessian(explicit=(self.label,))
        return hessian_of(self.label, shares(rho), lambda: {"point": K})

    def _target(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.y.shape[1]:
            raise ShapeError(
                f"{type(self).__name__}(y): y has dimension {self.y.shape[1]}, the flow's samples {x.shape[1]}. Give "
                f"samples of shape (m, {x.shape[1]})."
            )
        return self._target_copies.like(x)[0]

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0

    def to_config(self) -> dict[str, Any]:
        """Settings, with shape and checksum of the samples, which are not stored."""
        digest = hashlib.sha256(self.y.double().cpu().numpy().tobytes()).hexdigest()[:16]
        return {**super().to_config(), "y": {"shape": list(self.y.shape), "sha256": digest}}


class _FirstOrder(torch.autograd.Function):
    """0 with the given derivative in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, label: str) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.label = label
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        x, slope = ctx.saved_tensors
        message = f"{ctx.label} can be differentiated once; got a second derivative of its value."
        return factor * Once.apply(slope, x, message), None, None


class MMD(ToSamples):
    r"""F(ρ) = ½ MMD²(ρ, π) = ½∬k dρ dρ − ∬k dρ dπ + ½∬k dπ dπ, π the law of the samples y.

    The velocity at x is ∇∫k(x,·) d(π − ρ). Pairs of a sample with itself are excluded, so the value is unbiased (and
    may be slightly below 0). Kernel "energy": k = −|x−y|, 2F the squared energy distance, no bandwidth, an attraction
    that does not decay with distance; in one dimension by sorting, O((n+m) log(n+m)). Kernel "gaussian": k =
    e^{−|x−y|²/2h²}, which is negligible beyond a few h. Otherwise O(n(n+m)d) in blocks of bounded memory.

    Args:
        y: (m,d) samples, a tensor or an array.
        kernel: "energy" or "gaussian".
        bandwidth: h > 0 in units of x; None means the median distance within (at most 1000 of) y.

    Raises:
        ShapeError: y is not (m,d); in use: of another dimension than the flow.
        ConfigError: y not finite, unknown kernel, h not positive.

    Example:
        >>> import torch
        >>> from pwgf import energies
        >>> energy = energies.MMD(torch.randn(500, 2, dtype=torch.float64))

    References:
        A. Gretton et al., A kernel two-sample test, 2012. M. Arbel, A. Korba, A. Salim, A. Gretton, Maximum mean
        discrepancy gradient flow, 2019.
    """

    @plain_numbers
    def __init__(self, y: Tensor | np.ndarray, kernel: str = "energy", *, bandwidth: float | None = None) -> None:
        super().__init__(y)
        if kernel not in ("energy", "gaussian"):
            hint = nearest(kernel, ["energy", "gaussian"]) if isinstance(kernel, str) else ""
            raise ConfigError(f"MMD(kernel=…) must be 'energy' or 'gaussian'; got {kernel!r}.{hint}")
        if bandwidth is None and kernel == "gaussian":
            bandwidth = float(torch.pdist(self.y[:1000].double()).median())
        if kernel == "gaussian" and not (is_real(bandwidth) and bandwidth > 0):
            raise ConfigError(f"MMD(bandwidth=…) must be a positive length in units of x; got {bandwidth!r}.")
        self.kernel = kernel
        self.bandwidth = bandwidth if kernel == "gaussian" else None
        self._squared = 1.0 if self.bandwidth is None else self.bandwidth**2  # used by the Gaussian kernel alone
        self._within_target: float | None = None

    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        if self._within_target is None:
            self._within_target = float(self._mean(y.double(), None))
        return self._mean(x, None) / 2 - self._mean(x, y) + self._within_target / 2

    def _velocity(self, x: Tensor, y: Tensor, own: slice) -> Tensor:
        if self.kernel == "energy" and x.shape[1] == 1:
            at = x[own, 0]
            return (_signs(at, x[:, 0]) / max(len(x) - 1, 1) - _signs(at, y[:, 0]) / len(y)).unsqueeze(1)
        return self._pull(x[own], y) / len(y) - self._pull(x[own], x) / max(len(x) - 1, 1)

    def _curvature(self, x: Tensor, y: Tensor) -> Tensor | None:
        """−mean of ∇²k(x − y) over at most 256 of the y; unknown for |x − y| in d = 1, where it is a sum of deltas."""
        d = x.shape[1]
        if self.kernel == "energy" and d == 1:
            return None
        count = min(_PARTNERS, len(y))
        y = y[torch.linspace(0, len(y) - 1, count, dtype=torch.float64, device=y.device).round().long()]
        eye, parts = torch.eye(d, dtype=x.dtype, device=x.device), []
        for rows in x.split(max(1, entries_at_once(_BLOCK, x) // (len(y) * d))):
            r = rows.unsqueeze(1) - y
            squared = r.square().sum(-1)
            if self.kernel == "energy":
                isotropic = torch.where(squared > 0, squared.rsqrt(), 0.0)
                along = torch.where(squared > 0, isotropic / squared, 0.0)
            else:
                isotropic = self._kernel(squared.sqrt()) / self._squared
                along = isotropic / self._squared
            outer = torch.einsum("ija,ijb->iab", r * along.unsqueeze(-1), r)
            parts.append((isotropic.sum(1).reshape(-1, 1, 1) * eye - outer) / len(y))
        return torch.cat(parts)

    def _mean(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Mean of k over pairs (x_i, y_j), or over pairs i ≠ j of x."""
        pairs = len(x) * len(y) if y is not None else max(len(x) * (len(x) - 1), 1)
        if self.kernel == "energy" and x.shape[1] == 1:
            return -_distances_on_a_line(x[:, 0], x[:, 0] if y is None else y[:, 0]) / pairs
        total = x.new_zeros(())
        for rows in x.split(max(1, entries_at_once(_BLOCK, x) // len(x if y is None else y))):
            total = total + self._kernel(_distances(rows, x if y is None else y)).sum()
        own = len(x) * self._kernel(x.new_zeros(())) if y is None else 0.0
        return (total - own) / pairs

    def _pull(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ_j ∇k(x_i − y_j), (n,d); a sample does not pull itself."""
        parts = []
        for rows in x.split(max(1, entries_at_once(_BLOCK, x) // len(y))):
            r = _distances(rows, y)
            weight = torch.where(r > 0, -1 / r, 0.0) if self.kernel == "energy" else -self._kernel(r) / self._squared
            parts.append(rows * weight.sum(1, keepdim=True) - weight @ y)
        return torch.cat(parts)

    def _kernel(self, r: Tensor) -> Tensor:
        if self.kernel == "energy":
            return -r
        return (-r.square() / (2 * self._squared)).exp()


class SlicedW2(ToSamples):
    r"""F(ρ) = ½ ∫ W₂²(⟨u,·⟩#ρ, ⟨u,·⟩#π) du over the unit sphere, by L fixed directions u; π the law of the samples y.

    W₂ on a line is known by sorting; the velocity is the mean over u of u·(Q_u − ⟨u,x⟩) with Q_u the part of π's
    quantile function that ranks with x: O(L(n+m) log(n+m)). The directions are random orthonormal frames, frozen.

    Args:
        y: (m,d) samples, a tensor or an array.
        num_directions: L ≥ 1; some multiple of d.
        seed: of the directions.

    Raises:
        ShapeError: y is not (m,d); in use: of another dimension than the flow.
        ConfigError: y not finite, L < 1.

    References:
        J. Rabin, G. Peyré, J. Delon, M. Bernot, 2011. N. Bonnotte, Unidimensional and evolution methods for optimal
        transportation, 2013, §5 (the flow).
    """

    @plain_numbers
    def __init__(self, y: Tensor | np.ndarray, num_directions: int = 128, seed: int = 0) -> None:
        super().__init__(y)
        for name, value, least in (("num_directions", num_directions, 1), ("seed", seed, 0)):
            check_integer(value, name, "SlicedW2", least=least)
        self.num_directions = num_directions
        self.seed = seed
        d, generator = y.shape[1], torch.Generator().manual_seed(seed)
        frames = -(-num_directions // d)
        normal = torch.randn(frames, d, d, generator=generator, dtype=torch.float64)
        self._directions = torch.linalg.qr(normal)[0].transpose(1, 2).reshape(-1, d)[:num_directions]
        self._sorted = (self._directions @ self.y.double().cpu().T).sort(1).values
        self._constants = Constants(self._directions, self._sorted)

    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        directions, target = self._constants.like(x)
        projected, (n, m) = (directions @ x.T).sort(1).values, (len(x), len(y))
        steps = torch.arange(max(n, m) + 1, device=x.device)
        levels = torch.cat([steps[: n + 1] * m, steps[: m + 1] * n]).sort().values  # a level met twice weighs nothing
        share = levels.diff().to(x) / (n * m)
        gap = projected[:, (levels[:-1] // m).clamp(max=n - 1)] - target[:, (levels[:-1] // n).clamp(max=m - 1)]
        return 0.5 * (gap.square() * share).sum(1).mean()

    def _velocity(self, x: Tensor, y: Tensor, own: slice) -> Tensor:
        directions = self._constants.like(x)[0]
        projected = directions @ x.T
        order = projected.argsort(1)
        aims = torch.empty_like(projected).scatter_(1, order, self._quantiles(len(x), x))
        return ((aims - projected)[:, own].T @ directions) / len(directions)

    def _curvature(self, x: Tensor, y: Tensor) -> Tensor:
        """E[uuᵀ] over the directions, exact as long as no two projections change places."""
        directions = self._constants.like(x)[0]
        return (directions.T @ directions / len(directions)).expand(len(x), -1, -1)

    def _quantiles(self, n: int, like: Tensor) -> Tensor:
        """Mean of π's quantile function over [i/n, (i+1)/n], (L,n)."""
        target, m = self._constants.like(like)[1], self._sorted.shape[1]
        if n == m:
            return target
        integral = torch.nn.functional.pad(target.cumsum(1), (1, 0)) / m  # at j/m
        at = torch.arange(n + 1, device=like.device) * m  # i/n in units of 1/(nm)
        whole = torch.div(at, n, rounding_mode="floor").clamp(max=m - 1)
        values = integral[:, whole] + target[:, whole] * ((at - whole * n).to(like) / (n * m))
        return values.diff(dim=1) * n


class Sinkhorn(ToSamples):
    r"""F(ρ) = S_ε(ρ, π), the debiased Sinkhorn divergence for the cost ½|x−y|²; → ½W₂² as blur → 0. By geomloss.

    O((n² + nm + m²)d) times the number of annealing steps, about log(extent/blur)/log(1/scaling), in memory O(n² + nm).

    Args:
        y: (m,d) samples, a tensor or an array.
        blur: √ε > 0, in units of x: finer details are not resolved.
        scaling: in (0, 1), ratio of annealing; nearer to 1 is more accurate and slower. Velocities were 9, 3, .5 and
            .1 % off the derivative of the value at .8, .95, .99 and .998.

    Raises:
        ShapeError: y is not (m,d); in use: of another dimension than the flow.
        ConfigError: y not finite, blur or scaling out of range, geomloss (extra `eval`) missing.

    References:
        J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, 2019.
    """

    @plain_numbers
    def __init__(self, y: Tensor | np.ndarray, blur: float = 0.05, scaling: float = 0.9) -> None:
        super().__init__(y)
        if not (is_real(blur) and blur > 0):
            raise ConfigError(f"Sinkhorn(blur=…) must be a positive length in units of x; got {blur!r}.")
        if not (is_real(scaling) and 0 < scaling < 1):
            raise ConfigError(f"Sinkhorn(scaling=…) must lie between 0 and 1; got {scaling!r}. Try .9.")
        try:
            geomloss = importlib.import_module("geomloss")
        except ImportError as error:
            raise ConfigError(
                'Sinkhorn needs geomloss, which is not installed. Install it with pip install "pwgf[eval]", or use '
                "SlicedW2."
            ) from error
        self.blur = float(blur)
        self.scaling = float(scaling)
        self._loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")

    def _value(self, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self._loss(x, y)
        return value

    def _velocity(self, x: Tensor, y: Tensor, own: slice) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self._loss(leaf, y), leaf)
        return -len(x) * slope[own]

    def _curvature(self, x: Tensor, y: Tensor) -> Tensor:
        """The identity: the second derivative of an optimal transport cost ½|x − y|² along u is at most |u|²."""
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _signs(at: Tensor, y: Tensor) -> Tensor:
    """Σ_j sign(at_i − y_j), (n,)."""
    y = y.sort().values
    below, upto = torch.searchsorted(y, at.contiguous()), torch.searchsorted(y, at.contiguous(), right=True)
    return (below + upto - len(y)).to(at)


def _distances_on_a_line(x: Tensor, y: Tensor) -> Tensor:
    """Σ_ij |x_i − y_j| by sorting: a gap between neighbours counts as often as pairs lie on either side of it."""
    z, order = torch.cat([x, y]).sort()
    from_x = (order < len(x)).to(x).cumsum(0)[:-1]
    from_y = torch.arange(1, len(z), device=x.device).to(x) - from_x
    return (z.diff() * (from_x * (len(y) - from_y) + from_y * (len(x) - from_x))).sum()
