"""What gradients of convex functions have in common: a symmetric positive definite Jacobian, factored by Cholesky."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..checks import check_positive, is_real
from ..errors import ConfigError, NonFiniteError, ShapeError, SolverError
from .base import Pushed, PushForward

SHARE = 0.5  # of the identity at the start that the units contribute; the linear part contributes the rest


class ConvexGradient(PushForward):
    """T = ∇ψ with ψ strictly convex for every θ: T never folds, and it is the Brenier map from λ to ρ_θ.

    A subclass supplies what `PushForward` requires, and may supply a faster `jacobian`, `with_jacobian` and
    `push_score`.
    """

    def with_jacobian(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """T (n,d) and ∂_zT (n,d,d); differentiable. A family that shares work between the two overrides it."""
        return self(theta, z), self.jacobian(theta, z)

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        """log det ∂_zT (n,) by Cholesky; differentiable. Cost: `jacobian` and n·d³/3 flops.

        Raises:
            NonFiniteError, SolverError: see `cholesky`.
        """
        return log_det(cholesky(self.jacobian(theta, z), z, type(self).__name__))

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """∇ log ρ(T(z)) with slope = ∇ log λ(z) (n,d). Cost: `jacobian`, its backward pass, n Cholesky factorisations.

        Raises:
            NonFiniteError, SolverError: see `cholesky`.
        """
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            factor = cholesky(self.jacobian(theta.detach(), leaf), leaf, type(self).__name__)
            log_abs_det = log_det(factor)
            slope = slope - torch.autograd.grad(log_abs_det.sum(), leaf)[0]
        score = torch.cholesky_solve(slope.unsqueeze(-1), factor.detach()).squeeze(-1)
        return Pushed(score, torch.ones_like(log_abs_det), log_abs_det.detach())


def cholesky(jacobian: Tensor, z: Tensor, call: str) -> Tensor:
    """The lower factors (n,d,d) of symmetric positive definite Jacobians at z (n,d); differentiable.

    Raises:
        NonFiniteError: a Jacobian has NaN or infinite entries.
        SolverError: rounding has made one indefinite.
    """
    factor, info = torch.linalg.cholesky_ex(jacobian)
    finite = torch.isfinite(jacobian.detach()).all(2).all(1)
    bad = (info != 0) | ~finite
    if not bool(bad.any()):
        return factor
    first = int(bad.nonzero()[0])
    place = f"at {int(bad.sum())} of {len(z)} samples, first at z[{first}] = {_few(z[first])}"
    if not bool(finite.all()):
        raise NonFiniteError(
            f"{call}: ∂_zT is NaN or infinite {place}. Causes: (a) θ is not finite, after too long a step: lower "
            "tolerance or dt; (b) the sample is not finite: check the reference, or the x that was inverted."
        )
    spectrum = torch.linalg.eigvalsh(jacobian[first].detach())
    raise SolverError(
        f"{call}: the Cholesky factorisation of ∂_zT failed {place}, where its eigenvalues go from "
        f"{float(spectrum[0]):.1e} to {float(spectrum[-1]):.1e}. It is positive definite up to rounding, so the "
        "map is too steep for this precision: use dtype=torch.float64, a larger floor, or more damping."
    )


def checked_directions(call: str, directions: Tensor, dim: int) -> Tensor:
    """`initial(directions=…)` (k,d) as float64 on the CPU.

    Raises:
        ShapeError: another shape, or not finite.
    """
    if directions.ndim != 2 or directions.shape[1] != dim or not bool(torch.isfinite(directions).all()):
        raise ShapeError(
            f"{call}.initial(directions=…) needs finite rows of shape (k, {dim}); got {tuple(directions.shape)}. "
            "`fitting.active_directions` gives them."
        )
    return directions.detach().double().cpu()


def check_bends(call: str, floor: float, axis_share: float = 0.0, **positive: float) -> None:
    """Raises ConfigError for a setting outside its range."""
    if not (is_real(axis_share) and 0 <= axis_share <= 1):
        raise ConfigError(f"{call}(axis_share=…) must lie in [0, 1]; got {axis_share!r}.")
    for name, value in positive.items():
        check_positive(value, name, call)
    if not (is_real(floor) and 0 < floor <= 0.5):
        raise ConfigError(f"{call}(floor=…) must lie in (0, 0.5]; got {floor!r}.")


def linear_start(
    v: Tensor, centres: Tensor, floor: float, knees: tuple[float, float], gain: float
) -> tuple[Tensor, Tensor, Tensor]:
    """L (d,d), b (d,1) and ω (2,1) with which linear units of one weight along the rows of v give the identity.

    The units contribute `SHARE` of it in the direction in which there are most of them.
    """
    gram = v.T @ v
    weight = SHARE / float(torch.linalg.eigvalsh(gram)[-1])
    rest = (1 - floor) * torch.eye(len(gram), dtype=v.dtype) - weight * gram
    raw = math.log(math.expm1(weight / knees[1])) / gain * torch.tensor(knees, dtype=v.dtype)
    return torch.linalg.cholesky(rest).T, -weight * (v.T @ centres), raw.unsqueeze(1)


def weights(raw: Tensor, knees: tuple[float, float], gain: float) -> Tensor:
    """p and q > 0 of units that bend either way, (2,m), from their parameters ω; softplus with given knees."""
    return torch.stack([k * softplus(r * (gain / k)) for k, r in zip(knees, raw.view(2, -1), strict=True)])


def weight_slopes(raw: Tensor, knees: tuple[float, float], gain: float) -> Tensor:
    """dp/dω and dq/dω, (2,m)."""
    return gain * torch.stack([torch.sigmoid(r * (gain / k)) for k, r in zip(knees, raw.view(2, -1), strict=True)])


def squares(v: Tensor) -> Tensor:
    """v vᵀ for every row, flattened: (m,d) → (m,d²)."""
    return (v.unsqueeze(2) * v.unsqueeze(1)).reshape(len(v), -1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), its derivative the sigmoid to rounding; torch's own cuts off at 20, where the two differ by 2e-9."""
    return functional.softplus(x, threshold=40)


def log_det(factor: Tensor) -> Tensor:
    """log det (n,) from lower Cholesky factors (n,d,d)."""
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _few(point: Tensor) -> str:
    values = point.detach().tolist()
    return "(" + ", ".join(f"{value:.4g}" for value in values[:4]) + (", …)" if len(values) > 4 else ")")
