"""Guard: what a file may contain, checked before any of its data is read.

An HDF5 file from an unknown source can point at any file of the user (external links, external storage, virtual
datasets), load a plugin (filters), or claim terabytes in a kilobyte, as a file with holes or as deflated zeros do. All
of that is refused here, by a walk that opens objects but reads no data.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator

import h5py
import numpy as np

from pwgf._version import __version__
from pwgf.errors import PathError, PWGFError, SchemaError, StorageError
from pwgf.storage.disk import TOO_MANY_FILES, Stored, too_many_files
from pwgf.storage.schema import DTYPES, MAX_TEXT_BYTES, SAMPLES, SCHEMA, VECTORS

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 10_000
MAX_DEPTH = 16
MAX_BYTES = 1 << 36  # 64 GiB a dataset, as it would be in memory
MAX_CHUNK_BYTES = 16 << 20
MAX_DEFLATE_RATIO = 1100  # deflate cannot do better than 1032:1
BOMB_BYTES = 64 << 20  # above this size numbers of a real run deflate at most 20:1; more is a decompression bomb
BOMB_RATIO = 20
MAX_ATTR_BYTES = 4096
# The errors that h5py raises on damaged files, found by flipping bytes.
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def trusting(path: str) -> Iterator[None]:
    """Turns the errors that h5py raises on a damaged file into a SchemaError that names the path."""
    try:
        yield
    except PWGFError:
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
            raise StorageError(too_many_files(f"reading {path!r}")) from error
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EACCES):
            raise StorageError(f"reading {path!r} failed: {error}. Check the disk and the permissions.") from error
        if isinstance(error, MemoryError):
            raise StorageError(f"reading {path!r} failed: there is not enough memory for it. Free some.") from error
        raise refused(path, f"it is damaged ({type(error).__name__}: {error})") from error


def refused(path: str, what: str) -> SchemaError:
    """The error for an invalid file."""
    return SchemaError(
        f"opening {path!r}: expected a trajectory written by pwgf, but {what}. "
        "Check the path, or take the file from a backup."
    )


def checked_path(path: object, call: str) -> str:
    """A path given by the user as absolute text, so that a later chdir means the same file.

    A leading "~" is the home folder, and a link is followed to what it stands for, also where that is yet to be made.

    Args:
        path: text, bytes or `os.PathLike`.
        call: for the message, e.g. "load(path)".

    Raises:
        PathError: something else, empty, with a NUL, or in a home or a working folder that is not there.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise PathError(f"{call} needs a path; got {type(path).__name__}. Give e.g. 'results/run.h5'.")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise PathError(f"{call} needs a path without NUL characters; got {text!r}. Give e.g. 'results/run.h5'.")
    text = os.path.expanduser(text)
    if text.startswith("~"):
        raise PathError(
            f"{call}: no user has the home folder that {text!r} names. Give './{text}' for a file of that name."
        )
    try:
        text = os.path.abspath(text)
    except FileNotFoundError as error:
        raise PathError(f"{call}: the working folder was removed. Change to another, or give a whole path.") from error
    return os.path.realpath(text) if os.path.islink(text) else text


def path_without_run(path: object, call: str) -> str:
    """As `checked_path`, for a file of another kind; PathError where a run lies there, which it would replace."""
    text = checked_path(path, call)
    found = os.path.isdir(text + ".parts")
    if os.path.isfile(text):
        with contextlib.suppress(OSError), h5py.File(text, "r") as file:  # OSError: it is no HDF5 file
            found = found or "pwgf_schema" in file.attrs
    if found:
        raise PathError(f"{call}: a run of pwgf lies at {text!r}, and would be replaced. Give another path.")
    return text


def open_stored(path: str) -> Stored:
    """Opens a regular file for reading; PathError for a folder, StorageError without permission.

    Raises:
        FileNotFoundError: nothing is there (the caller interprets it).
    """
    try:
        mode = os.stat(path).st_mode  # asked once: a writer may remove the file at any moment
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise PathError(f"opening {path!r}: expected a file, got {what}. Give the file's own path.")
        file = Stored(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))  # a pipe may have come since
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(error)) from error
    except PathError:
        raise
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise StorageError(too_many_files(f"opening {path!r}")) from error
        raise StorageError(f"opening {path!r} failed: {error}. Check the permissions.") from error
    if is_hollow(file.fileno()):
        file.close()
        raise refused(path, f"it is a file of holes, with less than a {BOMB_RATIO}th of its bytes on the disk")
    return file


