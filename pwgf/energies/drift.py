"""A drift b(x) that need not be a gradient: a velocity without an energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..measures import Sampled
from ._timed import Timed
from .base import Energy, shares
from .hessian import Hessian, hessian_of, jacobian_of


class Drift(Energy):
    r"""The velocity v = b(x), so that ∂ₜρ = −∇·(ρb); with `Diffusion` the Fokker–Planck equation.

    It has no energy: its value is 0, and the energy of a sum is that of the other terms, which then need not fall.

    Args:
        b: (n,d) → (n,d); differentiable where implicit steps are to see it.
        time: whether b depends on time: then it is called as b(t, x), t a 0-d tensor.

    Raises:
        ConfigError, ShapeError: b is not callable, or takes other arguments; at the first use: it fails, or returns
            another shape.

    Example:
        >>> import torch
        >>> from pwgf import energies
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> rotating = energies.Drift(lambda x: x @ turn.T - x) + 0.5 * energies.Entropy()
        >>> [term.name for term in rotating.terms()]
        ['drift', 'entropy']
    """

    weighable = True

    has_value = False

    def __init__(self, b: Callable[..., Tensor], time: bool = False) -> None:
        self._function = Timed(b, "Drift", "b", "x", time)
        self.b = b
        if time:
            self.time = True

    def try_functions(self, rho: Sampled) -> None:
        """b, sample by sample."""
        self._function.try_at(rho, rho.x, of_each=rho.x.shape[1:])

    def __call__(self, rho: Sampled) -> Tensor:
        """0."""
        return rho.x.new_zeros(())

    def velocity(self, rho: Sampled) -> Tensor:
        """b(x), (n,d)."""
        x = rho.x.detach()
        return self._function(rho, x.shape, x).detach()

    def hessian(self, rho: Sampled) -> Hessian:
        """K = −½(∂b + ∂bᵀ), which is ∇²V for b = −∇V, by d backward passes; the part that turns is explicit."""
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            b = self._function(rho, x.shape, x)

        def fields() -> dict[str, Tensor]:
            by_x = jacobian_of(b, x)
            return {"point": -0.5 * (by_x + by_x.mT)}

        return hessian_of(self.label, shares(rho), fields)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Pure drift."""
        return [(1.0, self)], 0.0
