"""Krylov iterations on products alone: conjugate gradients and LSMR.

Pure mathematics: they know neither samples nor parameters. Each waits once per iteration for a pair of scalars, and
stops on |b − Ax| ≤ rtol |b| by its own recursion; the callers compute the true residual afterwards. What an operator
returns is never written to: it may be a view of its argument.

Where several processes share an operator, all must take the same branch: they read the scalars through `numbers`, which
gives all the same (k scalars in a tensor -> a list).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
Numbers = Callable[[Tensor], list[float]]


class Iterate(NamedTuple):
    """Where an iteration stopped.

    Args:
        x: last iterate.
        residual: relative residual by the recursion; NaN if a product was not finite.
        num_iterations: iterations done.
        converged: whether residual ≤ rtol.
    """

    x: Tensor
    residual: float
    num_iterations: int
    converged: bool


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over all entries, a scalar tensor."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def safe_ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b where b ≠ 0, else 0; never a division by zero, and no wait for the device."""
    return torch.where(b != 0, a / torch.where(b != 0, b, 1), 0)


def conjugate_gradients(
    matvec: Operator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    rtol: float,
    max_iterations: int,
    precondition: Operator = lambda r: r,
    numbers: Numbers = Tensor.tolist,
) -> Iterate:
    """Solves Ax = b for a symmetric positive definite A, preconditioned by M⁻¹.

    A direction with pᵀAp ≤ 0 (A is not positive definite, or rounding ate it) ends the iteration before it is taken:
    `converged` is then False.

    Cost: one product with A, and one with M⁻¹, per iteration; one more with A if x0 is given.

    Args:
        matvec: A, (p,) -> (p,).
        b: right side, (p,).
        x0: start, (p,); zero if None.
        rtol: stop at |b − Ax| ≤ rtol |b|.
        max_iterations: cap, ≥ 1.
        precondition: M⁻¹, (p,) -> (p,), symmetric positive definite.
        numbers: reads the scalars of a branch.

    Example:
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradients(lambda x: A @ x, torch.tensor([3.0, 4.0]), rtol=1e-5, max_iterations=9).x.round()
        tensor([1., 1.])

    References:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """
    x, r = (torch.zeros_like(b), b.clone()) if x0 is None else (x0.clone(), b - matvec(x0))
    z = precondition(r)
    p, rz = z.clone(), dot(r, z)
    b_norm, r_norm = numbers(torch.stack([b.norm(), r.norm()]))
    k = 0
    while k < max_iterations and r_norm > rtol * b_norm:
        ap = matvec(p)
        curvature = dot(p, ap)
        step = torch.where((curvature > 0) & (rz > 0), safe_ratio(rz, curvature), 0)
        x.add_(step * p)
        r.sub_(step * ap)
        z = precondition(r)
        rz_new = dot(r, z)
        p.mul_(safe_ratio(rz_new, rz)).add_(z)
        rz = rz_new
        k += 1
        taken, r_norm = numbers(torch.stack([step, r.norm()]))
        if not taken > 0 or not math.isfinite(r_norm):
            break
    residual = r_norm / b_norm if b_norm > 0 else r_norm
    return Iterate(x, residual, k, r_norm <= rtol * b_norm)


def lsmr(
    jv: Operator,
    jtu: Operator,
    b: Tensor,
    *,
    damp: float,
    rtol: float,
    max_iterations: int,
    numbers: Numbers = Tensor.tolist,
    norm: Operator = Tensor.norm,
) -> Iterate:
    """Minimises |Jx − b|² + damp²|x|² by Golub–Kahan bidiagonalisation, without forming JᵀJ.

    Of all x in the Krylov space it has the least residual of (JᵀJ + damp² I) x = Jᵀb; for an ill-conditioned J it keeps
    more digits than conjugate gradients. Starts at x = 0; without damping it returns the minimiser of least norm.

    Cost: two products per iteration, one before.

    Args:
        jv: J, (p,) -> shape of b.
        jtu: Jᵀ, shape of b -> (p,).
        b: right side, any shape.
        damp: ≥ 0; its square is added to JᵀJ.
        rtol: stop at |Jᵀ(b − Jx) − damp² x| ≤ rtol |Jᵀb|.
        max_iterations: cap, ≥ 1.
        numbers: reads the scalars of a branch.
        norm: |u| for a u of the shape of b, of which a process may hold some rows only.

    Example:
        >>> J = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> b = torch.tensor([1.0, 2.0, 5.0])
        >>> lsmr(lambda x: J @ x, lambda u: J.T @ u, b, damp=0, rtol=1e-5, max_iterations=9).x.round()
        tensor([1., 1.])

    References:
        D. C.-L. Fong, M. A. Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", 2011, arXiv
        1006.0758.
    """
    beta = float(norm(b))
    u = b / beta if beta > 0 else b.clone()
    v = jtu(u)
    (alpha,) = numbers(v.norm().reshape(1))
    v = v / alpha if alpha > 0 else v
    x, h, h_bar = torch.zeros_like(v), v.clone(), torch.zeros_like(v)
    start = zeta_bar = alpha * beta  # |zeta_bar| is the residual of the normal equations
    alpha_bar, rho, rho_bar, c_bar, s_bar, k = alpha, 1.0, 1.0, 1.0, 0.0, 0
    while k < max_iterations and abs(zeta_bar) > rtol * start:
        u = jv(v) - alpha * u
        beta_d = norm(u)
        u.mul_(safe_ratio(torch.ones_like(beta_d), beta_d))
        v = jtu(u) - beta_d * v
        alpha_d = v.norm()
        v.mul_(safe_ratio(torch.ones_like(alpha_d), alpha_d))
        alpha, beta = numbers(torch.stack([alpha_d, beta_d]))
        if not math.isfinite(alpha + beta):
            zeta_bar = math.nan
            break
        alpha_hat = math.hypot(alpha_bar, damp)  # rotate the damping in
        rho_old, rho = rho, math.hypot(alpha_hat, beta)  # then the bidiagonal matrix to triangular R
        if rho == 0:
            break
        theta, alpha_bar = beta / rho * alpha, alpha_hat / rho * alpha
        theta_bar, rho_bar_old = s_bar * rho, rho_bar  # then Rᵀ to triangular R̄
        rho_bar = math.hypot(c_bar * rho, theta)
        c_bar, s_bar = c_bar * rho / rho_bar, theta / rho_bar
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        h_bar.mul_(-theta_bar * rho / (rho_old * rho_bar_old)).add_(h)
        x.add_(h_bar, alpha=zeta / (rho * rho_bar))
        h.mul_(-theta / rho).add_(v)
        k += 1
    return Iterate(x, abs(zeta_bar) / start if start > 0 else 0.0, k, abs(zeta_bar) <= rtol * start)
