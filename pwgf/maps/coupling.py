"""Coupling flows: half of the coordinates moves at a time, as the other half says; the inverse is explicit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, check_positive, is_real, plain_fields
from ..errors import ConfigError, nearest
from ._affine_after import Act, AffineAfter
from ._networks import default_gain, first_layer
from ._zuko import import_zuko
from .base import Block, Pushed, blocks, score_by_inverse

_KINDS = ("affine", "spline")
_BOUND = 5.0  # the splines bend within so many times `scale`, and are the identity beyond
_CHOSEN = {"width": 1, "num_couplings": 1, "bins": 2}  # integers and the smallest of each


@dataclass(frozen=True)
class CouplingFlow(AffineAfter):
    r"""T_θ(z) = A (C_K ∘ … ∘ C_1)(z) + b; coupling C_k keeps half of the coordinates and moves each of the others.

    A moved coordinate y goes to y exp(s) + scale·t (`kind="affine"`), or through a monotone rational-quadratic spline
    (`kind="spline"`, by zuko). s and t, or the widths, heights and slopes of the spline, are
    gain · (W_out [tanh(W [a, 1]), 1]) of the kept coordinates a. W_out starts at zero, so T_θ₀ is the identity,
    exactly for affine couplings and up to rounding for splines. The affine part [A b] represents Gaussian and
    self-similar flows exactly. T is a diffeomorphism for every θ with det A ≠ 0: it cannot fold.

    Inverse and log det are explicit, and the score is one backward pass: nothing of size d² is formed for a sample, so
    densities are cheap in high dimension. With constant parameters a spline bends every coordinate by itself, which
    suits potentials that are sums over coordinates; affine couplings cannot do that, but are smooth, while the score
    behind a spline jumps at its knots, by a little that no tangent follows.

    Cost: about 2n·K·width·(d/2 + outputs) flops for T or T⁻¹, outputs = d for affine couplings, (3·bins − 1)·d/2 for
    splines; three times that for the score.

    Args:
        dim: d ≥ 1; with affine couplings ≥ 2, as a single coordinate leaves nothing to keep.
        kind: "affine" or "spline"; the latter needs zuko, `pip install "pwgf[flows]"`.
        num_couplings: K ≥ 1. Consecutive ones swap the halves; each pair splits the coordinates differently.
        width: hidden units of each coupling; None means 8·d, at least 32, for splines 2·d, at least 16.
        bins: pieces of a spline, ≥ 2.
        axis_share: share of hidden units that start on a single coordinate, in [0, 1].
        scale: typical distance of reference samples from their centre per coordinate; splines bend within 5·scale.
        gain: > 0, weight of the couplings beside the affine part; None means the default of `ResidualMLP`, for the
            same reason.

    Raises:
        ConfigError: an argument outside its range, or zuko is missing.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.CouplingFlow(dim=2)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.equal(map(map.initial(), z), z)
        True

    References:
        Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP, 2017, arXiv 1605.08803. Durkan, Bekasov,
        Murray, Papamakarios, Neural spline flows, 2019, arXiv 1906.04032.
    """

    dim: int
    kind: str = "affine"
    num_couplings: int = 4
    width: int | None = None
    bins: int = 8
    axis_share: float = 0.5
    scale: float = 1.0
    gain: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "CouplingFlow(dim, kind)")
        if self.kind not in _KINDS:
            hint = nearest(self.kind, _KINDS) if isinstance(self.kind, str) else ""
            raise ConfigError(f"CouplingFlow(kind=…) must be one of {list(_KINDS)}; got {self.kind!r}.{hint}")
        if self.kind == "affine" and self.dim == 1:
            raise ConfigError(
                "CouplingFlow(dim=1) with affine couplings would be no more than maps.Affine(1): there is no other "
                "coordinate to depend on. Use kind='spline', or maps.ResidualMLP(1)."
            )
        for name, least in _CHOSEN.items():
            value = getattr(self, name)
            if name == "width" and value is None:
                continue
            check_integer(value, name, "CouplingFlow", least=least)
        if not (is_real(self.axis_share) and 0 <= self.axis_share <= 1):
            raise ConfigError(f"CouplingFlow(axis_share=…) must lie in [0, 1]; got {self.axis_share!r}.")
        check_positive(self.scale, "scale", "CouplingFlow")
        if self.gain is None:
            object.__setattr__(self, "gain", default_gain(self.dim))
        if not (is_real(self.gain) and self._weight > 0):
            raise ConfigError(f"CouplingFlow(gain=…) must be positive and finite; got {self.gain!r}.")
        if self.kind == "spline":
            import_zuko("CouplingFlow(kind='spline')")

    @property
    def units(self) -> int:
        """Hidden units of a coupling: `width`, or its default."""
        if self.width is not None:
            return self.width
        return max(32, 8 * self.dim) if self.kind == "affine" else max(16, 2 * self.dim)

    @property
    def _weight(self) -> float:
        return float(self.gain)  # type: ignore[arg-type]  # set in __post_init__

    @property
    def _per_coordinate(self) -> int:
        return 2 if self.kind == "affine" else 3 * self.bins - 1

    @property
    def numbers_per_sample(self) -> int:
        """What automatic differentiation keeps of every coupling, and d rows of factors."""
        return (8 + 2 * self.dim) * self.num_couplings * (self.units + self._per_coordinate * (self.dim + 1) // 2)

    def split(self, k: int) -> tuple[list[int], list[int]]:
        """Coordinates that coupling k keeps and moves: every bit of a coordinate's number tells two couplings apart."""
        if self.dim == 1:
            return [], [0]
        bits = (self.dim - 1).bit_length()
        keeps = [(i >> (k // 2 % bits)) % 2 == k % 2 for i in range(self.dim)]
        return [i for i in range(self.dim) if keeps[i]], [i for i in range(self.dim) if not keeps[i]]

    def layout(self) -> list[Block]:
        """[A b]; for every coupling its hidden layer (none in d = 1) and W_out, each with its bias as last column."""
        shapes = [("affine", (self.dim, self.dim + 1))]
        for k in range(self.num_couplings):
            kept, moved = self.split(k)
            if kept:
                shapes.append((f"hidden{k + 1}", (self.units, len(kept) + 1)))
            shapes.append((f"out{k + 1}", (len(moved) * self._per_coordinate, (self.units if kept else 0) + 1)))
        return blocks(shapes)

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity; the hidden layers depend on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        for block, weight in zip(self.layout(), self.unpack(theta), strict=True):
            if block.name == "affine":
                weight[:, :-1] = torch.eye(self.dim, dtype=torch.float64)
            elif block.name.startswith("hidden"):
                weight.copy_(first_layer(weight.shape[1] - 1, self.units, self.axis_share, generator))
                weight[:, :-1] /= self.scale
        return theta

    def _settings(self, act: Act, k: int, a: Tensor) -> Tensor:
        """What coupling k does where it keeps a (n,·): (n, moved coordinates · numbers for each)."""
        if self.dim == 1:
            return self._weight * act(k + 1, a)
        return self._weight * act(2 * k + 2, torch.tanh(act(2 * k + 1, a)))

    def _bend(self, settings: Tensor, y: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        """The moved coordinates y (n,m) after a coupling, or before it with `back`; log|det| of that step (n,)."""
        if self.kind == "affine":
            s, t = settings.chunk(2, dim=1)
            return (
                ((y - self.scale * t) * torch.exp(-s), -s.sum(1)) if back else (y * s.exp() + self.scale * t, s.sum(1))
            )
        shapes = [self.bins, self.bins, self.bins - 1]
        parts = settings.unflatten(1, (y.shape[1], self._per_coordinate)).split(shapes, dim=2)
        spline = import_zuko("CouplingFlow").transforms.MonotonicRQSTransform(*parts, bound=_BOUND)
        if back:
            before = spline.inv(y / self.scale)
            return self.scale * before, -spline.call_and_ladj(before)[1].sum(1)
        after, log_slope = spline.call_and_ladj(y / self.scale)
        return self.scale * after, log_slope.sum(1)

    def _tangent_line(self, settings: Tensor, y: Tensor) -> Tensor:
        """What `_bend` gives, with the same first derivatives by both, on a graph much shorter than a spline's."""
        at, here = settings.detach().requires_grad_(True), y.detach().requires_grad_(True)
        after = self._bend(at, here, back=False)[0]
        by_settings, by_y = torch.autograd.grad(after.sum(), (at, here))  # each depends on its own numbers alone
        change = (settings - at.detach()) * by_settings
        return after.detach() + change.unflatten(1, (y.shape[1], -1)).sum(2) + (y - here.detach()) * by_y

    def _through(self, act: Act, z: Tensor, back: bool, traced: bool = False) -> tuple[Tensor, Tensor]:
        """All couplings, or their inverses from the last to the first: the points (n,d), and log|det| (n,).

        With `traced` on the graph that `traced` is to have, and without log|det|.
        """
        total = torch.zeros_like(z[:, 0])
        for k in reversed(range(self.num_couplings)) if back else range(self.num_couplings):
            kept, moved = self.split(k)
            a = z[:, kept]
            settings, y = self._settings(act, k, a), z[:, moved]
            y, log_det = (self._tangent_line(settings, y), total) if traced else self._bend(settings, y, back)
            order = sorted(range(self.dim), key=[*kept, *moved].__getitem__)
            z, total = torch.cat([a, y], dim=1)[:, order], total + log_det
        return z, total

    def inner(self, act: Act, z: Tensor) -> Tensor:
        """The couplings, one after another."""
        return self._through(act, z, back=False)[0]

    def traced(self, act: Act, z: Tensor) -> Tensor:
        """The couplings, with splines replaced by their tangents."""
        return self._through(act, z, back=False, traced=self.kind == "spline")[0]

    def inner_inverse(self, theta: Tensor, y: Tensor) -> Tensor:
        """The couplings' inverses, from the last to the first."""
        return self._through(self.acting(theta), y, back=True)[0]

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sign of det A, and log|det A| + Σ_k log det ∂C_k: (n,) each; differentiable. Cost: that of T."""
        sign, log_abs_det = torch.linalg.slogdet(self.unpack(theta)[0][:, :-1])
        return sign.expand(len(z)), log_abs_det + self._through(self.acting(theta), z, back=False)[1]

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """∇ log ρ(T(z)) by one backward pass through log ρ(x) = log λ(T⁻¹(x)) + log|det ∂T⁻¹(x)|. Cost: four of T."""
        theta = theta.detach()
        affine = self.unpack(theta)[0]
        with torch.enable_grad():
            y = self.inner(self.acting(theta), z.detach()).detach().requires_grad_(True)
            before, log_det = self._through(self.acting(theta), y, back=True)
            score = score_by_inverse(before, log_det, y, slope)
        sign, log_abs_det = torch.linalg.slogdet(affine[:, :-1])
        score = torch.linalg.solve_ex(affine[:, :-1].T, score.T)[0].T  # from y to x = A y + b
        return Pushed(score, sign.expand(len(z)), log_abs_det - log_det.detach())
