"""Potential energy ∫V dρ, and the Kullback–Leibler divergence to an unnormalised density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import check_each_sample
from ..measures import Sampled
from .base import Energy, check_callable, check_slope, evaluate, shares, slope
from .hessian import Hessian, hessian_of, second_derivatives


class Potential(Energy):
    """F(ρ) = ∫V dρ, velocity −∇V.

    Args:
        V: (n,d) → (n,), differentiable torch function.

    Raises:
        ConfigError: V is not callable; at the first use: V fails or is not differentiable.
        ShapeError: at the first use: V returns anything but a tensor of shape (n,).

    Example:
        >>> from pwgf import energies
        >>> energy = energies.Potential(lambda x: 0.5 * x.square().sum(-1)) + energies.Entropy()
        >>> [term.name for term in energy.terms()]
        ['potential', 'entropy']
    """

    def __init__(self, V: Callable[[Tensor], Tensor]) -> None:
        check_callable(V, "Potential(V)")
        self.V = V

    def _at(self, x: Tensor) -> Tensor:
        return evaluate(self.V, "Potential: V(x)", x.shape[:1], x, x)

    def try_functions(self, rho: Sampled) -> None:
        """V, sample by sample."""
        check_each_sample(self._at, [rho.x.detach()], "Potential: V(x)")
        check_slope(self._at, rho.x, "Potential: V(x)")

    def __call__(self, rho: Sampled) -> Tensor:
        """Mean of V over the samples."""
        return shares(rho).mean(self._at(rho.x))

    def velocity(self, rho: Sampled) -> Tensor:
        """−∇V(x), (n,d)."""
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            return -slope(self._at(x), x, "Potential: V(x)")

    def hessian(self, rho: Sampled) -> Hessian:
        """K = ∇²V(x), by d backward passes."""
        return _curvature(self.label, self._at, rho)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0


class KL(Energy):
    """F(ρ) = ∫ρ log(ρ/π), velocity ∇log π − ∇log ρ; for an unnormalised π up to the constant log Z.

    Args:
        log_target: log π, (n,d) → (n,), differentiable.

    Raises:
        ConfigError, ShapeError: as `Potential`.
    """

    def __init__(self, log_target: Callable[[Tensor], Tensor]) -> None:
        check_callable(log_target, "KL(log_target)")
        self.log_target = log_target

    def _at(self, x: Tensor) -> Tensor:
        return evaluate(self.log_target, "KL: log_target(x)", x.shape[:1], x, x)

    def try_functions(self, rho: Sampled) -> None:
        """log π, sample by sample."""
        check_each_sample(self._at, [rho.x.detach()], "KL: log_target(x)")
        check_slope(self._at, rho.x, "KL: log_target(x)")

    def __call__(self, rho: Sampled) -> Tensor:
        """Mean of log ρ − log π over the samples."""
        return shares(rho).mean(rho.log_density - self._at(rho.x))

    def velocity(self, rho: Sampled) -> Tensor:
        """∇log π(x) − score, (n,d)."""
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            return slope(self._at(x), x, "KL: log_target(x)") - rho.score

    def hessian(self, rho: Sampled) -> Hessian:
        """K = −∇² log π(x), by d backward passes, and a = 1 from the entropy."""
        target = _curvature(self.label, self._at, rho)
        return replace(-1.0 * target, slope=torch.ones_like(rho.x[:, 0].detach()))

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Langevin dynamics at temperature 1."""
        return [(1.0, Potential(lambda x: -self.log_target(x)))], 1.0


def _curvature(label: str, f: Callable[[Tensor], Tensor], rho: Sampled) -> Hessian:
    """K = ∇²f at the samples; zero where f is linear."""
    with torch.enable_grad():
        x = rho.x.detach().requires_grad_(True)
        value = f(x)

    def fields() -> dict[str, Tensor]:
        found = second_derivatives(value, x)
        return {"point": x.new_zeros(*x.shape, x.shape[1]) if found is None else found}

    return hessian_of(label, shares(rho), fields)
