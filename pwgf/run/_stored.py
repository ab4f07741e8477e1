"""What a file says of a run, checked before anything is built of it: by a table of types and ranges, and by sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .. import maps, measures, schemes, storage
from ..checks import DTYPES, is_integer, is_real
from ..errors import ConfigError, PWGFError, SchemaError
from ..maps.base import PushForward
from ..measures import Reference
from ..schemes import Replay

IDENTITY = "check/"  # among the arrays of a file: values of the map, the reference and the energy
NUM_POINTS = 8  # of these values
RNG_BYTES = 5056  # of the state of a CPU generator
MOST_LAYERS = 10_000  # where θ is shorter; a layer without a parameter, such as a step in time, is cheap
# What building something of a stranger's values may raise; everything else is a fault of ours.
MISFITS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)


def _named(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _absent_or(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _times(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) > 0 and all(is_real(t) for t in value)
    return numbers and all(a < b for a, b in zip(value, value[1:], strict=False))


def _energy(value: Any) -> bool:
    terms = value.get("terms", []) if _named(value) else None
    return isinstance(terms, list) and all(_named(term) for term in terms)


def _positive(value: Any) -> bool:
    return is_real(value) and value > 0


def _count(value: Any) -> bool:
    return is_integer(value) and 0 < value < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_text(entry) for pair in value.items() for entry in pair)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(entry) for entry in value)


_CONFIG: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scheme": (_named, "settings with a name"),
    "times": (_times, "increasing numbers"),
    "seed": (lambda value: is_integer(value) and 0 <= value < 2**63, "an integer in [0, 2⁶³)"),
    "problem": (_absent_or(_named), "settings with a name"),
    "store_samples": (_absent_or(_count), "an integer ≥ 1"),
    "metadata": (_absent_or(lambda value: isinstance(value, dict)), "a dictionary"),
    "description": (_absent_or(_named), "a description with a name"),
}
_DESCRIPTION: dict[str, tuple[Callable[[Any], bool], str]] = {  # entries that are missing have defaults
    "rows": (_absent_or(_text), "a text"),
    "map": (_absent_or(_text), "a text"),
    "settings": (_absent_or(_texts), "a list of texts"),
    "work_unit": (_absent_or(_text), "a text"),
    "no_projection": (_absent_or(_text), "a text"),
    "advice": (_absent_or(_text), "a text"),
    "sources": (_absent_or(_named_texts), "texts by name"),
}
_READ: dict[str, tuple[Callable[[Any], bool], str]] = {  # what reading rows as measures needs, of any scheme
    "dtype": (lambda value: isinstance(value, str) and value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "device": (_absent_or(lambda value: isinstance(value, str)), "a text"),
    "reference": (_named, "settings with a name"),
    "map": (_absent_or(_named), "settings with a name"),
}
_SCHEME: dict[str, tuple[Callable[[Any], bool], str]] = {
    "energy": (_energy, "settings with a name, each term with one"),
    "tolerance": (_absent_or(_positive), "a positive number"),
    "h": (_absent_or(_positive), "a positive number"),
    "dt": (_absent_or(_positive), "a positive number"),
    "tau": (_absent_or(_positive), "a positive number"),
    "num_samples": (_absent_or(_count), "an integer ≥ 1"),
}
_PROBLEM: dict[str, tuple[Callable[[Any], bool], str]] = {
    "c": (_absent_or(is_real), "a number"),
    "m": (_absent_or(is_real), "a number"),
}
_BUILT = tuple(kind.__name__ for kind in schemes.SCHEMES.values())


def check_config(record: storage.Record) -> None:
    """SchemaError unless the stored settings have the types, ranges and sizes of those that `solve` stores."""
    config = record.config
    _check_table(record.path, "config", config, _CONFIG)
    scheme, told = config["scheme"], config.get("description") or {}
    _check_table(record.path, "config.description", told, _DESCRIPTION)
    _check_values(record)
    if scheme["name"] in _BUILT:
        _check_table(record.path, "config.scheme", scheme, _SCHEME)
    elif told.get("rows") not in schemes.READ_AS:  # a user's own scheme says what it likes
        return
    _check_table(record.path, "config.scheme", scheme, _READ)
    for part, shelf in (("map", maps), ("reference", measures)):
        if (scheme.get(part) or {}).get("name") in shelf.__all__:  # nothing is built of a user's own
            for where, value in _leaves(scheme[part], f"config.scheme.{part}"):
                _check_size(record, where, value)
    _check_table(record.path, "config.problem", config.get("problem") or {}, _PROBLEM)
    for where, value in _leaves(config.get("problem"), "config.problem"):
        if where == "config.problem.dim":
            _check_size(record, where, value)


def as_solved(record: storage.Record, map: PushForward | None) -> PushForward | None:
    """The map given by the user as the run had it: in the stored coordinates where it was standardised."""
    stored = record.config["scheme"].get("map") or {}
    if not isinstance(map, PushForward) or isinstance(map, maps.Standardised) or stored.get("name") != "Standardised":
        return map
    try:
        return maps.Standardised(map, stored["centre"], stored["spread"])
    except (PWGFError, *MISFITS) as error:
        raise _refused(record.path, f"its map has no coordinates ({type(error).__name__}: {error})") from None


def reader_of(record: storage.Record, map: PushForward | None, reference: Reference | None) -> Replay:
    """What reads the rows as measures.

    Raises:
        ConfigError: it needs a user's own map or reference, which was not given.
        SchemaError: the stored settings do not fit the rows.
    """
    try:
        reader = schemes.replay(record.config, map=map, reference=reference)
        dim = reader.reference.dim
        fits = dim == record.dim and (map is not None or _fits_rows(reader, record))
    except ConfigError:
        raise
    except (PWGFError, *MISFITS) as error:
        raise _refused(record.path, f"its settings build nothing ({type(error).__name__}: {error})") from None
    if not fits:
        raise _refused(record.path, "its settings build a map or a reference of other sizes than the rows have")
    return reader


def _check_values(record: storage.Record) -> None:
    """SchemaError unless the values of map, reference and energy that the file holds have the form of such values."""
    for name in record.arrays:
        if not name.startswith(IDENTITY):
            continue
        values = record.arrays[name]
        if values.dtype.kind != "f" or values.ndim not in (1, 2) or values.size > NUM_POINTS * record.dim:
            raise _refused(
                record.path,
                f"arrays/{name} has shape {values.shape} and dtype {values.dtype} where values were expected",
            )


def mapping_of(reader: Replay) -> PushForward | None:
    """The map or the family of maps that reads the rows; None for particles."""
    found: PushForward | None = getattr(reader, "map", getattr(reader, "family", None))
    return found


def _fits_rows(reader: Replay, record: storage.Record) -> bool:
    """Has the map that was rebuilt the parameters that the rows hold, or are the rows points of the space?"""
    map = mapping_of(reader)
    if map is None:
        return record.num_params % record.dim == 0
    blocks = [(list(block.shape), block.offset) for block in map.layout()]
    stored = [(block["shape"], block["offset"]) for block in record.layout]
    free = record.config["scheme"]["name"] not in _BUILT or schemes.description(record.config).rows != "map"
    return map.num_params == record.num_params and (free or blocks == stored)  # other schemes have blocks of their own


def checked_restart(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The stored restart state with its counters read; SchemaError unless it is one from which a run can go on."""
    try:
        theta, theta_dot, rng = (np.asarray(plain[name]) for name in ("theta", "theta_dot", "rng"))
        counters = storage.load_json(plain["counters"])
        t, dt = float(plain["time" if "time" in plain else "t"]), float(plain["dt"])  # "t": in files of version 0.1
        rest = float(plain.get("rest", 0.0))  # version 0.1 had none
        fits = theta.ndim == 1 and theta.shape == theta_dot.shape and theta.dtype.kind == theta_dot.dtype.kind == "f"
        fits = fits and bool(np.isfinite(theta).all() and np.isfinite(theta_dot).all())
        fits = fits and math.isfinite(t) and abs(rest) <= math.ulp(t) and dt >= 0
        fits = fits and rng.dtype == np.uint8 and rng.shape == (RNG_BYTES,)
        fits = fits and isinstance(counters, dict) and all(is_integer(n) and 0 <= n < 2**63 for n in counters.values())
        fits = fits and np.asarray(plain["fingerprint"]).dtype.kind == "f"
        own = [value for name, value in plain.items() if name.startswith("extra_")]
        fits = fits and all(isinstance(value, np.ndarray) for value in own)
        if fits:
            torch.Generator().set_state(torch.from_numpy(np.array(rng)))
            return {**plain, "counters": counters, "time": t, "rest": rest, "dt": dt}
        why = "its values have other types, sizes or ranges"
    except MISFITS as error:
        why = f"{type(error).__name__}: {error}"
    raise SchemaError(
        f"continuing a run: the stored state is none that a run of pwgf leaves ({why}). Its rows can be read with "
        "pwgf.load; begin anew at another out=…."
    )


