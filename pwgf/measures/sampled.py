"""What an energy sees of a measure: samples, and what is known of the density there."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..errors import ConfigError
from ..parallel import Shared


class Sampled(Protocol):
    """A measure ρ on n samples: a pushed measure, particles, a step of a JKO chain.

    `log_density` and `score` raise ConfigError where the measure has none, and are computed when first asked for.
    Processes may share the samples out: then x holds the rows of this one, and `mean` and `gather` go over all.
    """

    @property
    def x(self) -> Tensor:
        """Samples (n,d)."""
        ...

    @property
    def t(self) -> float | None:
        """The time, in units of the flow's; None where it is not known."""
        ...

    @property
    def log_density(self) -> Tensor:
        """log ρ(x), (n,)."""
        ...

    @property
    def score(self) -> Tensor:
        """∇ log ρ(x), (n,d)."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values (n, …) over the samples of all processes, (…)."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Values (n, …) of all processes."""
        ...


class Cloud(Shared):
    """Particles: samples x (n,d) of a law without a density, all of them in every process, at the time t."""

    def __init__(self, x: Tensor, t: float | None = None) -> None:
        super().__init__(len(x))
        self.x = x
        self.t = t

    @property
    def log_density(self) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError("particles have no density; use scheme PWGF for an energy that needs one.")

    @property
    def score(self) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError("particles have no score; use scheme PWGF for an energy that needs one.")
