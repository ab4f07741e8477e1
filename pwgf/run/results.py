"""What is made of a finished run: samples of a posterior or the update of a filter, in its file, and its last law."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import schemes, storage
from ..errors import ConfigError
from ..maps import PushForward
from ..measures import PushedLaw, Reference
from ..parallel import world
from ..schemes._arguments import in_standard_coordinates
from .trajectory import Trajectory


def store_result(path: str, kind: str, about: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Puts a result into the file of its run; of several processes the first writes.

    Args:
        path: of the run, finished.
        kind: the function that made it, such as "sampling.sample".
        about: what belongs to it, JSON values.
        values: numbers and arrays by name.
    """
    result = {"about": json.dumps({"kind": kind, **about}), **values}
    world().on_first(lambda: storage.set_result(path, result))


def read_result(path: str, kind: str, call: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a result is about, and its values by name.

    Args:
        path: of the run.
        kind: as it was stored.
        call: for the message.

    Raises:
        PathError: no such file.
        SchemaError: it is damaged.
        ConfigError: there is none, or one of another kind.
    """
    with storage.open_record(path) as record:
        values = dict(record.result)
    try:
        about = storage.load_json(values.pop("about", "{}"))
    except (ValueError, TypeError, AttributeError) as error:
        raise storage.refused(path, f"its result is damaged ({error})") from error
    if not isinstance(about, dict) or about.get("kind") != kind:
        raise ConfigError(
            f"{call}: expected the file of {kind}(…, out=…); this run holds nothing of it. If it was stopped before "
            f"its end, call {kind} again with resume=True; read a run of pwgf.solve by pwgf.load."
        )
    return about, values


def final_law(run: Trajectory, map: PushForward | None, reference: Reference | None) -> PushedLaw:
    """The law at the end of a run of one map; map and reference are what `load` was given."""
    known = None if map is None else in_standard_coordinates(map, run.reference)
    reader: Any = schemes.replay(run.config, map=known, reference=reference)
    return PushedLaw(reader.map, reader.reference, run.state().theta.double().cpu())
