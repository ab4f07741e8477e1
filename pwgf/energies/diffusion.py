"""Diffusion by a matrix D that may vary in space and time, or be singular."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import as_float64
from ..errors import ConfigError, nearest
from ..measures import Sampled
from ._matrices import Matrices, times
from .base import Energy, shares
from .hessian import Hessian, hessian_of

FORMS = ("divergence", "ito")


class Diffusion(Energy):
    r"""∂ₜρ = ∇·(D∇ρ), velocity −D∇log ρ; in Itô's form ∂ₜρ = ∂ᵢ∂ⱼ(Dᵢⱼρ), velocity −D∇log ρ − ∇·D.

    `Diffusion(τ)` for a number τ is `τ * Entropy()`. Any other has no energy: its value is 0, and the energy of a sum
    is that of the other terms, which then need not fall. D may be singular, as in underdamped Langevin dynamics, where
    noise acts on velocities alone. Particles follow dX = b dt + √(2D) dW, in the divergence form with ∇·D in b.

    Args:
        D: ≥ 0: a number, (d,) a diagonal, (d,d) a symmetric matrix; or a function of x (n,d) that gives (n,), (n,d) or
            (n,d,d).
        form: "divergence" or "ito"; the same for a constant D. Itô's form differentiates D.
        time: whether D depends on time: then it is called as D(t, x), t a 0-d tensor.

    Raises:
        ConfigError, ShapeError: D is not symmetric and positive semidefinite, not a number, tensor or function, or of
            another dimension; a function of it fails, at the first use.

    Example:
        >>> import torch
        >>> from pwgf import energies
        >>> kinetic = energies.Diffusion([0.0, 0.5])  # on the velocity v of a state (q, v)
        >>> hot_outside = energies.Diffusion(lambda x: 1 + x.square().sum(-1), form="ito")

    References:
        H. Risken, The Fokker–Planck equation, 1989, chapter 4.
    """

    weighable = True

    def __init__(self, D: Any, form: str = "divergence", time: bool = False) -> None:
        if form not in FORMS:
            raise ConfigError(
                f"Diffusion(form=…) must be 'divergence' or 'ito'; got {form!r}.{nearest(str(form), FORMS)}"
            )
        self.D, self.form = D, form
        self._matrices = Matrices(D, "Diffusion", "D", time)
        constant = self._matrices.function is None
        self.has_value = constant and self._matrices.constant.ndim == 0
        if not constant and time:
            self.time = True

    def try_functions(self, rho: Sampled) -> None:
        """D, sample by sample: whether it is symmetric and positive semidefinite."""
        self._matrices.try_at(rho)
        if self.form == "ito":
            self._matrices.divergence(rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """D E[log ρ] for a number D, else 0."""
        if not self.has_value:
            return rho.x.new_zeros(())
        return float(self.D) * shares(rho).mean(rho.log_density)

    def velocity(self, rho: Sampled) -> Tensor:
        """−D·score, less ∇·D in Itô's form; (n,d)."""
        v = -times(self._matrices.values(rho, rho.x.detach()).detach(), rho.score)
        return v - self._matrices.divergence(rho) if self.form == "ito" else v

    def root(self, rho: Sampled) -> Tensor:
        """√D at the samples, (n,), (n,d) or (n,d,d); ConfigError where D is not positive semidefinite."""
        return self._matrices.root(rho)

    def noise(self, rho: Sampled, gauss: Tensor) -> Tensor:
        """√D·ξ at the samples for normal ξ (n,d), (n,d)."""
        return times(self.root(rho), gauss)

    def hessian(self, rho: Sampled) -> Hessian:
        """a = the largest eigenvalue of D: E a|∇u|² is a bound on the second variation E tr(D(∇u)²)."""
        x = rho.x.detach()

        def fields() -> dict[str, Tensor]:
            values = self._matrices.values(rho, x).detach()
            if values.ndim == 3:
                values = torch.linalg.eigvalsh(values[:1] if self._matrices.function is None else values)
            return {"slope": (values.amax(1) if values.ndim > 1 else values).expand(len(x)).clone()}

        return hessian_of(self.label, shares(rho), fields)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """A temperature for a number D; else the drift that the divergence form adds to noise √(2D)."""
        if self.has_value:
            return [], float(self.D)
        if self.form == "ito" or self._matrices.function is None:
            return [], 0.0
        return [(1.0, _DivergenceOf(self))], 0.0

    def noises(self) -> list[tuple[float, Diffusion]]:
        """Itself, unless it is a temperature."""
        return [] if self.has_value else [(1.0, self)]

    def to_config(self) -> dict[str, Any]:
        """JSON that names D, or holds a constant one."""
        if self._matrices.function is not None:
            return {name: value for name, value in super().to_config().items() if name != "has_value"}
        return {"name": "Diffusion", "D": as_float64(self.D, "D").tolist(), "form": self.form}


class _DivergenceOf(Energy):
    """The drift ∇·D of a diffusion D."""

    has_value = False

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion, self.time = diffusion, diffusion.time

    @property
    def label(self) -> str:
        """That of the diffusion."""
        return self.diffusion.label

    def try_functions(self, rho: Sampled) -> None:
        """D."""
        self.diffusion.try_functions(rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """0."""
        return rho.x.new_zeros(())

    def velocity(self, rho: Sampled) -> Tensor:
        """∇·D, (n,d)."""
        return self.diffusion._matrices.divergence(rho).detach()
