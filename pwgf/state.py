"""State: all that the next step depends on. Info: what one step did. Both are plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import SolverError


@dataclass(frozen=True)
class State:
    """The whole state of a flow between two steps; equal states have equal futures, to the bit.

    Args:
        t: time reached.
        theta: parameters θ, (p,), in the run's dtype and on its device.
        theta_dot: last accepted θ̇, (p,); the centre of the damping, zeros at the start.
        dt: proposed length of the next sampling interval.
        rng: state of the CPU `torch.Generator`, uint8.
        counters: totals since the start, such as `num_stages` and `num_rejected`.
        extra: further tensors that a scheme carries from step to step.
        rest: what the rounding of t leaves out: the time reached is t + rest. Steps far shorter than the spacing of
            doubles at t, as after times[0] = 1.7e9, add up in it.
    """

    t: float
    theta: Tensor
    theta_dot: Tensor
    dt: float
    rng: Tensor
    counters: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    rest: float = 0.0

    def left(self, t1: float) -> float:
        """The time from here to t1, to the precision of that time and not of t1."""
        return (t1 - self.t) - self.rest

    def later(self, h: float, t1: float) -> tuple[float, float]:
        """t and rest after a step h on the way to t1, which does not reach it: t stays below t1.

        Raises:
            SolverError: the step is lost beside the time to t1, so that the run would never end.

        Example:
            >>> State(1.7e9, *[torch.zeros(0)] * 2, 0.0, torch.zeros(0)).later(1e-9, 1.7e9 + 1)
            (1700000000.0, 1e-09)
        """
        left = self.left(t1)
        if not left - h < left:
            raise SolverError(
                f"a step of {h:.3g} from t = {self.t:.17g} is lost in rounding beside the {left:.3g} that remain to "
                f"t = {t1:.17g}. Find what makes the steps so short: a dt, or an energy too steep for a tolerance."
            )
        t, rest = _sum(self.t, h)
        t, rest = _sum(t, rest + self.rest)
        if t < t1:
            return t, rest
        below = math.nextafter(t1, -math.inf)
        return below, (t - below) + rest

    def copy(self) -> State:
        """An equal state with tensors of its own."""
        own = {name: getattr(self, name).clone() for name in ("theta", "theta_dot", "rng")}
        extra = {name: values.clone() for name, values in self.extra.items()}
        return replace(self, **own, counters=dict(self.counters), extra=extra)

    def generator(self) -> torch.Generator:
        """A new generator that continues this state's random stream; the state itself is not changed."""
        generator = torch.Generator()
        generator.set_state(self.rng)
        return generator


def _sum(a: float, b: float) -> tuple[float, float]:
    """a + b as a double and what its rounding leaves out, exactly (D. E. Knuth, 1969)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@dataclass(frozen=True)
class Info:
    """What one step did.

    Args:
        t0, t1: the sampling interval.
        dt: length of the last accepted substep.
        num_stages: right sides evaluated in this step.
        num_rejected: substeps rejected in this step.
        values: further figures of the scheme by name (energy on the step's samples, solver residual, …).
    """

    t0: float
    t1: float
    dt: float
    num_stages: int
    num_rejected: int
    values: Mapping[str, float] = field(default_factory=dict)


class Rows(Protocol):
    """Read access to stored rows, which schemes interpolate: `t` (T,), `theta(k)` and `theta_dot(k)` of shape (p,)."""

    t: np.ndarray

    def theta(self, k: int) -> Tensor:
        """θ of row k, (p,)."""
        ...

    def theta_dot(self, k: int) -> Tensor:
        """θ̇ of row k, (p,)."""
        ...
