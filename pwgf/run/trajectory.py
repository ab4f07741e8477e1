"""A solved (or running, or killed) flow: rows of θ and figures, read back as measures at any time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import schemes, storage
from ..checks import DTYPES, check_integer, memory_told
from ..errors import ConfigError, SchemaError, ShapeError, nearest
from ..maps.base import PushForward
from ..measures import Reference
from ..schemes import Replay
from ..schemes.base import hermite_between
from ..state import State
from ._file import FileRows
from ._restart import restart_to_state
from ._stored import check_config, reader_of
from .memory import Source

_log = logging.getLogger("pwgf")


class Trajectory:
    """The rows of a run, and the measure ρ_t at any t between the first and the last.

    `run["energy"]` is a float64 array with a value per row (`run.names` lists the columns); `run.sample(t, n)`,
    `run.push(t, z)`, `run.log_density(t, x)` and `run.score(t, x)` read the measure, and `run.theta(t)` the parameters.
    Between rows θ is the cubic Hermite interpolant of the stored θ and θ̇. Tensors come back detached, on the CPU, in
    the run's dtype. Rows of θ are read from the file when asked for.

    Args:
        source: rows.
        reader: reads rows as measures; None when a user's own map or reference was not handed over.
        path: of the file, or None.
    """

    def __init__(self, source: Source, reader: Replay | None, path: str | None = None, missing: str = "") -> None:
        self._source, self._reader, self._missing = source, reader, missing
        self.path = path
        self.t: np.ndarray = source.column("t")
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self.t)

    def __reduce__(self) -> Any:
        """One in a file pickles as its path, to be loaded where it is unpickled; a user's own map is given there."""
        return super().__reduce__() if self.path is None else (load, (self.path,))

    def __copy__(self) -> Trajectory:
        return Trajectory(self._source, self._reader, self.path, self._missing)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trajectory:
        """A copy; the rows, which nobody changes, are shared."""
        return self.__copy__()

    def __repr__(self) -> str:
        where = f" from {self.path}" if self.path else ""
        return f"Trajectory({len(self)} rows, t = {self.t[0]:g} … {self.t[-1]:g}{where})"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that `run[name]` knows."""
        return ("theta", "theta_dot", *self._source.names)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings of the run."""
        return self._source.config

    @property
    def reference(self) -> Reference:
        """λ of the run; ConfigError where a user's own was not handed to `pwgf.load`."""
        return self._read().reference

    def __getitem__(self, name: str) -> np.ndarray:
        """Column by name, float64: (T,), or (T,p) for theta and theta_dot.

        Raises:
            ConfigError: no such column.
        """
        if name in ("theta", "theta_dot"):
            return np.concatenate([rows[name] for rows in self._source.iter_rows()])
        if name not in self._source.names:
            raise ConfigError(
                f"run[{name!r}]: no such column.{nearest(name, self.names)} There are: {', '.join(self.names)}."
            )
        return self._source.column(name)

    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, in batches, so that a file larger than memory can be read through.

        Args:
            batch: most rows at a time, ≥ 1; fewer where θ of so many would take more than 8 MB.

        Yields:
            Columns (b,) and theta, theta_dot (b,p) by name.

        Raises:
            ConfigError: `batch` is no integer ≥ 1.
        """
        check_integer(batch, "batch", "run.iter_rows")
        return self._source.iter_rows(batch)

    def state(self) -> State:
        """The last restart state: continues the run through `evolve` or `solve(start=…)`."""
        return restart_to_state(self._source.restart(), self._dtype())

    def theta(self, t: float) -> Tensor:
        """θ(t), (p,)."""
        from_rows = schemes.base.hermite(_Rows(self), checked_time(t))
        return from_rows.to(self._dtype())

    def push(self, t: float, z: Tensor) -> Tensor:
        """T_θ(t)(z), (n,d): samples of ρ_t from samples z of the reference."""
        t = checked_time(t)
        self._check_interpolation(t)
        return self._read().push(_Rows(self), t, torch.as_tensor(z))

    def sample(self, t: float, n: int, seed: int = 0) -> Tensor:
        """n samples of ρ_t, (n,d); equal seeds couple times and runs."""
        check_integer(n, "n", "run.sample")
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ConfigError(f"run.sample(seed=…) must be an integer in [0, 2⁶³); got {seed!r}. Give e.g. seed=0.")
        reader = self._read()
        with memory_told("run.sample", "a smaller n"):
            return self.push(t, reference_sample(reader, n, seed))

    def log_density(self, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,d) → (n,); by inverting the map at x.

        Raises:
            ConfigError: the run holds particles.
            SolverError: the map cannot be inverted at some x.
        """
        t = checked_time(t)
        self._check_interpolation(t)
        return self._read().log_density(_Rows(self), t, torch.as_tensor(x))

    def score(self, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d); errors as `log_density`."""
        t = checked_time(t)
        self._check_interpolation(t)
        return self._read().score(_Rows(self), t, torch.as_tensor(x))

    def to_xarray(self) -> Any:
        """All columns as an `xarray.Dataset` over t (needs the extra `xarray`)."""
        try:
            import xarray  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError("to_xarray() needs xarray: pip install 'pwgf[xarray]'.") from error
        scalars = {name: ("t", self[name]) for name in self._source.names if name != "t"}
        vectors = {name: (("t", "param"), self[name]) for name in ("theta", "theta_dot")}
        attributes = {"config": json.dumps(self.config)}
        return xarray.Dataset({**scalars, **vectors}, coords={"t": self.t}, attrs=attributes)

    def _read(self) -> Replay:
        if self._reader is None:
            raise ConfigError(self._missing)
        return self._reader

    def _dtype(self) -> torch.dtype:
        return DTYPES[self.config["scheme"]["dtype"]]

    def _check_interpolation(self, t: float) -> None:
        """Warns once per gap when the interpolant between rows is off by more than the tolerance.

        Doubling the step shows the error: the cubic over rows k−1 and k+1 is compared with row k, and a cubic's error
        falls 16-fold when the step is halved.
        """
        reader = self._reader.replay if isinstance(self._reader, schemes.SWJKO) else self._reader
        if len(self) < 3 or not isinstance(reader, schemes.MapReplay):
            return
        if schemes.base.nearest_row(self.t, t) is not None:
            return
        gap = int(np.searchsorted(self.t, t)) - 1
        if gap in self._checked:
            return
        self._checked.add(gap)
        middle = min(max(gap, 1), len(self) - 2)
        rows = _Rows(self)
        wide = hermite_between(rows, middle - 1, middle + 1, float(self.t[middle]))
        z = reference_sample(reader, 256, 0)
        apart = reader.map(wide.to(z), z) - reader.map(rows.theta(middle).to(z), z)
        error = float(apart.square().sum(1).mean().sqrt()) / 16
        allowed = self.config["scheme"].get("tolerance") or 1e-3
        if error > allowed:
            _log.warning(
                "between rows t = %g and %g the interpolated samples are off by about %.1e (tolerance %.1e): store "
                "rows more densely (times) to read the measure there",
                self.t[gap],
                self.t[gap + 1],
                error,
                allowed,
            )


def checked_time(t: Any) -> float:
    """t as a float; ConfigError where it is no number (NaN is told by the rows, which know their range)."""
    try:
        return float(t)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"run.sample(t=…) and the like need a number for t; got {t!r:.60} ({error}). Give e.g. t=0.5."
        ) from error


class _Rows:
    """The rows as schemes see them."""

    def __init__(self, run: Trajectory) -> None:
        self.t, self._source = run.t, run._source

    def theta(self, k: int) -> Tensor:
        return torch.from_numpy(np.array(self._source.vector("theta", k)))

    def theta_dot(self, k: int) -> Tensor:
        return torch.from_numpy(np.array(self._source.vector("theta_dot", k)))


def reference_sample(reader: Replay, n: int, seed: int) -> Tensor:
    """n samples of the reference from a fresh generator, (n,d), in the run's dtype."""
    return reader.reference.sample(n, torch.Generator().manual_seed(int(seed))).to(reader.dtype)


