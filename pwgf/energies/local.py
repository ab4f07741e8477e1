"""Local energies E_ρ[g(x, log ρ(x))]: entropy, internal energies, porous medium, and any g given by the user."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import is_real, plain_numbers
from ..errors import ConfigError
from ..measures import Sampled
from ._timed import Timed
from .base import Energy, check_callable, evaluate, shares, slope
from .hessian import Hessian, gradient_of, hessian_of, second_derivatives


class Local(Energy):
    r"""F(ρ) = E_ρ[g(x, ℓ)] with ℓ = log ρ(x).

    The velocity follows from g by automatic differentiation, with partial derivatives at fixed ℓ and fixed x:
    v = −∇ₓ(g + ∂_ℓg) − (∂_ℓg + ∂²_ℓg)·score.

    Args:
        g: (n,d), (n,) → (n,), twice differentiable in ℓ.
        time: whether g depends on time: then it is called as g(t, x, log_rho), t a 0-d tensor.

    Raises:
        ConfigError, ShapeError: g is not callable, or takes other arguments; at the first use: it fails, or
            returns another shape.

    Example:
        >>> from pwgf import energies
        >>> weighted_entropy = energies.Local(lambda x, log_rho: (1 + x.square().sum(-1)) * log_rho)
    """

    weighable = True

    def __init__(self, g: Callable[..., Tensor], time: bool = False) -> None:
        self._function = Timed(g, type(self).__name__, "g", "x, log_rho", time)
        self.g = g
        if time:
            self.time = True

    def _g(self, rho: Sampled, x: Tensor, log_rho: Tensor) -> Tensor:
        return self._function(rho, x.shape[:1], x, log_rho)

    def try_functions(self, rho: Sampled) -> None:
        """g, sample by sample."""
        self._function.try_at(rho, rho.x, rho.log_density)

    def __call__(self, rho: Sampled) -> Tensor:
        """Mean of g over the samples."""
        return shares(rho).mean(self._g(rho, rho.x, rho.log_density))

    def power(self, rho: Sampled) -> Tensor:
        """E ∂ₜg."""
        return self._function.rate(rho, rho.x, rho.log_density) if self.time else super().power(rho)

    def velocity(self, rho: Sampled) -> Tensor:
        """−∇ₓ(g + ∂_ℓg) − (∂_ℓg + ∂²_ℓg)·score, (n,d)."""
        call = self._function.call
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            ell = rho.log_density.detach().requires_grad_(True)
            g = self._g(rho, x, ell)
            g_ell = torch.zeros_like(ell)
            if g.requires_grad:
                got = torch.autograd.grad(g.sum(), ell, create_graph=True, allow_unused=True)[0]
                g_ell = got if got is not None else g_ell
            total = g + g_ell
            by_ell = None
            if total.requires_grad:
                by_ell = torch.autograd.grad(total.sum(), ell, retain_graph=True, allow_unused=True)[0]
            by_x = slope(total, x, call, on_device=True) if by_ell is None else _partial(total, x)
        v = -by_x
        if by_ell is not None:
            v = v - by_ell.detach().unsqueeze(1) * rho.score
        return v.detach()

    def hessian(self, rho: Sampled) -> Hessian:
        """K = ∂²ₓg, a = ∂_ℓg, b = ∂²_ℓg, by automatic differentiation; the cross term ∂ₓ∂_ℓg is omitted."""
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            ell = rho.log_density.detach().requires_grad_(True)
            g = self._g(rho, x, ell)

        def fields() -> dict[str, Tensor | None]:
            a, b = gradient_of(g, ell), None
            if a is not None and a.requires_grad:
                b = torch.autograd.grad(a.sum(), ell, retain_graph=True, allow_unused=True)[0]
            return {
                "point": second_derivatives(g, x),
                "slope": None if a is None else a.detach(),
                "divergence": None if b is None else b.detach(),
            }

        return hessian_of(self.label, shares(rho), fields)


def _partial(total: Tensor, x: Tensor) -> Tensor:
    """∇ₓ at fixed ℓ; zeros when x does not enter."""
    got = torch.autograd.grad(total.sum(), x, allow_unused=True)[0]
    return got if got is not None else torch.zeros_like(x)


class Entropy(Local):
    """F(ρ) = ∫ρ log ρ (the sign of optimal transport), velocity −∇log ρ; its flow is the heat equation.

    Multiply it by the temperature: `0.5 * Entropy()`.
    """

    def __init__(self) -> None:
        super().__init__(_log_density)

    def velocity(self, rho: Sampled) -> Tensor:
        """−score, (n,d)."""
        return -rho.score

    def hessian(self, rho: Sampled) -> Hessian:
        """a = 1: E|∇u|²."""
        return Hessian(slope=torch.ones_like(rho.x[:, 0].detach()))

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure noise, temperature 1."""
        return [], 1.0


def _log_density(x: Tensor, log_rho: Tensor) -> Tensor:
    return log_rho


class InternalEnergy(Local):
    """F(ρ) = ∫U(ρ(x)) dx, velocity −∇U′(ρ) = −U″(ρ)ρ·score.

    Args:
        U: (n,) → (n,), twice differentiable on (0, ∞), e.g. `lambda rho: rho**2`.

    Raises:
        ConfigError, ShapeError: U is not callable; at the first use: it fails, or returns another shape.
    """

    def __init__(self, U: Callable[[Tensor], Tensor]) -> None:
        check_callable(U, "InternalEnergy(U)")
        self.U = U

        def per_mass(x: Tensor, log_rho: Tensor) -> Tensor:
            rho = log_rho.exp()
            return evaluate(self.U, "InternalEnergy: U(rho)", rho.shape, rho, rho) / rho

        super().__init__(per_mass)


class PorousMedium(Local):
    """F(ρ) = ∫ρ^m/(m−1), velocity −m ρ^{m−1}·score; its flow is ∂ₜρ = Δρ^m.

    Args:
        m: exponent > 0, not 1 (m < 1 is fast diffusion, m = 1 the heat equation: use `Entropy`).

    Raises:
        ConfigError: m out of range.
    """

    @plain_numbers
    def __init__(self, m: float) -> None:
        if not (is_real(m) and m > 0) or m == 1:
            raise ConfigError(f"PorousMedium(m) must be positive and not 1 (for m = 1 use Entropy()); got {m!r}.")
        self.m = float(m)
        super().__init__(lambda x, log_rho: torch.exp((self.m - 1) * log_rho) / (self.m - 1))

    def velocity(self, rho: Sampled) -> Tensor:
        """−m ρ^{m−1}·score, (n,d); zero where ρ vanishes."""
        weight = self.m * torch.exp((self.m - 1) * rho.log_density.detach())
        v = -weight.unsqueeze(1) * rho.score
        return torch.where((weight == 0).unsqueeze(1), torch.zeros_like(v), v)

    def hessian(self, rho: Sampled) -> Hessian:
        """a = ρ^{m−1} and b = (m−1)ρ^{m−1}; zero where ρ vanishes."""
        weight = torch.exp((self.m - 1) * rho.log_density.detach())
        return hessian_of(self.label, shares(rho), lambda: {"slope": weight, "divergence": (self.m - 1) * weight})
