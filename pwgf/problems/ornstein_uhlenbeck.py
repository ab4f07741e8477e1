"""The Ornstein–Uhlenbeck flow: a quadratic potential with entropy, Gaussian at all times."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_float64, check_dim, plain_numbers
from ..energies.base import Energy
from ..energies.local import Entropy
from ..energies.potential import Potential
from ..errors import ShapeError
from ..measures import Gaussian, check_cov
from .base import Problem


class OrnsteinUhlenbeck(Problem):
    """F(ρ) = ∫½(x−b)ᵀΣ⁻¹(x−b) dρ + ∫ρ log ρ from N(0, I), temperature 1; the flow tends to N(b, Σ).

    Law at time t, with E = exp(−Σ⁻¹t): mean b − Eb, covariance Σ + E(I − Σ)E.

    Args:
        dim: d ≥ 1.
        cov: Σ (d, d), symmetric positive definite; default I/4.
        mean: b (d,); default (3, …, 3), which with I/4 gives V = 2|x − 3|².

    Raises:
        ConfigError: dim < 1, or cov not symmetric positive definite.
        ShapeError: cov is not (d, d) or mean not (d,).

    Example:
        >>> problem = OrnsteinUhlenbeck(dim=1)
        >>> law = problem.exact(0.5)
        >>> round(float(law.mean()), 6) == round(3 * (1 - math.exp(-4 * 0.5)), 6)
        True

    References:
        P. Mokrov et al., Large-Scale Wasserstein Gradient Flows, 2021, arXiv 2106.00736.
    """

    @plain_numbers
    def __init__(self, dim: int, cov: Any = None, mean: Any = None) -> None:
        check_dim(dim, "OrnsteinUhlenbeck(dim)")
        self.dim = dim
        shapes = f"OrnsteinUhlenbeck(dim={dim}, cov, mean) needs shapes ({dim}, {dim}) and ({dim},)"
        self.cov = as_float64(0.25 * torch.eye(dim) if cov is None else cov, shapes).clone()
        self.mean = as_float64(3 * torch.ones(dim) if mean is None else mean, shapes).clone()
        if self.cov.shape != (dim, dim) or self.mean.shape != (dim,):
            got = f"{tuple(self.cov.shape)} and {tuple(self.mean.shape)}"
            raise ShapeError(f"{shapes}; got {got}. Make dim, cov and mean agree.")
        check_cov(self.cov, f"OrnsteinUhlenbeck(dim={dim}, cov=…)")

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues w (d,) and eigenvectors Q (d, d) of Σ = Q diag(w) Qᵀ."""
        values, vectors = torch.linalg.eigh(self.cov)
        return values, vectors

    @cached_property
    def precision(self) -> Tensor:
        """Σ⁻¹, (d, d)."""
        w, q = self._spectrum
        return (q / w) @ q.T

    def potential(self, x: Tensor) -> Tensor:
        """V(x) = ½(x−b)ᵀΣ⁻¹(x−b), (n, d) -> (n,)."""
        mean, precision = self._constants.like(x)
        centred = x - mean
        return 0.5 * ((centred @ precision) * centred).sum(-1)

    @cached_property
    def _constants(self) -> Constants:
        return Constants(self.mean, self.precision)

    @property
    def reference(self) -> Gaussian:
        """N(0, I)."""
        return Gaussian(self.dim)

    @property
    def energy(self) -> Energy:
        """Potential + entropy."""
        return Potential(self.potential) + Entropy()

    @property
    def times(self) -> np.ndarray:
        """0, .1, …, 1."""
        return np.linspace(0, 1, 11)

    @property
    def temperature(self) -> float:
        """1."""
        return 1.0

    @property
    def convexity(self) -> float:
        """The smallest eigenvalue of Σ⁻¹."""
        return float(1 / self._spectrum[0][-1])

    def exact(self, t: float) -> Gaussian:
        """The Gaussian law at time t ≥ 0."""
        t = self._check_time(t)
        w, q = self._spectrum
        decay = torch.exp(-t / w)
        mean = self.mean - q @ (decay * (q.T @ self.mean))
        cov = (q * (w + decay.square() * (1 - w))) @ q.T
        cov = 0.5 * (cov + cov.T)
        return Gaussian(self.dim, mean, cov)

    def exact_energy(self, t: float) -> float:
        """½(m−b)ᵀΣ⁻¹(m−b) + ½ tr(Σ⁻¹C) − ½ log det(2πe C) at N(m, C)."""
        law = self.exact(t)
        cov = law.cov()
        potential = float(self.potential(law.mean()[None])) + 0.5 * float((self.precision * cov).sum())
        return potential - 0.5 * (self.dim * math.log(2 * math.pi * math.e) + float(torch.logdet(cov)))

    def _arguments(self) -> dict[str, Any]:
        return {"dim": self.dim, "cov": self.cov.tolist(), "mean": self.mean.tolist()}
