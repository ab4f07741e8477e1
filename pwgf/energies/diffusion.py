"""Diffusion by a matrix D that may vary in space and time, or be singular."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_float64
from ..errors import ConfigError, ShapeError, nearest
from ..measures import Sampled
from ._timed import Timed
from .base import Energy, shares
from .hessian import Hessian, hessian_of, jacobian_of

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
        self._function: Timed | None = None
        self.has_value = False
        if callable(D) and not isinstance(D, Tensor):
            self._function = Timed(D, "Diffusion", "D", "x", time)
            if time:
                self.time = True
            return
        if time:
            raise ConfigError(f"Diffusion(D, time=True) needs a function D(t, x); got {D!r:.60}. Leave time=True out.")
        wanted = "Diffusion(D) must be a number ≥ 0, a diagonal (d,), a matrix (d,d), or a function of x"
        constant = as_float64(D, wanted).clone()
        if constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != constant.shape[1]):
            raise ShapeError(f"{wanted}; got shape {tuple(constant.shape)}.")
        self.has_value = constant.ndim == 0
        self._constant = Constants(constant)
        _check(constant.unsqueeze(0), None, "Diffusion(D)")

    def _values(self, rho: Sampled, x: Tensor) -> Tensor:
        """D at x: (n,), (n,d) or (n,d,d)."""
        n, d = x.shape
        shapes = ((n,), (n, d), (n, d, d))
        if self._function is not None:
            found = self._function(rho, None, x)
            if tuple(found.shape) not in shapes:
                raise ShapeError(
                    f"{self._function.call} must return (n,), (n,d) or (n,d,d), here {shapes[0]}, {shapes[1]} or "
                    f"{shapes[2]}: a factor, a diagonal or a matrix a sample; got {tuple(found.shape)}."
                )
            return found
        (constant,) = self._constant.like(x)
        if constant.ndim and constant.shape[0] != d:
            raise ShapeError(
                f"Diffusion(D) has shape {tuple(constant.shape)}, for samples of dimension {constant.shape[0]}; got "
                f"samples of dimension {d}. Give a D of that dimension."
            )
        return constant.expand(shapes[constant.ndim])

    def try_functions(self, rho: Sampled) -> None:
        """D, sample by sample: whether it is symmetric and positive semidefinite."""
        x = rho.x.detach()
        values = self._values(rho, x)
        if self._function is not None:
            self._function.try_at(rho, x, of_each=values.shape[1:])
            _check(values.detach(), x, self._function.call)
            if self.form == "ito":
                self._divergence(rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """D E[log ρ] for a number D, else 0."""
        if not self.has_value:
            return rho.x.new_zeros(())
        (constant,) = self._constant.like(rho.x)
        return constant * shares(rho).mean(rho.log_density)

    def velocity(self, rho: Sampled) -> Tensor:
        """−D·score, less ∇·D in Itô's form; (n,d)."""
        v = -_times(self._values(rho, rho.x.detach()).detach(), rho.score)
        return v - self._divergence(rho) if self.form == "ito" and self._function is not None else v

    def _divergence(self, rho: Sampled) -> Tensor:
        """(∇·D)ᵢ = Σⱼ ∂ⱼDᵢⱼ, (n,d), by up to 2d backward passes."""
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            values = self._values(rho, x)
            if not values.requires_grad:
                return torch.zeros_like(x)
            if values.ndim == 1:
                return jacobian_of(values.unsqueeze(1), x).squeeze(1)
            if values.ndim == 2:
                return jacobian_of(values, x).diagonal(dim1=1, dim2=2)
            columns = [_by_own(values[:, :, j], x, j) for j in range(x.shape[1])]
        return torch.stack(columns).sum(0)

    def root(self, rho: Sampled) -> Tensor:
        """√D at the samples, (n,), (n,d) or (n,d,d); ConfigError where D is not positive semidefinite."""
        x = rho.x.detach()
        values = self._values(rho, x).detach()
        if values.ndim < 3:
            if bool((values < 0).any()):
                _check(values, x, "Diffusion(D)")
            return values.clamp(min=0).sqrt()
        constant = self._function is None
        sizes, vectors = torch.linalg.eigh(values[:1] if constant else values)
        if not constant and bool((sizes[:, 0] < -_rounding(values) * sizes[:, -1].abs()).any()):
            _check(values, x, "Diffusion(D)")
        roots = (vectors * sizes.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT
        return roots.expand_as(values)

    def noise(self, rho: Sampled, gauss: Tensor) -> Tensor:
        """√D·ξ at the samples for normal ξ (n,d), (n,d)."""
        return _times(self.root(rho), gauss)

    def hessian(self, rho: Sampled) -> Hessian:
        """a = the largest eigenvalue of D: E a|∇u|² is a bound on the second variation E tr(D(∇u)²)."""
        x = rho.x.detach()

        def fields() -> dict[str, Tensor]:
            values = self._values(rho, x).detach()
            if values.ndim == 3:
                values = torch.linalg.eigvalsh(values[:1] if self._function is None else values)
            return {"slope": (values.amax(1) if values.ndim > 1 else values).expand(len(x)).clone()}

        return hessian_of(self.label, shares(rho), fields)

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """A temperature for a number D; else the drift that the divergence form adds to noise √(2D)."""
        if self.has_value:
            return [], float(self.D)
        if self.form == "ito" or self._function is None:
            return [], 0.0
        return [(1.0, _DivergenceOf(self))], 0.0

    def noises(self) -> list[tuple[float, Diffusion]]:
        """Itself, unless it is a temperature."""
        return [] if self.has_value else [(1.0, self)]

    def to_config(self) -> dict[str, Any]:
        """JSON that names D, or holds a constant one."""
        if self._function is not None:
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
        return self.diffusion._divergence(rho).detach()


def _times(values: Tensor, s: Tensor) -> Tensor:
    """D s for D (n,), (n,d) or (n,d,d) and s (n,d)."""
    if values.ndim == 1:
        return values.unsqueeze(1) * s
    return values * s if values.ndim == 2 else (values @ s.unsqueeze(2)).squeeze(2)


def _by_own(column: Tensor, x: Tensor, j: int) -> Tensor:
    """∂ⱼ of each entry of column (n,d), (n,d): a derivative along e_j as that of a gradient in its weights."""
    weights = torch.zeros_like(column.detach()).requires_grad_(True)
    (by_x,) = torch.autograd.grad(column, x, weights, create_graph=True, allow_unused=True)
    if by_x is None:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(by_x[:, j].sum(), weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _rounding(values: Tensor) -> float:
    """What may be rounding, relative to the size of D."""
    return float(torch.finfo(values.dtype).eps ** 0.6)


def _check(values: Tensor, x: Tensor | None, call: str) -> None:
    """ConfigError where D (m,), (m,d) or (m,d,d) is not finite, symmetric and positive semidefinite; names the x."""
    flat = values.reshape(len(values), -1)
    finite = torch.isfinite(flat).all(1)
    slack = _rounding(values) * flat.abs().amax(1).nan_to_num(0.0, 0.0)
    least, uneven = flat.amin(1), torch.zeros_like(slack)
    if values.ndim == 3:
        uneven = (values - values.mT).reshape(len(values), -1).abs().amax(1)
        least = torch.linalg.eigvalsh(torch.where(finite.view(-1, 1, 1), (values + values.mT) / 2, 0.0))[:, 0]
    faults = {
        "finite": (~finite, None, "Check its function there"),
        "symmetric": (uneven > slack, uneven, "Give (D + Dᵀ)/2"),
        "positive semidefinite": (least < -slack, least, "A diffusion backwards in time has no solution"),
    }
    for wanted, (bad, sizes, cure) in faults.items():
        if not bool(bad.any()):
            continue
        k = int(bad.int().argmax())
        what = "smallest eigenvalue" if wanted.startswith("positive") else "D − Dᵀ of up to"
        measured = "" if sizes is None else f" ({what} {float(sizes[k]):.3g})"
        place = ""
        if x is not None:
            point = ", ".join(f"{value:.4g}" for value in x[k, :4].tolist()) + (", …" if x.shape[1] > 4 else "")
            place = f" at {int(bad.sum())} of {len(x)} samples, first at x = ({point})"
        found = np.array2string(values[k].double().cpu().numpy(), precision=4, separator=", ").replace("\n", "")
        raise ConfigError(f"{call} must be {wanted}; got {found:.80}{measured}{place}. {cure}.")
