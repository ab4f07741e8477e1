"""Coordinates and times of a run that a picture or an export asks for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import is_integer, is_real, plain
from ..errors import ConfigError

Dims = int | Sequence[int] | None
Times = float | Sequence[float] | np.ndarray | None


def listed(values: Any) -> list[Any]:
    """A number, sequence, array or tensor as a list of Python numbers; what is no number is left to the checks."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [plain(value) for value in values] if isinstance(values, (list, tuple, range)) else [plain(values)]


def checked_dims(dims: Dims, dim: int, call: str, *, default: Sequence[int], most: int) -> list[int]:
    """The coordinates, counted from 0; ConfigError where there are none such, repeats, or more than `most`."""
    found = list(default) if dims is None else listed(dims)
    wrong = [k for k in found if not is_integer(k) or not 0 <= k < dim]
    if wrong:
        there = f"0 to {dim - 1} of a law in d = {dim}" if dim > 1 else "0, the only one of a law in d = 1"
        raise ConfigError(f"{call}(dims=…) needs coordinates {there}; got {wrong[0]!r:.40}. They are counted from 0.")
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{call}(dims=…) needs at least one coordinate and none twice; got {found}.")
    if len(found) > most:
        raise ConfigError(f"{call}(dims=…) shows at most {most} coordinates; got {len(found)}. Give fewer of them.")
    return [int(k) for k in found]


def checked_times(times: Times, run: Any, call: str, *, default: int, most: int) -> list[float]:
    """Times within the run, rising; by default so many of its rows, evenly spread."""
    found = [run.t[k] for k in some(len(run), default)] if times is None else listed(times)
    first, last = float(run.t[0]), float(run.t[-1])
    slack = 1e-6 * (last - first)
    for t in found:
        if not is_real(t) or not first - slack <= t <= last + slack:
            raise ConfigError(
                f"{call}(times=…) needs times of the run, from {first:g} to {last:g}; got {t!r:.40}. Give times "
                "between these, or solve on with longer times (resume=True)."
            )
    if not found or len(found) > most:
        allowed = f"1 to {most} times" if most > 1 else "one time"
        raise ConfigError(f"{call}(times=…) shows {allowed}; got {len(found)}. Give fewer, or leave it out.")
    return sorted({float(t) for t in found})


def some(count: int, most: int) -> list[int]:
    """At most `most` of the positions 0 … count−1, evenly spread, with both ends."""
    return sorted({math.floor(k + 0.5) for k in np.linspace(0, count - 1, min(count, most))})
