"""Whether a map, reference or energy is the one that a run was made with: their values at fixed points, in its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import maps
from ..checks import DTYPES
from ..energies import Energy
from ..errors import PWGFError, SchemaError
from ..maps.base import PushForward
from ..measures import Gaussian, PushedMeasure, Reference
from ..schemes import Replay, Scheme
from ..storage import Record
from ._stored import IDENTITY, NUM_POINTS, mapping_of

_TIME = 0.7  # for energies that depend on it
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative to the largest value
_USER_ERRORS = (PWGFError, RuntimeError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError)


def values_of(dtype: torch.dtype, device: str = "cpu", **parts: Any) -> dict[str, np.ndarray]:
    """T (8,d) at one θ, log λ (8,), v (8,d), by name, at points fixed by formula; NaN (1,) where that fails.

    Args:
        dtype, device: of the points.
        parts: `map`, `reference`, `energy`, and `dim`; None where there is none.
    """
    z = _wave(NUM_POINTS * parts["dim"], 1.5, dtype, device).view(NUM_POINTS, -1)
    found = {}
    for name, part in parts.items():
        if name == "dim" or part is None:
            continue
        try:
            values = _VALUES[name](part, z)
        except _USER_ERRORS:  # outside its domain
            values = torch.full((1,), torch.nan)
        found[IDENTITY + name] = values.detach().double().cpu().numpy()
    return found


def identity_of(scheme: Scheme) -> dict[str, np.ndarray]:
    """`values_of` what a scheme is made of."""
    made_of = {name: getattr(scheme, name, None) for name in _VALUES}
    made_of["map"] = getattr(scheme, "family", made_of["map"])
    return values_of(scheme.dtype, getattr(scheme, "device", "cpu"), dim=scheme.reference.dim, **made_of)


def differing(stored: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], dtype: torch.dtype) -> str:
    """Which of the stored values differ now, in words; "" where none does, or where an older file has none."""
    for name in sorted(now.keys() & stored.keys()):
        old, new = stored[name], now[name]
        size = np.abs(old[np.isfinite(old)]).max(initial=1e-300)
        if old.shape == new.shape and np.allclose(new, old, rtol=0, atol=_CLOSE[dtype] * size, equal_nan=True):
            continue
        gap = f"by up to {np.nanmax(np.abs(new - old)):.2g}" if old.shape == new.shape else "in shape"
        return f"{_MEANING[name.removeprefix(IDENTITY)]} at the same points differs from the stored one {gap}"
    return ""


def check_rebuilt(record: Record, reader: Replay, map: PushForward | None, reference: Reference | None) -> None:
    """SchemaError where what was built of the settings has other values than the file says that the run's had.

    Args:
        record: of the run.
        reader: what was built.
        map, reference: those that the user gave instead, compared already.
    """
    built = {"map": None if map else mapping_of(reader), "reference": None if reference else reader.reference}
    dtype = DTYPES[record.config["scheme"]["dtype"]]
    what = differing(record.arrays, values_of(dtype, dim=record.dim, **cast(dict[str, Any], built)), dtype)
    if what:
        raise SchemaError(
            f"opening {record.path!r}: {what}. Its settings were changed since, or this version of pwgf makes another "
            "of them. Take the file from a backup, or the version that wrote it."
        )


def _wave(n: int, size: float, dtype: torch.dtype, device: str) -> Tensor:
    """n numbers in [−size, size], no two alike, the same in every version of torch."""
    return size * torch.sin(torch.arange(1, n + 1, dtype=torch.float64)).to(device, dtype)


def _pushed(map: PushForward, z: Tensor) -> Tensor:
    return map(_wave(map.num_params, 0.3, z.dtype, str(z.device)), z)


def _log_density(reference: Reference, z: Tensor) -> Tensor:
    return reference.log_density(z)


def _velocity(energy: Energy, z: Tensor) -> Tensor:
    """v at the points as if they were samples of a standard normal law, at a time fixed as they are."""
    identity = maps.Affine(z.shape[1])
    return energy.velocity(PushedMeasure(identity, Gaussian(identity.dim), identity.initial().to(z), z, t=_TIME))


_VALUES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "map": _pushed,
    "reference": _log_density,
    "energy": _velocity,
}
_MEANING = {"map": "T of the map", "reference": "log λ of the reference", "energy": "the velocity of the energy"}
