"""The normal law."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import Constants, as_float64, as_points, check_dim, memory_told, plain_numbers
from ..errors import ConfigError, ShapeError
from .base import Reference, even_uniforms
from .law import as_generator

WORTH = 0.7
"""Samples of the law itself that a sample of the wider one is worth."""


class Gaussian(Reference):
    """The normal law N(mean, cov).

    Args:
        dim: d ≥ 1.
        mean: a number, or d numbers.
        cov: None (identity), a positive number (times the identity), or a symmetric positive definite (d,d) matrix.

    Raises:
        ConfigError: cov is not symmetric positive definite, or a value is not finite.
        ShapeError: mean or cov has the wrong shape.

    Example:
        >>> import torch, pwgf
        >>> pwgf.Gaussian(dim=2).log_density(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    @plain_numbers
    def __init__(self, dim: int, mean: Any = 0.0, cov: Any = None) -> None:
        check_dim(dim, "Gaussian(dim)")
        m = as_float64(mean, f"Gaussian(dim={dim}): mean must be a number or have shape ({dim},)")
        c = as_float64(1.0 if cov is None else cov, f"Gaussian(dim={dim}): cov must be a number or a matrix")
        if m.ndim > 1 or (m.ndim == 1 and len(m) != dim):
            raise ShapeError(
                f"Gaussian(dim={dim}): mean must be a number or have shape ({dim},); got {tuple(m.shape)}."
            )
        if c.ndim not in (0, 2) or (c.ndim == 2 and c.shape != (dim, dim)):
            raise ShapeError(
                f"Gaussian(dim={dim}): cov must be a number or have shape ({dim}, {dim}); got {tuple(c.shape)}."
            )
        self.dim = dim
        with memory_told(f"Gaussian(dim={dim})", "a smaller dim; a covariance has dim² entries"):
            self._cov = c.clone() if c.ndim == 2 else c * torch.eye(dim, dtype=torch.float64)
            self._factor = check_cov(self._cov, f"Gaussian(dim={dim}, cov=…)")
        self._mean = m.expand(dim).clone()
        if not bool(torch.isfinite(m).all()):
            raise ConfigError(f"Gaussian(dim={dim}): mean must be finite; got {mean!r}.")
        self._constants = Constants(self._mean, self._factor)

    def mean(self) -> Tensor:
        """(d,) float64."""
        return self._mean.clone()

    def cov(self) -> Tensor:
        """(d,d) float64."""
        return self._cov.clone()

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d)."""
        unit = torch.randn(n, self.dim, generator=as_generator(seed, "Gaussian.sample"), dtype=torch.float64)
        return self._mean + unit @ self._factor.T

    def matched_sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n evenly spread samples (n,d): a scrambled Sobol set, transformed so that mean and covariance are exact.

        The covariance is that of division by n. Plain samples when n < 4d, where no such transformation is sensible.
        """
        unit = self._even_units(n, seed)
        if unit is None:
            return self.sample(n, seed)
        return self._mean + _standardised(unit, torch.ones(n, dtype=torch.float64)) @ self._factor.T

    def wide_sample(self, n: int, seed: int | torch.Generator = 0) -> tuple[Tensor, Tensor | None]:
        """n evenly spread samples (n,d) of N(mean, s²·cov) and weights (n,); weighted mean and covariance are exact.

        s is such that they are worth `WORTH`·n samples of this law in a weighted mean: 1.8 in d = 1, 1.5 in d = 2, 1.16
        in d = 10. Without weights (None) when n < 4d.
        """
        unit = self._even_units(n, seed)
        if unit is None:
            return self.sample(n, seed), None
        square = WORTH ** (-2 / self.dim)
        wider = square + math.sqrt(square * square - square)  # s², from s²/√(2s² − 1) = WORTH^(−1/d)
        weights = torch.exp(-0.5 * (wider - 1) * unit.square().sum(1))
        weights = weights / weights.mean()
        return self._mean + _standardised(unit, weights) @ self._factor.T, weights

    def _even_units(self, n: int, seed: int | torch.Generator) -> Tensor | None:
        """n evenly spread samples (n,d) of N(0, I); None for so few that they cannot be standardised."""
        uniform = None if n < 4 * self.dim else even_uniforms(n, self.dim, seed, "Gaussian.matched_sample")
        if uniform is None:
            return None
        return torch.special.ndtri(uniform.clamp(2.0**-31, 1 - 2.0**-31))  # a Sobol coordinate can be 0 exactly

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; mean, cov): (n,d) → (n,); −∞ where z is infinite, NaN where it is."""
        z = as_points(z, self.dim, "Gaussian.log_density(z): z")
        mean, factor = self._constants.like(z)
        unit = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
        constant = 0.5 * self.dim * math.log(2 * math.pi) + factor.diagonal().log().sum()
        value = -0.5 * unit.square().sum(0) - constant
        return torch.where(z.isinf().any(1), -math.inf, value)  # there the solve may give inf − inf

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "Gaussian", "dim": self.dim, "mean": self._mean.tolist(), "cov": self._cov.tolist()}


def _standardised(unit: Tensor, weights: Tensor) -> Tensor:
    """Samples (n,d) shifted and scaled so that their mean by the weights (n,) is 0 and their covariance I."""
    w = weights.unsqueeze(1)
    unit = unit - (w * unit).mean(0)
    factor = torch.linalg.cholesky((w * unit).T @ unit / len(unit))
    return torch.linalg.solve_triangular(factor, unit.T, upper=False).T


def check_cov(cov: Tensor, call: str) -> Tensor:
    """Cholesky factor (d,d) of a symmetric positive definite matrix; ConfigError where it is none."""
    if not bool(torch.isfinite(cov).all()):
        raise ConfigError(f"{call}: cov must be finite; got NaN or infinite entries.")
    if float((cov - cov.T).abs().max()) > 1e-8 * float(cov.abs().max()):
        raise ConfigError(
            f"{call}: cov must be symmetric positive definite; it is not symmetric. Use (cov + cov.T) / 2."
        )
    factor, info = torch.linalg.cholesky_ex(cov)
    if int(info) != 0:
        smallest = float(torch.linalg.eigvalsh(cov)[0])
        raise ConfigError(
            f"{call}: cov must be symmetric positive definite; its smallest eigenvalue is {smallest:.3g}."
        )
    return factor
