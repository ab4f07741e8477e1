"""What a law is: a probability measure on ℝᵈ that can be sampled, mostly with a density."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..checks import as_points, is_integer, memory_told
from ..errors import ConfigError, NonFiniteError
from ..shown import as_call

NUM_FOR_MOMENTS = 100_000
"""Samples behind a mean or covariance that no formula gives."""


@runtime_checkable
class Law(Protocol):
    """A probability measure on ℝᵈ: a reference, the exact answer of a problem, a run at one time.

    A subclass gives `dim`, `sample` and `log_density`, and overrides what else it knows in closed form. Points x (n,d)
    may be tensors or NumPy arrays of any real type.
    """

    dim: int
    has_density: bool = True
    """Whether `log_density` and `score` exist; both raise ConfigError where it is False."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if inspect.isfunction(vars(cls).get("sample")):
            cls.sample = memory_told(f"{cls.__name__}.sample(n)", "a smaller n, or num_samples")(cls.sample)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        settings = getattr(self, "to_config", None)
        return as_call({"name": type(self).__name__, "dim": self.dim} if settings is None else settings())

    @abstractmethod
    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n independent samples (n,d) on the CPU; equal integers give equal samples, a generator is moved on.

        Raises:
            ConfigError: seed is neither an integer in [0, 2⁶³) nor a generator, or n takes more memory than there is.
        """

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """log ρ(x), (n,d) → (n,); −inf where ρ vanishes, at infinity too.

        Raises:
            ConfigError: the law has no density.
            ShapeError: x is not (n,d).
        """

    def score(self, x: Tensor) -> Tensor:
        """∇ log ρ(x), (n,d) → (n,d), detached; by automatic differentiation of `log_density`.

        Raises:
            ConfigError, ShapeError: as `log_density`.
            NonFiniteError: ρ vanishes at a row of x, or log ρ has no gradient there.
        """
        leaf = as_points(x, self.dim, "score(x): x").detach().clone().requires_grad_(True)
        with torch.enable_grad():
            log_density = self.log_density(leaf)
            (score,) = torch.autograd.grad(log_density.sum(), leaf)
        return finite_score(score, log_density, leaf.detach())

    def mean(self) -> Tensor:
        """E x, (d,) float64; here of 100 000 samples, with a standard error of √(Var x_k/100 000)."""
        return self.sample(NUM_FOR_MOMENTS).double().mean(0)

    def cov(self) -> Tensor:
        """Covariance (d,d) float64; here of 100 000 samples, which for a Gaussian is good to 0.5 % of a variance."""
        return sample_cov(self.sample(NUM_FOR_MOMENTS))


def as_generator(seed: int | torch.Generator, call: str) -> torch.Generator:
    """The generator itself, or a new one from an integer; ConfigError where seed is neither."""
    if isinstance(seed, torch.Generator):
        return seed
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ConfigError(
            f"{call}(seed=…) must be an integer in [0, 2⁶³) or a torch.Generator; got {seed!r}. Give e.g. seed=0."
        )
    return torch.Generator().manual_seed(int(seed))


def finite_score(score: Tensor, log_density: Tensor, x: Tensor) -> Tensor:
    """score (n,d) itself; NonFiniteError where it, the log density (n,) or x is NaN or infinite at a row."""
    lost = ~(torch.isfinite(score) & torch.isfinite(x)).all(1) | ~torch.isfinite(log_density)
    if bool(lost.any()):
        row = int(lost.double().argmax())
        raise NonFiniteError(
            f"score(x): log ρ has no gradient at {int(lost.sum())} of {len(x)} rows of x, first at row {row}, x = "
            f"{x[row].tolist()!r:.80}. Causes: (a) x is NaN or infinite; (b) ρ vanishes there. Keep the rows where "
            "log_density(x) is finite."
        )
    return score


def sample_cov(x: Tensor) -> Tensor:
    """Covariance (d,d) float64 of samples x (n,d), normalised by n − 1."""
    return torch.atleast_2d(torch.cov(x.double().T))
