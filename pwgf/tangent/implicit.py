"""The system of an implicit step, Ĝ + h·H, as rows of one least-squares problem for the same linear solvers."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SolverError
from ._layers import add_product, mirrored, row_gram
from .base import OutputBlocks, SlopeTangent, Tangent

_FEW_SAMPLES = 64  # enough for the size of H beside that of Ĝ


class Form(Protocol):
    """E[u·K u + (u−ū)·C(u−ū) + a|∇u|² + b(div u)²] ≥ 0 at n samples; what is None is absent."""

    @property
    def point(self) -> Tensor | None:
        """K (n,d,d)."""
        ...

    @property
    def centred(self) -> Tensor | None:
        """C (n,d,d)."""
        ...

    @property
    def slope(self) -> Tensor | None:
        """a (n,)."""
        ...

    @property
    def divergence(self) -> Tensor | None:
        """b (n,)."""
        ...


class Curvature:
    r"""H, the second variation of an energy in the parameters: ηᵀHη = Hess F(u,u) with u = Jη, a sum of squares.

    ∇u = ∂_z(Jη)(∂_zT)⁻¹ enters through q probes w a sample, y_k = ∇u·w_k: |∇u|² = c Σ|y_k|² and div u = c Σ w_k·y_k,
    exactly with the d unit vectors and c = 1, on average with random signs and c = 1/q. (div u)² is then too large by
    the variance of w·∇u w, which damps shear as well.

    Args:
        tangent: J at n samples.
        form: the energy's quadratic form at the own samples.
        inverse: (∂_zT)⁻¹ at the own samples, (n,d,d); None where the form has no slopes.
        probes: w, (n,q,d) at every sample; not looked at then either.
        exact: whether the probes are the unit vectors.
    """

    def __init__(
        self, tangent: Tangent, form: Form, inverse: Tensor | None, probes: Tensor | None, exact: bool
    ) -> None:
        self.tangent, self.point, self.centred = tangent, form.point, form.centred
        self.slopes: SlopeTangent | None = None
        self.divergence = form.divergence is not None
        if inverse is None or probes is None:
            return
        group = tangent.group
        own = group.slice_rows(probes)
        xi = (own @ inverse.transpose(1, 2)).contiguous()
        self.slopes = SlopeTangent(
            tangent.map, tangent.theta, tangent._every_z, group.gather_rows(xi), tangent.chunk_size, group
        )
        if tangent.weights is not None:
            self.slopes = self.slopes.weighted(tangent.weights)
        c = 1.0 if exact else 1.0 / own.shape[1]
        w = own.flatten(1)
        size = w.norm(dim=1, keepdim=True)
        self.axis = w / size  # ŵ, (n, q·d)
        zero = torch.zeros_like(size[:, 0])
        a = zero if form.slope is None else form.slope
        b = zero if form.divergence is None else form.divergence
        self.across2 = (c * a).unsqueeze(1)  # weight of |y|² across ŵ, and of (ŵ·y)² along it
        self.along2 = (c * a + b * (c * size[:, 0]).square()).unsqueeze(1)

    def subset(self, index: Tensor) -> Curvature:
        """The same at some of the samples, index (m,); whole on every process."""
        gather = self.tangent.group.gather_rows
        found = copy.copy(self)
        _forget(found)
        found.tangent = self.tangent.subset(index)
        found.point = None if self.point is None else gather(self.point)[index]
        found.centred = None if self.centred is None else gather(self.centred)[index]
        if self.slopes is not None:
            found.slopes = self.slopes.subset(index)
            found.axis, found.across2, found.along2 = (
                gather(values)[index] for values in (self.axis, self.across2, self.along2)
            )
        return found

    def to(self, dtype: torch.dtype) -> Curvature:
        """The same in another precision."""
        found = copy.copy(self)
        _forget(found)
        found.tangent = self.tangent.to(dtype)
        found.point = None if self.point is None else self.point.to(dtype)
        found.centred = None if self.centred is None else self.centred.to(dtype)
        if self.slopes is not None:
            found.slopes = self.slopes.to(dtype)
            found.axis, found.across2, found.along2 = (
                values.to(dtype) for values in (self.axis, self.across2, self.along2)
            )
        return found

    def quadratic(self, eta: Tensor) -> Tensor:
        """ηᵀHη, a scalar."""
        u, group, total = self.tangent.jv(eta), self.tangent.group, eta.new_zeros(())
        if self.point is not None:
            total = total + (u * (self.point @ u.unsqueeze(2)).squeeze(2)).sum()
        if self.centred is not None:
            u = self.apart(u)
            total = total + (u * (self.centred @ u.unsqueeze(2)).squeeze(2)).sum()
        if self.slopes is not None:
            total = total + self.scaled(self.slopes.jv(eta).unsqueeze(2)).square().sum()
        return group.sum(total) / self.tangent.n

    def apart(self, u: Tensor) -> Tensor:
        """Rows u (n, …) of the own samples, as those of J, less their mean: u_i − √w_i·Σ√w_j u_j/Σw_j."""
        root, total = self._roots()
        root = root.view(-1, *(1,) * (u.ndim - 1))
        return u - root * (self.tangent.group.sum((root * u).sum(0)) / total)

    def _roots(self) -> tuple[Tensor, Tensor]:
        """√w of the own samples, (n,), and Σw over all; ones where all count alike."""
        plain = self.tangent
        weights = (
            torch.ones(plain.n, dtype=plain.dtype, device=plain.device) if plain.weights is None else plain.weights
        )
        return plain.group.slice_rows(weights.sqrt()), weights.sum()

    def scaled(self, y: Tensor, part: slice = slice(None)) -> Tensor:
        """S y for columns y (b, q·d, c) of some samples: S is symmetric, and a number where div u has no weight."""
        across = self.across2[part].sqrt().unsqueeze(2)
        if not self.divergence:
            return across * y
        axis, along = self.axis[part].unsqueeze(1), self.along2[part].sqrt().unsqueeze(2)
        return across * y + ((along - across) * (axis @ y)) * axis.transpose(1, 2)

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Ĝ and H, (p,p) each: formed once for all step lengths."""
        n, d, p = self.tangent.n, self.tangent.d, self.tangent.p
        metric = self.tangent.gram_primal()
        hessian = torch.zeros_like(metric)
        if self.point is not None or self.centred is not None:
            root = self._roots()[0].view(-1, 1, 1)
            mean = self._mean_rows() if self.centred is not None else metric.new_zeros(1)
            start = 0
            for rows in self.tangent.rows():
                block = rows.view(-1, d, p)
                part = slice(start, start + len(block))
                start += len(block)
                if self.point is not None:
                    add_product(hessian, rows, (self.point[part] @ block).view(-1, p))
                if self.centred is not None:
                    block = block - root[part] * mean
                    add_product(hessian, block.view(-1, p), (self.centred[part] @ block).view(-1, p))
        if self.slopes is not None:
            start = 0
            for rows in self.slopes.rows():
                block = rows.view(-1, self.axis.shape[1], p)
                part = slice(start, start + len(block))
                start += len(block)
                block = self.scaled(block, part).view(-1, p)
                add_product(hessian, block, block)
        return metric, self.tangent.group.sum(mirrored(hessian)) / n

    @cached_property
    def output_blocks(self) -> OutputBlocks:
        """The blocks of Ĝ and H between parameters that move one coordinate each: formed once for all step lengths."""
        group, n, plain = self.tangent.group, self.tangent.n, self.tangent.output_blocks()
        total = torch.zeros_like(plain.metric)
        places = []
        for k, (index, columns) in enumerate(self.tangent.output_columns()):
            places.append(index)
            if self.point is not None:
                total[k].addmm_((self.point[:, k, k].unsqueeze(1) * columns).T, columns)
            if self.centred is not None:
                apart = self.apart(columns)
                total[k].addmm_((self.centred[:, k, k].unsqueeze(1) * apart).T, apart)
        if self.slopes is not None:
            along2 = self.axis.view(len(self.axis), -1, self.tangent.d).square()
            for k, (index, columns) in enumerate(self.slopes.output_columns()):  # fewer: a shift has no slope
                weights = self.across2 + (self.along2 - self.across2) * along2[:, :, k]
                spots = torch.searchsorted(places[k], index).to(total.device)
                total[k][spots.unsqueeze(1), spots] += (weights.reshape(-1, 1) * columns).T @ columns
        return plain._replace(hessian=group.sum(total) / n)

    def _mean_rows(self) -> Tensor:
        """Mean of J over the samples by their weights, (d,p)."""
        root, total = self._roots()
        own, start = root.new_zeros(self.tangent.d, self.tangent.p), 0
        for rows in self.tangent.rows():
            block = rows.view(-1, *own.shape)
            own += torch.tensordot(root[start : start + len(block)], block, dims=1)
            start += len(block)
        return self.tangent.group.sum(own) / total


