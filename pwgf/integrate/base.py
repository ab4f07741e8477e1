"""What all integrators share: the field they move θ by, and what they report of an interval."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import checks

NO_MEMORY = torch.zeros(0, dtype=torch.float64)


class Linearised(Protocol):
    """The flow at one θ on frozen samples: v, J and the energy's second variation H; a step begins there."""

    @property
    def energy(self) -> float:
        """F on the samples."""
        ...

    def velocity(self, h: float, moved: Tensor | None = None) -> Tensor:
        """η (p,) = argmin E|Jη − v + moved/h|² + h·ηᵀHη + damping; `moved` (n,d) is how far the samples came already.

        Where the energy depends on time, v is that at the end of a step of length h.

        Raises:
            SolverError, NonFiniteError: the linear solve failed.
        """
        ...

    def displacement(self, e: Tensor) -> float:
        """rms_i |J_i e|."""
        ...

    def unseen(self, h: float) -> float:
        """How far a jump of v in time moves samples (rms) that the velocities of steps of h, h/2, h/3 do not see."""
        ...

    def stiffness(self, e: Tensor) -> float:
        """eᵀHe/E|Je|², in units of 1/t."""
        ...

    def agreement(self) -> float:
        """The multiple of the last interval's θ̇ that fits v best on the present samples; near 0 where it was noise."""
        ...

    def moved_since(self, start: Any) -> Tensor:
        """T_θ(z) − T_θ₀(z), (n,d), for the `Linearised` at θ₀."""
        ...

    def folded_since(self, start: Any) -> bool:
        """Whether det ∂_zT has become ≤ 0 since θ₀ at more samples than the limit."""
        ...


class Field(Protocol):
    """The right side θ̇(θ) on frozen samples; `extra_damping` multiplies the damping of implicit solves.

    `since` is the time since the start of the interval: energies may depend on time.
    """

    extra_damping: float

    def __call__(self, theta: Tensor, since: float = 0.0) -> Tensor:
        """θ̇ (p,) at θ (p,); raises SolverError or NonFiniteError where it has none."""
        ...

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the θ of the latest call, a scalar."""
        ...

    def linearise(self, theta: Tensor, since: float = 0.0) -> Any:
        """The `Linearised` flow at θ (p,); raises NonFiniteError where they have no finite value."""
        ...

    def implicit_is_cheap(self, theta: Tensor) -> bool:
        """Whether a linear solve of an implicit step costs about as much as one of an explicit step."""
        ...

    def fault(self, start: Any, theta: Tensor, h: float) -> str | None:
        """Why a step of length h from `start` must not end at θ: folds, or a rise of the energy; None if it may."""
        ...

    def strain(self) -> tuple[float, float]:
        """Shares of samples at which the map has folded, and has folded or nearly so, at the θ of the latest call."""
        ...


class Advance(NamedTuple):
    """The end of an interval.

    Args:
        theta: θ at its end, (p,).
        theta_dot: θ̇ of the last stage or step, (p,).
        length: how far it went; explicit steps go the whole length, implicit ones may stop short.
        dt: length of the last accepted substep.
        proposal: length to try next.
        num_rejected: substeps rejected.
        memory: numbers that the integrator needs at the next interval, (k,) float64.
        implicit: whether an implicit step worked.
        stiffness: h·κ, the step times the fastest rate that it has seen.
        reason: why the last substep was rejected; empty when none was.
        error: estimated rms displacement error of the accepted substeps, the root of the sum of their squares, in the
            units of the tolerance; NaN where none is estimated.
    """

    theta: Tensor
    theta_dot: Tensor
    length: float
    dt: float
    proposal: float
    num_rejected: int
    memory: Tensor
    implicit: bool
    stiffness: float
    reason: str = ""
    error: float = math.nan


def check_positive(call: str, max_rejections: int = 1, **values: float | None) -> None:
    """Raises ConfigError unless each value is None or positive and finite, and the count an integer ≥ 1."""
    for name, value in values.items():
        if value is not None:
            checks.check_positive(value, name, call)
    checks.check_integer(max_rejections, "max_rejections", call)


def as_config(integrator: Any) -> dict[str, Any]:
    """Name and fields of an integrator as JSON."""
    found = {f.name: getattr(integrator, f.name) for f in fields(integrator)}
    nested = {name: value.to_config() if hasattr(value, "to_config") else value for name, value in found.items()}
    return {"name": type(integrator).__name__, **nested}
