"""Implicit steps: a linearly implicit Euler step in Wasserstein geometry, extrapolated.

One step solves (Ĝ + hH + ε)η = Jᵀv/n, θ ← θ + hη, with v at the end of the step where the energy depends on time, and H
the second variation of the energy along displacements of the samples: a Gauss–Newton step of the JKO problem
min ½E|T_θ − T_θ₀|² + h F(θ). Steps of h, 2 × h/2 and 3 × h/3 on the same samples are extrapolated to order two or
three. The order does not depend on H being exact (a W-method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import is_integer, plain_fields
from ..errors import ConfigError, NonFiniteError, SolverError
from .base import Advance, Field, Linearised, as_config, check_positive

DEFAULT_TOLERANCE = 3e-4
"""rms displacement of a sample by which the last two columns of the extrapolation may differ, in units of x."""

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 4.0
_EXPLORE = 8  # steps of order two after which order three is tried again
_MORE_DAMPING = 2.0  # by what an error above the tolerance, or a rate that was noise, raises the damping of a step
_MOST_DAMPING, _MOST_NOISE_DAMPING = 10.0, 100.0  # to how much at most
_NOISE = 0.5  # agreement of v with the last rate below which that was noise
_SOLVES = {2: 3, 3: 6}  # linear solves of a step, by order


@dataclass(frozen=True)
class Implicit:
    """Extrapolated linearly implicit Euler: stable for every step, however stiff the flow.

    A step of order 2 takes three linear solves at two points θ, one of order 3 six at four. The order in use is the one
    that advances further per solve. A step is rejected, and a shorter one tried on the same samples, when the error
    estimate exceeds the tolerance, when more than a few samples fold, or when the energy on these samples rises by more
    than half of what it should have fallen.

    An error above the tolerance doubles the damping, up to tenfold. A rate that was noise doubles it as well, up to a
    hundredfold: one carried over by momentum, less than half of which fits v best on new samples. A step without either
    halves it again.

    Args:
        tolerance: largest rms displacement error of a sample per step, in units of x; None means that of the scheme,
            else 3e-4. The estimate is that of the order below, so steps are more accurate than it says.
        first_step: length of the first step, in units of t; None: from the velocity.
        order: largest order, 2 or 3.
        dt: None, or a fixed length for steps of plain implicit Euler without extrapolation and error control.
        newton: Newton iterations after the linear step, with `dt` only: 0 for the linearly implicit Euler step, a few
            for the minimising-movement (JKO) step of length dt.
        max_rejections: steps rejected within an interval before it is repeated with new samples.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> Implicit(tolerance=1e-3).order
        3

    References:
        P. Deuflhard, Recent progress in extrapolation methods for ordinary differential equations, 1985. R. Jordan,
        D. Kinderlehrer, F. Otto, The variational formulation of the Fokker–Planck equation, 1998.
    """

    tolerance: float | None = None
    first_step: float | None = None
    order: int = 3
    dt: float | None = None
    newton: int = 0
    max_rejections: int = 20

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(
            "Implicit", self.max_rejections, tolerance=self.tolerance, first_step=self.first_step, dt=self.dt
        )
        if self.order not in (2, 3):
            raise ConfigError(f"Implicit(order=…) must be 2 or 3; got {self.order!r}.")
        if not is_integer(self.newton) or self.newton < 0:
            raise ConfigError(f"Implicit(newton=…) must be an integer ≥ 0; got {self.newton!r}.")
        if self.newton and self.dt is None:
            raise ConfigError(
                f"Implicit(newton={self.newton}) solves minimising movements of a given length; give it: "
                f"Implicit(dt=0.05, newton={self.newton})."
            )
        if self.dt is not None and self.tolerance is not None:
            raise ConfigError(
                "Implicit(dt=…) takes fixed steps, which a tolerance cannot control; give one of the two."
            )

    @property
    def adaptive(self) -> bool:
        """Whether the error is controlled."""
        return self.dt is None

    def resolved(self, tolerance: float | None) -> Implicit:
        """With the tolerance of the scheme where it has none of its own.

        Raises:
            ConfigError: fixed steps, and a tolerance.
        """
        if self.dt is not None:
            if tolerance is not None:
                raise ConfigError(
                    f"PWGF(tolerance=…) needs an adaptive integrator; got Implicit(dt={self.dt:g}), which takes fixed "
                    "steps. Leave one of the two out."
                )
            return replace(self, first_step=self.dt)
        given = self.tolerance if self.tolerance is not None else tolerance
        return replace(self, tolerance=DEFAULT_TOLERANCE if given is None else given)

    def advance(self, field: Field, theta: Tensor, length: float, first_step: float, memory: Tensor) -> Advance:
        """One accepted step of at most the given length.

        Raises:
            SolverError, NonFiniteError: the flow has no value at θ, or too many steps were rejected.
        """
        if self.dt is not None:
            return self._minimising_movement(field, theta, length, self.dt)
        start = field.linearise(theta)
        order, since, extra = self.order, 0, 1.0  # `extra`: damping in units of the scheme's
        if len(memory) == 3 and memory[0] > 1:  # else that of another integrator, or none yet
            order, since, extra = int(memory[0]), int(memory[1]), float(memory[2])
        noise = start.agreement() < _NOISE
        if noise:
            extra = min(_MORE_DAMPING * extra, _MOST_NOISE_DAMPING)
        step = _Step(field, start, theta)
        wanted = min(first_step, length)
        h = wanted
        while True:
            explore = min(self.order, 3 if since >= _EXPLORE else order)
            field.extra_damping = extra
            try:
                trial = step.extrapolated(h, explore, float(self.tolerance))  # type: ignore[arg-type]
            except _Rejected as reason:
                step.reject(reason, h, self.max_rejections)
                h *= reason.factor
                continue
            grown = {k: h * _factor(ratio, k) for k, ratio in trial.ratios.items()}
            better = max(grown, key=lambda k: grown[k] / _SOLVES[k])
            order, since = better, (0 if explore == 3 else since + 1)
            if trial.accepted:
                break
            step.reject(_Rejected(f"error still {min(trial.ratios.values()):.2g} × tolerance"), h, self.max_rejections)
            h = min(grown[better], 0.9 * h)
            extra = max(extra, min(_MORE_DAMPING * extra, _MOST_DAMPING))  # h does not shrink an error of noise
        proposal = grown[better] if not step.num_rejected else min(grown[better], h)
        if h < 0.999 * first_step and not step.num_rejected:  # cut short by the end, not by the flow
            proposal = max(proposal, first_step)
        if not (step.num_rejected or noise):
            extra = max(extra / _MORE_DAMPING, 1.0)
        moved = (trial.theta - theta) / h
        stiffness = h * start.stiffness(trial.error)
        return Advance(
            trial.theta, moved, h, h, proposal, step.num_rejected,
            torch.tensor([order, since, extra], dtype=torch.float64), True, stiffness, step.reason,
            min(trial.ratios.values()) * float(self.tolerance),  # type: ignore[arg-type]
        )  # fmt: skip

    def _minimising_movement(self, field: Field, theta: Tensor, length: float, dt: float) -> Advance:
        """The step of implicit Euler, by `newton` iterations after the linear one."""
        start = field.linearise(theta)
        end = theta + length * start.velocity(length)
        for _ in range(self.newton):
            here = field.linearise(end)  # of the same step: its end is `length` after the start
            end = end + length * here.velocity(length, here.moved_since(start))
        moved = (end - theta) / length
        return Advance(
            end, moved, length, length, float(dt), 0, torch.zeros(0, dtype=torch.float64), True,
            length * start.stiffness(moved),
        )  # fmt: skip

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON."""
        return as_config(self)


