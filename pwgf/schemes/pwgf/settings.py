"""What `PWGF` accepts: its arguments checked at the door, and those it chooses when they are left out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...checks import check_dtype, check_integer, check_number
from ...energies import Energy
from ...errors import ConfigError, nearest
from ...integrate import Integrator
from ...linalg import Auto
from ...linalg.choice import MAX_PRIMAL
from ...maps.base import PushForward
from ...measures import Reference
from .._arguments import check_law, check_map
from .._mobility import Given, Mobility

ACCURACY = 0.02
"""Estimated error of the law, in spreads, that a run warns of when it is given no accuracy."""

STEP_SHARE = 0.02
"""rms displacement error of a sample per step, relative to the accuracy stated; errors of steps add up."""

FINEST = {torch.float64: 1e-5, torch.float32: 1e-3}
"""The smallest accuracy that is accepted."""

LINE_TOLERANCE = 1e-4
"""rms displacement error of a sample per step for d = 1."""

_MARGIN = 100  # by how much what coordinates tell apart has to exceed the damping
_RESOLUTION = 1e-3  # of a spread, by which numbers may lie apart
_ROWS_PER_PARAMETER = 3.8  # numbers of a velocity for each parameter that make noise harmless


class SolveSettings(NamedTuple):
    """Damping, relative to the metric's trace, and momentum of explicit and of implicit solves."""

    damping: float
    momentum: float
    implicit_damping: float
    implicit_momentum: float


def solve_settings(
    damping: float | None,
    momentum: float | None,
    map: PushForward,
    num_samples: int,
    takes_implicit: bool = True,
) -> SolveSettings:
    """As given, or the defaults: damping 1e-6 and momentum .9, but less and none in implicit steps of few parameters.

    The second variation damps implicit steps already, so that few parameters (no more than the direct solver takes, and
    about a quarter of the n·d numbers of a velocity) need little more: 1e-7; many of them fit noise. On a line evenly
    spread samples leave little noise, and the damping is the larger error: it holds back what moves few samples, such
    as the mass that passes between wells. There it is 1e-10, also in the explicit steps of a run that takes implicit
    ones; not on a circle, where samples of no wider law reach what is left of the density on the far side. An affine
    map, each of whose parameters moves samples, takes 1e-9 from twice as many numbers as parameters on: as the damping
    is relative to the trace, 1e-6 would be a hundredth of each eigenvalue in d = 100.
    """
    num_params, dim = map.num_params, map.dim
    few = num_params <= MAX_PRIMAL and _ROWS_PER_PARAMETER * num_params <= num_samples * dim
    if few and dim == 1 and takes_implicit and not map.periodic:
        defaults = SolveSettings(1e-10, 0.9, 1e-10, 0.0)
    elif not map.needs_damping and 2 * num_params <= num_samples * dim:
        defaults = SolveSettings(1e-9, 0.9, 1e-9, 0.0)
    elif few:
        defaults = SolveSettings(1e-6, 0.9, 1e-7, 0.0)
    else:
        defaults = SolveSettings(1e-6, 0.9, 1e-6, 0.9)
    if damping is not None:
        defaults = defaults._replace(damping=damping, implicit_damping=damping)
    if momentum is not None:
        defaults = defaults._replace(momentum=momentum, implicit_momentum=momentum)
    return defaults


def default_tolerance(
    tolerance: float | None, accuracy: float | None, integrator: Integrator, dim: int
) -> float | None:
    """As given; else that of a stated accuracy; else None, the integrator's own, but 1e-4 for d = 1.

    On a line noise does not hide smaller errors of the time step, also of implicit ones.
    """
    if tolerance is not None or not integrator.adaptive:
        return tolerance
    if accuracy is not None:
        return STEP_SHARE * accuracy
    return LINE_TOLERANCE if dim == 1 else None


def check_accuracy(accuracy: float | None, on_miss: str, dtype: torch.dtype) -> float:
    """The accuracy that rows are held against; ConfigError where it is no number that can be shown."""
    if on_miss not in ("warn", "stop"):
        raise ConfigError(f"PWGF(on_miss={on_miss!r}) must be 'warn' or 'stop'.{nearest(on_miss, ['warn', 'stop'])}")
    if accuracy is None:
        return ACCURACY
    check_number(accuracy, "accuracy", "PWGF", low=0.0, high=1.0, open_low=True)
    least = FINEST[dtype]
    if accuracy < least:
        raise ConfigError(
            f"PWGF(accuracy={accuracy:g}) is finer than this scheme can show in {dtype}: the samples of the estimate "
            f"and the damping of the solves leave about {least:g} of the spread. Give accuracy={least:g} or more."
        )
    return accuracy


