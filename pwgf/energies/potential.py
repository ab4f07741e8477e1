"""Potential energy ∫V dρ, and the Kullback–Leibler divergence to an unnormalised density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..measures import Sampled
from ._timed import Timed
from .base import Energy, check_slope, shares, slope
from .hessian import Hessian, hessian_of, second_derivatives


class Potential(Energy):
    """F(ρ) = ∫V dρ, velocity −∇V.

    Args:
        V: (n,d) → (n,), differentiable torch function.
        time: whether V depends on time: then it is called as V(t, x), t a 0-d tensor.

    Raises:
        ConfigError: V is not callable, or takes other arguments; at the first use: V fails or is not differentiable.
        ShapeError: at the first use: V returns anything but a tensor of shape (n,).

    Example:
        >>> from pwgf import energies
        >>> energy = energies.Potential(lambda x: 0.5 * x.square().sum(-1)) + energies.Entropy()
        >>> [term.name for term in energy.terms()]
        ['potential', 'entropy']
        >>> dragged = energies.Potential(lambda t, x: (x - t).square().sum(-1) / 2, time=True)
    """

    weighable = True

    def __init__(self, V: Callable[..., Tensor], time: bool = False) -> None:
        self._function = Timed(V, "Potential", "V", "x", time)
        self.V = V
        if time:
            self.time = True

    def try_functions(self, rho: Sampled) -> None:
        """V, sample by sample."""
        _try(self._function, rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """Mean of V over the samples."""
        return shares(rho).mean(self._function(rho, rho.x.shape[:1], rho.x))

    def power(self, rho: Sampled) -> Tensor:
        """E ∂ₜV."""
        return self._function.rate(rho, rho.x) if self.time else super().power(rho)

    def velocity(self, rho: Sampled) -> Tensor:
        """−∇V(x), (n,d)."""
        return -_gradient(self._function, rho)

    def hessian(self, rho: Sampled) -> Hessian:
        """K = ∇²V(x), by d backward passes."""
        return _curvature(self.label, self._function, rho)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0


class KL(Energy):
    """F(ρ) = ∫ρ log(ρ/π), velocity ∇log π − ∇log ρ; for an unnormalised π up to the constant log Z.

    Args:
        log_target: log π, (n,d) → (n,), differentiable.
        time: whether π depends on time: then it is called as log_target(t, x), t a 0-d tensor.

    Raises:
        ConfigError, ShapeError: as `Potential`.
    """

    weighable = True

    def __init__(self, log_target: Callable[..., Tensor], time: bool = False) -> None:
        self._function = Timed(log_target, "KL", "log_target", "x", time)
        self.log_target = log_target
        if time:
            self.time = True

    def try_functions(self, rho: Sampled) -> None:
        """log π, sample by sample."""
        _try(self._function, rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """Mean of log ρ − log π over the samples."""
        return shares(rho).mean(rho.log_density - self._function(rho, rho.x.shape[:1], rho.x))

    def power(self, rho: Sampled) -> Tensor:
        """−E ∂ₜ log π."""
        return -self._function.rate(rho, rho.x) if self.time else super().power(rho)

    def velocity(self, rho: Sampled) -> Tensor:
        """∇log π(x) − score, (n,d)."""
        return _gradient(self._function, rho) - rho.score

    def hessian(self, rho: Sampled) -> Hessian:
        """K = −∇² log π(x), by d backward passes, and a = 1 from the entropy."""
        target = _curvature(self.label, self._function, rho)
        return replace(-1.0 * target, slope=torch.ones_like(rho.x[:, 0].detach()))

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Langevin dynamics at temperature 1."""
        f = self.log_target
        if self.time:
            return [(1.0, Potential(lambda t, x: -f(t, x), time=True))], 1.0
        return [(1.0, Potential(lambda x: -f(x)))], 1.0


def _try(f: Timed, rho: Sampled) -> None:
    """f, sample by sample, and whether it can be differentiated."""
    f.try_at(rho, rho.x)
    check_slope(lambda x: f(rho, x.shape[:1], x), rho.x, f.call)


def _gradient(f: Timed, rho: Sampled) -> Tensor:
    """∇f at the samples, (n,d)."""
    with torch.enable_grad():
        x = rho.x.detach().requires_grad_(True)
        return slope(f(rho, x.shape[:1], x), x, f.call)


def _curvature(label: str, f: Timed, rho: Sampled) -> Hessian:
    """K = ∇²f at the samples; zero where f is linear."""
    with torch.enable_grad():
        x = rho.x.detach().requires_grad_(True)
        value = f(rho, x.shape[:1], x)

    def fields() -> dict[str, Tensor]:
        found = second_derivatives(value, x)
        return {"point": x.new_zeros(*x.shape, x.shape[1]) if found is None else found}

    return hessian_of(label, shares(rho), fields)
