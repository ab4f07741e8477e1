"""Any functional of the samples and their log-densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..checks import private
from ..errors import ConfigError
from ..measures import Sampled
from .base import Energy, check_callable, check_gradient, evaluate, shares


class _Samples:
    """The part of a measure that a user's functional sees: copies of x (n,d) and log_density (n,) only."""

    def __init__(self, x: Callable[[], Tensor], log_density: Callable[[], Tensor]) -> None:
        self._x = x
        self._log_density = log_density

    @cached_property
    def x(self) -> Tensor:
        """Samples (n,d)."""
        return private(self._x())

    @cached_property
    def log_density(self) -> Tensor:
        """log ρ(x), (n,)."""
        return private(self._log_density())

    @property
    def score(self) -> Tensor:
        raise ConfigError(
            "Functional(F): F must not read rho.score: the velocity of such an F needs higher derivatives of the "
            "density. Write F with rho.x and rho.log_density."
        )


class Functional(Energy):
    r"""F(ρ) = F(rho), a scalar made of `rho.x` (n,d) and `rho.log_density` (n,).

    With x and ℓ = log ρ as independent leaves and φ_i = n ∂F/∂ℓ_i, the velocity is
    v_i = −n ∂F/∂x_i − ∂ₓφ_i − (φ_i + ∂_ℓφ_i)·score_i; it is exact when F is a mean of local terms plus any function
    of x.

    Args:
        F: takes an object with `x` and `log_density`, returns a scalar tensor.

    Raises:
        ConfigError: F is not callable, reads the score, or fails.
        ShapeError: F returns no scalar tensor.
    """

    pairwise = True

    def __init__(self, F: Callable[[_Samples], Tensor]) -> None:
        check_callable(F, "Functional(F)")
        self.F = F

    def try_functions(self, rho: Sampled) -> None:
        """F twice, and its gradient in the samples."""
        super().try_functions(rho)
        every, call = shares(rho).gather, "Functional: F(rho)"

        def value(x: Tensor) -> Tensor:
            views = [_Samples(lambda row=row: row, lambda: every(rho.log_density).detach()) for row in x]  # type: ignore[misc]
            return torch.stack([evaluate(self.F, call, torch.Size(()), x, view) for view in views])

        check_gradient(value, every(rho.x.detach()).expand(3, -1, -1), call)  # along three directions

    def __call__(self, rho: Sampled) -> Tensor:
        """F on the samples."""
        every = shares(rho).gather
        view = _Samples(lambda: every(rho.x), lambda: every(rho.log_density))
        return evaluate(self.F, "Functional: F(rho)", torch.Size(()), rho.x, view)

    def velocity(self, rho: Sampled) -> Tensor:
        """−n ∂F/∂x_i − ∂ₓφ_i − (φ_i + ∂_ℓφ_i)·score_i, (n,d)."""
        share, leaves = shares(rho), dict[str, Tensor]()  # F sees all samples; v is that of this process's own
        n, own = share.num_samples, share.own

        def log_density() -> Tensor:
            if "ell" not in leaves:  # the density is computed only when F reads it
                leaves["ell"] = share.gather(rho.log_density.detach()).requires_grad_(True)
            return leaves["ell"]

        with torch.enable_grad():
            x = share.gather(rho.x.detach()).requires_grad_(True)
            value = evaluate(self.F, "Functional: F(rho)", torch.Size(()), x, _Samples(lambda: x, log_density))
            if not value.requires_grad:
                self._check_constant(float(value), x.detach(), leaves)
                return torch.zeros_like(rho.x)
            by_x = _grad(value, x, create_graph="ell" in leaves)
            v = -n * by_x.detach()[own]
            if "ell" in leaves:
                ell = leaves["ell"]
                phi = n * _grad(value, ell, create_graph=True)
                by_ell = phi
                if phi.requires_grad:
                    v = v - _grad(phi, x, create_graph=True).detach()[own]
                    by_ell = phi + _grad(phi, ell, create_graph=False)
                v = v - by_ell.detach()[own].unsqueeze(1) * rho.score
        return v

    def _check_constant(self, value: float, x: Tensor, leaves: dict[str, Tensor]) -> None:
        """Raises ConfigError when an F without gradient still varies with the samples."""
        ell = leaves["ell"].detach() if "ell" in leaves else None
        moved = _Samples(lambda: 1.5 * x + 1, lambda: x.new_zeros(len(x)) if ell is None else 1.5 * ell + 1)
        other = float(evaluate(self.F, "Functional: F(rho)", torch.Size(()), x, moved))
        if other != value and not math.isnan(value):
            raise ConfigError(
                f"Functional: F(rho) varies with the samples (from {value:.6g} to {other:.6g}) but has no gradient: it "
                "is not differentiable as written. Use torch operations throughout; no .detach(), .item() or .numpy()."
            )


def _grad(y: Tensor, leaf: Tensor, *, create_graph: bool) -> Tensor:
    got = torch.autograd.grad(y.sum(), leaf, create_graph=create_graph, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(leaf) if got is None else got
