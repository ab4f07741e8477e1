"""One file written for several processes: rank 0 holds the writer, all others wait for it and fail with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..parallel import Group
from ..storage import Header, Writer


class OneWriter:
    """A `Writer` that all processes of a group call together; only rank 0 touches the disk. A context manager.

    Args:
        group: the processes.
        make: opens the writer, on rank 0.

    Raises:
        StorageError, ConfigError: in all processes, from this and every method, when rank 0 could not write.
    """

    def __init__(self, group: Group, make: Callable[[], Writer]) -> None:
        self._group = group
        self._made: list[Writer] = []
        group.barrier()  # nobody reads any more what the writer may replace
        group.on_first(lambda: self._made.append(make()))

    def append(self, row: Mapping[str, Any], restart: Mapping[str, Any]) -> None:
        """`Writer.append`."""
        self._group.on_first(lambda: self._made[0].append(row, restart))

    def checkpoint(self, restart: Mapping[str, Any]) -> None:
        """`Writer.checkpoint`."""
        self._group.on_first(lambda: self._made[0].checkpoint(restart))

    def update_header(self, header: Header) -> None:
        """`Writer.update_header`."""
        self._group.on_first(lambda: self._made[0].update_header(header))

    def close(self, status: str) -> None:
        """`Writer.close`."""
        self._group.on_first(lambda: self._made[0].close(status))

    def __enter__(self) -> OneWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the writer; after an exception each process goes its own way."""
        if kind is None:
            self._group.on_first(lambda: self._made[0].__exit__(None, None, None))
        elif self._made:
            self._made[0].__exit__(kind, error, trace)
