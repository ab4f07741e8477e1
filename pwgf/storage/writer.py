"""Writer: rows and restart states of one run, each published as a whole."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pwgf.storage.manifest as manifests
from pwgf.errors import ConfigError, PathError, StorageError
from pwgf.storage.disk import Disk, in_memory
from pwgf.storage.guard import checked_path
from pwgf.storage.lock import RunLock, lock_run
from pwgf.storage.manifest import Manifest, Part, parts_of
from pwgf.storage.packing import pack_record, remove_parts
from pwgf.storage.reader import Record, open_record
from pwgf.storage.rows import (
    Row,
    checked_row,
    column_names,
    config_digest,
    copied,
    header_image,
    restart_image,
    row_shapes,
    rows_image,
    segment_rows,
)
from pwgf.storage.schema import Header, row_bytes

PENDING_BYTES = 64 << 20  # rows that wait for their publication under max_cost


class Writer:
    """Writes one run; made by `create` or `resume`, ended by `close`. A context manager.

    A row is *acknowledged* when it is published: from then on a kill, a full disk or a power cut do not lose it. A
    publication costs some ten milliseconds and the size of the newest segment, at most 64 rows or 8 MB.

    Attributes:
        path: of the run.
        record: what `resume` found; None for a new run.

    Example:
        >>> import numpy as np, tempfile
        >>> header = Header(config={}, layout=[], provenance={}, dim=1, num_params=2)
        >>> path = tempfile.mkdtemp() + "/run.h5"
        >>> with Writer.create(path, header) as writer:
        ...     writer.append({"t": 0.0, "theta": np.ones(2), "theta_dot": np.zeros(2), "energy": 3.0}, {"dt": 0.1})
        >>> open_record(path).column("energy"), open_record(path).restart()
        (array([3.]), {'dt': 0.1})
    """

    def __init__(self, path: str, disk: Disk, lock: RunLock, manifest: Manifest, max_cost: float | None) -> None:
        self.path = path
        self._disk = disk
        self._lock = lock
        self._manifest = manifest
        self._max_cost = max_cost
        self._names: tuple[str, ...] | None = None  # these two of the first row
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._last_t = -math.inf
        self._open: list[Row] = []  # rows of the newest published segment while it has room
        self._pending: list[Row] = []
        self._restart: dict[str, Any] | None = None
        self._serial = manifest.serial
        self._stray: set[str] = set()  # parts written that no manifest names any more, or never did
        self._clock = time.monotonic
        self._began = self._clock()  # these three in seconds
        self._spent = 0.0
        self._last_cost = 0.0

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        header: Header,
        *,
        overwrite: bool = False,
        max_cost: float | None = None,
        disk: Disk | None = None,
    ) -> Writer:
        """Begins a new run.

        Args:
            path: of the run; its folder is made where that is missing.
            header: what is known before the first row.
            overwrite: remove an existing run. One without a row is ignored.
            max_cost: fraction of the run time that writing may take, in (0, 1]; None publishes every row.
            disk: layer of writes.

        Returns:
            The writer, which holds the run's lock.

        Raises:
            PathError: a run exists and `overwrite` is False, the path is a folder, or it is not writable.
            StorageError: another process is writing it (the message has its pid), or the disk is full.
            ConfigError: `max_cost` outside (0, 1].
        """
        path, disk = _checked(path, max_cost), disk or Disk()
        fresh = not os.path.isdir(parts_of(path))
        if fresh and not overwrite:
            refuse_existing(path)
        lock = lock_run(path, disk)
        try:
            if not overwrite:
                refuse_existing(path)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            manifest = _begin(path, disk, header, uuid.uuid4().hex, now, manifests.serial_at(path))
            if os.path.exists(path):
                with disk.telling(path, path, 0):
                    disk.remove(path)
            remove_parts(path, disk, keep=frozenset({*manifest.files(), manifests.NAME}))
        except BaseException as error:
            lock.release()
            if fresh and isinstance(error, PathError):
                with contextlib.suppress(OSError):
                    os.rmdir(parts_of(path))
            raise
        return cls(path, disk, lock, manifest, max_cost)

    @classmethod
    def resume(
        cls, path: str | os.PathLike, *, max_cost: float | None = None, disk: Disk | None = None
    ) -> tuple[Writer, Record]:
        """Continues a run that was killed, failed, was interrupted or is finished.

        The file of a packed run is not changed until `close` replaces it by the longer one.

        Args:
            path: of the run.
            max_cost: as in `create`.
            disk: layer of writes.

        Returns:
            The writer, and what is stored so far.

        Raises:
            PathError: nothing is there, or not one row.
            SchemaError: what is there is damaged.
            StorageError: another process is writing it; the message has its pid.
        """
        path, disk = _checked(path, max_cost), disk or Disk()
        open_record(path).close()
        lock = lock_run(path, disk)
        try:
            record = open_record(path)
            if not len(record):
                raise PathError(f"resuming {path!r}: expected a run with rows, it has none. Start it again.")
            if record.manifest is None:
                manifest = _begin(path, disk, record.header, record.run_id, record.created, record.serial, record)
            else:
                manifest = dataclasses.replace(record.manifest, status="running", serial=record.serial + 1)
                disk.publish(os.path.join(parts_of(path), manifests.NAME), manifest.encode())
            remove_parts(path, disk, keep=frozenset({*manifest.files(), manifests.NAME}))
        except BaseException:
            lock.release()
            raise
        writer = cls(path, disk, lock, manifest, max_cost)
        writer._names, writer._shapes, writer._last_t = record.names, record.shapes, float(record.column("t")[-1])
        return writer, record

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Closes as complete, or after an exception as failed (interrupted), re-raised; in a fork does nothing."""
        try:
            if not self._lock.is_mine:
                return
            if kind is None:
                self.close()
            else:
                self.close("failed" if issubclass(kind, Exception) else "interrupted")
        except StorageError as trouble:
            if kind is None:
                raise
            logging.getLogger("pwgf").error("the last rows could not be stored: %s", trouble)
        finally:
            self._lock.release()

    def append(self, row: Mapping[str, Any], restart: Mapping[str, Any]) -> None:
        """Adds a row with the restart state that belongs to it, and publishes according to `max_cost`.

        Args:
            row: "t", greater than that of the last row; "theta" and "theta_dot" (p,); scalars by name, the same names
                in every row; "samples" (n,d), in every row or in none.
            restart: the state to continue from: numbers, text, and arrays of f8, f4, i8, u1 or bool, by name.

        Raises:
            ConfigError: names other than those of the first row, a time that does not increase.
            ShapeError: a value of the wrong shape or type.
            StorageError: the disk refused. The row is kept: `publish` tries again.
        """
        self._require_open("append")
        names = self._names or column_names(row)
        shapes = self._shapes or row_shapes(row, self._manifest.dim, self._manifest.num_params)
        values, state = checked_row(row, names, shapes, self._last_t), copied(restart)
        self._names, self._shapes = names, shapes
        self._last_t = values["t"]
        # in one statement without a call: the exception of a signal between two would separate row and state
        self._pending, self._restart = [*self._pending, values], state
        if self._is_due():
            self.publish()

    def checkpoint(self, restart: Mapping[str, Any]) -> None:
        """Publishes a restart state between rows (and rows that wait); raises StorageError as `append`."""
        self._require_open("checkpoint")
        self._restart = copied(restart)
        self.publish()

    def publish(self) -> None:
        """Publishes the pending rows and state, if there are any.

        Raises:
            StorageError: the disk refused, or there is not enough memory. What was published before is untouched; call
                again to try again.
        """
        self._require_open("publish")
        if self._restart is None:
            return
        began = self._clock()
        self._serial += 1
        with in_memory(f"writing {self.path!r}"):
            if self._pending:
                self._publish_rows(self._restart)
            else:
                name = f"restart-{self._serial:06d}.h5"
                self._commit(restart=self._put(name, restart_image(self._manifest, self._restart)))
        self._pending, self._restart = [], None  # in one statement, as in `append`
        self._last_cost = self._clock() - began
        self._spent += self._last_cost

    def _publish_rows(self, restart: Mapping[str, Any]) -> None:
        """Publishes the newest segment again, under a new name, with the pending rows, and further segments."""
        rows, full = self._open + self._pending, segment_rows(self._names or (), self._shapes)
        groups = [rows[k : k + full] for k in range(0, len(rows), full)]
        segments = list(self._manifest.segments[:-1] if self._open else self._manifest.segments)
        for group in groups:
            image = rows_image(self._manifest, group, restart if group is groups[-1] else None)
            segments.append(self._put(f"seg-{len(segments):06d}-{self._serial:06d}.h5", image, len(group)))
        self._commit(segments=tuple(segments), restart=segments[-1])
        self._open = groups[-1] if len(groups[-1]) < full else []

    def update_header(self, header: Header) -> None:
        """Replaces the header, as when the times of a resumed run are extended; dim and num_params stay.

        Raises:
            ConfigError: another dim or num_params.
            StorageError: the disk refused; the old header stays.
        """
        self._require_open("update_header")
        if (header.dim, header.num_params) != (self._manifest.dim, self._manifest.num_params):
            raise ConfigError(
                f"Writer.update_header(header) needs dim={self._manifest.dim}, num_params={self._manifest.num_params}; "
                f"got {header.dim}, {header.num_params}. Begin another run."
            )
        self._serial += 1
        name = f"header-{self._serial:06d}.h5"
        part = self._put(name, header_image(self._manifest, header))
        self._commit(header=part, config_sha256=config_digest(header))

    def close(self, status: str = "complete") -> None:
        """Ends the run and releases the lock; a second call does nothing.

        "complete" packs the parts into one file, checks its hashes, and removes the parts. If the disk is too full for
        that, the run is complete in parts and `pack` can be called later.

        Args:
            status: "complete", "failed" or "interrupted".

        Raises:
            ConfigError: another status.
            StorageError: the disk refused. Nothing published is lost; the writer stays open, call again to try again.
        """
        if status not in ("complete", "failed", "interrupted"):
            raise ConfigError(
                f"Writer.close(status) needs 'complete', 'failed' or 'interrupted'; got {status!r}. Use one of these."
            )
        if self._lock.released:
            return
        self._lock.require()
        self.publish()
        if self._manifest.status != status:
            self._serial += 1
            self._commit(status=status)
        if status == "complete":
            with in_memory(f"packing {self.path!r}"), open_record(self.path) as record:
                pack_record(record, status, self._disk)
            remove_parts(self.path, self._disk)
        self._lock.release()
        if status == "complete":
            with contextlib.suppress(OSError):
                self._disk.remove_dir(parts_of(self.path))

    def _require_open(self, call: str) -> None:
        if self._lock.released:
            raise StorageError(f"Writer.{call} was called after close on {self.path!r}. Continue by Writer.resume.")
        self._lock.require()

    def _is_due(self) -> bool:
        """Whether to publish now: always without max_cost, else if it fits into its share of the run time."""
        waiting = len(self._pending) * row_bytes(self._names or (), self._shapes)
        if self._max_cost is None or self._manifest.rows == 0 or waiting > PENDING_BYTES:
            return True
        return self._spent + self._last_cost <= self._max_cost * (self._clock() - self._began)

    def _put(self, name: str, data: bytes, rows: int = 0) -> Part:
        """Writes a part, which no manifest names yet."""
        self._stray.add(name)
        try:
            self._disk.publish(os.path.join(parts_of(self.path), name), data)
        except StorageError:
            self._sweep(suffix=f"-{self._serial:06d}.h5")  # this attempt's parts only: they take the room of a retry
            raise
        return Part(name, hashlib.sha256(data).hexdigest(), rows)

    def _commit(self, **changes: Any) -> None:
        """Replaces the manifest, from which moment the new parts count; then removes those that they supersede."""
        manifest = dataclasses.replace(self._manifest, serial=self._serial, **changes)
        self._stray |= self._manifest.files() | manifest.files()
        self._lock.require()
        self._disk.publish(os.path.join(parts_of(self.path), manifests.NAME), manifest.encode())
        self._manifest = manifest
        self._sweep()

    def _sweep(self, suffix: str = "") -> None:
        """Removes parts that the manifest does not name; one that cannot be removed is tried again next time.

        After a failed `_commit` it is unknown which manifest the disk has; until the next one succeeds, no part written
        by an earlier attempt may be removed.
        """
        for name in sorted(name for name in self._stray - self._manifest.files() if name.endswith(suffix)):
            try:
                self._disk.remove(os.path.join(parts_of(self.path), name))
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    continue
            self._stray.discard(name)


