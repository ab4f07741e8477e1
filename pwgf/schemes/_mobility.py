"""A mobility M: the flow ∂ₜρ = ∇·(ρM∇δF/δρ), whose velocity is M times that of the energy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import as_float64
from ..energies import Energy, Hessian
from ..energies._matrices import Matrices
from ..energies.base import qualified_name, shares
from ..errors import ConfigError, SolverError, nearest
from ..measures import Cloud, PushedMeasure, Sampled
from ..tangent import Rescaled, Tangent
from ..tangent.rescaled import Root

COVARIANCE = "covariance"

Given = (
    Literal["covariance"]
    | float
    | Sequence[float]
    | Sequence[Sequence[float]]
    | np.ndarray
    | Tensor
    | Callable[[Tensor], Tensor]
    | None
)
"""What a user may give as a mobility, see `Mobility`."""


@dataclass(frozen=True)
class Frame:
    """Coordinates y = R⁻¹x with RRᵀ = M, in which the flow of a mobility M is a plain one.

    Forces f = −∇δF/δρ become Rᵀf, which is the velocity R⁻¹Mf as well; lengths |u|_{M⁻¹} become plain ones.

    Args:
        root: R, lower triangular: (d,d), or (n,d,d) where M differs between samples; None: the identity.
        rescaled: the map with R⁻¹J for its tangent; None where there is no map.
        in_spreads: whether displacements are measured in y, as where M is the covariance of ρ, or in x.
    """

    root: Tensor | None = None
    rescaled: Rescaled | None = None
    in_spreads: bool = False

    def inside(self, u: Tensor) -> Tensor:
        """R⁻¹u of displacements or velocities u (n,d)."""
        if self.root is None:
            return u
        return torch.linalg.solve_triangular(self.root.to(u), u.unsqueeze(2), upper=False).squeeze(2)

    def outside(self, y: Tensor) -> Tensor:
        """R y (n,d)."""
        return y if self.root is None else (self.root.to(y) @ y.unsqueeze(2)).squeeze(2)

    def pull(self, force: Tensor) -> Tensor:
        """Rᵀf (n,d)."""
        return force if self.root is None else (self.root.to(force).mT @ force.unsqueeze(2)).squeeze(2)

    def velocity(self, force: Tensor) -> Tensor:
        """M f (n,d)."""
        return self.outside(self.pull(force))

    def measured(self, u: Tensor) -> Tensor:
        """Displacements u (n,d) in the units of the tolerance."""
        return self.inside(u) if self.in_spreads else u

    def form(self, form: Hessian) -> Hessian:
        """A quadratic form in u as one in R⁻¹u; its slopes are those of u where R differs between samples."""
        if self.root is None:
            return form

        def pulled(matrices: Tensor | None) -> Tensor | None:
            return None if matrices is None else self.root.to(matrices).mT @ matrices @ self.root.to(matrices)  # type: ignore[union-attr]

        return replace(form, point=pulled(form.point), centred=pulled(form.centred))

    def slopes(self, inverse: Tensor) -> Tensor:
        """(∂_zT)⁻¹ (n,d,d) times R, where that is one for all samples."""
        return inverse if self.root is None or self.root.ndim == 3 else inverse @ self.root.to(inverse)

    def tangent(self, plain: Tangent) -> Tangent:
        """R⁻¹J."""
        if self.rescaled is None:
            return plain
        return Tangent(self.rescaled, plain.theta, plain._every_z, plain.chunk_size, plain.group)

    def rates(self, zeta: Tensor) -> Tensor:
        """θ̇ (p,) from the coordinates in which `tangent` is solved."""
        return zeta if self.rescaled is None else self.rescaled.rates(zeta)

    def coordinates(self, eta: Tensor) -> Tensor:
        """Those coordinates of θ̇ (p,)."""
        return eta if self.rescaled is None else self.rescaled.coordinates(eta)

    def uniform(self) -> Frame:
        """That of the mean of M over the samples, with one R for all."""
        if self.root is None or self.root.ndim == 2:
            return self
        return replace(self, root=torch.linalg.cholesky((self.root @ self.root.mT).mean(0)), rescaled=None)


class Mobility:
    """M as a user gives it.

    Args:
        given: None, the identity; "covariance", that of ρ; a number > 0, a diagonal (d,), a matrix (d,d), or a function
            of x (n,d) that gives (n,), (n,d) or (n,d,d), positive definite.
        energy: F, whose terms must have one.
        call: what messages name.

    Raises:
        ConfigError, ShapeError: none of these, or an energy with terms that M does not apply to.
    """

    def __init__(self, given: Given, energy: Energy | None, call: str) -> None:
        self.given = given
        self.covariance = isinstance(given, str)
        if isinstance(given, str) and given != COVARIANCE:
            raise ConfigError(
                f"{call}(mobility={given!r}) must be 'covariance', a number, a matrix, or a function of x."
                f"{nearest(given, [COVARIANCE])}"
            )
        if callable(given):
            _check_function(given, call)
        self._matrices = None if given is None or self.covariance else Matrices(given, call, "mobility", definite=True)
        for name, _, part in energy.terms() if energy is not None and given is not None else ():
            if not part.has_value:
                raise ConfigError(
                    f"{call}(mobility=…) multiplies −∇δF/δρ, and the term '{name}' of the energy is a velocity without "
                    "a value F. Multiply its function yourself, and leave mobility out: Drift(M·b), Diffusion(M·D)."
                )

    @property
    def argument(self) -> str:
        """Its name where there is one, else ""."""
        return "" if self.given is None else "mobility"

    def check_samples(self, dim: int, call: str, **counts: int) -> None:
        """ConfigError where so few samples have a singular covariance."""
        for name, count in counts.items():
            if self.covariance and count <= dim:
                raise ConfigError(
                    f"{call}(mobility='covariance') needs the covariance of {name} samples, which is singular for "
                    f"{count} of them in dimension {dim}. Give {name} of {10 * dim} or more."
                )

    def try_function(self, rho: Sampled) -> None:
        """A function of the user at the samples: shape, one sample at a time, positive definite."""
        if self._matrices is not None:
            self._matrices.try_at(rho)

    def frame(self, rho: Sampled, known: Frame | None = None) -> Frame:
        """R at the samples of ρ; the known one where M does not differ between samples.

        Raises:
            SolverError: the covariance is singular.
            ConfigError: M is not positive definite at a sample.
        """
        if self.given is None or (known is not None and self._function is None):
            return known or Frame()
        x, matrices = rho.x.detach(), self._matrices
        root = covariance_root(x, rho) if matrices is None else self._root(matrices, rho, x)
        if not isinstance(rho, PushedMeasure):
            return Frame(root, None, self.covariance)
        at: Root = root
        if matrices is not None and matrices.function is not None:
            at = functools.partial(self._at, matrices)
        return Frame(root, Rescaled(rho.map, at), self.covariance)

    def _at(self, matrices: Matrices, x: Tensor) -> Tensor:
        return self._root(matrices, Cloud(x), x)

    @property
    def _function(self) -> object:
        return None if self._matrices is None else self._matrices.function

    def _root(self, matrices: Matrices, rho: Sampled, x: Tensor) -> Tensor:
        """R of a constant (d,d), or of a function at x, (n,d,d)."""
        values = matrices.values(rho, x).detach()
        values = values if self._function is not None else values[:1]
        if values.ndim == 1:
            values = values.unsqueeze(1).expand(-1, x.shape[1])
        root, info = torch.linalg.cholesky_ex(torch.diag_embed(values) if values.ndim == 2 else values)
        if bool(info.any()):
            matrices.check(values, x)
        return root if self._function is not None else root[0]

    def spurious(self, rho: Cloud) -> Tensor:
        """The drift (n,d), for temperature 1, that particles with noise √(2M) need beside M f.

        It is ∇·M for an M(x). For the covariance of n particles, which moves with each of them, it is (d + 1)(x − m)/n.
        """
        n, d = rho.x.shape
        if self.covariance:
            return (d + 1) / n * (rho.x - rho.x.mean(0))
        return torch.zeros_like(rho.x) if self._matrices is None else self._matrices.divergence(rho).detach()

    def to_config(self) -> dict[str, Any]:
        """An entry of a scheme's settings; none for the identity."""
        if self.given is None or isinstance(self.given, str):
            return {} if self.given is None else {"mobility": self.given}
        if callable(self.given) and not isinstance(self.given, Tensor):
            return {"mobility": qualified_name(self.given)}
        return {"mobility": as_float64(self.given, "mobility").tolist()}


