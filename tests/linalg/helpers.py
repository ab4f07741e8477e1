"""A tangent given as a dense tensor: the truth in the tests of the linear solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from pwgf.tangent import OutputBlocks


class DenseTangent:
    """J as a tensor (n, d, p)."""

    def __init__(self, J: Tensor, layered: bool = True) -> None:
        self.J, self.layered = J, layered
        self.n, self.d, self.p = J.shape
        self.dtype, self.device = J.dtype, J.device
        self.num_products = 0

    def jv(self, eta: Tensor) -> Tensor:
        self.num_products += 1
        return self.J @ eta

    def jtu(self, u: Tensor) -> Tensor:
        self.num_products += 1
        return self.matrix.T @ u.reshape(-1)

    def trace(self) -> Tensor:
        return self.J.square().sum() / self.n

    def to(self, dtype: torch.dtype) -> DenseTangent:
        return DenseTangent(self.J.to(dtype), self.layered)

    def subset(self, idx: Tensor) -> DenseTangent:
        return DenseTangent(self.J[idx], self.layered)

    def gram_dual(self) -> Tensor:
        return self.matrix @ self.matrix.T

    def gram_primal(self) -> Tensor:
        return self.matrix.T @ self.matrix / self.n

    h = 0.0
    output_share = 0.0

    def diagonal(self) -> Tensor:
        return self.matrix.square().sum(0) / self.n

    def output_blocks(self) -> OutputBlocks:
        """Parameters that move one coordinate alone: those whose other rows of J vanish."""
        moves = self.J.square().sum(0) > 0
        alone = [(moves[k] & (moves.sum(0) == 1)).nonzero()[:, 0] for k in range(self.d)]
        count = min(map(len, alone))
        index = torch.stack([found[:count] for found in alone])
        return OutputBlocks(index, torch.stack([self.gram_primal()[i][:, i] for i in index]))

    @property
    def matrix(self) -> Tensor:
        """J as (n·d, p)."""
        return self.J.reshape(-1, self.p)


def decaying(n: int, d: int, p: int, decay: float, seed: int = 0) -> DenseTangent:
    """J = U diag(10^(−decay·k/rank)) Vᵀ·√n with random orthogonal U, V: singular values fall by `decay` decades."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(n * d, p)
    U, _ = torch.linalg.qr(torch.randn(n * d, rank, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(p, rank, generator=generator, dtype=torch.float64))
    values = 10 ** (-decay * torch.arange(rank, dtype=torch.float64) / rank)
    return DenseTangent(((U * values) @ V.T).reshape(n, d, p) * n**0.5)


def dense_solution(
    tangent: DenseTangent, v: Tensor, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
) -> Tensor:
    """The minimiser by dense algebra in float64: the stacked least-squares problem, or the eigenbasis for `rhs`."""
    J = tangent.matrix.double()
    mu = damping * float(J.square().sum()) / tangent.n
    prior = torch.zeros(tangent.p, dtype=torch.float64) if prior is None else prior.double()
    if rhs is not None:
        G = J.T @ J / tangent.n + mu * torch.eye(tangent.p, dtype=torch.float64)
        return prior + torch.linalg.pinv(G, hermitian=True) @ (rhs.double() - J.T @ (J @ prior) / tangent.n)
    stacked = torch.cat([J / tangent.n**0.5, mu**0.5 * torch.eye(tangent.p, dtype=torch.float64)])
    target = torch.cat([(v.double().reshape(-1) - J @ prior) / tangent.n**0.5, torch.zeros_like(prior)])
    return prior + torch.linalg.pinv(stacked, rtol=1e-12) @ target
