"""Explicit steps by torchdiffeq: embedded Runge–Kutta pairs with error control, and fixed steps.

Within a sampling interval the field is deterministic (its samples are frozen), so the error estimate of an embedded
pair means what it says. The error e of a substep is measured as a displacement of samples, rms|J e| in the units of x,
at the latest stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import plain_fields, plain_numbers
from ..errors import ConfigError, NonFiniteError, SolverError, nearest
from .base import NO_MEMORY, Advance, Field, as_config, check_positive

ADAPTIVE = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 5, "dopri8": 8}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Methods by name, with their order."""

DEFAULT_TOLERANCE = 1e-4
"""rms displacement error of a sample per substep, in units of x."""

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 4.0


@dataclass(frozen=True)
class Explicit:
    """An embedded Runge–Kutta pair of torchdiffeq with error control; follows the stiffest mode of the flow.

    Args:
        method: `bosh3`, `dopri5`, `adaptive_heun`, `fehlberg2` or `dopri8`.
        tolerance: largest rms displacement error of a sample per substep, in units of x; None means that of the scheme,
            else 1e-4.
        first_step: length of the first step, in units of t; None: from the velocity.
        max_rejections: substeps rejected within an interval before it is repeated with new samples.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> Explicit("dopri5", tolerance=1e-5).method
        'dopri5'

    References:
        P. Bogacki, L. F. Shampine, A 3(2) pair of Runge–Kutta formulas, 1989.
    """

    method: str = "bosh3"
    tolerance: float | None = None
    first_step: float | None = None
    max_rejections: int = 20
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.method not in ADAPTIVE:
            hint = (
                f" It takes fixed steps: FixedStep({self.method!r}, dt)."
                if self.method in FIXED
                else nearest(str(self.method), ADAPTIVE)
            )
            raise ConfigError(
                f"Explicit(method={self.method!r}) is no adaptive method; there are {', '.join(ADAPTIVE)}.{hint}"
            )
        check_positive("Explicit", self.max_rejections, tolerance=self.tolerance, first_step=self.first_step)

    def resolved(self, tolerance: float | None) -> Explicit:
        """With the tolerance of the scheme where it has none of its own."""
        given = self.tolerance if self.tolerance is not None else tolerance
        return replace(self, tolerance=DEFAULT_TOLERANCE if given is None else given)

    def advance(self, field: Field, theta: Tensor, length: float, first_step: float, memory: Tensor) -> Advance:
        """Integrates θ̇ = field(θ) over an interval of the given length and ends exactly there.

        Raises:
            SolverError, NonFiniteError: the first stage failed, or too many substeps were rejected.
        """
        watch = _Watch(field, ADAPTIVE[self.method], length, self.max_rejections, theta.device)
        times = torch.tensor([0.0, length], dtype=torch.float64)
        options = {"norm": watch.norm, "first_step": first_step * (1 + 1e-9), "step_t": times[1:]}
        try:
            end = _integrated(watch, theta, times, rtol=0.0, atol=self.tolerance, method=self.method, options=options)
        except AssertionError as error:  # torchdiffeq's own checks: a substep below rounding
            raise SolverError(f"{self.method}: {error} after {watch.num_rejected} rejected substeps") from error
        return Advance(
            end.to(theta.device), watch.theta_dot, length, watch.accepted, watch.proposal, watch.num_rejected,
            NO_MEMORY, False, watch.stiffness(), error=watch.ratios2**0.5 * float(self.tolerance),  # type: ignore[arg-type]
        )  # fmt: skip

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON."""
        return as_config(self)


@dataclass(frozen=True)
class FixedStep:
    """Steps of one length by a Runge–Kutta method of torchdiffeq; no error control.

    Args:
        method: `rk4`, `euler`, `midpoint`, `heun2` or `heun3`.
        dt: the step, in units of t; the last one before a stored time is cut short.

    Raises:
        ConfigError: unknown method, dt not positive.
    """

    method: str
    dt: float
    adaptive: ClassVar[bool] = False
    tolerance: ClassVar[None] = None

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.method not in FIXED:
            raise ConfigError(
                f"FixedStep(method={self.method!r}) is unknown; there are {', '.join(FIXED)}."
                f"{nearest(str(self.method), FIXED)}"
            )
        if self.dt is None:
            raise ConfigError(f"FixedStep({self.method!r}, dt) needs the length of its steps, in units of t.")
        check_positive("FixedStep", dt=self.dt)

    @property
    def first_step(self) -> float:
        """dt."""
        return self.dt

    def resolved(self, tolerance: float | None) -> FixedStep:
        """Itself.

        Raises:
            ConfigError: a tolerance is given, which fixed steps cannot meet.
        """
        if tolerance is not None:
            raise ConfigError(
                "PWGF(tolerance=…) needs an adaptive integrator; got "
                f"integrator={type(self).__name__}({self.method!r}, …), which takes fixed steps. Leave the tolerance "
                "out, or use integrator='auto'."
            )
        return self

    def advance(self, field: Field, theta: Tensor, length: float, first_step: float, memory: Tensor) -> Advance:
        """One step of the given length."""
        watch = _Watch(field, 0, length, 0, theta.device)
        times = torch.tensor([0.0, length], dtype=torch.float64)
        end = _integrated(watch.__call__, theta, times, method=self.method)  # bare: fixed steps know no callbacks
        return Advance(end.to(theta.device), watch.theta_dot, length, length, self.dt, 0, NO_MEMORY, False, 0.0)

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON."""
        return as_config(self)


