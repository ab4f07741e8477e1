"""A filter in its folder: the file of each flow holds the update at its end too, so that all is loaded again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import schemes, storage
from ..maps import PushForward
from ..measures import PushedLaw, Reference
from ..run.results import read_result, store_result
from ..run.trajectory import Trajectory
from ..run.trajectory import load as load_run
from ..schemes._arguments import in_standard_coordinates
from .found import Filtered, Updated

_KIND = "filtering.run"
_FIGURES = ("log_evidence", "log_evidence_stderr", "share", "kl_flow", "kl_fit")


def flow_path(folder: str | os.PathLike[str], k: int) -> Path:
    """The file of flow k."""
    return Path(folder) / f"flow-{k:03d}.h5"


def store(flow: Trajectory, law: PushedLaw, update: Updated | None, t: float, is_last: bool) -> None:
    """Puts what comes at the end of a flow into its file.

    Args:
        flow: finished; one in memory keeps nothing.
        law: at its end, after the update where there is one.
        update: by the observation at its end; None at the end of the filter.
        t: of its end, in the filter's time.
        is_last: whether no flow follows.
    """
    if flow.path is None:
        return
    mean, cov = law.moments()
    result: dict[str, Any] = {"mean": mean.numpy(), "cov": cov.numpy()}
    if update is not None:
        result |= {"theta": law.theta.double().cpu().numpy(), **{name: getattr(update, name) for name in _FIGURES}}
    store_result(flow.path, _KIND, {"time": t, "observed": update is not None, "is_last": is_last}, result)


def load(
    folder: str | os.PathLike[str], *, map: PushForward | None = None, reference: Reference | None = None
) -> Filtered:
    """What `run(out=folder)` returned, from its files.

    Args:
        folder: as given to `run(out=…)`.
        map, reference: your own map or initial law, which no file can rebuild; see `pwgf.load`.

    Raises:
        PathError: nothing is there.
        ConfigError: a filter that was stopped before its end, or files that are none of a filter.
        SchemaError: what is stored is damaged.
    """
    times: list[float] = []
    predicted: list[PushedLaw] = []
    updates: list[Updated] = []
    runs: list[Trajectory] = []
    is_last = False
    while not is_last:
        path = storage.checked_path(flow_path(folder, len(runs)), "filtering.load(folder)")
        flow = load_run(path, map=map, reference=reference)
        about, result = read_result(path, _KIND, f"filtering.load({os.fspath(folder)!r})")
        law = _law(flow, map, reference)
        runs.append(flow)
        try:
            t, is_last = float(about["time"]), bool(about["is_last"])
            if about["observed"]:
                predicted.append(law)
                times.append(t)
                updates.append(_update(result, law))
                law = updates[-1].law
        except (LookupError, ValueError, TypeError) as error:
            raise storage.refused(path, f"its update is damaged ({type(error).__name__}: {error})") from error
    return Filtered(times, predicted, updates, t, law, runs)


def _law(flow: Trajectory, map: PushForward | None, reference: Reference | None) -> PushedLaw:
    """The law at the end of a flow."""
    known = None if map is None else in_standard_coordinates(map, flow.reference)
    reader: Any = schemes.replay(flow.config, map=known, reference=reference)
    return PushedLaw(reader.map, reader.reference, flow.state().theta.double().cpu())


def _update(result: dict[str, Any], law: PushedLaw) -> Updated:
    theta = torch.from_numpy(np.array(result["theta"], np.float64))
    if theta.shape != law.theta.shape:
        raise ValueError(f"theta has shape {tuple(theta.shape)}")
    figures = {name: float(result[name]) for name in _FIGURES}
    return Updated(PushedLaw(law.map, law.reference, theta), **figures)
