"""Packing: the parts of a run become one file, row by row, with memory that does not grow with the run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

import pwgf.storage.manifest as manifests
from pwgf.errors import PathError, SchemaError
from pwgf.storage.axes import add_scales, name_axes
from pwgf.storage.disk import TEMPORARY, Disk, Stream, in_memory
from pwgf.storage.guard import DAMAGE, checked_path, walk
from pwgf.storage.lock import lock_run
from pwgf.storage.manifest import parts_of
from pwgf.storage.meanings import explain
from pwgf.storage.pieces import Piece
from pwgf.storage.reader import Record, open_record
from pwgf.storage.schema import (
    Digest,
    content_digest,
    create_rows,
    dataset_digest,
    new_file,
    put_attr,
    put_header,
    put_restart,
    row_bytes,
)

PACKED = "packed.h5"  # in the folder of the parts, until it is whole


def pack(path: str | os.PathLike) -> str:
    """Packs the parts of a killed, failed, interrupted or finished run into one file; a packed run is not changed.

    The file states whether the run is complete; if it is not, it can still be resumed.

    Args:
        path: of the run.

    Returns:
        The run's absolute path.

    Raises:
        PathError: nothing is there, or no row.
        SchemaError: a part is damaged; nothing was changed.
        StorageError: the disk is full, or the run is still being written.
    """
    path, disk = checked_path(path, "pack(path)"), Disk()
    open_record(path).close()
    if manifests.read(path) is not None:
        lock = lock_run(path, disk)
        try:
            with in_memory(f"packing {path!r}"), open_record(path) as record:
                status = "killed" if record.status == "running" else record.status  # the lock is ours: nobody writes
                if not len(record):
                    raise PathError(f"pack({path!r}) needs a run with at least one row; it has none. Remove its parts.")
                pack_record(record, status, disk)
            remove_parts(path, disk)
        finally:
            lock.release()
        with contextlib.suppress(OSError):
            disk.remove_dir(parts_of(path))
    return path


def set_result(path: str | os.PathLike, result: Mapping[str, Any]) -> None:
    """Puts what was made of a finished run into its file, in place of an earlier result.

    Unless it has this result already, the file is written anew as a whole, with the same rows: a reader sees it with
    the new result or without. A run that is resumed beyond its end loses its result, which belongs to the end.

    Args:
        path: of the run.
        result: numbers, text and arrays of f8, f4, i8, u1 or bool by name.

    Raises:
        PathError, SchemaError, StorageError: as `pack`; what was at the path is still there.
        ConfigError, ShapeError: a result that cannot be stored.
    """
    path, disk = pack(path), Disk()
    lock = lock_run(path, disk)
    try:
        with in_memory(f"packing {path!r}"), open_record(path) as record:
            if _same(record.result, result):
                return
            record.header = dataclasses.replace(record.header, result=dict(result))
            write_packed(record, path, record.status, disk, os.path.join(parts_of(path), PACKED))
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            disk.remove_dir(parts_of(path))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are equal to the bit."""
    arrays = ({name: np.asarray(value) for name, value in values.items()} for values in (one, other))
    a, b = ({name: (x.dtype, x.shape, x.tobytes()) for name, x in known.items()} for known in arrays)
    return a == b


def pack_record(record: Record, status: str, disk: Disk) -> None:
    """Writes all that a record in parts holds to its path as one file; the parts stay.

    Args:
        record: whose rows, header and restart state are copied; nothing to do when it is packed already.
        status: to be stored.
        disk: layer of writes.

    Raises:
        StorageError: no room; what was at the path is still there.
        SchemaError: a part is damaged, or what was written does not read back.
    """
    if record.manifest is None:  # but the last attempt may have failed at the folder's fsync
        with disk.telling(record.path, record.path, 0):
            disk.fsync_dir(os.path.dirname(record.path))
        return
    write_packed(record, record.path, status, disk, os.path.join(parts_of(record.path), PACKED))


def write_packed(record: Record, path: str, status: str, disk: Disk, stem: str | None = None) -> None:
    """Writes all that a record holds to `path` as one file, published whole after it was read back.

    Args:
        record: whose rows, header and restart state are copied.
        path: where to; what is there is replaced.
        status: to be stored.
        disk: layer of writes.
        stem: of the temporary file's path; None means `path`.

    Raises:
        StorageError: no room; what was at the path is still there.
        SchemaError: what is read is damaged, or what was written does not read back.
    """
    needed = len(record) * row_bytes(record.names, record.shapes)
    with disk.temporary(path, stem or path, needed) as temporary:
        disk.require(path, needed)
        stream = Stream(disk, temporary)
        try:
            _write(stream, record, status)
            stream.fsync()
        finally:
            stream.close()
        piece = Piece.packed(temporary)
        problems = piece.problems()
        piece.close()
        if problems:
            raise SchemaError(f"packing {path!r}: the packed file does not read back: {problems[0]}")
        disk.replace(temporary, path)
        disk.fsync_dir(os.path.dirname(path))


def _write(stream: Stream, record: Record, status: str) -> None:
    """The content of the packed file; a failed write of the stream is raised instead of the HDF5 error it causes."""
    stamps: dict[str, str | int] = {
        "run_id": record.run_id,
        "created": record.created,
        "dim": record.dim,
        "num_params": record.num_params,
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stamps |= {"packed": now, "serial": record.serial, "status": status, "complete": int(status == "complete")}
    names = record.names
    record.column("t")  # refused here unless it increases, also from one part to the next
    try:
        with new_file(stream, "trajectory", stamps) as file:
            put_header(file, record.header)
            put_restart(file, record.restart())
            create_rows(file, names, record.shapes, len(record))
            add_scales(file, names, record.dim, record.num_params)
            name_axes(file, record.path)
            rows = {name: Digest(file[name].dtype, file[name].shape) for name in (*names, *record.shapes)}
            start = 0
            for batch in record.iter_rows():
                stop = start + len(batch["t"])
                for name, values in batch.items():
                    file[name][start:stop] = values
                    rows[name].feed(np.asarray(values, dtype="<f8"))
                stream.check()
                start = stop
            digests = {name: digest.hex() for name, digest in rows.items()}
            others = {name: item for name, item in walk(file, record.path) if name not in rows}
            digests |= {name: dataset_digest(item) for name, item in others.items()}
            for name, digest in digests.items():
                put_attr(file[name], "sha256", digest)
                explain(name, file[name])
            put_attr(file, "content_sha256", content_digest(digests))
    except DAMAGE:
        stream.check()
        raise
    stream.check()


def _is_ours(name: str) -> bool:
    """Is it the name of a part, of the manifest, or of a temporary file of these or of the packed file?"""
    temporary = TEMPORARY.fullmatch(name)
    stem = temporary[1] if temporary else name
    return bool(manifests.PART.fullmatch(stem)) or stem == manifests.NAME or (stem == PACKED and temporary is not None)


def remove_parts(path: str, disk: Disk, keep: frozenset[str] = frozenset()) -> None:
    """Removes the parts of a run, the manifest first: parts without one are ignored.

    A part that cannot be removed is left; the run reads the same with it, and the next writer tries again.

    Args:
        path: of the run.
        disk: layer of writes.
        keep: names to leave.
    """
    folder = parts_of(path)
    for name in sorted(os.listdir(folder), key=lambda name: (name != manifests.NAME, name)):
        if _is_ours(name) and name not in keep:
            try:
                disk.remove(os.path.join(folder, name))
            except OSError:
                if name == manifests.NAME:
                    return
