"""Whether a stored run can be continued: whether there is one, and whether it is the same."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import storage
from ..errors import PathError, ResumeMismatchError, SchemaError, StorageError
from ..schemes import Scheme
from ..state import State
from ._restart import restart_to_state
from ._stored import check_config
from .identity import differing, identity_of
from .spec import RunSpec


def has_rows(out: str) -> bool:
    """Whether a run with at least one row is at `out`; SchemaError where what is there cannot be read."""
    if not os.path.exists(out) and not os.path.exists(out + ".parts"):
        return False
    try:
        with storage.open_record(out) as record:
            return len(record) > 0
    except SchemaError:
        raise  # damaged rows are not missing rows: starting again would destroy what can be salvaged
    except PathError:
        if os.path.exists(out):
            raise
        return False  # killed before anything was published


class Stored(NamedTuple):
    """A stored run that is being continued.

    Args:
        spec: with the stored times and those added by this call.
        state: the last one stored.
        times: those whose rows are not yet stored.
        finished: whether nothing is left to do.
        grown: whether this call adds times.
        spent: seconds of wall time and of CPU so far.
        begun_with: threads and processes that began it.
        begun_on: its device.
    """

    spec: RunSpec
    state: State
    times: np.ndarray
    finished: bool
    grown: bool
    spent: tuple[float, float]
    begun_with: tuple[Any, Any]
    begun_on: str


def stored_run(scheme: Scheme, spec: RunSpec, out: str) -> Stored:
    """The run at `out`.

    Raises:
        ResumeMismatchError: it is another one.
        StorageError: it has no state to go on from.
    """
    with storage.open_record(out) as record:
        check_config(record)
        check_same(record.config, spec.to_config())
        restart = stored_state(record)
        spec = spec.continuing(record.config)
        state = restart_to_state(restart, scheme.dtype, spec.device)
        last = scheme.layout()[-1]
        if len(state.theta) != last.offset + math.prod(last.shape) or state.t < float(record.column("t")[-1]):
            raise SchemaError(
                f"continuing {out!r}: the stored state at t = {state.t:g} with {len(state.theta)} parameters does not "
                "belong to the rows. They can be read with pwgf.load; begin anew at another out=…."
            )
        now = identity_of(scheme)
        check_identity(record.arrays, {name: now[name] for name in now if "energy" not in name}, scheme.dtype)
        check_fingerprint(scheme, state, np.asarray(restart["fingerprint"]))
        check_identity(record.arrays, now, scheme.dtype)
        grown = len(record.config["times"]) != len(spec.times)
        return Stored(
            spec,
            state,
            times=spec.times[spec.times > float(record.column("t")[-1])],
            finished=record.complete and not grown,
            grown=grown,
            spent=(_last(record, "wall_time"), _last(record, "cpu_time")),
            begun_with=(record.provenance.get("threads"), record.provenance.get("processes", 1)),
            begun_on=record.config["scheme"].get("device", "cpu"),
        )


def _last(record: storage.Record, name: str) -> float:
    """The last value of a column of seconds; 0 where that is missing or none."""
    value = float(record.column(name)[-1]) if name in record.names else 0.0
    return value if value >= 0 and math.isfinite(value) else 0.0


def check_identity(stored: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
    """ResumeMismatchError unless map, reference and energy give the stored values at fixed points."""
    what = differing(stored, now, dtype)
    if what:
        raise ResumeMismatchError(
            f"solve(resume=True): {what}. Resume with what the run was begun with (the same module, with the weights "
            "and buffers that it had when its map was made), or choose another out=…."
        )


def check_same(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """ResumeMismatchError, with the keys that differ, unless the settings agree; `times` may be extended at its end.

    Names of an energy's functions may differ (a script's module is `__main__`): `check_fingerprint` compares values. So
    may the description of the scheme, the user's metadata, and the device with the memory that blocks take there.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    free = ("description", "metadata")
    old, new = ({k: v for k, v in flatten(of).items() if k.partition(".")[0] not in free} for of in (stored, now))
    if not same_device(old.pop("scheme.device", "cpu"), new.pop("scheme.device", "cpu")):
        for settings in (old, new):
            settings.pop("scheme.max_memory", None)
    differ = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key != "times"]
    differ = [key for key in differ if not _names_function(key, old, new)]
    if not same_times(stored["times"], now["times"]):
        differ.append("times")
    if differ:
        shown = "; ".join(f"{key}: stored {_shown(old, key)}, now {_shown(new, key)}" for key in differ[:8])
        raise ResumeMismatchError(
            f"solve(resume=True): the stored run has other settings ({shown}). Restore them, choose another out=…, or "
            "start again with overwrite=True. times may only be extended at the end."
        )


def same_device(one: str, other: str) -> bool:
    """Whether two names mean one device: "cuda" is "cuda:0"."""
    return one.removesuffix(":0") == other.removesuffix(":0")


def stored_state(record: storage.Record) -> dict[str, Any]:
    """The restart state; StorageError where there is none, as in the salvaged part of a damaged file."""
    restart = record.restart()
    if not restart:
        raise StorageError(
            f"solve(out={record.path!r}, resume=True) needs a stored state to continue from; the file was salvaged "
            "without one (it was damaged). Its rows can be read with pwgf.load; start again at another out=…."
        )
    return restart


def pack_finished(out: str) -> None:
    """Packs a finished run that was stopped while it was packed; if that fails, it stays in parts."""
    try:
        storage.pack(out)
    except StorageError as error:
        logging.getLogger("pwgf").warning("the finished run stays in parts: %s", error)


def same_times(stored: list[float], now: list[float]) -> bool:
    """Whether `now` begins with the stored times, within 1e-6 of their range (float32 and float64 differ by 1e-7)."""
    old, new = np.array(stored), np.array(now[: len(stored)])
    return len(old) == len(new) and bool((np.abs(new - old) <= 1e-6 * np.ptp(old)).all())


def _names_function(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether both values are names of functions of the energy, which its `to_config` gives as text."""
    texts = isinstance(old.get(key), str) and isinstance(new.get(key), str)
    return texts and key.startswith("scheme.energy.") and key.rpartition(".")[2] != "name"


def _shown(settings: dict[str, Any], key: str) -> str:
    return f"{settings[key]!r:.50}" if key in settings else "none"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys: {"scheme.map.width": 64, …}."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    parts = (flatten(part, f"{prefix}.{key}" if prefix else str(key)) for key, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def check_fingerprint(scheme: Scheme, state: State, stored: np.ndarray) -> None:
    """ResumeMismatchError unless energy and velocity at the stored state are still the stored ones."""
    now = scheme.fingerprint(state)
    close = 1e-9 if scheme.dtype == torch.float64 else 1e-3
    scale = max(float(np.abs(stored).max(initial=0.0)), 1e-300)
    if now.shape != stored.shape or not float(np.abs(now - stored).max(initial=0.0)) <= close * scale:
        raise ResumeMismatchError(
            f"solve(resume=True): energy and velocity at the stored state (t = {state.t:g}) differ from the stored "
            "ones, so the energy's functions have changed. Resume with the energy of the first run, or choose another "
            "out=…."
        )
