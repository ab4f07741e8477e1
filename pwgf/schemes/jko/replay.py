"""A chain of convex potentials read back as measures: one map a row, each applied after those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ... import maps
from ...checks import check_points
from ...maps.base import Block, PushForward
from ...maps.convex import ConvexGradient
from ...measures import Reference
from ...state import Rows
from ..base import Answers, nearest_row
from .quadratic_icnn import QuadraticICNN

_BLOCK = 4096  # samples at once


@dataclass(frozen=True)
class Displaced(ConvexGradient):
    """(1 − s) z + s T_θ(z), 0 < s ≤ 1: the displacement interpolant, a share s of the way to T."""

    map: ConvexGradient
    share: float

    @property
    def dim(self) -> int:  # type: ignore[override]
        """d."""
        return self.map.dim

    def layout(self) -> list[Block]:
        """That of T."""
        return self.map.layout()

    def initial(self, seed: int = 0) -> Tensor:
        """That of T."""
        return self.map.initial(seed)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """(1 − s) z + s T(z)."""
        return torch.lerp(z, self.map(theta, z), self.share)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """(1 − s) I + s ∂_zT."""
        eye = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        return torch.lerp(eye, self.map.jacobian(theta, z), self.share)


class JKOReplay(Answers):
    """ρ_t = (T_k ∘ … ∘ T_1)#λ at row k, T_k the map of that row's step; between rows the displacement interpolant.

    Between rows k and k + 1 the last map is (1 − s) id + s T_{k+1} with s = (t − t_k)/(t_{k+1} − t_k): the geodesic in
    W₂ from one law to the next. Cost at row k: k maps; for densities at given points k Newton inversions.

    Args:
        map: the family of all the maps.
        reference: λ.
        dtype, device: of θ in memory.
    """

    ROWS: ClassVar[str] = "chain"

    def __init__(
        self, map: ConvexGradient, reference: Reference, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> None:
        self.family, self.reference, self.dtype, self.device = map, reference, dtype, device

    def _chain(self, rows: Rows, t: float) -> Iterator[tuple[ConvexGradient, Tensor]]:
        """Maps with their θ, the first one first."""
        k = nearest_row(rows.t, t)
        last = int(np.searchsorted(rows.t, t)) - 1 if k is None else k
        for j in range(1, last + 1):
            yield self.family, rows.theta(j).to(self.dtype).to(self.device)
        if k is None:
            share = (t - float(rows.t[last])) / float(rows.t[last + 1] - rows.t[last])
            yield Displaced(self.family, share), rows.theta(last + 1).to(self.dtype).to(self.device)

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """T_k(… T_1(z)), (n,d)."""
        check_points(z, self.reference.dim, "push(t, z): z", finite=True)
        chain = list(self._chain(rows, t))
        parts = []
        with torch.no_grad():
            for x in z.to(self.dtype).to(self.device).split(_BLOCK):
                for map, theta in chain:
                    x = map(theta, x)
                parts.append(x)
        return torch.cat(parts).cpu()

    def _inverted(self, rows: Rows, t: float, x: Tensor) -> list[tuple[ConvexGradient, Tensor, Tensor]]:
        """Every map with its θ and the samples before it; the first map first."""
        check_points(x, self.reference.dim, "x", finite=True)
        z, found = x.detach().to(self.dtype).to(self.device), []
        for map, theta in reversed(list(self._chain(rows, t))):
            z = torch.cat([map.inverse(theta, part) for part in z.split(_BLOCK)])
            found.append((map, theta, z))
        return found[::-1]

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log λ(z) − Σ log det ∂T_j at the points that the chain takes to x, (n,)."""
        steps = self._inverted(rows, t, x)
        log_density = self.reference.log_density(steps[0][2] if steps else x.detach().to(self.dtype).to(self.device))
        with torch.no_grad():
            for map, theta, z in steps:
                volumes = [map.log_abs_det(theta, part) for part in z.split(_BLOCK)]
                log_density = log_density - torch.cat(volumes)
        return log_density.cpu()

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d), carried through the chain."""
        steps = self._inverted(rows, t, x)
        z = (steps[0][2] if steps else x.detach().to(self.dtype).to(self.device)).clone().requires_grad_(True)
        with torch.enable_grad():
            (score,) = torch.autograd.grad(self.reference.log_density(z).sum(), z)
        for map, theta, points in steps:
            pairs = zip(points.split(_BLOCK), score.split(_BLOCK), strict=True)
            score = torch.cat([map.push_score(theta, part, slope).score for part, slope in pairs])
        return score.cpu()


def stored_map(config: dict[str, Any]) -> PushForward:
    """Rebuilds the map of a run from its `to_config()`, be it of `maps` or the network of this folder.

    Raises:
        ConfigError: it is neither; hand it over instead.
    """
    settings = dict(config)
    if settings.pop("name", "") == QuadraticICNN.__name__:
        return QuadraticICNN(**settings)
    return maps.from_config(config)