def check_coordinates(z: Tensor, map: PushForward, damping: float) -> None:
    """Refuses samples z (n,d) of λ with a coordinate in which the damping of the solve would hold the map back.

    The map's response to z_k and to a constant are told apart by the smaller eigenvalue of E[(z_k, 1)(z_k, 1)ᵀ], about
    s²/(1 + m²) for small spread s or large mean m; relative to the trace it has to stay well above the damping.

    Args:
        z, map: samples, and the map as it is solved with.
        damping: of the solve.

    Raises:
        ConfigError: the means or variances of the flow would come out wrong.
    """
    _check_resolved(z)
    seen = map.seen(z.double())
    mean, variance = seen.mean(0), seen.var(0, unbiased=False)
    told_apart = variance / (1 + mean.square() + variance).square()
    k = int(told_apart.argmin())
    if float(told_apart[k]) > _MARGIN * min(damping, 1e-6):
        return
    m, s = float(z[:, k].mean()), float(z[:, k].std(unbiased=False))
    where = f"coordinate {k} of the reference has mean {m:.3g} and spread {s:.3g}"
    if 0.1 < float(variance.mean()) < 10 and float(mean.abs().max()) < 2:
        raise ConfigError(
            f"PWGF(reference=…): {where}, so far below the rms spread of all coordinates, {_rms_spread(z):.3g}, that "
            f"the damping of the solve ({damping:.0e}, relative to all of them) would hold its part of the map back, "
            "and its law come out wrong. Give a smaller damping, such as "
            f"PWGF(damping={told_apart[k] / (10 * _MARGIN):.0e})."
        )
    raise ConfigError(
        f"PWGF(reference=…, theta0=…): {where}, so far from 0 and 1 that the damping of the solve ({damping:.0e}) "
        "would hold parts of the map back, and means or variances come out wrong. theta0, or a map that does not start "
        "as the identity, belongs to these coordinates. Give maps.Standardised(map, centre, spread) as map, with a "
        "theta0 made for it (as by fitting.fit), or leave theta0 out."
    )


def _check_resolved(z: Tensor) -> None:
    """ConfigError where the numbers of z's dtype lie too far apart for the spread of a coordinate."""
    mean, spread = z.double().mean(0), z.double().std(0, unbiased=False)
    gap = torch.finfo(z.dtype).eps * mean.abs()
    k = int((gap / spread.clamp_min(1e-300)).argmax())
    if float(gap[k]) > _RESOLUTION * float(spread[k]):
        raise ConfigError(
            f"PWGF(reference=…): coordinate {k} of the reference has mean {float(mean[k]):.3g} and spread "
            f"{float(spread[k]):.3g}, which {z.dtype} numbers, {float(gap[k]):.1g} apart there, do not resolve. Solve "
            "for x - mean" + (", or in dtype=torch.float64." if z.dtype == torch.float32 else ".")
        )


def _rms_spread(z: Tensor) -> float:
    return float((z - z.mean(0)).square().mean().sqrt())


def check_numbers(
    *,
    damping: float | None,
    momentum: float | None,
    form: str,
    dtype: torch.dtype,
    **counts: int,
) -> None:
    """Raises ConfigError unless each argument of PWGF is in its range."""
    for name, value in counts.items():
        check_integer(value, name, "PWGF")
    if damping is not None:
        check_number(damping, "damping", "PWGF", low=0.0, high=math.inf)
    if momentum is not None:
        check_number(momentum, "momentum", "PWGF", low=0.0, high=1.0)
    if form not in ("velocity", "gradient"):
        raise ConfigError(
            f"PWGF(form={form!r}) must be 'velocity' or 'gradient'.{nearest(form, ['velocity', 'gradient'])}"
        )
    check_dtype(dtype, "PWGF")


def checked_mobility(given: Given, energy: Energy, form: str, num_samples: int, dim: int) -> Mobility:
    """The mobility; ConfigError where so few samples have no covariance, or the form has none."""
    if given is not None and form == "gradient":
        raise ConfigError(
            "PWGF(mobility=…, form='gradient'): the published form has no mobility. Leave one of the two out."
        )
    mobility = Mobility(given, energy, "PWGF")
    mobility.check_samples(dim, "PWGF", num_samples=num_samples)
    return mobility


def choose_chunk_size(chunk_size: int | None, max_memory: float, map: PushForward, dtype: torch.dtype) -> int:
    """Samples per block: as given, or as many as fit into max_memory."""
    if chunk_size is not None:
        check_integer(chunk_size, "chunk_size", "PWGF")
        return chunk_size
    check_number(max_memory, "max_memory", "PWGF", low=0.0, high=math.inf)
    each = map.numbers_per_sample * dtype.itemsize
    if max_memory < each:
        raise ConfigError(
            f"PWGF(max_memory={max_memory:g}) must hold at least one sample, about {each:g} bytes for this map; give "
            "more, or chunk_size=1 to try all the same."
        )
    return int(min(max_memory // each, 2**31))


def auto_solver(tolerance: float | None) -> Auto:
    """The error of an iteration acts like one of the step: the tighter the tolerance, the tighter the solve."""
    return Auto(1.0 if tolerance is None else min(1.0, tolerance / 1e-4))


def check_members(energy: Energy, map: PushForward, reference: Reference) -> None:
    """The right kinds in the right places of PWGF, of one dimension."""
    check_law(energy, reference, "PWGF")
    check_map(map, reference, "PWGF")
