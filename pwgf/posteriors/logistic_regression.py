"""Bayesian logistic regression with a prior whose precision is itself unknown."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..checks import Constants, check_integer, check_positive, entries_at_once, plain_numbers
from ..energies.potential import KL
from ..errors import ConfigError, ShapeError
from ._weights_given_precision import WeightsGivenPrecision

_log = logging.getLogger("pwgf")
_BLOCK = 2**18  # margins held at a time: 2 MB in float64, so that they stay in cache


class LogisticRegression:
    r"""The posterior of θ = (w, u), u = log α, given labels y = ±1 of rows x: P(y|x,w) = 1/(1 + e^{−y w·x}),
    w|α ~ N(0, I/α), α exponential with rate `prior_rate`; the density in u carries the Jacobian e^u.

    `log_target` has all constants, so that its integral is the evidence p(y|X). Its gradient is in closed form and
    computed in blocks of bounded memory. There is no time-dependent law to compare with, so this is not a `Problem`.
    The posterior is sampled by `sampling.sample(problem.log_target, problem.dim, whiten=problem.coordinates())` and
    checked by `sampling.hmc`.

    Args:
        X: (N,k) features, finite, none of them constant; the prior assumes about unit variance. On any device:
            `log_target` copies them once to that of its argument.
        y: (N,) labels, all in {0, 1} or all in {−1, 1}.
        prior_rate: rate of the exponential law of α, > 0, in units of w²; 100 in the study.
        intercept: adds a column of ones.
        batch_size: None, or the number B of rows, drawn once, whose likelihood times N/B replaces that of all,
            corrected to second order: value, gradient and Hessian at the mode of w are those of all rows. For large N;
            the error is of third order in w − mode, times √(1/B).
        seed: of these rows.

    Raises:
        ShapeError: X or y of the wrong shape.
        ConfigError: other labels, one class only, NaN, constant features, numbers out of range.

    Example:
        >>> import torch
        >>> X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> problem = LogisticRegression(X, (X.sum(1) > 0).int())
        >>> problem.dim, problem.log_target(torch.zeros(5, 3, dtype=torch.float64)).shape
        (3, torch.Size([5]))

    References:
        P. Mokrov et al., Large-Scale Wasserstein Gradient Flows, 2021, arXiv 2106.00736, §5.3.
        R. Bardenet, A. Doucet, C. Holmes, On Markov chain Monte Carlo methods for tall data, 2017, §7.2.
    """

    @plain_numbers
    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        prior_rate: float = 100.0,
        intercept: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        X, y = _checked_data(X, y)
        self.intercept = intercept
        self.prior_rate = check_positive(prior_rate, "prior_rate", "LogisticRegression")
        self._signed = y[:, None] * self._design(X)  # y x, so that the margin is w · y x
        self.dim = self._signed.shape[1] + 1
        self._scale = 1.0
        self._correction: tuple[Tensor, Tensor, Tensor] | None = None  # mode, slope and curvature that the batch lacks
        if batch_size is not None:
            check_integer(batch_size, "batch_size", "LogisticRegression")
            check_integer(seed, "seed", "LogisticRegression", least=0)
            if batch_size < len(X):
                self._reduce(batch_size, torch.Generator().manual_seed(seed))
        self._constants = Constants(self._signed, *(self._correction or ()))

    @property
    def energy(self) -> KL:
        """KL to the posterior, up to the log evidence."""
        return KL(self.log_target)

    def log_target(self, theta: Tensor) -> Tensor:
        """log p(y, w, u | X), (n,k+1) → (n,), twice differentiable."""
        if theta.ndim != 2 or theta.shape[1] != self.dim:
            raise ShapeError(
                f"LogisticRegression.log_target(theta) needs shape (n, {self.dim}), weights and u = log α; got "
                f"{tuple(theta.shape)}."
            )
        w, u = theta[:, :-1], theta[:, -1]
        k = w.shape[1]
        prior = 0.5 * k * (u - math.log(2 * math.pi)) - 0.5 * u.exp() * w.square().sum(1)
        hyper = math.log(self.prior_rate) - self.prior_rate * u.exp() + u
        return self._log_likelihood(w) + prior + hyper

    def coordinates(self) -> WeightsGivenPrecision:
        """Coordinates in which the posterior is nearly N(0, I), for `sampling.sample(whiten=problem.coordinates())`.

        With `batch_size` the Gaussian at the mode of all rows replaces the likelihood of w. Warns if w has no posterior
        variance, see `separating_weights`.

        Raises:
            SolverError: features that differ in size by many orders.
        """
        if self.separating_weights() is not None:
            _log.warning(
                "LogisticRegression: a plane through 0 separates the classes, so that w has no posterior variance: "
                "sample means converge slowly and covariances not at all. Cure: quantiles in place of moments"
            )
        rows, k = self._signed.cpu(), self._signed.shape[1]
        slope, curvature = torch.zeros(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
        if self._correction is not None:
            mode, slope, curvature = (part.cpu() for part in self._correction)
            part_slope, part_curvature = _expand(rows, mode)
            curvature = curvature + self._scale * part_curvature
            slope, rows = slope + self._scale * part_slope + curvature @ mode, rows[:0]
        shape = 0.5 * k + 1  # given w, α is gamma with this shape and the rate prior_rate + |w|²/2
        highest = math.log((shape + 6 * math.sqrt(shape) + 12) / self.prior_rate) + 1
        return WeightsGivenPrecision(
            rows, lambda u: u - self.prior_rate * u.exp(), highest, slope=slope, curvature=curvature
        )

    def separating_weights(self) -> Tensor | None:
        """w (k,) with y_i w·x_i > 0 for every row, or None where none was found; not looked for in a batch.

        If there is one, weights far along it have likelihood 1, only the prior bounds them, and w has no posterior
        variance: p(|w|) decays as |w|⁻³, like the marginal of the prior (Student's t with two degrees of freedom).
        Sample covariances, of chains and flows alike, then do not converge; compare quantiles.
        """
        if self._correction is not None:
            return None
        w = _mode(self._signed, 1e-8)
        return w if bool((self._signed @ w > 0).all()) else None

    def predict(self, theta: Tensor, X: Tensor) -> Tensor:
        """P(y = 1 | x), averaged over posterior samples: (n,k+1), (M,k) → (M,)."""
        rows = self._design(torch.as_tensor(X, dtype=torch.float64).to(theta.device))
        if rows.ndim != 2 or rows.shape[1] != self.dim - 1:
            raise ShapeError(
                f"LogisticRegression.predict(X) needs {self.dim - 1 - self.intercept} features per row, as it was made "
                f"with; got shape {tuple(X.shape)}."
            )
        size = max(1, entries_at_once(_BLOCK, rows) // max(len(theta), 1))
        return torch.cat([torch.sigmoid(part @ theta[:, :-1].double().T).mean(1) for part in rows.split(size)])

    def accuracy(self, theta: Tensor, X: Tensor, y: Tensor) -> float:
        """Share of rows whose more probable label is y."""
        return float(((self.predict(theta, X) > 0.5) == (signs(y).to(theta.device) > 0)).double().mean())

    def mean_log_likelihood(self, theta: Tensor, X: Tensor, y: Tensor) -> float:
        """Mean over rows of log P(y|x), the posterior predictive; nats."""
        p, positive = self.predict(theta, X), signs(y).to(theta.device) > 0
        return float(torch.where(positive, p, 1 - p).log().mean())

    def to_config(self) -> dict[str, Any]:
        """JSON that names the model; the data are not stored."""
        return {"name": "LogisticRegression", "rows": len(self._signed), "dim": self.dim, "prior_rate": self.prior_rate}

    def _design(self, X: Tensor) -> Tensor:
        return torch.cat([X, torch.ones_like(X[:, :1])], 1) if self.intercept else X

    def _log_likelihood(self, w: Tensor) -> Tensor:
        signed, *correction = self._constants.like(w)
        total: Tensor = self._scale * _LogLikelihood.apply(w, signed)
        if not correction:
            return total
        mode, slope, curvature = correction
        return total + (w - mode) @ slope - 0.5 * (((w - mode) @ curvature) * (w - mode)).sum(1)

    def _reduce(self, size: int, generator: torch.Generator) -> None:
        """Keeps `size` rows, and the terms that make value, slope and curvature at the mode those of all rows."""
        whole = self._signed
        rows = whole[torch.randperm(len(whole), generator=generator)[:size].to(whole.device)]
        mode, scale = _mode(whole), len(whole) / size
        (slope, curvature), (part_slope, part_curvature) = _expand(whole, mode), _expand(rows, mode)
        self._signed = rows
        self._scale = scale
        self._correction = (mode, slope - scale * part_slope, curvature - scale * part_curvature)


class _LogLikelihood(torch.autograd.Function):
    """Σ_i log σ(w·a_i), (n,k), (N,k) → (n,); no matrix (n,N) is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(w, a)
        return torch.cat([logsigmoid(part @ a.T).sum(1) for part in _blocks(w, a)])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        w, a = ctx.saved_tensors
        return g[:, None] * torch.cat([torch.sigmoid(-(part @ a.T)) @ a for part in _blocks(w, a)]), None


def _blocks(w: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    return w.split(max(1, entries_at_once(_BLOCK, w) // max(len(a), 1)))


def _expand(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Slope (k,) and minus the Hessian (k,k) of Σ log σ(w·a_i)."""
    p = torch.sigmoid(-(a @ w))
    return a.T @ p, a.T @ ((p * (1 - p))[:, None] * a)


def _mode(a: Tensor, precision: float = 1e-2) -> Tensor:
    """argmax Σ log σ(w·a_i) − ½ precision |w|² by Newton's method with halved steps."""

    def value(w: Tensor) -> float:
        return float(logsigmoid(a @ w).sum() - 0.5 * precision * w.square().sum())

    w = a.new_zeros(a.shape[1])
    for _ in range(50):
        slope, curvature = _expand(a, w)
        slope, curvature = (
            slope - precision * w,
            curvature + precision * torch.eye(len(w), dtype=w.dtype, device=w.device),
        )
        step, length = torch.linalg.solve(curvature, slope), 1.0
        while value(w + length * step) < value(w) and length > 1e-8:
            length /= 2
        w = w + length * step
        if float(slope @ step) < 1e-12:
            break
    return w


def signs(y: Tensor) -> Tensor:
    """Labels as ±1, (N,) float64, from {0, 1} or {−1, 1}.

    Raises:
        ConfigError: other values.
    """
    y = torch.as_tensor(y, dtype=torch.float64)
    if not (bool(((y == 0) | (y == 1)).all()) or bool((y.abs() == 1).all())):
        other = [v for v in y.unique().tolist() if v not in (0, 1, -1)][:3] or [-1, 0, 1]
        raise ConfigError(f"LogisticRegression(y=…): labels must be all in {{0, 1}} or all in {{−1, 1}}; got {other}.")
    return torch.where(y > 0, 1.0, -1.0).double()


def _checked_data(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    X = torch.as_tensor(X, dtype=torch.float64)
    if X.ndim != 2 or len(X) < 2 or X.shape[1] < 1:
        raise ShapeError(f"LogisticRegression(X, y): X must have shape (N, k) with N ≥ 2; got {tuple(X.shape)}.")
    y = torch.as_tensor(y).to(X.device)
    if y.shape != X.shape[:1]:
        raise ShapeError(f"LogisticRegression(X, y): y must have shape ({len(X)},) for that X; got {tuple(y.shape)}.")
    bad = ~torch.isfinite(X)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ConfigError(
            f"LogisticRegression(X=…): {int(bad.any(1).sum())} of {len(X)} rows hold NaN or infinite features, first "
            f"at row {row}, feature {column}. Leave these rows out or fill them in."
        )
    constant = (X[0] == X).all(0)
    if bool(constant.any()):
        column = int(constant.int().argmax())
        raise ConfigError(
            f"LogisticRegression(X=…): feature {column} is {float(X[0, column]) + 0.0:g} in every row, which carries "
            "no information. Leave it out; for an intercept pass intercept=True."
        )
    y = signs(y)
    if bool((y == y[0]).all()):
        raise ConfigError(f"LogisticRegression(y=…): every label is {float(y[0]):g}. Both classes must occur.")
    return X, y
