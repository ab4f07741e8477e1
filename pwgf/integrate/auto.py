"""The default: implicit steps, and explicit ones where the flow is smooth and they are cheaper."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import NonFiniteError, SolverError
from .base import NO_MEMORY, Advance, Field, as_config
from .explicit import Explicit
from .implicit import Implicit

STABLE = {"adaptive_heun": 2.0, "fehlberg2": 2.0, "bosh3": 2.5, "dopri5": 3.3, "dopri8": 6.0}
"""Lengths of the real stability intervals: h·κ up to which an explicit step damps a mode of rate κ."""

_NEAR_LIMIT = 0.2  # share of the stability interval above which an explicit step will soon be bound by it


class _Habits(NamedTuple):
    """When the sides change.

    `cost`: an implicit step costs about as much as so many explicit ones. `patience`: explicit intervals near the limit
    or with rejections, less those without, before implicit steps take over. `back_after`: implicit steps in a row, each
    no longer than `cost` stable explicit ones, before those take over again.
    """

    cost: float
    patience: int
    back_after: int


_CHEAP = _Habits(cost=3.0, patience=2, back_after=10)
_COSTLY = _Habits(cost=10.0, patience=10, back_after=2)


@dataclass(frozen=True)
class Auto:
    """Changes between implicit and explicit steps, to those that advance further for the same work.

    It starts with implicit steps: an explicit start would leave a map that is about to be torn with parameters from
    which implicit steps advance slowly. Wells of c = .5 in d = 2 stalled at t = .1 that way, and pass in 15 s with an
    implicit one. Implicit steps give way when stable explicit ones would be as long for the same work (by the Rayleigh
    quotient of the energy's second variation on the error estimate). Explicit steps give way when they are as long as
    stability allows (by the rate at which θ̇ changes between stages), are rejected repeatedly, fail, or bring the map
    close to a fold; an interval in which they fail or fold the map is repeated by an implicit step. Large maps whose
    implicit solves are costly (`ConvexRidge` in high dimension, modules) start with explicit steps and return to them
    sooner.

    Args:
        explicit, implicit: the two sides.
        explicit_start: whether explicit steps begin also where implicit ones are cheap: for flows that are known to be
            smooth, such as those of a posterior in standardised coordinates.

    Example:
        >>> Auto().implicit.order
        3
    """

    explicit: Explicit = field(default_factory=Explicit)
    implicit: Implicit = field(default_factory=Implicit)
    explicit_start: bool = False
    adaptive: ClassVar[bool] = True

    @property
    def tolerance(self) -> float | None:
        """That of the explicit side."""
        return self.explicit.tolerance

    @property
    def first_step(self) -> float | None:
        """That of the explicit side."""
        return self.explicit.first_step

    @property
    def max_rejections(self) -> int:
        """That of the implicit side."""
        return self.implicit.max_rejections

    def resolved(self, tolerance: float | None) -> Auto:
        """With the tolerance of the scheme on both sides."""
        return replace(self, explicit=self.explicit.resolved(tolerance), implicit=self.implicit.resolved(tolerance))

    def advance(self, field: Field, theta: Tensor, length: float, first_step: float, memory: Tensor) -> Advance:
        """An interval by the side in charge; the memory holds which, its count, κ and the memory of the implicit side.

        Raises:
            SolverError, NonFiniteError: neither side finds a step.
        """
        known = len(memory) in (3, 6) and memory[0] < 2  # that of `Implicit` begins with its order, 2 or 3
        own = memory[3:] if known else NO_MEMORY
        cheap = field.implicit_is_cheap(theta)
        habits = _CHEAP if cheap else _COSTLY
        if not known:
            implicit, count, rate = cheap and not self.explicit_start, 0, 0.0
        else:
            implicit, count, rate = bool(memory[0]), int(memory[1]), float(memory[2])
        if not implicit:
            found = self._explicit(field, theta, length, first_step)
            if found is not None:
                near = found.stiffness > _NEAR_LIMIT * STABLE[self.explicit.method]
                count = max(0, count + (1 if near or found.num_rejected else -1))
                rate = found.stiffness / found.dt
                implicit = count >= habits.patience or field.strain()[1] > 0
                return found._replace(memory=_memory(implicit, 0 if implicit else count, rate, own))
            count = 0
        found = self.implicit.advance(field, theta, length, first_step, own)
        rate = max(found.stiffness / found.dt, 0.8 * rate)
        stable = STABLE[self.explicit.method] / max(rate, 1e-300)
        smooth = found.num_rejected == 0 and field.strain()[1] == 0
        count = count + 1 if smooth and found.proposal < habits.cost * stable else 0
        back = count >= habits.back_after
        proposal = min(found.proposal, stable) if back else found.proposal
        return found._replace(memory=_memory(not back, 0 if back else count, rate, found.memory), proposal=proposal)

    def _explicit(self, field: Field, theta: Tensor, length: float, first_step: float) -> Advance | None:
        """The explicit interval; None where it fails or folds the map."""
        try:
            found = self.explicit.advance(field, theta, length, first_step, torch.zeros(0))
        except (SolverError, NonFiniteError):
            return None
        return None if field.strain()[0] > 0 else found

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON."""
        return as_config(self)


def _memory(implicit: bool, count: int, rate: float, own: Tensor) -> Tensor:
    return torch.cat([torch.tensor([float(implicit), float(count), rate], dtype=torch.float64), own])
