"""The Gaussian at the mode of a density."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import private
from ..energies.hessian import second_derivatives
from ..errors import ConfigError


def laplace(log_density: Callable[[Tensor], Tensor], dim: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mode m (d,) of log p and L (d,d) with LLᵀ the inverse Hessian of −log p there.

    Args:
        log_density: log p, (n,d) → (n,), twice differentiable.
        dim: d.
        start: where L-BFGS begins, (d,); None means 0 on the CPU. log p is evaluated on its device, where m and L are.

    Raises:
        ConfigError: no maximum found, the Hessian there is not positive definite, or log p has no second derivatives.
    """
    x = (torch.zeros(dim, dtype=torch.float64) if start is None else start.detach().double().clone()).requires_grad_()
    search = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-9, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = -log_density(private(x.unsqueeze(0))).sum()
        loss.backward()
        return loss

    search.step(closure)
    mode = x.detach()
    hessian = -_second_derivatives(log_density, mode)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if not bool(torch.isfinite(mode).all()) or int(failed) > 0 or not bool(torch.isfinite(factor).all()):
        raise ConfigError(
            f"sample(whiten='laplace'): no mode of log p was found from x = 0 (ended at {mode.tolist()[:4]}, where the "
            "Hessian of −log p is not positive definite). Cure: whiten=None, or shift log_density so that 0 is near a "
            "mode."
        )
    inverse = torch.linalg.solve_triangular(factor, torch.eye(dim, dtype=x.dtype, device=x.device), upper=False)
    return mode, inverse.T.contiguous()


def _second_derivatives(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇² log p at x (d,), (d,d)."""
    aside = x + 1e-3 * (1 + x.abs())  # at x the gradient vanishes, and shows no part that is missing
    leaf = torch.stack([x, aside]).requires_grad_(True)
    try:
        found = second_derivatives(log_density(private(leaf)), leaf)
    except (RuntimeError, ConfigError) as error:
        raise ConfigError(
            "sample(whiten='laplace') needs second derivatives of log p, and this log_density can be differentiated "
            f"once only: {error} Causes: (a) torch.compile: give the function before it is compiled; (b) a "
            "torch.autograd.Function whose backward is not made of torch's operations, or once_differentiable. Or give "
            "the coordinates, whiten=(m, L), or whiten=None."
        ) from error
    return torch.zeros(len(x), len(x), dtype=x.dtype) if found is None else found[0]
