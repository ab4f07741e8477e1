"""The flow of a network's vector field over a fixed number of Runge–Kutta steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_dim, check_integer, check_positive, is_real, plain_fields
from ..errors import ConfigError, SolverError, nearest
from ._affine_after import Act, AffineAfter
from ._networks import default_gain, first_layer
from .base import Block, Pushed, PushForward, blocks, newton_inverse

_METHODS = {"euler": 1, "midpoint": 2, "rk4": 4}  # and how often a step evaluates the field
_LOG_DETS = ("dense", "series")
_DENSE_DIM = 32  # dimension up to which determinants are formed
_CONVERGED = 0.1  # length to which the last power in the series must have shrunk a probe
_COUNTS = ("width", "num_steps", "num_probes", "num_terms")


@dataclass(frozen=True)
class NeuralODE(AffineAfter):
    r"""T_θ(z) = A Φ_θ(z) + b, Φ = fixed Runge–Kutta steps over [0, 1] of ẏ = gain · W_out [tanh(W [y, t, 1]), 1].

    The steps *are* the map; nothing here is an approximation of the continuous flow. ∂Φ is the same Runge–Kutta method
    applied to the variational equation Ṁ = ∂f M, log|det| the sum over the steps of those of their Jacobians, and the
    inverse solves the steps one by one from the last to the first by Newton's method; integrating backwards in time
    would miss it by the discretisation error. W_out starts at zero, so T_θ₀ is the identity exactly. The affine part
    represents Gaussian and self-similar flows exactly.

    Where d is large, log|det(I + B)| of a step may be taken from the series Σ_k (−1)^{k+1} tr(Bᵏ)/k with
    tr Bᵏ ≈ (d/m) Σ qᵀBᵏq over m frozen probes q, orthonormal with a uniformly distributed direction, the same for all
    samples: a deterministic function, unbiased over `probe_seed` up to the terms left out, exact for m = d. A step that
    is too long for the series raises an error.

    Cost: with S = num_steps · (evaluations per step), 2nS·width·2d flops for T, d times that for ∂_zT; the series takes
    `num_terms`·m/d of that. The tangent has a layer for each evaluation.

    Args:
        dim: d ≥ 1.
        width: hidden units of the field; None means 12·d, at least 64.
        num_steps: Runge–Kutta steps ≥ 1; more of them make a deeper map.
        method: "euler", "midpoint" or "rk4" (1, 2, 4 evaluations per step).
        log_det: "dense" or "series"; None means dense up to d = 32.
        num_probes: m ≥ 1, at most d are used.
        num_terms: terms of the series ≥ 1.
        probe_seed: of the probes.
        axis_share: share of hidden units that start on a single coordinate, in [0, 1].
        scale: typical distance of reference samples from their centre per coordinate.
        gain: > 0, weight of the field beside the affine part; None means the default of `ResidualMLP`, for the same
            reason.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.NeuralODE(dim=2)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.equal(map(map.initial(), z), z)
        True

    References:
        Chen, Rubanova, Bettencourt, Duvenaud, Neural ordinary differential equations, 2018, arXiv 1806.07366. Chen,
        Behrmann, Duvenaud, Jacobsen, Residual flows for invertible generative modeling, 2019, arXiv 1906.02735 (the
        series).
    """

    dim: int
    width: int | None = None
    num_steps: int = 2
    method: str = "midpoint"
    log_det: str | None = None
    num_probes: int = 16
    num_terms: int = 6
    probe_seed: int = 0
    axis_share: float = 0.5
    scale: float = 1.0
    gain: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "NeuralODE(dim, width, num_steps)")
        for name in _COUNTS:
            value = getattr(self, name)
            if name == "width" and value is None:
                continue
            check_integer(value, name, "NeuralODE")
        check_integer(self.probe_seed, "probe_seed", "NeuralODE", least=0)
        if self.log_det is None:
            object.__setattr__(self, "log_det", "dense" if self.dim <= _DENSE_DIM else "series")
        for name, known in (("method", tuple(_METHODS)), ("log_det", _LOG_DETS)):
            value = getattr(self, name)
            if value not in known:
                hint = nearest(value, known) if isinstance(value, str) else ""
                raise ConfigError(f"NeuralODE({name}=…) must be one of {list(known)}; got {value!r}.{hint}")
        if not (is_real(self.axis_share) and 0 <= self.axis_share <= 1):
            raise ConfigError(f"NeuralODE(axis_share=…) must lie in [0, 1]; got {self.axis_share!r}.")
        check_positive(self.scale, "scale", "NeuralODE")
        if self.gain is None:
            object.__setattr__(self, "gain", default_gain(self.dim))
        if not (is_real(self.gain) and self._weight > 0):
            raise ConfigError(f"NeuralODE(gain=…) must be positive and finite; got {self.gain!r}.")

    @property
    def units(self) -> int:
        """Hidden units: `width`, or its default."""
        return self.width if self.width is not None else max(64, 12 * self.dim)

    @property
    def _weight(self) -> float:
        return float(self.gain)  # type: ignore[arg-type]  # set in __post_init__

    @property
    def numbers_per_sample(self) -> int:
        """Activations, Jacobians and what automatic differentiation keeps of them, for every evaluation."""
        calls = self.num_steps * _METHODS[self.method]
        columns = self.dim if self.log_det == "dense" else min(self.dim, self.num_probes)
        return calls * (2 * self.units * (columns + 2) + 4 * self.dim * (columns + 1))

    def layout(self) -> list[Block]:
        """[A b], W with the columns of t and of its bias last, W_out with its bias."""
        d, w = self.dim, self.units
        return blocks([("affine", (d, d + 1)), ("hidden", (w, d + 2)), ("out", (d, w + 1))])

    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ with T = identity; the hidden layer depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.zeros(self.num_params, dtype=torch.float64)
        affine, hidden, _ = self.unpack(theta)
        affine[:, :-1] = torch.eye(self.dim, dtype=torch.float64)
        rows = first_layer(self.dim, self.units, self.axis_share, generator)
        hidden[:, : self.dim], hidden[:, -1] = rows[:, :-1] / self.scale, rows[:, -1]
        hidden[:, self.dim] = torch.randn(self.units, generator=generator, dtype=torch.float64)
        return theta

    def _times(self, like: Tensor) -> Tensor:
        return torch.linspace(0, 1, self.num_steps + 1, dtype=like.dtype, device=like.device)

    def _steps(self, field: Callable[[Tensor, Tensor], Tensor], y: Tensor, times: Tensor) -> Tensor:
        """y at the last of the times, after Runge–Kutta steps of ẏ = field(t, y) from each to the next."""
        from torchdiffeq import odeint  # noqa: PLC0415, it imports scipy.integrate, half a second

        return odeint(field, y, times, method=self.method)[-1]

    def _slope(self, act: Act, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The field at (t, y), (n,d), and the hidden units there."""
        h = torch.tanh(act(1, torch.cat([y, t.expand(len(y), 1)], dim=1)))
        return self._weight * act(2, h), h

    def inner(self, act: Act, z: Tensor) -> Tensor:
        """Φ(z): all steps."""
        return self._steps(lambda t, y: self._slope(act, t, y)[0], z, self._times(z))

    def step(self, theta: Tensor, k: int, y: Tensor) -> Tensor:
        """Step k = 0 … num_steps − 1 of Φ, (n,d) → (n,d)."""
        act = self.acting(theta)
        return self._steps(lambda t, y: self._slope(act, t, y)[0], y, self._times(y)[k : k + 2])

    def variation(self, theta: Tensor, y: Tensor, m: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Steps first … last − 1 from y, and their Jacobian applied to m: (n,d), (n,d,c) → the same."""
        _, hidden, out = self.unpack(theta)
        act, d = self.acting(theta), self.dim

        def field(t: Tensor, state: Tensor) -> Tensor:
            slope, h = self._slope(act, t, state[:, :d])
            tangents = (1 - h * h).unsqueeze(2) * (hidden[:, :d] @ state[:, d:].view(m.shape))
            moved = self._weight * (out[:, :-1] @ tangents)
            return torch.cat([slope, moved.reshape(len(y), -1)], dim=1)

        state = torch.cat([y, m.reshape(len(y), -1)], dim=1)
        after = self._steps(field, state, self._times(y)[first : last + 1])
        return after[:, :d], after[:, d:].view(m.shape)

    def _identity(self, like: Tensor) -> Tensor:
        return torch.eye(self.dim, dtype=like.dtype, device=like.device).expand(len(like), -1, -1)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """A ∂Φ, from the variational equation over all steps; differentiable."""
        return self.unpack(theta)[0][:, :-1] @ self.variation(theta, z, self._identity(z), 0, self.num_steps)[1]

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sign of det ∂_zT and log|det ∂_zT|, (n,) each, step by step; differentiable.

        Raises:
            SolverError: a step is too long for the series.
        """
        sign, total = torch.linalg.slogdet(self.unpack(theta)[0][:, :-1])
        sign, total, y = sign.expand(len(z)), total.expand(len(z)), z
        for k in range(self.num_steps):
            if self.log_det == "series":
                y, log_det = self._series(theta, k, y)
                total = total + log_det
                continue
            y, jacobian = self.variation(theta, y, self._identity(z), k, k + 1)
            its_sign, log_det = torch.linalg.slogdet(jacobian)
            sign, total = sign * its_sign, total + log_det
        return sign, total

    def probes(self, like: Tensor) -> Tensor:
        """Frozen orthonormal directions (d,m), uniformly distributed over `probe_seed`."""
        generator = torch.Generator().manual_seed(self.probe_seed)
        q, r = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign())[:, : self.num_probes].to(like)

    def _series(self, theta: Tensor, k: int, y: Tensor) -> tuple[Tensor, Tensor]:
        """The points after step k, and its log det (n,) from the series."""
        probes = self.probes(y).expand(len(y), -1, -1)
        power, total, after = probes, torch.zeros_like(y[:, 0]), y
        for term in range(1, self.num_terms + 1):
            after, moved = self.variation(theta, y, power, k, k + 1)
            power = moved - power  # B times it
            total = total - (-1) ** term / term * (probes * power).sum((1, 2))
        size = power.detach().norm(dim=(1, 2)) / probes.shape[2] ** 0.5
        if bool((size > _CONVERGED).any()):
            raise SolverError(
                f"NeuralODE: the series for log det does not settle at {int((size > _CONVERGED).sum())} of {len(y)} "
                f"samples (step {k} of {self.num_steps}, |B^{self.num_terms}| up to {float(size.max()):.1e}): the "
                "steps are too long for it. Use more num_steps or num_terms, or log_det='dense'."
            )
        return after, total * self.dim / probes.shape[2]

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """As for every map with dense determinants; with the series its gradient, multiplied by a plain Jacobian.

        Raises:
            SolverError: a step is too long for the series.
        """
        if self.log_det == "dense":
            return super().push_score(theta, z, slope)
        theta = theta.detach()
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            sign, log_abs_det = self.volume(theta, leaf)
            slope = slope - torch.autograd.grad(log_abs_det.sum(), leaf)[0]
        with torch.no_grad():
            transposed = self.jacobian(theta, z.detach()).transpose(1, 2)
        score = torch.linalg.solve_ex(transposed, slope.unsqueeze(-1))[0].squeeze(-1)
        return Pushed(score, sign, log_abs_det.detach())

    def inner_inverse(self, theta: Tensor, y: Tensor) -> Tensor:
        """Each step's inverse by Newton's method, from the last to the first.

        Raises:
            SolverError: where Newton fails, as `PushForward.inverse`.
        """
        for k in reversed(range(self.num_steps)):
            y = newton_inverse(_Step(self, k), theta, y)
        return y


class _Step(PushForward):
    """One step of Φ, as a map for Newton's method."""

    def __init__(self, whole: NeuralODE, k: int) -> None:
        self.whole = whole
        self.k = k
        self.dim = whole.dim

    def layout(self) -> list[Block]:
        return self.whole.layout()

    def initial(self, seed: int = 0) -> Tensor:
        return self.whole.initial(seed)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.whole.step(theta, self.k, z)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        return self.whole.variation(theta, z, self.whole._identity(z), self.k, self.k + 1)[1]
