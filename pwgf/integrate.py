"""Moves θ over one sampling interval with torchdiffeq; the only place where θ moves in time.

Within the interval the field is deterministic (its samples are frozen), so the error estimate of an embedded
Runge–Kutta pair means what it says. The error e of a substep is measured as a displacement of samples, rms|J e| in the
units of x, at the latest stage.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchdiffeq import odeint

from .errors import ConfigError, NonFiniteError, SolverError, nearest

ADAPTIVE = {"adaptive_heun": 2, "fehlberg2": 2, "bosh3": 3, "dopri5": 5, "dopri8": 8}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Methods by name, with their order."""

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 4.0


class Field(Protocol):
    """The right side θ̇(θ) on frozen samples."""

    def __call__(self, theta: Tensor) -> Tensor:
        """θ̇ (p,) at θ (p,); raises SolverError or NonFiniteError where it has none."""
        ...

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the θ of the latest call, a scalar."""
        ...


class Advance(NamedTuple):
    """The end of an interval.

    Args:
        theta: θ(t₁), (p,).
        theta_dot: θ̇ of the last stage, (p,).
        dt: length of the last accepted substep.
        proposal: length to try next.
        num_rejected: substeps rejected.
    """

    theta: Tensor
    theta_dot: Tensor
    dt: float
    proposal: float
    num_rejected: int


def check_method(method: str, tolerance: float | None, dt: float | None) -> None:
    """Raises ConfigError unless the method exists and tolerance and dt fit it."""
    if not isinstance(method, str) or (method not in ADAPTIVE and method not in FIXED):
        raise ConfigError(
            f"PWGF(method={method!r}) is unknown.{nearest(method, [*ADAPTIVE, *FIXED])} Adaptive: "
            f"{', '.join(ADAPTIVE)}; fixed steps: {', '.join(FIXED)}."
        )
    if method in FIXED and tolerance is not None:
        raise ConfigError(
            f"PWGF(tolerance=…) needs an adaptive method; got method={method!r}, which takes fixed steps. Give dt, or "
            "use method='bosh3'."
        )
    if method in FIXED and dt is None:
        raise ConfigError(
            f"PWGF(method={method!r}) takes fixed steps and needs their length: PWGF(dt=…), in units of t."
        )
    for name, value in (("tolerance", tolerance), ("dt", dt)):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ConfigError(f"PWGF({name}=…) must be positive and finite; got {value!r}.")


def advance(
    field: Field,
    theta: Tensor,
    length: float,
    *,
    method: str,
    tolerance: float | None,
    first_step: float,
    max_rejections: int,
) -> Advance:
    """Integrates θ̇ = field(θ) over an interval of the given length and ends exactly there.

    Args:
        field: deterministic right side.
        theta: θ at the start, (p,).
        length: of the interval, > 0.
        method: a key of `ADAPTIVE` or `FIXED`; a fixed method takes the interval in one step.
        tolerance: largest rms displacement error per substep (adaptive methods only), in units of x.
        first_step: length of the first substep tried (adaptive methods only).
        max_rejections: substeps that may be rejected before giving up.

    Raises:
        SolverError, NonFiniteError: the first stage failed, or too many substeps were rejected.
    """
    watch = _Watch(field, method, length, max_rejections)
    times = torch.tensor([0.0, length], dtype=torch.float64, device=theta.device)
    if method in FIXED:
        end = odeint(watch.__call__, theta, times, method=method)[-1]  # bare: fixed steps know no callbacks, and warn
        return Advance(end, watch.theta_dot, length, length, 0)
    options = {"norm": watch.norm, "first_step": first_step * (1 + 1e-9), "step_t": times[1:]}
    try:
        end = odeint(watch, theta, times, rtol=0.0, atol=tolerance, method=method, options=options)[-1]
    except AssertionError as error:  # torchdiffeq's own checks: a substep below rounding
        raise SolverError(f"{method}: {error} after {watch.num_rejected} rejected substeps") from error
    return Advance(end, watch.theta_dot, watch.accepted, watch.proposal, watch.num_rejected)


class _Watch:
    """The field as torchdiffeq calls it: turns failed stages into rejected substeps and remembers the proposal."""

    def __init__(self, field: Field, method: str, length: float, max_rejections: int) -> None:
        self.field, self.length, self.max_rejections = field, length, max_rejections
        self.order = ADAPTIVE.get(method, 0)
        self.attempting, self.failure = False, None  # type: tuple[bool, Exception | None]
        self.num_rejected, self.ratio = 0, math.inf
        self.tried = self.wanted = self.accepted = self.proposal = length

    def __call__(self, t: Tensor, theta: Tensor) -> Tensor:
        if self.failure is not None:  # a stage of this substep failed already: it will be rejected
            return torch.zeros_like(theta)
        try:
            self.theta_dot = self.field(theta)
            if not bool(torch.isfinite(self.theta_dot).all()):
                raise NonFiniteError("the right side θ̇ is NaN or infinite")
        except (SolverError, NonFiniteError) as error:
            if not self.attempting or not self.order:
                raise
            self.failure = error
            return torch.zeros_like(theta)
        return self.theta_dot

    def norm(self, error: Tensor) -> Tensor:
        """Displacement error over tolerance; +inf after a failed stage, which makes torchdiffeq shrink the substep."""
        ratio = torch.full((), math.inf) if self.failure is not None else self.field.displacement(error)
        self.ratio = float(ratio) if bool(torch.isfinite(ratio)) else math.inf
        return torch.full((), self.ratio, dtype=torch.float64, device=error.device)

    def callback_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.attempting, self.failure = True, None
        self.wanted = float(dt)
        self.tried = min(self.wanted, self.length - float(t0))

    def callback_accept_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        growth = _GROW if self.ratio == 0 else _SAFETY * self.ratio ** (-1 / self.order)
        self.accepted = self.tried
        proposal = self.tried * min(_GROW, max(_SHRINK, growth))
        # a substep cut short by the end of the interval does not disprove the length that was wanted
        self.proposal = max(proposal, self.wanted) if self.tried < 0.999 * self.wanted else proposal

    def callback_reject_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.num_rejected += 1
        if self.num_rejected > self.max_rejections:
            why = f"last: {self.failure}" if self.failure else f"error still {self.ratio:.2g} × tolerance"
            raise SolverError(f"{self.num_rejected} substeps rejected, down to dt = {self.tried:.2e}; {why}")
