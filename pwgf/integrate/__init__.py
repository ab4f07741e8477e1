"""Integrators: the only place where θ moves in time. A new one is a file here, and a name in `INTEGRATORS`."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from torch import Tensor

from ..errors import ConfigError, nearest
from .auto import Auto
from .base import Advance, Field, Linearised
from .explicit import ADAPTIVE, FIXED, Euler, Explicit, FixedStep
from .implicit import Implicit

__all__ = [
    "FIXED",
    "INTEGRATORS",
    "Advance",
    "Auto",
    "Euler",
    "Explicit",
    "Field",
    "FixedStep",
    "Implicit",
    "Integrator",
    "Linearised",
    "get_integrator",
]


class Integrator(Protocol):
    """Moves θ over sampling intervals; its settings are a frozen dataclass."""

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its steps by an error estimate."""
        ...

    @property
    def first_step(self) -> float | None:
        """Length of the first step, or None."""
        ...

    def resolved(self, tolerance: float | None) -> Integrator:
        """The same with the scheme's tolerance where it has none of its own; ConfigError where it cannot have one."""
        ...

    def advance(self, field: Field, theta: Tensor, length: float, first_step: float, memory: Tensor) -> Advance:
        """Moves θ by at most `length`; `memory` is what it gave back last time, empty at the start."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON."""
        ...


INTEGRATORS: dict[str, Any] = {
    "auto": Auto,
    "implicit": Implicit,
    "explicit": Explicit,
    **{method: functools.partial(Explicit, method) for method in ADAPTIVE},
    **{method: functools.partial(FixedStep, method) for method in FIXED},
}
"""What makes an integrator of its settings, by the names that the command line and `PWGF` know."""


def get_integrator(integrator: str | Integrator) -> Integrator:
    """An integrator by name ("auto", "implicit", "explicit", or an adaptive method such as "bosh3"); itself otherwise.

    Raises:
        ConfigError: unknown name, a method that needs its step, or not an integrator.

    Example:
        >>> get_integrator("dopri5")
        Explicit(method='dopri5', tolerance=None, first_step=None, max_rejections=20)
    """
    if not isinstance(integrator, str):
        if not hasattr(integrator, "advance") or isinstance(integrator, type):
            raise ConfigError(
                f"PWGF(integrator=…) must be a name or an integrator such as integrate.Implicit(); got {integrator!r}."
            )
        return integrator
    if integrator in FIXED:
        raise ConfigError(
            f"PWGF(integrator={integrator!r}) takes fixed steps and needs their length: "
            f"integrator=integrate.FixedStep({integrator!r}, dt), dt in units of t."
        )
    if integrator not in INTEGRATORS:
        known = [name for name in INTEGRATORS if name not in FIXED]
        raise ConfigError(
            f"PWGF(integrator={integrator!r}) is unknown; there are {', '.join(known)}.{nearest(integrator, known)}"
        )
    made: Integrator = INTEGRATORS[integrator]()
    return made
