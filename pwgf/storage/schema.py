"""Schema 1.0: the layout of values and rows in an HDF5 file.

A run is a *trajectory* file, or while it is written the parts *header*, *rows* (segments) and *restart*; all carry the
same attributes, and what they share has the same names: a segment reads like a short trajectory.

Files are written with checksummed metadata (`libver` v110). In the trajectory row datasets carry fletcher32 and every
dataset has its own sha256 as attribute; `content_sha256` covers these in name order, so that a reader who checks one
dataset knows that it belongs to this file without reading the others. A part is hashed whole, by the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from pwgf._version import __version__
from pwgf.errors import ConfigError, ShapeError
from pwgf.storage.disk import Image

SCHEMA = "1.0"
LIBVER = ("v110", "v110")  # readable since HDF5 1.10; the first with checksums on all metadata a file of ours has
VECTORS = ("theta", "theta_dot")
SAMPLES = "samples"  # a row's samples (n,d), where the run stores them
MAX_TEXT_BYTES = 24 << 20  # of all texts of a file together
MAX_ITEMS = 3_000_000  # of a JSON text: numbers and the like, of which each takes some 32 bytes
MAX_MARKS = 1_200_000  # of its lists, dicts and texts, of which each takes up to some 80 bytes
MAX_LEVELS = 50  # of lists and dicts in each other; the settings of a run have about ten
COLUMN_CHUNK = 4096
VECTOR_CHUNK = 131072
RESERVED = frozenset(
    {*VECTORS, SAMPLES, "sample", "layout", "config", "provenance", "restart", "arrays", "result", "param", "dim"}
)
DTYPES = tuple(np.dtype(code) for code in ("<f8", "<f4", "<i8", "u1", "?"))


@dataclass(frozen=True)
class Header:
    """The data of a run that are known before its first row.

    Args:
        config: resolved settings, a dict that JSON can hold; floats return exactly.
        layout: name, shape and offset of every block of θ, one dict each.
        provenance: versions, platform, threads, device, git commit, argv; JSON values.
        dim: dimension d of the samples, ≥ 1.
        num_params: length p of θ, ≥ 1.
        arrays: arrays that belong to the config, by name such as "reference/mean"; f8, f4, i8, u1 or bool.
        result: what was made of the run, after its end: numbers, text and arrays by name.

    Raises:
        ConfigError: a value that JSON cannot hold, dim or num_params < 1, or a name that is not a path.
        ShapeError: an array of another dtype.
    """

    config: dict
    layout: list[dict]
    provenance: dict
    dim: int
    num_params: int
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("dim", "num_params"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Header({name}=…) needs an integer ≥ 1; got {getattr(self, name)!r}.")
        for name in ("config", "layout", "provenance"):
            to_json(f"Header({name}=…)", getattr(self, name))
        check_names("Header(provenance=…)", self.provenance)
        for name in ("arrays", "result"):
            if isinstance(getattr(self, name), dict):  # those of a file are read when they are asked for
                check_values(f"Header({name}=…)", getattr(self, name))


def to_json(call: str, value: Any) -> str:
    """JSON text of `value` with exact floats; ConfigError where JSON or UTF-8 cannot hold it, or it is too long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        check_text(text.encode())
        _check_depth(value)
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{call} needs what JSON can hold (dict, list, str, int, float, bool, None); {error}. "
            "Turn arrays into lists or pass them as arrays."
        ) from error


def load_json(text: str | bytes) -> Any:
    """What a JSON text of a file says; ValueError where it is none, or would take more memory than a run's does."""
    data = text.encode() if isinstance(text, str) else text
    check_text(data)
    value = json.loads(data)
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """ValueError where lists and dictionaries lie in each other deeper than a reader follows."""
    level = [value] if _holds(value) else []
    for _ in range(MAX_LEVELS):
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part) if _holds(v)]
        if not level:
            return
    raise ValueError(f"lists nested more than {MAX_LEVELS} deep")


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))


def check_text(data: bytes) -> None:
    """ValueError where a JSON text is longer than a reader accepts."""
    marks = data.count(b"[") + data.count(b"{") + data.count(b'"')
    if len(data) > MAX_TEXT_BYTES or data.count(b",") > MAX_ITEMS or marks > MAX_MARKS:
        raise ValueError(f"more than {MAX_TEXT_BYTES} bytes, {MAX_ITEMS} items or {MAX_MARKS} lists and texts in one")


def check_names(call: str, names: Iterable[str]) -> None:
    """ConfigError unless every name is a path "a/b" of non-empty parts and none lies below another."""
    names = list(names)
    for name in names:
        parts = name.split("/") if isinstance(name, str) else [""]
        if not all(parts) or {".", ".."} & set(parts) or "\0" in name or len(name.encode()) > 1000:
            raise ConfigError(f"{call} needs names like 'a' or 'a/b'; got {name!r}. Rename it.")
        if any(other.startswith(name + "/") for other in names):
            raise ConfigError(f"{call} has a value {name!r} and another one below that name. Rename one of them.")


def check_values(call: str, values: Mapping[str, Any]) -> None:
    """Refuses what `put` cannot store, before it is called: ConfigError for names and types, ShapeError for dtypes."""
    check_names(call, values)
    for name, value in values.items():
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
                raise ConfigError(f"{call} needs UTF-8 text without NUL characters at {name!r}. Remove them.")
        elif isinstance(value, np.ndarray):
            if value.dtype not in DTYPES:
                raise ShapeError(
                    f"{call} needs arrays of float64, float32, int64, uint8 or bool; got {value.dtype} at {name!r}. "
                    "Cast it."
                )
        elif not isinstance(value, (bool, int, float, np.number, np.bool_)):
            raise ConfigError(
                f"{call} needs numbers, text and NumPy arrays; got {type(value).__name__} at {name!r}. "
                "Turn it into one of these (a tensor with .cpu().numpy())."
            )
        elif isinstance(value, (int, np.integer)) and not -(2**63) <= int(value) < 2**63:
            raise ConfigError(f"{call} needs integers of 64 bits; got {value} at {name!r}. Store it as text.")


