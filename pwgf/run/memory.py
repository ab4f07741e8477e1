"""Rows of a run without a file, and what a trajectory reads rows from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Source(Protocol):
    """Where rows come from: a file's `storage.Record`, or memory."""

    config: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Scalar columns."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the arrays of a row by name."""
        ...

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """A scalar column, (T,) float64."""
        ...

    def vector(self, name: str, k: int) -> np.ndarray:
        """Row k of theta or theta_dot, (p,), or of samples, (n,d)."""
        ...

    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, at most `batch` at a time, by name."""
        ...

    def restart(self) -> dict[str, Any]:
        """The last restart state, as plain values."""
        ...


class Memory:
    """Rows of a run without a file."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._rows: list[dict[str, Any]] = []
        self._restart: dict[str, Any] = {}

    def append(self, row: Mapping[str, Any], restart: Mapping[str, Any]) -> None:
        """Adds a row with the state that follows it."""
        self._rows.append(dict(row))
        self._restart = dict(restart)

    @property
    def names(self) -> tuple[str, ...]:
        """Scalar columns."""
        return tuple(name for name, value in self._rows[0].items() if np.ndim(value) == 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a row by name."""
        return {name: np.shape(value) for name, value in self._rows[0].items() if np.ndim(value) > 0}

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> np.ndarray:
        """(T,) float64."""
        return np.array([row[name] for row in self._rows], dtype=np.float64)

    def vector(self, name: str, k: int) -> np.ndarray:
        """Row k of theta or theta_dot, (p,), or of samples, (n,d)."""
        return np.asarray(self._rows[k][name], dtype=np.float64)

    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """Batches of rows by name."""
        for start in range(0, len(self), batch):
            rows = self._rows[start : start + batch]
            yield {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}

    def restart(self) -> dict[str, Any]:
        """The last state."""
        return self._restart

    def checkpoint(self, restart: Mapping[str, Any]) -> None:
        """Replaces the state."""
        self._restart = dict(restart)


class SourceRows:
    """The rows as schemes see them."""

    def __init__(self, source: Source) -> None:
        self.t = source.column("t")
        self._source = source

    def theta(self, k: int) -> Tensor:
        """θ of row k, (p,) float64."""
        return torch.from_numpy(np.array(self._source.vector("theta", k)))

    def theta_dot(self, k: int) -> Tensor:
        """θ̇ of row k, (p,) float64."""
        return torch.from_numpy(np.array(self._source.vector("theta_dot", k)))
