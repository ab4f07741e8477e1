"""A filter in its folder: the file of each flow holds the update at its end too, so that all is loaded again."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import storage
from ..errors import ConfigError, PathError
from ..maps import PushForward
from ..measures import PushedLaw, Reference
from ..parallel import world
from ..run.results import final_law, read_result, store_result
from ..run.trajectory import Trajectory
from ..run.trajectory import load as load_run
from .found import Filtered, Updated

_KIND = "filtering.run"
_TABLE = "filter.h5"
_STOPPED = (
    "{call}: expected the folder of filtering.run(…, out=…); there is no filter, or one that was stopped before its "
    "end. Check the path, or call run again with resume=True."
)
_FIGURES = ("log_evidence", "log_evidence_stderr", "share", "kl_flow", "kl_fit")


def flow_path(folder: str | os.PathLike[str], k: int) -> Path:
    """The file of flow k."""
    return Path(folder) / f"flow-{k:03d}.h5"


def store(flow: Trajectory, update: Updated) -> None:
    """Puts the update at the end of a flow into the file of the flow; one in memory keeps nothing."""
    if flow.path is None:
        return
    mean, cov = update.law.moments()
    theta = update.law.theta.double().cpu().numpy()
    figures = {name: getattr(update, name) for name in _FIGURES}
    store_result(flow.path, _KIND, {}, {"theta": theta, "mean": mean.numpy(), "cov": cov.numpy(), **figures})


def store_table(folder: str | os.PathLike[str] | None, found: Filtered) -> None:
    """Writes which flows make the filter, with the figures of the updates, as filter.h5 beside them."""
    if folder is None:
        return
    ends = [*found.times, found.end][: len(found.runs)]
    figures = {name: [getattr(update, name) for update in found.updates] for name in _FIGURES}
    missing = [math.nan] * (len(ends) - len(found.updates))
    columns: dict[str, Any] = {"t": ends, "run_id": [_run_id(str(run.path)) for run in found.runs]}
    columns |= {name: values + missing for name, values in figures.items()}
    about = {"kind": _KIND, "num_updates": len(found.updates)}
    world().on_first(lambda: storage.write_table(Path(folder) / _TABLE, columns, about))


def load(
    folder: str | os.PathLike[str], *, map: PushForward | None = None, reference: Reference | None = None
) -> Filtered:
    """What `run(out=folder)` returned, from its files.

    Args:
        folder: as given to `run(out=…)`.
        map, reference: your own map or initial law, which no file can rebuild; see `pwgf.load`.

    Raises:
        ConfigError: nothing is there, or a filter that was stopped before its end.
        SchemaError: what is stored is damaged.
    """
    call = f"filtering.load({storage.checked_path(folder, 'filtering.load(folder)')!r})"
    ends, ids, num_updates = _table(folder, call)
    predicted: list[PushedLaw] = []
    updates: list[Updated] = []
    runs: list[Trajectory] = []
    for k, run_id in enumerate(ids):
        path = storage.checked_path(flow_path(folder, k), call)
        if _run_id(path) != run_id:
            raise ConfigError(_STOPPED.format(call=call))
        runs.append(load_run(path, map=map, reference=reference))
        law = final_law(runs[-1], map, reference)
        if k < num_updates:
            predicted.append(law)
            updates.append(_update(path, law, call))
            law = updates[-1].law
    return Filtered(ends[:num_updates], predicted, updates, ends[-1], law, runs)


def _table(folder: str | os.PathLike[str], call: str) -> tuple[list[float], list[str], int]:
    """Ends and run_ids of the flows, and how many of them an observation ends."""
    path = storage.checked_path(Path(folder) / _TABLE, call)
    try:
        columns, about = storage.read_table(path)
    except PathError as error:
        raise ConfigError(_STOPPED.format(call=call)) from error
    try:
        ends, ids, count = [float(t) for t in columns["t"]], [str(i) for i in columns["run_id"]], about["num_updates"]
    except (LookupError, TypeError, ValueError) as error:
        raise storage.refused(path, f"its table is none of a filter ({type(error).__name__}: {error})") from error
    if not ids or count not in (len(ids), len(ids) - 1):
        raise storage.refused(path, f"its table has {len(ids)} flows and {count!r:.20} updates")
    return ends, ids, count


def _run_id(path: str) -> str:
    with storage.open_record(path) as record:
        return record.run_id


def _update(path: str, law: PushedLaw, call: str) -> Updated:
    _, result = read_result(path, _KIND, call)
    try:
        theta = torch.from_numpy(np.array(result["theta"], np.float64))
        figures = {name: float(result[name]) for name in _FIGURES}
    except (LookupError, TypeError) as error:
        raise storage.refused(path, f"its update is damaged ({type(error).__name__}: {error})") from error
    if theta.shape != law.theta.shape:
        raise storage.refused(path, f"its update has parameters of shape {tuple(theta.shape)}")
    return Updated(PushedLaw(law.map, law.reference, theta), **figures)