class _Rejected(Exception):
    """A step that cannot be taken, and by what the next one is shorter."""

    factor: ClassVar[float] = 0.5


@dataclass(frozen=True)
class _Trial:
    """An extrapolated step: θ, the estimate e whose rms|Je| was compared, its ratio to the tolerance by order."""

    theta: Tensor
    error: Tensor
    ratios: dict[int, float]
    accepted: bool


class _Step:
    """Steps of several lengths from one θ on the same samples."""

    def __init__(self, field: Field, start: Linearised, theta: Tensor) -> None:
        self.field, self.start, self.theta, self.num_rejected = field, start, theta, 0
        self.reason = ""

    def reject(self, reason: _Rejected, h: float, most: int) -> None:
        """Counts it; SolverError when there are too many."""
        self.num_rejected, self.reason = self.num_rejected + 1, str(reason)
        if self.num_rejected > most:
            raise SolverError(f"{self.num_rejected} implicit steps rejected, down to h = {h:.2e}; last: {reason}")

    def extrapolated(self, h: float, order: int, tolerance: float) -> _Trial:
        """Columns 1 … order of the extrapolation table; the highest that meets the tolerance."""
        one, two = self._euler(h, 1), self._euler(h, 2)
        second = 2 * two - one
        estimate = second - one
        ratios = {2: self.start.displacement(estimate) / tolerance}
        found, error = second, estimate
        if order == 3 and math.isfinite(ratios[2]):
            try:
                three = self._euler(h, 3)
            except (_Rejected, SolverError, NonFiniteError):
                ratios[3] = math.inf
            else:
                beside = 3 * three - 2 * two  # column two from steps of h/2 and h/3
                third = beside + (beside - second) / 2
                ratios[3] = self.start.displacement(third - beside) / tolerance
                if ratios[3] <= 1:
                    found, error = third, third - beside
        accepted = min(ratios.values()) <= 1
        if accepted:
            self._check(found, h)
            if self.start.unseen(h) > tolerance:
                raise _Rejected("the velocity jumps in time early in the step")
        return _Trial(found, error, ratios, accepted)

    def _euler(self, h: float, parts: int) -> Tensor:
        """θ after so many linearly implicit Euler steps of h/parts."""
        theta, here = self.theta, self.start
        for k in range(parts):
            try:
                if k:
                    here = self.field.linearise(theta, k * h / parts)
                    if here.folded_since(self.start):
                        raise _Rejected("the map would fold at more samples than a few in the tail")
                theta = theta + h / parts * here.velocity(h / parts)
            except (SolverError, NonFiniteError) as error:
                raise _Rejected(str(error)) from error
        return theta

    def _check(self, theta: Tensor, h: float) -> None:
        """Raises _Rejected where the step folds the map, or raises the energy that it should lower."""
        fault = self.field.fault(self.start, theta, h)
        if fault is not None:
            raise _Rejected(fault)


def _factor(ratio: float, order: int) -> float:
    """By what the next step may be longer."""
    if not math.isfinite(ratio):
        return _SHRINK
    return min(_GROW, max(_SHRINK, _SAFETY * max(ratio, 1e-10) ** (-1 / order)))
