"""The second variation of an energy along displacements of the samples, as a quadratic form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain
from ..errors import ConfigError
from ..parallel import Shared

_JITTER = 8.0  # units of d·ε·max|diagonal|: below it a negative eigenvalue is rounding
_CUT = 1e-3  # relative size of a gradient that may lie outside the graph


@dataclass(frozen=True, eq=False)
class Hessian:
    r"""The second variation of F along a displacement u of the samples, x → x + u(x), as the quadratic form

    Q(u) = E[u·K u + (u−ū)·C (u−ū) + a|∇u|² + b(∇·u)²], ū = E u.

    For F = E g(x, ℓ), ℓ = log ρ, the second derivative of F((id + su)#ρ) at s = 0 is
    E[u·g_xx u − 2(u·g_xℓ)∇·u + g_ℓℓ(∇·u)² + g_ℓ tr((∇u)²)]. The form writes tr((∇u)²) as |∇u|², which is equal for
    gradient fields, and omits the cross term g_xℓ; an integrator that uses it as an approximation of the Jacobian
    (a W-method) keeps its order. It is signed: sums and multiples of energies add and scale their forms, and only
    `majorant` removes negative parts. Tensors are detached and have the dtype and device of the samples.

    Args:
        point: K (n,d,d), symmetric.
        centred: C (n,d,d), symmetric; for energies that depend only on differences of displacements.
        slope: a (n,).
        divergence: b (n,).
        explicit: names of the terms whose second variation is unknown, at all or some samples, and is taken as zero.

    Example:
        >>> import torch
        >>> from pwgf.energies import Hessian
        >>> form = 2.0 * Hessian(slope=torch.tensor([1.0, 3.0])) + Hessian(explicit=("functional",))
        >>> form.slope, form.explicit
        (tensor([2., 6.]), ('functional',))
    """

    point: Tensor | None = None
    centred: Tensor | None = None
    slope: Tensor | None = None
    divergence: Tensor | None = None
    explicit: tuple[str, ...] = ()
    __array_ufunc__: ClassVar[None] = None  # NumPy's scalars leave their products to `__rmul__`

    def __call__(self, u: Tensor, grad_u: Tensor) -> Tensor:
        """Q(u), scalar, with E the mean over these samples.

        Args:
            u: (n,d) displacements.
            grad_u: (n,d,d), grad_u[i,a,b] = ∂_b u_a.
        """
        value = u.new_zeros(())
        if self.point is not None:
            value = value + _quadratic(self.point, u)
        if self.centred is not None:
            value = value + _quadratic(self.centred, u - u.mean(0))
        if self.slope is not None:
            value = value + (self.slope * grad_u.square().sum((1, 2))).mean()
        if self.divergence is not None:
            divergence = grad_u.diagonal(dim1=1, dim2=2).sum(1)
            value = value + (self.divergence * divergence.square()).mean()
        return value

    def __add__(self, other: Hessian) -> Hessian:
        if not isinstance(other, Hessian):
            return NotImplemented
        return Hessian(
            _sum(self.point, other.point),
            _sum(self.centred, other.centred),
            _sum(self.slope, other.slope),
            _sum(self.divergence, other.divergence),
            self.explicit + other.explicit,
        )

    def __mul__(self, factor: float) -> Hessian:
        factor = plain(factor)
        if not isinstance(factor, (int, float)):
            return NotImplemented

        def scaled(field: Tensor | None) -> Tensor | None:
            return None if field is None else factor * field

        return Hessian(
            scaled(self.point), scaled(self.centred), scaled(self.slope), scaled(self.divergence), self.explicit
        )

    __rmul__ = __mul__

    def majorant(self) -> Hessian:
        """The smallest form of this kind, sample by sample, that is positive semidefinite and at least this one.

        Negative eigenvalues of K and C and negative a and b become 0. Cost: n Cholesky factorisations d×d, and an
        eigendecomposition for each sample where that fails; O(nd²) where the matrices are diagonal.
        """
        return Hessian(
            None if self.point is None else _positive(self.point),
            None if self.centred is None else _positive(self.centred),
            None if self.slope is None else self.slope.clamp(min=0),
            None if self.divergence is None else self.divergence.clamp(min=0),
            self.explicit,
        )


def _quadratic(matrices: Tensor, u: Tensor) -> Tensor:
    """E[u·M u], scalar."""
    return torch.einsum("na,nab,nb->n", u, matrices, u).mean()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _positive(matrices: Tensor) -> Tensor:
    """The positive semidefinite parts of (n,d,d) matrices, symmetrised first."""
    symmetric = (matrices + matrices.mT) / 2
    diagonal = symmetric.diagonal(dim1=1, dim2=2)
    if symmetric.count_nonzero() == diagonal.count_nonzero():
        return torch.diag_embed(diagonal.clamp(min=0))
    limits = torch.finfo(symmetric.dtype)
    jitter = _JITTER * symmetric.shape[1] * limits.eps * diagonal.abs().amax(1) + limits.tiny
    shifted = symmetric + torch.diag_embed(jitter.unsqueeze(1).expand_as(diagonal))
    failed = torch.linalg.cholesky_ex(shifted).info.nonzero()[:, 0]
    if len(failed):
        values, vectors = torch.linalg.eigh(symmetric[failed])
        symmetric[failed] = (vectors * values.clamp(min=0).unsqueeze(1)) @ vectors.mT
    return symmetric


def gradient_of(value: Tensor, leaf: Tensor) -> Tensor | None:
    """∂Σvalue/∂leaf, in the shape of leaf and with its graph; None where value does not depend on leaf.

    The gradient is linear in the weights c of the entries of value: c·∂_c(gradient) = gradient. Where this fails, a
    function has computed its gradient outside the graph (with NumPy, or marked `once_differentiable`), and autograd
    would take the second derivative to be zero.

    Raises:
        ConfigError: a part of the gradient lies outside the graph.
    """
    if not value.requires_grad:
        return None
    weights = torch.ones_like(value.detach()).requires_grad_(True)
    gradient = torch.autograd.grad(value, leaf, weights, create_graph=True, allow_unused=True)[0]
    if gradient is None:
        return None
    known = gradient.detach()
    signs = torch.where(torch.isfinite(known), known.sign(), 0.0)
    by_weight = None
    if gradient.requires_grad:
        by_weight = torch.autograd.grad(gradient, weights, signs, retain_graph=True, allow_unused=True)[0]
    size = (signs * known).nansum()
    seen = torch.zeros_like(size) if by_weight is None else torch.where(by_weight.isfinite(), by_weight, 0.0).sum()
    if bool((seen - size).abs() > _CUT * size):
        raise ConfigError("a function inside cannot be differentiated twice.")
    return gradient


def second_derivatives(value: Tensor, leaf: Tensor) -> Tensor | None:
    """∂²value/∂leaf² sample by sample, (…,d,d), by d backward passes; None where value is linear in leaf.

    Args:
        value: (…,), each entry a function of the same row of leaf; its graph is kept.
        leaf: (…,d).

    Raises:
        RuntimeError, ConfigError: a function inside value cannot be differentiated twice.
    """
    gradient = gradient_of(value, leaf)
    if gradient is None or not gradient.requires_grad:
        return None
    rows = [
        torch.autograd.grad(component.sum(), leaf, retain_graph=True, allow_unused=True)[0]
        for component in gradient.unbind(-1)
    ]
    if all(row is None for row in rows):
        return None
    return torch.stack([torch.zeros_like(leaf) if row is None else row for row in rows], -2).detach()


def jacobian_of(values: Tensor, leaf: Tensor) -> Tensor:
    """∂values/∂leaf sample by sample, (n,k,d) for values (n,k), by k backward passes; its graph is kept."""
    rows = [
        torch.autograd.grad(column.sum(), leaf, retain_graph=True, allow_unused=True)[0]
        if column.requires_grad
        else None
        for column in values.unbind(1)
    ]
    return torch.stack([torch.zeros_like(leaf) if row is None else row for row in rows], 1)


def hessian_of(label: str, share: Shared, fields: Callable[[], Mapping[str, Tensor | None]]) -> Hessian:
    """The Hessian with these fields; if they cannot be computed, an empty one that names the term as explicit.

    Args:
        label: name of the term.
        share: which samples this process holds.
        fields: computes fields of `Hessian` by name. Entries that are not finite are set to 0, and reported in
            `explicit` with the number of samples concerned.
    """
    try:
        with torch.enable_grad():  # also when called under no_grad
            found: dict[str, Any] = {name: field for name, field in fields().items() if field is not None}
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ConfigError):
        return Hessian(explicit=(label,))
    missing = {name: ~torch.isfinite(field).reshape(len(field), -1).all(1) for name, field in found.items()}
    bad = torch.stack(list(missing.values())).any(0) if missing else torch.zeros(1, dtype=torch.bool)
    count = int(share.group.sum(bad.sum().to(share.group.device)))
    if count:
        for name, field in found.items():
            found[name] = torch.where(missing[name].reshape(-1, *[1] * (field.ndim - 1)), 0.0, field)
    reported = (f"{label} (not finite at {count} of {share.num_samples} samples)",) if count else ()
    return replace(Hessian(explicit=reported), **found)
