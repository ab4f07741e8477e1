"""What `PWGF` accepts: its arguments checked at the door, and those it chooses when they are left out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...checks import check_dtype, check_integer, check_number
from ...energies import Energy
from ...errors import ConfigError, ShapeError, nearest
from ...linalg import Auto
from ...linalg.choice import MAX_PRIMAL
from ...maps.base import PushForward
from ...measures import Reference

_ROWS_PER_PARAMETER = 4  # numbers of a velocity for each parameter that make noise harmless


class SolveSettings(NamedTuple):
    """Damping, relative to the metric's trace, and momentum of explicit and of implicit solves."""

    damping: float
    momentum: float
    implicit_damping: float
    implicit_momentum: float


def solve_settings(
    damping: float | None, momentum: float | None, num_params: int, num_samples: int, dim: int
) -> SolveSettings:
    """As given, or the defaults: damping 1e-6 and momentum .9, but 1e-7 and none in implicit steps of few parameters.

    The second variation damps implicit steps already, so that few parameters (no more than the direct solver takes, and
    a quarter of the n·d numbers of a velocity) need little more; many of them fit noise. On a line, where evenly spread
    samples leave hardly any noise, 1e-8 is more accurate.
    """
    few = num_params <= MAX_PRIMAL and _ROWS_PER_PARAMETER * num_params <= num_samples * dim
    least = 1e-8 if dim == 1 else 1e-7
    defaults = SolveSettings(1e-6, 0.9, least if few else 1e-6, 0.0 if few else 0.9)
    if damping is not None:
        defaults = defaults._replace(damping=damping, implicit_damping=damping)
    if momentum is not None:
        defaults = defaults._replace(momentum=momentum, implicit_momentum=momentum)
    return defaults


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


def check_law(energy: Energy, reference: Reference, call: str) -> None:
    """ConfigError unless both are of the right kind."""
    if not isinstance(energy, Energy):
        hint = " Wrap a potential: energies.Potential(V)." if callable(energy) else ""
        raise ConfigError(f"{call}(energy=…) must be an energy from pwgf.energies; got {type(energy).__name__}.{hint}")
    if not isinstance(reference, Reference):
        raise ConfigError(
            f"{call}(reference=…) must have dim, sample(n, generator) and log_density(z), like pwgf.Gaussian(dim); "
            f"got {type(reference).__name__}."
        )


def check_map(map: PushForward, reference: Reference, call: str) -> None:
    """ConfigError unless map is one, of the reference's dimension."""
    if not isinstance(map, PushForward):
        hint = " Wrap a module: maps.FromModule(module, dim)." if isinstance(map, torch.nn.Module) else ""
        raise ConfigError(f"{call}(map=…) must be a map from pwgf.maps; got {type(map).__name__}.{hint}")
    if map.dim != reference.dim:
        raise ConfigError(
            f"{call}: map and reference must have the same dimension; got map.dim = {map.dim} and reference.dim = "
            f"{reference.dim}."
        )


def check_theta0(theta0: Tensor | None, map: PushForward, call: str = "PWGF") -> Tensor | None:
    """theta0 (p,) as a tensor of its own; ConfigError or ShapeError where it is not one for this map."""
    if theta0 is None:
        return None
    try:
        theta = torch.as_tensor(theta0).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{call}(theta0=…) must be a tensor like map.initial(); got {type(theta0).__name__} ({error})."
        ) from error
    if theta.shape != (map.num_params,):
        raise ShapeError(
            f"{call}(theta0=…) must have shape ({map.num_params},) for this map; got {tuple(theta.shape)}. "
            "Start from map.initial()."
        )
    if not bool(torch.isfinite(theta).all()):
        raise ConfigError(f"{call}(theta0=…) must be finite; got NaN or infinite entries. Start from map.initial().")
    return theta
