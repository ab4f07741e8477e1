"""Reference measures λ, and the pushed measure ρ_θ = (T_θ)#λ on a batch of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import ConfigError, ShapeError, nearest
from .maps.base import Pushed, PushForward, check_dim, is_real
from .parallel import ALONE, Group, Shared


@runtime_checkable
class Reference(Protocol):
    """A measure λ with a density that can be sampled.

    A reference may also offer `matched_sample(n, generator)`: antithetic and moment-matched points, whose averages of
    quadratic functions are exact; energies of pairs use it to keep their sampling noise down.
    """

    @property
    def dim(self) -> int:
        """d."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples, (n,d) float64 on the CPU."""
        ...

    def log_density(self, z: Tensor) -> Tensor:
        """log λ(z): (n,d) → (n,), differentiable, in z's dtype and on its device."""
        ...


def _as_float64(value: Any, expected: str) -> Tensor:
    """The value as a detached float64 tensor on the CPU; ConfigError where it is not made of numbers."""
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{expected}; got {value!r:.60}, which is not made of numbers.") from error


def _antithetic(n: int, draw: Callable[[int], Tensor]) -> Tensor:
    """n points of a law symmetric about 0 whose mean is 0 (n even) or nearly so."""
    half = draw((n + 1) // 2)
    return torch.cat([half, -half])[:n]


@dataclass(frozen=True, init=False, eq=False)
class Gaussian:
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

    dim: int
    mean: Tensor
    cov: Tensor

    def __init__(self, dim: int, mean: Any = 0.0, cov: Any = None) -> None:
        check_dim(dim, "Gaussian(dim)")
        m = _as_float64(mean, f"Gaussian(dim={dim}): mean must be a number or have shape ({dim},)")
        c = _as_float64(1.0 if cov is None else cov, f"Gaussian(dim={dim}): cov must be a number or a matrix")
        if m.ndim > 1 or (m.ndim == 1 and len(m) != dim):
            raise ShapeError(
                f"Gaussian(dim={dim}): mean must be a number or have shape ({dim},); got {tuple(m.shape)}."
            )
        if c.ndim not in (0, 2) or (c.ndim == 2 and c.shape != (dim, dim)):
            raise ShapeError(
                f"Gaussian(dim={dim}): cov must be a number or have shape ({dim}, {dim}); got {tuple(c.shape)}."
            )
        object.__setattr__(self, "dim", dim)
        object.__setattr__(self, "mean", m.expand(dim).clone())
        object.__setattr__(self, "cov", c.clone() if c.ndim == 2 else c * torch.eye(dim, dtype=torch.float64))
        object.__setattr__(self, "_factor", check_cov(self.cov, f"Gaussian(dim={dim}, cov=…)"))
        if not bool(torch.isfinite(self.mean).all()):
            raise ConfigError(f"Gaussian(dim={dim}): mean must be finite; got {mean!r}.")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples (n,d)."""
        unit = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return self.mean + unit @ self._factor.T  # type: ignore[attr-defined]

    def matched_sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n evenly spread samples (n,d): a scrambled Sobol set, transformed so that mean and covariance are exact.

        The covariance is that of division by n. Plain samples when n < 4d, where no such transformation is sensible.
        """
        if n < 4 * self.dim or self.dim > torch.quasirandom.SobolEngine.MAXDIM:
            return self.sample(n, generator)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        uniform = torch.quasirandom.SobolEngine(self.dim, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        unit = torch.special.ndtri(uniform.clamp(2.0**-31, 1 - 2.0**-31))  # a Sobol coordinate can be 0 exactly
        unit = unit - unit.mean(0)
        factor = torch.linalg.cholesky(unit.T @ unit / n)
        unit = torch.linalg.solve_triangular(factor, unit.T, upper=False).T
        return self.mean + unit @ self._factor.T  # type: ignore[attr-defined]

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; mean, cov): (n,d) → (n,)."""
        factor = self._factor.to(z)  # type: ignore[attr-defined]
        unit = torch.linalg.solve_triangular(factor, (z - self.mean.to(z)).T, upper=False)
        constant = 0.5 * self.dim * math.log(2 * math.pi) + factor.diagonal().log().sum()
        return -0.5 * unit.square().sum(0) - constant

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "Gaussian", "dim": self.dim, "mean": self.mean.tolist(), "cov": self.cov.tolist()}


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


@dataclass(frozen=True)
class Barenblatt:
    r"""The self-similar solution of the porous-medium equation ∂ₜρ = Δρ^m at time t.

    ρ(x) = t^{−a}(C − k|x|²t^{−2b})₊^{q} with q = 1/(m−1), a = d/(d(m−1)+2), b = a/d, k = b(m−1)/(2m) and C set by unit
    mass. Its support is a ball of radius `radius` = √(C t^{2b}/k); |x| = radius·√B with B ~ Beta(d/2, q+1).

    Args:
        dim: d ≥ 1.
        m: exponent > 1.
        t: time > 0.

    Raises:
        ConfigError: an argument outside its range.

    References:
        Barenblatt, On some unsteady motions of a liquid and gas in a porous medium, 1952; Vázquez, The Porous Medium
        Equation, 2006, §4.4.
    """

    dim: int
    m: float
    t: float

    def __post_init__(self) -> None:
        check_dim(self.dim, "Barenblatt(dim, m, t)")
        if not (is_real(self.m) and self.m > 1):
            raise ConfigError(
                f"Barenblatt(m=…) must be > 1 (m = 1 is the heat equation: use Gaussian); got {self.m!r}."
            )
        if not (is_real(self.t) and self.t > 0):
            raise ConfigError(f"Barenblatt(t=…) must be > 0 (at t = 0 all mass is in one point); got {self.t!r}.")

    @property
    def q(self) -> float:
        """Exponent 1/(m−1) of the profile."""
        return 1 / (self.m - 1)

    @property
    def b(self) -> float:
        """Rate of spreading: lengths grow as t^b."""
        return 1 / (self.dim * (self.m - 1) + 2)

    @property
    def k(self) -> float:
        """Curvature constant of the profile."""
        return self.b * (self.m - 1) / (2 * self.m)

    @property
    def C(self) -> float:
        """Height constant of the profile, from unit mass."""
        d, q = self.dim, self.q
        log_c = 0.5 * d * math.log(self.k / math.pi) + math.lgamma(q + 1 + d / 2) - math.lgamma(q + 1)
        return math.exp(log_c / (q + d / 2))

    @property
    def radius(self) -> float:
        """Radius of the support."""
        return math.sqrt(self.C / self.k) * self.t**self.b

    @property
    def second_moment(self) -> float:
        """E|x|²."""
        return self.radius**2 * self.dim / (self.dim + 2 * self.q + 2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent samples (n,d): a direction times radius·√Beta(d/2, q+1).

        Beta(α, β) is drawn as the quantile of a uniform number by bisection, so that one generator drives all.
        """
        direction = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        radius = self.radius * self._beta_quantile(uniform).sqrt()
        return direction * (radius / direction.norm(dim=1)).unsqueeze(1)

    def _beta_quantile(self, u: Tensor) -> Tensor:
        """Quantile of Beta(d/2, q+1): monotone interpolation of the integrated density in the angle s, B = sin²s."""
        angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
        density = torch.sin(angle) ** (self.dim - 1) * torch.cos(angle) ** (2 * self.q + 1)
        mass = torch.cumulative_trapezoid(density, angle)
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), mass / mass[-1]])
        index = torch.searchsorted(mass, u.contiguous(), right=True).clamp(1, len(mass) - 1)
        low, high = mass[index - 1], mass[index]
        share = (u - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.sin(angle[index - 1] + share * (angle[index] - angle[index - 1])) ** 2

    def matched_sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n antithetic samples (n,d); their mean is exactly zero for even n."""
        return _antithetic(n, lambda k: self.sample(k, generator))

    def log_density(self, z: Tensor) -> Tensor:
        """log ρ(z): (n,d) → (n,); −inf outside the ball."""
        height = self.C - self.k * self.t ** (-2 * self.b) * z.square().sum(1)
        return self.q * torch.log(height.clamp_min(0.0)) - self.dim * self.b * math.log(self.t)

    def to_config(self) -> dict[str, Any]:
        """JSON from which `measures.from_config` rebuilds this law."""
        return {"name": "Barenblatt", "dim": self.dim, "m": self.m, "t": self.t}


_SHELF = {"Gaussian": Gaussian, "Barenblatt": Barenblatt}


def from_config(config: dict[str, Any]) -> Reference:
    """Rebuilds a reference from `to_config()`.

    Raises:
        ConfigError: the reference is not one of this package's; hand it over instead.
    """
    settings = dict(config)
    name = settings.pop("name", "")
    if name not in _SHELF:
        raise ConfigError(
            f"the stored reference {name!r} cannot be rebuilt from the file; pass it: pwgf.load(path, reference=…)."
            + nearest(name, _SHELF)
        )
    return _SHELF[name](**settings)


class PushedMeasure(Shared):
    """ρ_θ = (T_θ)#λ on the samples x = T_θ(z); every quantity is computed when first asked for, and once.

    Args:
        map, reference: T and λ.
        theta: (p,). When it requires a gradient, x and log_density stay differentiable in it.
        z: (n,d) samples of λ.
        chunk_size: samples per block for densities and scores; bounds the memory at chunk_size·(d² + width).
        group: processes that share the samples out; all give the same z, and each keeps its own rows: from here on n
            counts those. `mean` and `gather` go over all.
    """

    def __init__(
        self,
        map: PushForward,
        reference: Reference,
        theta: Tensor,
        z: Tensor,
        chunk_size: int | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__(len(z), group)
        self.map, self.reference, self.theta, self.z = map, reference, theta, group.slice_rows(z)
        self.chunk_size = chunk_size or max(len(self.z), 1)

    @cached_property
    def x(self) -> Tensor:
        """Samples T_θ(z), (n,d)."""
        return self.map(self.theta, self.z)

    @cached_property
    def _slogdet(self) -> tuple[Tensor, Tensor]:
        parts = [self.map.volume(self.theta, z) for z in self.z.split(self.chunk_size)]
        return torch.cat([sign for sign, _ in parts]), torch.cat([log_abs_det for _, log_abs_det in parts])

    @cached_property
    def _pushed(self) -> Pushed:
        parts = []
        for z in self.z.detach().split(self.chunk_size):
            with torch.enable_grad():
                leaf = z.clone().requires_grad_(True)
                (slope,) = torch.autograd.grad(self.reference.log_density(leaf).sum(), leaf)
            parts.append(self.map.push_score(self.theta.detach(), z, slope))
        return Pushed(*(torch.cat(group) for group in zip(*parts, strict=True)))

    @property
    def asked_for_density(self) -> bool:
        """Whether a density or a score has been computed."""
        return "_pushed" in vars(self) or "_slogdet" in vars(self)

    @property
    def _volume(self) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of |det ∂_zT|, from the score where that is known already; without it they cost half."""
        if "_pushed" in vars(self) and not self.theta.requires_grad:
            return self._pushed.det_sign, self._pushed.log_abs_det
        return self._slogdet

    @property
    def log_density(self) -> Tensor:
        """log ρ_θ(x) = log λ(z) − log|det ∂_zT(z)|, (n,)."""
        return self.reference.log_density(self.z) - self._volume[1]

    @property
    def score(self) -> Tensor:
        """∇ log ρ_θ(x) = (∂_zT)^{−T} ∇_z[log λ(z) − log|det ∂_zT(z)|], (n,d)."""
        return self._pushed.score

    @property
    def det_sign(self) -> Tensor:
        """Sign of det ∂_zT, (n,); −1 or 0 where the map folds and the density is not to be trusted."""
        return self._volume[0]

    @property
    def log_abs_det(self) -> Tensor:
        """log|det ∂_zT|, (n,)."""
        return self._volume[1]
