"""The exact filter of a linear diffusion with Gaussian observations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeError
from ._observations import schedule


def kalman(
    K: Tensor,
    centre: Tensor,
    H: Tensor,
    R: Tensor,
    mean: Tensor,
    cov: Tensor,
    times: Sequence[float],
    observations: Sequence[Tensor],
    *,
    end: float | None = None,
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor, float]:
    """The exact filter of dX = −K(X − b) dt + √(2τ) dW, X₀ ~ N(mean, cov), y ~ N(HX, R).

    Args:
        K, centre: (d,d), whose eigenvalues have positive real parts, and b (d,); of a symmetric K,
            V(x) = ½(x−b)ᵀK(x−b).
        H, R: (k,d) and (k,k).
        mean, cov: (d,), (d,d) at t = 0.
        times, observations: increasing times > 0 and y, each (k,).
        end: as in `run`.
        temperature: τ, or D (d,d) of the noise √(2D) dW.

    Returns:
        Mean, covariance at the end, and log p(y_1, …, y_K).

    Raises:
        ShapeError: shapes that do not belong together.

    References:
        A. Jazwinski, Stochastic Processes and Filtering Theory, 1970, §7.3.
    """
    at, end = schedule(times, observations, end)
    d, k = len(mean), len(R)
    shapes = [tuple(part.shape) for part in (K, centre, H, R, mean, cov)]
    if shapes != [(d, d), (d,), (k, d), (k, k), (d,), (d, d)]:
        raise ShapeError(
            f"filtering.kalman(K, centre, H, R, mean, cov) needs shapes (d,d), (d,), (k,d), (k,k), (d,), (d,d); got "
            f"{shapes}."
        )
    rest, evidence, now = _at_rest(K, temperature), 0.0, 0.0
    for t, y in zip([*at, end], [*observations, None], strict=True):
        decay = torch.linalg.matrix_exp(-K * (t - now))
        mean, cov, now = centre + decay @ (mean - centre), rest + decay @ (cov - rest) @ decay.mT, t
        if y is not None:
            seen = torch.distributions.MultivariateNormal(H @ mean, H @ cov @ H.T + R)
            evidence += float(seen.log_prob(y))
            gain = torch.linalg.solve(seen.covariance_matrix, H @ cov).T
            mean, cov = mean + gain @ (y - H @ mean), cov - gain @ H @ cov
    return mean, cov, evidence


def _at_rest(K: Tensor, temperature: float | Tensor) -> Tensor:
    """C with KC + CKᵀ = 2D."""
    from scipy.linalg import solve_continuous_lyapunov  # noqa: PLC0415, a tenth of a second

    D = torch.as_tensor(temperature, dtype=K.dtype)
    D = D if D.ndim else D * torch.eye(len(K), dtype=K.dtype)
    return torch.as_tensor(solve_continuous_lyapunov(K.numpy(), 2 * D.numpy()))