def _check_table(
    path: str, where: str, values: Mapping[str, Any], table: Mapping[str, tuple[Callable[[Any], bool], str]]
) -> None:
    for name, (holds, what) in table.items():
        if not holds(values.get(name)):
            raise _refused(path, f"{where}.{name} is {values.get(name)!r:.60} where {what} was expected")


def _check_size(record: storage.Record, where: str, value: Any) -> None:
    """SchemaError for a dimension that is not the run's, or a size that cannot fit its parameters."""
    dims = (record.dim, 2 * record.dim) if ".map.map." in where else (record.dim,)  # twice within maps.OnTorus
    if where.rpartition(".")[2] == "dim" and (not is_integer(value) or value not in dims):
        raise _refused(record.path, f"{where} is {value!r:.60} where the run has dimension {record.dim}")
    if is_integer(value) and abs(value) > max(record.num_params, MOST_LAYERS):
        raise _refused(record.path, f"{where} is {value!r:.60}, too many for a run of {record.num_params} parameters")


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """All values below with their dotted names; lists of numbers are values."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{where}.{name}")
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for k, part in enumerate(value):
            yield from _leaves(part, f"{where}.{k}")
    else:
        yield where, value


def _refused(path: str, what: str) -> SchemaError:
    return SchemaError(
        f"opening {path!r}: expected a trajectory written by pwgf, but {what}. Check the path, or take the file from a "
        "backup."
    )
