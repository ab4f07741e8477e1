"""Rows of a run on disk, as a trajectory reads them: the file is opened, read and closed at every question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import storage
from ..errors import SchemaError, StorageError

VECTORS = ("theta", "theta_dot")
_KEPT_BYTES = 32 << 20  # of rows of θ and θ̇ that were asked for lately


class FileRows:
    """The rows that were on disk when the record was opened; holds no file open, so that it can be copied and pickled.

    Args:
        record: open; may be closed afterwards.

    Raises:
        StorageError: from every question, when the file was replaced by another run since.
    """

    def __init__(self, record: storage.Record) -> None:
        self.path, self.config, self.names, self.shapes = record.path, record.config, record.names, record.shapes
        self._run_id, self._count = record.run_id, len(record)
        self._columns = {"t": record.column("t")}
        self._kept: dict[int, dict[str, np.ndarray]] = {}  # rows of θ and θ̇
        self._most = max(4, _KEPT_BYTES // (16 * record.num_params))

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> np.ndarray:
        """A scalar column, (T,) float64, the caller's own."""
        if name not in self._columns:
            with self._opened() as record:
                self._columns[name] = record.column(name)[: self._count]
        return self._columns[name].copy()

    def vector(self, name: str, k: int) -> np.ndarray:
        """Row k of theta or theta_dot, (p,)."""
        if k not in self._kept:
            while len(self._kept) >= self._most:
                self._kept.pop(next(iter(self._kept)))
            with self._opened() as record:
                found = {name: record.vector(name, k) for name in VECTORS}
            if not np.isfinite(found["theta"]).all():
                raise SchemaError(f"reading {self.path!r}: the parameters of row {k} are not finite. Try pwgf doctor.")
            self._kept[k] = found
        return self._kept[k][name]

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
