"""Rows of a run on disk, as a trajectory reads them: the file is opened, read and closed at every question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import storage
from ..errors import StorageError

_BLOCK_BYTES = 8 << 20  # of θ and θ̇ that are read at once
_BLOCK_ROWS = 64
_BLOCKS = 4  # kept


class FileRows:
    """The rows that were on disk when the record was opened; holds no file open, so that it can be copied and pickled.

    Args:
        record: open; may be closed afterwards.

    Raises:
        StorageError: from every question, when the file was replaced by another run since.
    """

    def __init__(self, record: storage.Record) -> None:
        self.path, self.config, self.names = record.path, record.config, record.names
        self._run_id, self._count = record.run_id, len(record)
        self._columns = {"t": record.column("t")}
        self._blocks: dict[int, dict[str, np.ndarray]] = {}
        self._rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (16 * record.num_params)))

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> np.ndarray:
        """A scalar column, (T,) float64."""
        if name not in self._columns:
            with self._opened() as record:
                self._columns[name] = record.column(name)[: self._count]
        return self._columns[name]

    def vector(self, name: str, k: int) -> np.ndarray:
        """Row k of theta or theta_dot, (p,)."""
        number, place = divmod(k % self._count, self._rows)
        if number not in self._blocks:
            while len(self._blocks) >= _BLOCKS:
                self._blocks.pop(next(iter(self._blocks)))
            first = number * self._rows
            with self._opened() as record:
                rows = range(first, min(first + self._rows, self._count))
                self._blocks[number] = {
                    name: np.stack([record.vector(name, row) for row in rows]) for name in ("theta", "theta_dot")
                }
        return self._blocks[number][name][place]

    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, at most `batch` at a time, by name."""
        left = self._count
        with self._opened() as record:
            for rows in record.iter_rows(batch):
                yield {name: values[:left] for name, values in rows.items()}
                left -= min(left, len(rows["t"]))
                if not left:
                    return

    def restart(self) -> dict[str, Any]:
        """The last restart state, as plain values; of a run that goes on, the newest one."""
        with self._opened() as record:
            return record.restart()

    def _opened(self) -> storage.Record:
        record = storage.open_record(self.path)
        if record.run_id != self._run_id or len(record) < self._count:
            record.close()
            raise StorageError(f"{self.path!r} was replaced by another run since it was loaded. Load it again.")
        return record