def is_hollow(fd: int) -> bool:
    """Is a large file almost all holes? These are a decompression bomb, too."""
    size = os.fstat(fd).st_size
    at, there = 0, 0
    while size > BOMB_BYTES and there * BOMB_RATIO < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:  # ENXIO: no data behind `at`; else the file system knows of no holes
            return error.errno == errno.ENXIO
        there += at - start
    return False


def open_guarded(
    stream: io.IOBase, path: str, kind: str, run_id: str | None = None
) -> tuple[h5py.File, dict[str, h5py.Dataset]]:
    """Opens an HDF5 file and checks everything apart from the data.

    Args:
        stream: binary file object; HDF5 reads through it, so that it takes no lock and opens no other file.
        path: for messages.
        kind: the `pwgf_kind` expected.
        run_id: the run it must belong to; None for any.

    Returns:
        The open file, and all its datasets by name.

    Raises:
        SchemaError: no HDF5, foreign, damaged, hostile, of another kind or run, or of a newer major schema.
    """
    if stream.read(len(SIGNATURE)) != SIGNATURE:
        raise refused(path, "it is no HDF5 file")
    size = stream.seek(0, os.SEEK_END)
    with trusting(path):
        file = h5py.File(stream, "r")
        try:
            check_stamps(file, path, kind, run_id)
            datasets = dict(walk(file, path))
            check_datasets(datasets, path, size)
            if kind in ("trajectory", "rows"):
                check_rows(datasets, read_attr(file, "dim"), read_attr(file, "num_params"), path)
            if kind == "trajectory":
                check_trajectory(datasets, read_attr(file, "dim"), path)
        except BaseException:
            file.close()
            raise
    return file, datasets


def read_attr(item: h5py.Group | h5py.Dataset, name: str) -> str | int | None:
    """A small text or integer attribute; None where it is missing or something else."""
    if name not in item.attrs:
        return None
    stored = item.attrs.get_id(name)
    if stored.shape != () or stored.dtype.kind not in "SOiu" or stored.dtype.itemsize > MAX_ATTR_BYTES:
        return None
    if stored.dtype.kind == "O" and h5py.check_string_dtype(stored.dtype) is None:
        return None
    value = item.attrs[name]
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else int(value)


def check_stamps(file: h5py.File, path: str, kind: str, run_id: str | None) -> None:
    """Refuses a file of another origin, an unknown schema, another kind or another run."""
    schema = read_attr(file, "pwgf_schema")
    if schema is None:
        raise refused(path, "it is an HDF5 file of something else (no attribute pwgf_schema)")
    if not re.fullmatch(r"\d{1,6}\.\d{1,6}", str(schema)):
        raise refused(path, f"its schema is {str(schema)[:40]!r}")
    if int(str(schema).split(".")[0]) > int(SCHEMA.split(".")[0]):
        raise SchemaError(
            f"opening {path!r}: it has schema {schema}, and pwgf {__version__} reads schemas up to {SCHEMA[0]}.x. "
            f"It was written by pwgf {str(read_attr(file, 'pwgf_version'))[:40]}: install that version or a newer one."
        )
    found = read_attr(file, "pwgf_kind")
    if found != kind:
        raise refused(path, f"it is a part of a run ({found!r} where {kind!r} was expected)")
    if run_id is not None and read_attr(file, "run_id") != run_id:
        raise refused(path, "it belongs to another run")


