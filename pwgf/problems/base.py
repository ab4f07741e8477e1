"""A problem: a reference measure, an energy, times, and the exact law at every time."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..checks import is_real, plain
from ..energies.base import Energy
from ..errors import ConfigError, PWGFError, nearest
from ..maps.base import PushForward
from ..measures import Law, Reference
from ..shown import Shown


class Problem(Shown, ABC):
    """A flow whose law is known at every time: ρ = `reference` at times[0], moved by `energy`.

    A subclass names the arguments of its constructor in `_arguments`; everything else is computed on demand.
    """

    dim: int
    flow: ClassVar[str] = "gradient"
    """Which flow of the energy the exact law is of, and hence which schemes solve it: "gradient", or "Hamiltonian"."""

    @property
    def name(self) -> str:
        """Name in `problems.names()`."""
        return type(self).__name__

    @property
    @abstractmethod
    def reference(self) -> Reference:
        """The reference measure λ, which is the law at times[0]."""

    @property
    @abstractmethod
    def energy(self) -> Energy:
        """The energy F."""

    @property
    @abstractmethod
    def times(self) -> np.ndarray:
        """Times at which to store rows, (T,) float64; times[0] is the start."""

    @property
    def temperature(self) -> float:
        """Weight of the entropy ∫ρ log ρ in F; 0 where F has none."""
        return 0.0

    @property
    def needed_map(self) -> PushForward | None:
        """The map that this flow needs, such as one that keeps the mass between walls; None: any serves."""
        return None

    @property
    def convexity(self) -> float | None:
        """A K for which F is K-convex along geodesics; None where none is known."""
        return None

    @abstractmethod
    def exact(self, t: float) -> Law:
        """The law at time t.

        Args:
            t: a time, not before times[0]; it may lie beyond times[-1].

        Raises:
            ConfigError: t lies before the start or is not finite.
        """

    def exact_energy(self, t: float) -> float | None:
        """F of the exact law at time t, with the constants of `energy`; None where it is not known."""
        return None

    def to_config(self) -> dict[str, Any]:
        """JSON-ready settings, from which `problems.from_config` rebuilds the problem."""
        return {"name": self.name, **self._arguments()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Problem:
        """Rebuilds this problem from `to_config()`; its "name" is ignored.

        Raises:
            ConfigError: an entry is not an argument of the constructor, or one that it needs is missing.
        """
        arguments = {key: value for key, value in config.items() if key != "name"}
        known = inspect.signature(cls).parameters
        for key in arguments:
            if key not in known:
                raise ConfigError(
                    f"{cls.__name__}.from_config: unknown entry {key!r}; it takes {', '.join(known)}."
                    + nearest(key, known)
                )
        needed = [key for key, argument in known.items() if argument.default is argument.empty]
        for key in needed:
            if key not in arguments:
                raise ConfigError(
                    f"{cls.__name__}.from_config needs the entry {key!r}; got {', '.join(arguments) or 'none'}. Add it."
                )
        try:
            return cls(**arguments)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, PWGFError):
                raise
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ConfigError(
                f"{cls.__name__}.from_config: no problem has such entries ({why}). Give those of to_config()."
            ) from error

    @abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""

    def _check_time(self, t: float) -> float:
        start, t = float(self.times[0]), plain(t)
        if not (is_real(t) and math.isfinite(t) and t >= start - 1e-12):
            raise ConfigError(
                f"{self.name}.exact(t=…) needs a finite time t ≥ {start:g}, where the flow starts; got t={t}. "
                f"The problem's own times are {self.name}.times."
            )
        return max(float(t), start)