def _checked(path: str | os.PathLike, max_cost: float | None) -> str:
    """The path as text, after the checks that do not access the disk."""
    number = isinstance(max_cost, (int, float)) and not isinstance(max_cost, bool)
    if max_cost is not None and not (number and 0 < max_cost <= 1):
        raise ConfigError(
            f"Writer(max_cost=…) needs a fraction in (0, 1] or None; got {max_cost!r}. Give 0.01 for 1 %."
        )
    path = checked_path(path, "Writer(path)")
    if os.path.isdir(path):
        raise PathError(f"writing {path!r}: expected a file, got a folder. Give a path in it, such as run.h5.")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise PathError(f"writing {path!r}: expected a file, got a pipe or a device. Give another path.")
    return path


def refuse_existing(path: str) -> None:
    """PathError when there is a file, or parts with at least one row."""
    found = manifests.read(path)
    if os.path.exists(path) or (found is not None and found[0].rows):
        raise PathError(
            f"writing {path!r}: a run is there already. Continue it with resume=True, replace it with overwrite=True, "
            "or give another path."
        )


def _begin(
    path: str, disk: Disk, header: Header, run_id: str, created: str, serial: int, base: Record | None = None
) -> Manifest:
    """Publishes a header and the manifest of a run without rows of its own."""
    manifest = Manifest(
        run_id=run_id,
        created=created,
        status="running",
        serial=serial + 1,
        dim=header.dim,
        num_params=header.num_params,
        config_sha256=config_digest(header),
        header=Part(f"header-{serial + 1:06d}.h5", ""),
        base_rows=0 if base is None else len(base),
        base_sha256="" if base is None else base.content_sha256,
    )
    data = header_image(manifest, header)
    disk.publish(os.path.join(parts_of(path), manifest.header.file), data)
    manifest = dataclasses.replace(manifest, header=Part(manifest.header.file, hashlib.sha256(data).hexdigest()))
    disk.publish(os.path.join(parts_of(path), manifests.NAME), manifest.encode())
    return manifest
