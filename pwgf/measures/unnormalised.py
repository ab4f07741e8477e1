"""A reference measure made of a user's sampler and of a density known up to a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import as_points, check_dim, plain_numbers, private
from ..errors import ConfigError, NonFiniteError, ShapeError
from .base import Reference
from .law import as_generator


class Unnormalised(Reference):
    """A law λ = e^ℓ/Z that can be sampled, and whose density is known up to the constant Z.

    Z does not affect samples, velocities and scores of `Potential`, `Entropy`, `KL` and `Interaction`, which need
    ∇ log ρ only. `run.log_density(t, x)` is log ρ_t(x) + log Z, with the same constant at all t and x; a column
    `energy` with an entropy of weight τ is off by τ log Z in every row. Energies that use the value of ρ otherwise
    (`PorousMedium`, `InternalEnergy`, most `Local`s) need a normalised density.

    A file holds no functions: read its measures with `pwgf.load(path, reference=…)`. Both functions are checked when
    they are used, the randomness of the sampler at its first use.

    Args:
        log_density: ℓ, (n,d) → (n,), a differentiable torch function in the dtype of its argument.
        sampler: (n, generator) → (n,d), independent samples; all randomness from the `torch.Generator`.
        dim: d ≥ 1.

    Raises:
        ConfigError: not callable; in use: not differentiable, or randomness from elsewhere.
        ShapeError: in use: a tensor of another shape, or none.
        NonFiniteError: in use: samples that are NaN or infinite.

    Example:
        >>> import torch, pwgf
        >>> def laplace(n, generator):
        ...     u = torch.rand(n, 2, generator=generator, dtype=torch.float64) - 0.5
        ...     return -u.sign() * torch.log1p(-2 * u.abs())
        >>> reference = pwgf.Unnormalised(lambda z: -z.abs().sum(-1), laplace, dim=2)
        >>> reference.log_density(torch.ones(1, 2))
        tensor([-2.])
    """

    @plain_numbers
    def __init__(
        self, log_density: Callable[[Tensor], Tensor], sampler: Callable[[int, torch.Generator], Tensor], dim: int
    ) -> None:
        check_dim(dim, "Unnormalised(log_density, sampler, dim)")
        for name, given, takes in (("log_density", log_density, "(z)"), ("sampler", sampler, "(n, generator)")):
            if not callable(given):
                raise ConfigError(
                    f"Unnormalised({name}=…) must be a function {name}{takes}; got {type(given).__name__}. "
                    "Give the function itself, not its result."
                )
        self.dim, self._log_density, self._sampler, self._tried = dim, log_density, sampler, False

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n samples (n,d) float64 on the CPU."""
        if not self._tried:
            self._try()
        return self._draw(n, as_generator(seed, "Unnormalised.sample"))

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        z = self._sampler(n, generator)
        if not isinstance(z, Tensor) or z.shape != (n, self.dim):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(
                f"Unnormalised: sampler(n={n}, generator) must return a tensor of shape ({n}, {self.dim}); got {got}. "
                "Return one row per sample."
            )
        if not bool(torch.isfinite(z).all()):
            raise NonFiniteError(
                f"Unnormalised: sampler(n={n}, generator) returned NaN or infinite entries. Causes: (a) a logarithm or "
                "quantile at 0 or 1: clamp its argument; (b) overflow in float32: sample in float64."
            )
        return z.detach().to("cpu", torch.float64, copy=True)  # the sampler may write into its own again

    def _try(self) -> None:
        """Two draws from equal generators must be equal, or a run could be neither repeated nor resumed."""
        one, other = (self._draw(4, torch.Generator().manual_seed(0)) for _ in range(2))
        if not torch.equal(one, other):
            raise ConfigError(
                "Unnormalised: sampler(n, generator) gave different samples for equal generators; a run could not be "
                "repeated or resumed. Take all randomness from the generator: torch.randn(n, d, generator=generator)."
            )
        self._tried = True

    def log_density(self, z: Tensor) -> Tensor:
        """log λ(z) + log Z: (n,d) → (n,)."""
        z = as_points(z, self.dim, "Unnormalised.log_density(z): z")
        value = self._log_density(private(z))
        if not isinstance(value, Tensor) or value.shape != z.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"Unnormalised: log_density(z) must return a tensor of shape ({len(z)},) for z of shape "
                f"{tuple(z.shape)}; got {got}. Sum over coordinates: ….sum(-1)."
            )
        if z.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            raise ConfigError(
                "Unnormalised: log_density(z) has no gradient in z. Use torch operations throughout; no .detach(), "
                ".item() or .numpy()."
            )
        return torch.where(z.isinf().any(1), -torch.inf, value)  # there ℓ may give inf − inf

    def to_config(self) -> dict[str, Any]:
        """Name and dimension; the functions are not stored."""
        return {"name": "Unnormalised", "dim": self.dim}
