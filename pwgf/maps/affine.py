"""The affine map T(z) = A z + b: exact for Gaussian and self-similar flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_dim, check_points, plain_fields
from ._networks import with_ones
from .base import Block, Layer, Linearisation, PushForward, blocks, solve_affine


@dataclass(frozen=True)
class Affine(PushForward):
    """T_θ(z) = A z + b with θ = [A b], stored as one (d, d+1) matrix.

    Its tangent holds every affine velocity field, so Gaussian flows (Ornstein–Uhlenbeck) and self-similar ones
    (Barenblatt) are followed without projection error. Cost of T: 2nd² flops.

    Args:
        dim: d ≥ 1.

    Raises:
        ConfigError: dim is not a positive integer.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.Affine(dim=2)
        >>> map(map.initial(), torch.ones(1, 2, dtype=torch.float64))
        tensor([[1., 1.]], dtype=torch.float64)
    """

    dim: int

    def __post_init__(self) -> None:
        plain_fields(self)
        check_dim(self.dim, "Affine(dim)")

    def layout(self) -> list[Block]:
        """One block, [A b]."""
        return blocks([("affine", (self.dim, self.dim + 1))])

    def initial(self, seed: int = 0) -> Tensor:
        """A = I, b = 0; the seed is not needed."""
        return torch.eye(self.dim, self.dim + 1, dtype=torch.float64).reshape(-1)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """A z + b."""
        (w,) = self.unpack(theta)
        return torch.addmm(w[:, -1], z, w[:, :-1].T)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """A, the same for every sample."""
        (w,) = self.unpack(theta)
        return w[:, :-1].expand(len(z), -1, -1)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """A⁻¹(x − b); raises SolverError where A is singular."""
        check_points(x, self.dim, f"{type(self).__name__}.inverse(theta, x): x", finite=True)
        (w,) = self.unpack(theta.detach())
        return solve_affine(w, x, "Affine")

    needs_damping: ClassVar[bool] = False
    has_factors: ClassVar[bool] = True

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """One layer, fed [z, 1]."""
        return [Layer(0, (self.dim, self.dim + 1), with_ones(z), None)]

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J is linear in [z, 1] alone."""
        a, shape = with_ones(z.detach()), (self.dim, self.dim + 1)
        return Linearisation(
            jv=lambda eta: a @ eta.view(shape).T,
            jtu=lambda u: (u.T @ a).reshape(-1),
            layers=lambda: [Layer(0, shape, a, None)],
        )
