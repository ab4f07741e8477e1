"""A symmetric matrix for each sample: a constant one, or a user's function of x."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_float64
from ..errors import ConfigError, ShapeError
from ..measures import Sampled
from ._timed import Timed
from .hessian import jacobian_of

_ADVICE = {
    "finite": "Check its function there",
    "symmetric": "Give (D + Dᵀ)/2",
    "positive semidefinite": "A diffusion backwards in time has no solution",
    "positive definite": "Its inverse is the norm in which velocities are fitted; add a small multiple of the identity",
}


class Matrices:
    """D at the samples: numbers (n,), diagonals (n,d) or matrices (n,d,d).

    Args:
        D: a number, (d,) a diagonal, (d,d) a symmetric matrix; or a function of x (n,d) that gives (n,), (n,d) or
            (n,d,d).
        owner, name: what messages call it, such as "Diffusion" and "D".
        time: whether D depends on time: then it is called as D(t, x).
        definite: whether eigenvalues 0 are refused as well as negative ones.

    Raises:
        ConfigError, ShapeError: D is not symmetric and positive, or none of these.
    """

    def __init__(self, D: Any, owner: str, name: str, time: bool = False, definite: bool = False) -> None:
        self._positive = "positive definite" if definite else "positive semidefinite"
        self.call = f"{owner}({name})"
        self.function: Timed | None = None
        if callable(D) and not isinstance(D, Tensor):
            self.function = Timed(D, owner, name, "x", time)
            return
        if time:
            raise ConfigError(f"{owner}({name}, time=True) needs a function {name}(t, x); got {D!r:.60}. "
                              "Leave time=True out.")  # fmt: skip
        least = "> 0" if definite else "≥ 0"
        wanted = f"{self.call} must be a number {least}, a diagonal (d,), a matrix (d,d), or a function of x"
        constant = as_float64(D, wanted).clone()
        if constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != constant.shape[1]):
            raise ShapeError(f"{wanted}; got shape {tuple(constant.shape)}.")
        self.constant = constant
        self._constants = Constants(constant)
        self.check(constant.unsqueeze(0), None)

    def values(self, rho: Sampled, x: Tensor) -> Tensor:
        """D at x (n,d): (n,), (n,d) or (n,d,d)."""
        n, d = x.shape
        shapes = ((n,), (n, d), (n, d, d))
        if self.function is not None:
            found = self.function(rho, None, x)
            if tuple(found.shape) not in shapes:
                raise ShapeError(
                    f"{self.function.call} must return (n,), (n,d) or (n,d,d), here {shapes[0]}, {shapes[1]} or "
                    f"{shapes[2]}: a factor, a diagonal or a matrix a sample; got {tuple(found.shape)}."
                )
            return found
        (constant,) = self._constants.like(x)
        if constant.ndim and constant.shape[0] != d:
            raise ShapeError(
                f"{self.call} has shape {tuple(constant.shape)}, for samples of dimension {constant.shape[0]}; got "
                f"samples of dimension {d}. Give one of that dimension."
            )
        return constant.expand(shapes[constant.ndim])

    def try_at(self, rho: Sampled) -> None:
        """A function of the user, sample by sample: whether D is symmetric and positive."""
        x = rho.x.detach()
        values = self.values(rho, x)
        if self.function is not None:
            self.function.try_at(rho, x, of_each=values.shape[1:])
            self.check(values.detach(), x)

    def divergence(self, rho: Sampled) -> Tensor:
        """(∇·D)ᵢ = Σⱼ ∂ⱼDᵢⱼ, (n,d), by up to 2d backward passes; 0 for a constant."""
        if self.function is None:
            return torch.zeros_like(rho.x.detach())
        with torch.enable_grad():
            x = rho.x.detach().requires_grad_(True)
            values = self.values(rho, x)
            if not values.requires_grad:
                return torch.zeros_like(x)
            if values.ndim == 1:
                return jacobian_of(values.unsqueeze(1), x).squeeze(1)
            if values.ndim == 2:
                return jacobian_of(values, x).diagonal(dim1=1, dim2=2)
            columns = [_by_own(values[:, :, j], x, j) for j in range(x.shape[1])]
        return torch.stack(columns).sum(0)

    def root(self, rho: Sampled) -> Tensor:
        """√D at the samples, (n,), (n,d) or (n,d,d); ConfigError where D is not positive."""
        x = rho.x.detach()
        values = self.values(rho, x).detach()
        if values.ndim < 3:
            if bool((values < 0).any()):
                self.check(values, x)
            return values.clamp(min=0).sqrt()
        constant = self.function is None
        sizes, vectors = torch.linalg.eigh(values[:1] if constant else values)
        if not constant and bool((sizes[:, 0] < -_rounding(values) * sizes[:, -1].abs()).any()):
            self.check(values, x)
        roots = (vectors * sizes.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT
        return roots.expand_as(values)

    def check(self, values: Tensor, x: Tensor | None) -> None:
        """ConfigError where D (m,), (m,d) or (m,d,d) is not finite, symmetric and positive; names the x."""
        flat = values.reshape(len(values), -1)
        finite = torch.isfinite(flat).all(1)
        slack = _rounding(values) * flat.abs().amax(1).nan_to_num(0.0, 0.0)
        least, uneven = flat.amin(1), torch.zeros_like(slack)
        if values.ndim == 3:
            uneven = (values - values.mT).reshape(len(values), -1).abs().amax(1)
            least = torch.linalg.eigvalsh(torch.where(finite.view(-1, 1, 1), (values + values.mT) / 2, 0.0))[:, 0]
        negative = least <= 0 if self._positive == "positive definite" else least < -slack
        faults = {
            "finite": (~finite, None),
            "symmetric": (uneven > slack, uneven),
            self._positive: (negative, least),
        }
        call = self.call if self.function is None else self.function.call
        for wanted, (bad, sizes) in faults.items():
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
            raise ConfigError(f"{call} must be {wanted}; got {found:.80}{measured}{place}. {_ADVICE[wanted]}.")


def times(values: Tensor, s: Tensor) -> Tensor:
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