@plain_numbers
def Euler(dt: float) -> FixedStep:
    """Forward Euler steps of length dt, as the published scheme takes them."""
    return FixedStep("euler", dt)


def _integrated(field: Callable[[Tensor, Tensor], Tensor], theta: Tensor, times: Tensor, **settings: Any) -> Tensor:
    """θ at the last of the times."""
    from torchdiffeq import odeint  # noqa: PLC0415, it imports scipy.integrate, half a second

    return odeint(field, theta.cpu(), times, **settings)[-1]


class _Watch:
    """The field as torchdiffeq calls it: turns failed stages into rejected substeps and remembers the proposal.

    torchdiffeq combines stages on the CPU, where its comparisons of times wait for no device; samples and solves stay
    on the device of the field.
    """

    def __init__(self, field: Field, order: int, length: float, max_rejections: int, device: torch.device) -> None:
        self.field, self.length, self.max_rejections, self.device = field, length, max_rejections, device
        self.order = order
        self.stages: list[tuple[Tensor, Tensor]] = []  # the latest two: θ and θ̇
        self.attempting, self.failure = False, None  # type: tuple[bool, Exception | None]
        self.num_rejected, self.ratio = 0, math.inf
        self.ratios2 = 0.0  # sum of the squared ratios of accepted substeps
        self.tried = self.wanted = self.accepted = self.proposal = length

    def __call__(self, t: Tensor, theta: Tensor) -> Tensor:
        if self.failure is not None:  # a stage of this substep failed already: it will be rejected
            return torch.zeros_like(theta)
        try:
            self.theta_dot = self.field(theta.to(self.device), float(t))
            rate = self.theta_dot.cpu()
            if not bool(torch.isfinite(rate).all()):
                raise NonFiniteError("the right side θ̇ is NaN or infinite")
        except (SolverError, NonFiniteError) as error:
            if not self.attempting or not self.order:
                raise
            self.failure = error
            return torch.zeros_like(theta)
        self.stages = [*self.stages[-1:], (theta, rate)]
        return rate

    def stiffness(self) -> float:
        """h·κ of the last accepted substep: how fast θ̇ changes between its two last stages, per displacement."""
        if len(self.stages) < 2:
            return 0.0
        (before, slow), (after, fast) = self.stages
        changes = [self.field.displacement(change) for change in (after - before, fast - slow)]
        moved, bent = torch.stack(changes).tolist()
        return self.accepted * bent / moved if moved > 0 else 0.0

    def norm(self, error: Tensor) -> Tensor:
        """Displacement error over tolerance; +inf after a failed stage, which makes torchdiffeq shrink the substep."""
        ratio = math.inf if self.failure is not None else float(self.field.displacement(error))
        self.ratio = ratio if math.isfinite(ratio) else math.inf
        return torch.full((), self.ratio, dtype=torch.float64)

    def callback_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.attempting, self.failure = True, None
        self.wanted = float(dt)
        self.tried = min(self.wanted, self.length - float(t0))

    def callback_accept_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        growth = _GROW if self.ratio == 0 else _SAFETY * self.ratio ** (-1 / self.order)
        self.accepted = self.tried
        self.ratios2 += self.ratio**2
        proposal = self.tried * min(_GROW, max(_SHRINK, growth))
        # a substep cut short by the end of the interval does not disprove the length that was wanted
        self.proposal = max(proposal, self.wanted) if self.tried < 0.999 * self.wanted else proposal

    def callback_reject_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.num_rejected += 1
        if self.num_rejected > self.max_rejections:
            why = f"last: {self.failure}" if self.failure else f"error still {self.ratio:.2g} × tolerance"
            raise SolverError(f"{self.num_rejected} substeps rejected, down to dt = {self.tried:.2e}; {why}")
