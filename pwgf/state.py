"""State: all that the next step depends on. Info: what one step did. Both are plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


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
    """

    t: float
    theta: Tensor
    theta_dot: Tensor
    dt: float
    rng: Tensor
    counters: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

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
