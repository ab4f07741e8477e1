"""A diffusion that is observed at times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_number, plain_fields
from ..energies import Entropy, Potential
from ..energies.base import Energy, check_callable
from ..errors import ConfigError, ShapeError
from ..measures import Reference
from ..measures.base import effective_share


@dataclass(frozen=True, eq=False)
class StateSpace:
    r"""dX = −∇V(X) dt + √(2τ) dW, X₀ ~ `initial`, observed through y_k ~ p(·|X at t_k), independently.

    Args:
        potential: V, (n,d) → (n,), differentiable. For any other diffusion, the energy of its flow as a whole, such as
            `Drift(b) + Diffusion(D)` for dX = b(X) dt + √(2D) dW, also one that depends on time.
        log_likelihood: (y, x (n,d)) → (n,), log p(y|x) of one observation y, differentiable in x; constants count only
            in the evidence.
        initial: the law of X₀; a `Gaussian`, or another reference measure with a positive density.
        temperature: τ > 0; 1/β of dX = −∇V dt + √(2/β) dW. An energy has its own: leave this at 1.

    Raises:
        ConfigError: not callable, no measure, τ ≤ 0, an energy that particles cannot follow.

    Example:
        >>> from pwgf import Gaussian
        >>> model = StateSpace(
        ...     potential=lambda x: x.square().sum(-1) / 2,
        ...     log_likelihood=lambda y, x: -(x - y).square().sum(-1) / 2,
        ...     initial=Gaussian(1),
        ... )
    """

    potential: Callable[[Tensor], Tensor] | Energy
    log_likelihood: Callable[[Any, Tensor], Tensor]
    initial: Reference
    temperature: float = 1.0

    def __post_init__(self) -> None:
        plain_fields(self)
        check_callable(self.potential, "StateSpace(potential=…)")
        check_callable(self.log_likelihood, "StateSpace(log_likelihood=…)")
        check_number(self.temperature, "temperature", "StateSpace", low=0.0, high=math.inf, open_low=True)
        if isinstance(self.potential, Energy):
            self.potential.particle_form()
            if self.temperature != 1.0:
                raise ConfigError(
                    f"StateSpace(potential=energy, temperature=…): the noise is in the energy; got temperature="
                    f"{self.temperature:g} beside it. Leave it out: {self.temperature:g} * Entropy() is that noise."
                )
        if not isinstance(self.initial, Reference):
            raise ConfigError(
                f"StateSpace(initial=…) must be a reference measure, like Gaussian(dim); got "
                f"{type(self.initial).__name__}."
            )

    @property
    def dim(self) -> int:
        """d."""
        return self.initial.dim

    @property
    def energy(self) -> Energy:
        """∫V dρ + τ∫ρ log ρ, or the energy given: its flow is the law between observations."""
        if isinstance(self.potential, Energy):
            return self.potential
        return Potential(self.potential) + self.temperature * Entropy()

    def at(self, y: Any) -> Callable[[Tensor], Tensor]:
        """The log-likelihood of one observation as a function of x, checked at each call; y is moved to x's device.

        Raises:
            ConfigError: the likelihood fails or is NaN.
            ShapeError: it returns another shape than (n,).
        """

        def log_likelihood(x: Tensor) -> Tensor:
            try:
                value = self.log_likelihood(y.to(x.device) if isinstance(y, Tensor) else y, x)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise ConfigError(
                    f"log_likelihood(y, x) failed for an observation {_shown(y)} and x of shape {tuple(x.shape)}: "
                    f"{error}. An observation must have the form that the likelihood expects."
                ) from error
            if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(
                    f"log_likelihood(y, x) must return shape ({len(x)},) for x of shape {tuple(x.shape)}; got {got} "
                    f"for an observation {_shown(y)}. Sum over the coordinates: ….sum(-1)."
                )
            if bool(value.isnan().any()):
                raise ConfigError(f"log_likelihood(y, x) is NaN for an observation {_shown(y)}.")
            return value

        return log_likelihood


def _shown(y: Any) -> str:
    return f"of shape {tuple(y.shape)}" if isinstance(y, (Tensor, np.ndarray)) and y.ndim else f"{y!r:.60}"


def weighted_moments(x: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (d,), covariance (d,d) and effective share of samples x (n,d) with log weights (n,)."""
    w = torch.softmax(log_w, 0)
    mean = w @ x
    return mean, (x - mean).T @ (w[:, None] * (x - mean)), effective_share(log_w)
