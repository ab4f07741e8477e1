"""Record: a run read from disk, while it is written, after a kill or a failure, or complete. Readers take no lock."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

import pwgf.storage.snapshot as snapshot
from pwgf.errors import ConfigError, PWGFError, StorageError, nearest
from pwgf.storage.guard import checked_path, refused
from pwgf.storage.manifest import parts_of
from pwgf.storage.pieces import BATCH_BYTES, Piece, increases
from pwgf.storage.schema import row_bytes


def open_record(path: str | os.PathLike) -> Record:
    """Opens the run at `path`, whatever its status.

    Reads and checks the header and the newest segment, at most some MB; other rows are read on demand.

    Args:
        path: as given to `out=`.

    Returns:
        A snapshot of what is published now; see `Record`.

    Raises:
        PathError: nothing is there, or a folder.
        SchemaError: foreign, damaged, hostile, or of a newer major schema.
        StorageError: it cannot be read.

    Example:
        >>> open_record("no/such/run.h5")
        Traceback (most recent call last):
        pwgf.errors.PathError: opening '...no/such/run.h5': no such file; expected a run. Check the path given as out=….
    """
    path = checked_path(path, "open_record(path)")
    return Record(path, snapshot.take(path))


class Record:
    """A run on disk, as published when it was opened. Made by `open_record`.

    Attributes:
        path: of the run, absolute.
        status: "running", "killed" (its process is gone), "failed", "interrupted" or "complete"; of the copy of a
            damaged run "salvaged".
        complete: whether the run reached its end.
        run_id, created, schema: identity, UTC time of creation, schema version.
        config, layout, provenance, dim, num_params, arrays, result: as in `Header`.
        header: these seven as a `Header`.
        names: of the scalar columns, "t" first; ("t",) before the first row.
        shapes: of the arrays of a row by name: "theta", "theta_dot" (p,), and "samples" (n,d) where they are stored.
        content_sha256: of a packed file; "" for a run in parts.
        manifest, serial: for the writer: the manifest (None when packed) and the number of publications.
    """

    def __init__(self, path: str, now: snapshot.Snapshot) -> None:
        self.path = path
        self._now = now
        self._count = now.rows
        self._segment: tuple[str, Piece] | None = None  # the closed segment read last
        self._cache: dict[str, dict[str, np.ndarray]] = {}  # columns by the hash of their file
        self.status = now.status
        self.complete = now.status == "complete"
        self.run_id = now.run_id
        self.created = now.created
        self.schema = now.schema
        self.header = now.header
        self.config = now.header.config
        self.layout = now.header.layout
        self.provenance = now.header.provenance
        self.dim = now.header.dim
        self.num_params = now.header.num_params
        self.arrays = now.header.arrays
        self.result = now.header.result
        last = self._piece(len(self) - 1) if len(self) else None
        self.names = ("t",) if last is None else last.column_names
        self.shapes = {} if last is None else last.shapes
        self.manifest = now.manifest
        self.serial = now.serial
        self.content_sha256 = now.content_sha256

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Record({self.path!r}, {self.status}, {len(self)} rows)"

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def column(self, name: str) -> np.ndarray:
        """A scalar column.

        Args:
            name: one of `names`.

        Returns:
            (T,) float64.

        Raises:
            ConfigError: no such column.
            SchemaError: damaged, or times that are not finite and increasing.
        """
        if name not in self.names:
            raise ConfigError(
                f"Record.column(name) needs one of {', '.join(self.names)}; got {name!r}.{nearest(name, self.names)}"
            )
        values, row = [np.zeros(0)], 0
        while row < len(self):
            column, span = self._column(row, name), self._now.span(row)
            values.append(column[row - span.first :])
            row = span.last
        whole = np.concatenate(values)[: len(self)]
        if name == "t" and not increases(whole):
            raise refused(self.path, "the times of its rows are not finite and increasing")
        return whole

    def vector(self, name: str, k: int) -> np.ndarray:
        """θ, θ̇ or samples of row k, read now.

        Args:
            name: "theta" or "theta_dot"; "samples" where they are stored.
            k: row, negative from the end.

        Returns:
            (p,) or (n,d) float64.

        Raises:
            ConfigError: no such name or row.
            SchemaError: damaged.
        """
        if name not in self.shapes or not -len(self) <= k < len(self):
            raise ConfigError(
                f"Record.vector(name, k) needs one of {', '.join(self.shapes)} and a row of {len(self)}; got {name!r}, "
                f"{k}."
            )
        row = k % len(self)
        piece = self._piece(row)
        start = row - self._now.span(row).first
        return piece.vectors(name, start, start + 1)[0]

    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, in batches of bounded memory.

        Args:
            batch: most rows at a time, ≥ 1; fewer where they would take more than 8 MB or a file ends.

        Yields:
            Columns (b,) and "theta", "theta_dot" (b, p) by name; "samples" (b, n, d) where they are stored.
        """
        row, most = 0, max(1, min(batch, BATCH_BYTES // row_bytes((), self.shapes)))
        while row < len(self):
            columns = {name: self._column(row, name) for name in self.names}
            piece, span = self._piece(row), self._now.span(row)
            stop = min(row + most, span.last, len(self))
            a, b = row - span.first, stop - span.first
            yield {n: c[a:b] for n, c in columns.items()} | {n: piece.vectors(n, a, b) for n in self.shapes}
            row = stop

    def restart(self) -> dict[str, Any]:
        """The newest published restart state, as given to the writer; {} if there is none."""
        return {} if self._now.restart is None else self._now.restart.values("restart")

    def refresh(self) -> Record:
        """A new record of the run as it is now; columns that were read are not read again."""
        record = open_record(self.path)
        if record.run_id == self.run_id:
            record._cache.update(self._cache)
        return record

    def verify(self) -> list[str]:
        """Reads and hashes everything.

        Returns:
            The problems, one line each; [] for a good run.
        """
        found: list[str] = []
        row = 0
        while row < len(self):
            try:
                found += self._piece(row).problems()
            except PWGFError as error:
                found.append(str(error))
            row = self._now.span(row).last
        try:
            self.restart()
            if not found:
                self.column("t")
        except PWGFError as error:
            found.append(str(error))
        return found

    def close(self) -> None:
        """Closes the files that are held open; the record reads no rows afterwards."""
        self._now.close()

    def _piece(self, row: int) -> Piece:
        """The file with `row`, opened."""
        span = self._now.span(row)
        if span.held is not None:
            return span.held
        if self._segment is not None and self._segment[0] == span.key:
            return self._segment[1]
        try:
            piece = Piece.part(parts_of(self.path), span.part, "rows", self.run_id)
        except FileNotFoundError:
            self._follow()
            return self._piece(row)
        self._segment = (span.key, piece)
        return piece

    def _follow(self) -> None:
        """Reads the same rows from the files that exist now, after the writer has packed the run."""
        before, now = self._now, snapshot.take(self.path)
        self._now = dataclasses.replace(now, restart=before.restart)  # that of these rows, held open
        if self._now.run_id != self.run_id or self._now.rows < len(self):
            raise StorageError(f"{self.path!r} was replaced by another run while it was read. Open it again.")
        if self._now.manifest is not None and self._now.manifest == before.manifest:
            raise refused(self.path, "a part that its manifest names is missing")

    def _column(self, row: int, name: str) -> np.ndarray:
        """A scalar column of the file with `row`; read once a file, and all of them once a part is open."""
        if name not in self._cache.get(self._now.span(row).key, {}):
            piece = self._piece(row)  # first, since it may lead on to the packed file, another one
            names = (name,) if piece.is_packed else dict.fromkeys((*piece.column_names, name))
            known = self._cache.setdefault(self._now.span(row).key, {})
            known.update({name: np.asarray(piece.value(name)) for name in names})
        return self._cache[self._now.span(row).key][name]