def _forget(curvature: Curvature) -> None:
    """Drops what was formed of other samples or in another precision."""
    for name in ("gram", "output_blocks"):
        curvature.__dict__.pop(name, None)


class ImplicitTangent:
    """Rows R with RᵀR/n = Ĝ + h·H, so that min |Rη − r|²/n is the fit of v plus h times the second variation.

    For each sample Lᵀu with LLᵀ = I + hK, then √h·C^½(u−ū) where the form has C, then √h·S y. It is a tangent as
    `linalg` wants one, with `d` rows a sample; `trace` stays that of Ĝ, so that the damping means the same.

    Args:
        curvature: Ĝ and H.
        h: step length, ≥ 0.

    Raises:
        SolverError: I + hK is not positive definite within rounding.
    """

    def __init__(self, curvature: Curvature, h: float) -> None:
        self.curvature, self.h, self.tangent = curvature, h, curvature.tangent
        plain = self.tangent
        self.n, self.p, self.dtype, self.device, self.group = plain.n, plain.p, plain.dtype, plain.device, plain.group
        slopes = curvature.slopes
        self.layered = plain.layered and (slopes is None or slopes.layered)
        self._root = self._center_root = None
        identity = torch.eye(plain.d, dtype=plain.dtype, device=plain.device)
        if curvature.point is not None:
            self._root = _root(identity + h * curvature.point)
        if curvature.centred is not None:  # rank may be lower: the root of a matrix just above it
            limits, centred = torch.finfo(plain.dtype), h * curvature.centred
            lift = max(1e-12, 100 * limits.eps) * centred.diagonal(dim1=1, dim2=2).sum(1)
            self._center_root = _root(centred + lift.clamp_min(limits.tiny**0.5).view(-1, 1, 1) * identity)
        wide = 0 if slopes is None else curvature.axis.shape[1]
        self.d = plain.d + (plain.d if self._center_root is not None else 0) + wide

    def right_side(self, v: Tensor) -> Tensor:
        """r = [L⁻¹v, 0, 0] (n, rows) for a velocity v (n,d)."""
        if self._root is not None:
            v = torch.linalg.solve_triangular(self._root, v.unsqueeze(2), upper=False).squeeze(2)
        return torch.cat([v, v.new_zeros(len(v), self.d - v.shape[1])], 1)

    def _weigh(self, u: Tensor, y: Tensor | None) -> Tensor:
        """Rows from columns u = J· (n,d,c) and y = D· (n,q·d,c)."""
        parts = [u if self._root is None else self._root.transpose(1, 2) @ u]
        if self._center_root is not None:
            parts.append(self._center_root.transpose(1, 2) @ self.curvature.apart(u))
        if y is not None:
            parts.append(self.h**0.5 * self.curvature.scaled(y))
        return torch.cat(parts, 1)

    def jv(self, eta: Tensor) -> Tensor:
        """Rη: (p,) → (n, rows)."""
        slopes = self.curvature.slopes
        y = None if slopes is None else slopes.jv(eta).unsqueeze(2)
        return self._weigh(self.tangent.jv(eta).unsqueeze(2), y).squeeze(2)

    def jtu(self, rows: Tensor) -> Tensor:
        """Rᵀr: (n, rows) → (p,), summed over the samples."""
        d, slopes = self.tangent.d, self.curvature.slopes
        head, rest = rows[:, :d].unsqueeze(2), rows[:, d:].unsqueeze(2)
        u = head if self._root is None else self._root @ head
        if self._center_root is not None:
            u = u + self.curvature.apart(self._center_root @ rest[:, :d])
            rest = rest[:, d:]
        total = self.tangent.jtu(u.squeeze(2))
        return total if slopes is None else total + slopes.jtu(self.h**0.5 * self.curvature.scaled(rest).squeeze(2))

    def trace(self) -> Tensor:
        """tr Ĝ, a scalar: the damping is relative to the metric alone."""
        return self.tangent.trace()

    @cached_property
    def spread(self) -> float:
        """tr(Ĝ + hH)/tr Ĝ ≥ 1 by random columns on a few samples: how much larger the rows are than those of J."""
        count = min(self.n, _FEW_SAMPLES)
        few = self.subset(torch.arange(count, device=self.device) * self.n // count)
        generator = torch.Generator().manual_seed(0)
        columns = torch.randint(0, 2, (4, self.p), generator=generator).to(self.dtype).to(self.device) * 2 - 1
        sizes = [torch.stack([t.jv(column).square().sum() for column in columns]).sum() for t in (few, few.tangent)]
        rows, plain = torch.stack(sizes).tolist()
        return max(1.0, rows / plain) if plain > 0 and math.isfinite(rows) else 1.0

    def subset(self, index: Tensor) -> ImplicitTangent:
        """The system of some of the samples, index (m,); whole on every process."""
        return ImplicitTangent(self.curvature.subset(index), self.h)

    def to(self, dtype: torch.dtype) -> ImplicitTangent:
        """The same in another precision."""
        return ImplicitTangent(self.curvature.to(dtype), self.h)

    def diagonal(self) -> Tensor:
        """The diagonal of Ĝ, (p,)."""
        return self.tangent.diagonal()

    @property
    def output_share(self) -> float:
        """Share of the parameters that move a single coordinate each; none where slopes have no layers."""
        return self.tangent.output_share if self.layered else 0.0

    def output_blocks(self) -> OutputBlocks:
        """The blocks of Ĝ and H between parameters that move one coordinate each."""
        return self.curvature.output_blocks

    def gram_primal(self) -> Tensor:
        """Ĝ + hH, (p,p)."""
        metric, hessian = self.curvature.gram
        return torch.add(metric, hessian, alpha=self.h)

    def gram_dual(self) -> Tensor:
        """RRᵀ, (n·rows, n·rows): by pairs of layers, then weighted on both sides."""
        if self.group.size > 1:
            return self.subset(torch.arange(self.n, device=self.device)).gram_dual()
        if not self.layered:
            rows = self.dense()
            return rows @ rows.T
        n, d, slopes = self.n, self.tangent.d, self.curvature.slopes
        own = self.tangent.all_layers()
        kernel = row_gram(own, own, d).view(n, d, n * d)
        if slopes is None:
            return self._both_sides(kernel, None)
        bent, wide = slopes.all_layers(), self.curvature.axis.shape[1]
        cross = row_gram(own, bent, d)  # (n·d, n·q·d)
        upper = torch.cat([kernel, cross.view(n, d, n * wide)], 2)
        lower = torch.cat([cross.T.reshape(n, wide, n * d), row_gram(bent, bent, d).view(n, wide, n * wide)], 2)
        return self._both_sides(upper, lower)

    def _both_sides(self, upper: Tensor, lower: Tensor | None) -> Tensor:
        """Weights the rows, then the columns, of the kernel of J and D given in its rows (n,d,·) and (n,q·d,·)."""
        n, d = self.n, self.tangent.d
        half = self._weigh(upper, lower).view(n * self.d, -1).T
        u = half[: n * d].reshape(n, d, -1)
        y = None if lower is None else half[n * d :].reshape(n, -1, half.shape[1])
        return self._weigh(u, y).view(n * self.d, -1).T

    def dense(self) -> Tensor:
        """R itself, (n·rows, p): for tests and small problems."""
        slopes, d, p = self.curvature.slopes, self.tangent.d, self.p
        u = torch.cat(list(self.tangent.rows())).view(-1, d, p)
        y = None if slopes is None else torch.cat(list(slopes.rows())).view(len(u), -1, p)
        return self._weigh(u, y).view(-1, p)


def _root(matrices: Tensor) -> Tensor:
    """Lower L (n,d,d) with LLᵀ the given matrices; away from a CPU it is NaN where there is none, and solvers raise."""
    root, info = torch.linalg.cholesky_ex(matrices)
    if root.device.type != "cpu":
        return torch.where((info == 0).view(-1, 1, 1), root, torch.nan)
    if bool(info.any()):
        raise SolverError("the second variation times the step is beyond rounding: no Cholesky factor of I + h·K")
    return root
