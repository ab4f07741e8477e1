"""Linear drifts with constant diffusion: Gaussian at all times, and mostly no gradient flows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_float64, check_dim, check_positive, plain_numbers
from ..energies.base import Energy, qualified_name
from ..energies.diffusion import Diffusion
from ..energies.drift import Drift
from ..errors import ConfigError, ShapeError
from ..measures import Gaussian, check_cov
from .base import Problem

_ACCURACY = 1e-12  # of the moment equations, relative and absolute


def circle(t: float, dim: int) -> Tensor:
    """3(cos πt, sin πt) in the first two coordinates, (d,)."""
    centre = torch.zeros(dim, dtype=torch.float64)
    centre[:2] = 3 * torch.tensor([math.cos(math.pi * t), math.sin(math.pi * t)], dtype=torch.float64)[:dim]
    return centre


class LinearDrift(Problem):
    """dX = −A(X − b(t)) dt + √(2D) dW from a Gaussian: mean m′ = −A(m − b), covariance C′ = −AC − CAᵀ + 2D.

    The law is a Gaussian at all times; its moments are integrated to 1e-10. With A that is not symmetric, or D that is
    no multiple of I, this is no gradient flow. By default the centre runs round a circle.

    Args:
        A: (d,d); None: diagonal, evenly from 1 to 3.
        b: (d,), or a function of the time t (a float) that gives (d,); None: 3(cos πt, sin πt) in the first two
            coordinates.
        D: a number, (d,) or (d,d), symmetric positive semidefinite; None: ¼.
        dim: d, where A does not tell; None: 2.
        mean, cov: of the law at the start, (d,) and (d,d); None: 0 and I/4.

    Raises:
        ConfigError: D or cov is not positive (semi)definite.
        ShapeError: the shapes do not agree.

    Example:
        >>> from pwgf import problems
        >>> spiral = problems.LinearDrift(A=[[1.0, -2.0], [2.0, 1.0]], b=[0.0, 0.0], D=1.0)
        >>> spiral.exact(3.0).cov().diagonal().round(decimals=2)  # tends to D
        tensor([1., 1.], dtype=torch.float64)

    References:
        L. Li, S. Hurault, J. Solomon, Self-consistent velocity matching of probability flows, 2023, arXiv 2301.13737.
        H. Risken, The Fokker–Planck equation, 1989, §6.5.
    """

    @plain_numbers
    def __init__(
        self, A: Any = None, b: Any = None, D: Any = None, *, dim: int | None = None, mean: Any = None, cov: Any = None
    ) -> None:
        if A is None and dim is None:
            dim = 2
        wanted = "LinearDrift(A, b, D) needs A (d,d), b (d,), D a number, (d,) or (d,d)"
        if A is not None:
            self.A = as_float64(A, wanted).clone()
            dim = (len(self.A) if self.A.ndim else 1) if dim is None else dim
        check_dim(dim, "LinearDrift(dim)")
        self.dim = dim = int(dim)  # type: ignore[arg-type]
        if A is None:
            self.A = torch.linspace(1, 3, dim, dtype=torch.float64).diag()
        self.D = as_float64(0.25 if D is None else D, wanted).clone()
        self.b = b if b is None or callable(b) else as_float64(b, wanted).clone()
        self.initial_mean = as_float64(torch.zeros(dim) if mean is None else mean, wanted).clone()
        self.initial_cov = as_float64(torch.eye(dim) / 4 if cov is None else cov, wanted).clone()
        shapes = {"A": (self.A, (dim, dim)), "mean": (self.initial_mean, (dim,)), "cov": (self.initial_cov, (dim, dim))}
        shapes |= {"b(t)": (self.centre(0.0), (dim,)), "D": (self._diffusion_matrix(), (dim, dim))}
        for name, (values, shape) in shapes.items():
            if tuple(values.shape) != shape:
                raise ShapeError(f"{wanted}, all of one dimension, here {dim}; got {name} of {tuple(values.shape)}.")
        check_cov(self.initial_cov, "LinearDrift(cov=…)")
        Diffusion(self.D)  # is it positive semidefinite?
        self._transposed = Constants(self.A.T.contiguous())

    def _diffusion_matrix(self) -> Tensor:
        if self.D.ndim == 0:
            return self.D * torch.eye(self.dim, dtype=torch.float64)
        return self.D.diag() if self.D.ndim == 1 else self.D

    def centre(self, t: float) -> Tensor:
        """b(t), (d,)."""
        if self.b is None:
            return circle(t, self.dim)
        if not callable(self.b):
            return self.b
        return as_float64(self.b(t), f"LinearDrift(b): b({t:g}) must be made of {self.dim} numbers")

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """−A(x − b(t)), (n,d)."""
        (transposed,) = self._transposed.like(x)
        return -(x - self.centre(float(t)).to(x)) @ transposed

    def steady_drift(self, x: Tensor) -> Tensor:
        """The same for a centre b that rests."""
        return self.drift(x.new_zeros(()), x)

    @property
    def reference(self) -> Gaussian:
        """N(mean, cov)."""
        return Gaussian(self.dim, self.initial_mean, self.initial_cov)

    @property
    def energy(self) -> Energy:
        """A drift and a diffusion; neither has a value, but for a number D."""
        steady = isinstance(self.b, Tensor)
        return (Drift(self.steady_drift) if steady else Drift(self.drift, time=True)) + Diffusion(self.D)

    @property
    def times(self) -> np.ndarray:
        """0, 1, …, 10."""
        return np.linspace(0, 10, 11)

    def exact(self, t: float) -> Gaussian:
        """The Gaussian at time t ≥ 0, from the moment equations."""
        from scipy.integrate import solve_ivp  # noqa: PLC0415, half a second

        t, d = self._check_time(t), self.dim
        if t == 0:
            return self.reference
        A, noise = self.A.numpy(), 2 * self._diffusion_matrix().numpy()

        def rate(t: float, moments: np.ndarray) -> np.ndarray:
            drained = A @ moments[d:].reshape(d, d)
            return np.append(-A @ (moments[:d] - self.centre(t).numpy()), (noise - drained - drained.T).ravel())

        start = torch.cat([self.initial_mean, self.initial_cov.flatten()]).numpy()
        found = solve_ivp(rate, (0.0, t), start, method="DOP853", rtol=_ACCURACY, atol=_ACCURACY)
        end = torch.from_numpy(found.y[:, -1].copy())
        cov = end[d:].view(d, d)
        return Gaussian(d, end[:d], (cov + cov.T) / 2)

    def _arguments(self) -> dict[str, Any]:
        centre = qualified_name(self.b) if callable(self.b) else None if self.b is None else self.b.tolist()
        start = {"mean": self.initial_mean.tolist(), "cov": self.initial_cov.tolist()}
        return {"A": self.A.tolist(), "b": centre, "D": self.D.tolist(), **start}


class KineticTrap(LinearDrift):
    """Underdamped Langevin dynamics in a quadratic trap: q′ = p, dp = −(kq + γp) dt + √(2γτ) dW, x = (q, p).

    The noise acts on the velocities alone: D is singular. The equilibrium is N(0, diag(τ/k, τ)).

    Args:
        dim: of x, even: twice that of q.
        stiffness: k > 0.
        friction: γ > 0.
        temperature: τ > 0.

    Raises:
        ConfigError: dim is odd, or a number not positive.

    Example:
        >>> from pwgf import problems
        >>> problems.KineticTrap(dim=2).exact(20.0).cov().diagonal().round(decimals=3)
        tensor([1., 1.], dtype=torch.float64)

    References:
        H. Risken, The Fokker–Planck equation, 1989, §10.2.
    """

    @plain_numbers
    def __init__(self, dim: int = 2, stiffness: float = 1.0, friction: float = 1.0, temperature: float = 1.0) -> None:
        check_dim(dim, "KineticTrap(dim)")
        if dim % 2:
            raise ConfigError(f"KineticTrap(dim) holds positions and velocities, so dim must be even; got {dim}.")
        call = "KineticTrap"
        self.stiffness = check_positive(stiffness, "stiffness", call)
        self.friction = check_positive(friction, "friction", call)
        self.heat = check_positive(temperature, "temperature", call)
        half = dim // 2
        unit, zero = np.eye(half), np.zeros((half, half))
        A = np.block([[zero, -unit], [self.stiffness * unit, self.friction * unit]])
        noise = np.repeat([0.0, self.friction * self.heat], half)
        super().__init__(A, np.zeros(dim), noise, mean=np.repeat([1.0, 0.0], half), cov=np.eye(dim) / 4)

    @property
    def times(self) -> np.ndarray:
        """0, .5, …, 5."""
        return np.linspace(0, 5, 11)

    def _arguments(self) -> dict[str, Any]:
        numbers = {"stiffness": self.stiffness, "friction": self.friction, "temperature": self.heat}
        return {"dim": self.dim, **numbers}