def walk(file: h5py.File, path: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets with their names; refuses links, types, cycles, and more than MAX_OBJECTS objects."""
    seen: set[int] = set()
    groups: list[tuple[str, h5py.Group, int]] = [("", file["/"], 0)]
    while groups:
        prefix, group, depth = groups.pop()
        if depth > MAX_DEPTH or len(group) + len(seen) > MAX_OBJECTS:
            raise refused(path, f"it has more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels")
        for name in group:
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise refused(path, f"{prefix + name!r} is a link to elsewhere")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise refused(path, f"{prefix + name!r} has a second name")
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append((f"{prefix}{name}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield prefix + name, item
            else:
                raise refused(path, f"{prefix + name!r} is neither a group nor a dataset")


def check_datasets(datasets: dict[str, h5py.Dataset], path: str, file_size: int) -> None:
    """Storage, dtype, filters and sizes of every dataset."""
    stored, deflated, texts = 0, 0, 0
    for name, dataset in datasets.items():
        layout = check_storage(name, dataset, path)
        is_text = check_dtype(name, dataset, path)
        size = dataset.id.get_storage_size()
        stored += size
        nominal = math.prod(int(n) for n in dataset.shape) * dataset.id.get_type().get_size()
        limit = MAX_TEXT_BYTES if is_text else MAX_BYTES
        if nominal > limit:
            raise refused(path, f"{name!r} claims {nominal} bytes, more than the limit of {limit}")
        ratio = MAX_DEFLATE_RATIO if nominal <= BOMB_BYTES else BOMB_RATIO
        if nominal > size * (ratio if layout == "deflated" else 1):
            raise refused(path, f"{name!r} claims {nominal} bytes, of which the file holds {size}")
        texts += nominal if is_text else 0
        deflated += nominal if layout == "deflated" else 0
    if texts > MAX_TEXT_BYTES:
        raise refused(path, f"its texts claim {texts} bytes, more than the limit of {MAX_TEXT_BYTES}")
    if deflated > max(BOMB_BYTES, BOMB_RATIO * stored):
        raise refused(path, f"its datasets claim {deflated} bytes, of which the file holds {stored}")
    if stored > file_size:
        raise refused(path, f"its datasets claim {stored} bytes of a file of {file_size}")


def check_storage(name: str, dataset: h5py.Dataset, path: str) -> str:
    """Refuses external and virtual storage, plugin filters and huge chunks; returns whether the data is deflated."""
    plan = dataset.id.get_create_plist()
    if plan.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise refused(path, f"{name!r} is a virtual dataset")
    if plan.get_external_count() > 0:
        raise refused(path, f"{name!r} has external storage: it would read another file")
    filters = {plan.get_filter(k)[0] for k in range(plan.get_nfilters())}
    if not filters <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}:
        raise refused(path, f"{name!r} needs filters other than gzip, shuffle and fletcher32")
    if plan.get_layout() == h5py.h5d.CHUNKED:
        chunk = math.prod(int(n) for n in plan.get_chunk()) * dataset.id.get_type().get_size()
        if chunk > MAX_CHUNK_BYTES:
            raise refused(path, f"{name!r} has chunks of {chunk} bytes, more than the limit of {MAX_CHUNK_BYTES}")
    return "deflated" if h5py.h5z.FILTER_DEFLATE in filters else "plain"


def check_dtype(name: str, dataset: h5py.Dataset, path: str) -> bool:
    """Refuses other dtypes than `DTYPES` and text; True for text."""
    if dataset.shape is None:
        raise refused(path, f"{name!r} is empty")
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None:
        if text.encoding != "utf-8" or dataset.shape != ():
            raise refused(path, f"{name!r} is text other than one UTF-8 string")
        return True
    if dataset.dtype.hasobject or dataset.dtype.names or dataset.dtype not in DTYPES:
        raise refused(path, f"{name!r} has dtype {dataset.dtype}; allowed are f8, f4, i8, u1, bool and UTF-8 text")
    return False


def check_rows(
    datasets: dict[str, h5py.Dataset], dim: int | str | None, num_params: int | str | None, path: str
) -> None:
    """Refuses rows that are missing or differ in length or dtype f8."""
    for name in ("t", *VECTORS):
        if name not in datasets:
            raise refused(path, f"it has no dataset {name!r}")
    count = datasets["t"].shape[0] if datasets["t"].ndim == 1 else -1
    expected: dict[str, tuple[int | str | None, ...]] = dict.fromkeys(columns(datasets), (count,))
    expected |= dict.fromkeys(VECTORS, (count, num_params))
    if SAMPLES in datasets:
        expected[SAMPLES] = (count, datasets[SAMPLES].shape[1] if datasets[SAMPLES].ndim > 1 else None, dim)
    for name, shape in expected.items():
        found = datasets[name]
        if found.shape != shape or found.dtype != np.dtype("<f8"):
            raise refused(path, f"{name!r} is {found.dtype} {found.shape} where float64 {shape} was expected")


def check_trajectory(datasets: dict[str, h5py.Dataset], dim: int | str | None, path: str) -> None:
    """Refuses a packed file without its scales and texts."""
    for name, shape in {"param": datasets["theta"].shape[1:], "dim": (dim,), "config": (), "layout": ()}.items():
        if name not in datasets:
            raise refused(path, f"it has no dataset {name!r}")
        if datasets[name].shape != shape:
            raise refused(path, f"{name!r} has shape {datasets[name].shape}, not {shape}")
        if shape == () and h5py.check_string_dtype(datasets[name].dtype) is None:
            raise refused(path, f"{name!r} is no text")


def columns(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the scalar columns, "t" first: every root dataset that is not a vector, scale or text."""
    others = ("t", "param", "dim", "sample", "config", "layout", *VECTORS, SAMPLES)
    return ("t", *(name for name in names if "/" not in name and name not in others))