def load(
    path: str | os.PathLike[str], *, map: PushForward | None = None, reference: Reference | None = None
) -> Trajectory:
    """Opens a trajectory file: finished, still running, killed or failed.

    Args:
        path: as given to `solve(out=…)`.
        map, reference: a user's own map or reference, which cannot be rebuilt from the file; needed only to read
            measures, not columns.

    Returns:
        A `Trajectory` of all rows that are on disk now.

    Raises:
        PathError: no such file, or a folder.
        SchemaError: not a trajectory, damaged, or written by a newer version.
        ConfigError, ShapeError: map or reference is none, or not the one of this run.
    """
    path = storage.checked_path(path, "load(path)")
    with storage.open_record(path) as record:
        check_config(record)
        _check_given(record, map, reference)
        if len(record) == 0:
            raise ConfigError(
                f"{path}: the run was stopped before its first row was stored; solve it with resume=True."
            )
        missing, reader = "", None
        try:
            reader = reader_of(record, map, reference)
        except SchemaError:
            raise
        except ConfigError as error:  # told only when the map is needed: the columns can be read without it
            missing = f"{path}: {error}"
        return Trajectory(FileRows(record), reader, path, missing)


def _check_given(record: storage.Record, map: PushForward | None, reference: Reference | None) -> None:
    """Raises where what the user handed to `load` cannot have made this run; another map could read θ in silence."""
    kinds: tuple[tuple[str, Any, Any], ...] = (("map", map, PushForward), ("reference", reference, Reference))
    for name, given, kind in kinds:
        if given is None:
            continue
        if not isinstance(given, kind):
            raise ConfigError(
                f"load({name}=…) must be the {name} that the run was solved with; got {type(given).__name__}."
            )
        if given.dim != record.dim:
            raise ShapeError(
                f"load({name}=…): the run has dimension {record.dim}; got a {name} with dim = {given.dim}. Give the "
                "one that it was solved with."
            )
    if map is not None and map.num_params != record.num_params and "map" in record.config["scheme"]:
        raise ShapeError(
            f"load(map=…): the run has {record.num_params} parameters; got a map with {map.num_params}. Give the one "
            "that it was solved with."
        )