NO_MOBILITY = Mobility(None, None, "")


def _check_function(given: Callable[..., Any], call: str) -> None:
    """ConfigError for a function that needs more than x."""
    try:
        inspect.signature(given).bind(None)
    except TypeError as error:
        raise ConfigError(
            f"{call}(mobility=…) must be a function of x (n,d) alone; got one that cannot be called so ({error}). "
            "Of mobilities that depend on the law only its covariance is covered: mobility='covariance'."
        ) from error
    except ValueError:  # a builtin without a signature
        return


def covariance_root(x: Tensor, rho: Sampled) -> Tensor:
    """R (d,d) with RRᵀ the covariance of x (n,d), samples that are shared out as those of ρ.

    Raises:
        SolverError: it is singular.
    """
    share = shares(rho)
    apart = (x - share.mean(x)).double()
    weighted = apart if share.weights is None else share.weights.unsqueeze(1) * apart
    covariance = share.group.sum(weighted.T @ apart) / share.num_samples
    root, info = torch.linalg.cholesky_ex(share.group.from_first(covariance))
    if int(info):
        raise SolverError(
            "mobility='covariance': the covariance of the samples is singular. Causes: (a) fewer samples than "
            "dimensions: raise num_samples; (b) the law has collapsed to a plane, which no entropy prevents: add one, "
            "or leave mobility out."
        )
    return root