def put(group: h5py.Group, name: str, value: str | float | int | bool | np.ndarray) -> None:
    """Stores one value; text as a fixed-length UTF-8 scalar, since only that lies outside HDF5's unguarded heap."""
    if isinstance(value, str):
        data = value.encode()
        group.create_dataset(name, data=data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))
    elif isinstance(value, np.ndarray):
        group.create_dataset(name, data=value)
    else:
        number = value.item() if isinstance(value, np.generic) else value
        dtype = {bool: np.bool_, int: np.int64, float: np.float64}[type(number)]
        group.create_dataset(name, data=dtype(number)).attrs["number"] = np.int64(1)  # 0-d arrays have no such mark


def get(dataset: h5py.Dataset) -> Any:
    """The value that `put` stored: text, a Python number, or an array (also 0-d)."""
    value = dataset[()]
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return bytes(value).decode()
    if "number" in dataset.attrs:
        return value.item()
    return np.asarray(value)


def put_header(file: h5py.File, header: Header) -> None:
    """Stores config, layout, provenance, arrays and result."""
    put(file, "config", to_json("Header(config=…)", header.config))
    put(file, "layout", to_json("Header(layout=…)", header.layout))
    for group in ("provenance", "arrays"):
        file.create_group(group)
    for name, value in header.provenance.items():
        put(file, f"provenance/{name}", to_json("Header(provenance=…)", value))
    for name, array in header.arrays.items():
        put(file, f"arrays/{name}", np.asarray(array))
    for name, value in header.result.items():
        put(file, f"result/{name}", value)


def put_restart(file: h5py.File, restart: Mapping[str, Any]) -> None:
    """Stores the restart state below /restart."""
    file.create_group("restart")
    for name, value in restart.items():
        put(file, f"restart/{name}", value)


def row_bytes(names: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Size of a row of so many columns and of arrays of these shapes."""
    return 8 * (len(names) + sum(math.prod(shape) for shape in shapes.values()))


def create_rows(file: h5py.File, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
    """Makes the empty row datasets of `count` rows: the columns `names` (count,), and arrays of these shapes a row."""
    for name in names:
        chunk = (min(max(count, 1), COLUMN_CHUNK),)
        file.create_dataset(name, (count,), "<f8", maxshape=(None,), chunks=chunk, fletcher32=True)
    for name, shape in shapes.items():
        last = min(shape[-1], VECTOR_CHUNK)
        tile = (1, *(min(length, max(1, VECTOR_CHUNK // last)) for length in shape[:-1]), last)
        file.create_dataset(name, (count, *shape), "<f8", maxshape=(None, *shape), chunks=tile, fletcher32=True)


@contextlib.contextmanager
def new_file(target: io.IOBase, kind: str, stamps: Mapping[str, str | int]) -> Iterator[h5py.File]:
    """A new HDF5 file in a file object, with the attributes of a pwgf file.

    Args:
        target: an empty binary file object.
        kind: "trajectory", "header", "rows" or "restart".
        stamps: further root attributes.
    """
    with h5py.File(target, "w", libver=LIBVER) as file:
        for name, value in {"pwgf_schema": SCHEMA, "pwgf_version": __version__, "pwgf_kind": kind, **stamps}.items():
            put_attr(file, name, value)
        yield file


def image(kind: str, stamps: Mapping[str, str | int], fill: Callable[[h5py.File], None]) -> bytes:
    """The bytes of a new HDF5 file, made in memory; MemoryError where there is not enough.

    Args:
        kind, stamps: as in `new_file`.
        fill: puts in what the file is to hold.
    """
    target = Image()
    try:
        with new_file(target, kind, stamps) as file:
            fill(file)
    except BaseException:
        target.check()  # the cause, instead of what HDF5 makes of it
        raise
    target.check()
    return target.getvalue()


def put_attr(item: h5py.Group | h5py.Dataset, name: str, value: str | int) -> None:
    """An attribute: text of fixed length, or an integer."""
    if isinstance(value, str):
        data = value.encode()
        item.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))
    else:
        item.attrs[name] = np.int64(value)


class Digest:
    """sha256 of a dataset's content, fed in C order, batch by batch."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        label = "text" if dtype.kind in "SO" else dtype.str
        self._hash = hashlib.sha256(f"{label} {shape}\n".encode())

    def feed(self, batch: np.ndarray | bytes) -> None:
        """Adds the next bytes."""
        self._hash.update(batch if isinstance(batch, bytes) else np.ascontiguousarray(batch).data)

    def hex(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def dataset_digest(dataset: h5py.Dataset, batch_bytes: int = 8 << 20) -> str:
    """sha256 of a dataset's dtype, shape and bytes, read in batches along the first axis."""
    digest = Digest(dataset.dtype, dataset.shape)
    if h5py.check_string_dtype(dataset.dtype) is not None:
        digest.feed(bytes(dataset[()]))
    elif dataset.ndim == 0 or dataset.size == 0:
        digest.feed(np.asarray(dataset[()]))
    else:
        step = max(1, batch_bytes * dataset.shape[0] // max(dataset.nbytes, 1))
        for start in range(0, dataset.shape[0], step):
            digest.feed(dataset[start : start + step])
    return digest.hex()


def content_digest(digests: Mapping[str, str]) -> str:
    """`content_sha256`: over all datasets in name order, by their own digests."""
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()
