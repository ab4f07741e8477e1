"""A solved (or running, or killed) flow: rows of θ and figures, read back as measures at any time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import schemes, storage
from ..checks import DTYPES, as_points, check_ambient, check_integer, density_at, memory_told, plain, plain_numbers
from ..energies import Energy
from ..errors import ConfigError, SchemaError, ShapeError, nearest
from ..maps.base import PushForward
from ..measures import Law, Reference
from ..measures.law import NUM_FOR_MOMENTS, as_generator, finite_score, sample_cov
from ..schemes import Description, Replay
from ..schemes.base import nearest_row
from ..state import State
from ._file import FileRows
from ._restart import restart_to_state
from ._stored import as_solved, check_config, reader_of
from .bound import error_bound
from .exports import Exports
from .identity import check_rebuilt, differing, values_of
from .memory import Source, SourceRows
from .pictures import Pictures

_log = logging.getLogger("pwgf")


class Trajectory(Pictures, Exports):
    """The rows of a run, and the measure ρ_t at any t between the first and the last.

    `run["energy"]` is a float64 array with a value per row (`run.names` lists the columns); `run.sample(t, n)`,
    `run.push(t, z)`, `run.log_density(t, x)` and `run.score(t, x)` read the measure, and `run.theta(t)` the parameters.
    Between rows θ is the cubic Hermite interpolant of the stored θ and θ̇. Tensors come back detached, on the CPU, in
    the run's dtype. Rows of θ are read from the file when asked for.

    Args:
        source: rows.
        reader: reads rows as measures; None when a user's own map or reference was not passed.
        path: of the file, or None.
    """

    def __init__(self, source: Source, reader: Replay | None, path: str | None = None, missing: str = "") -> None:
        self._source = source
        self._reader = reader
        self._missing = missing
        self.path = path
        self._checked: set[int] = set()

    @property
    def t(self) -> np.ndarray:
        """Times of the rows, (T,) float64."""
        return self._source.column("t")

    def __len__(self) -> int:
        return len(self._source)

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

    def _figures(self) -> dict[str, str]:
        told, problem = self.description, self.config.get("problem")
        shown = {
            "run": self.path or "in memory",
            "rows": f"{len(self)}, t = {self.t[0]:g} … {self.t[-1]:g}",
            "scheme": told.name + (f" with {told.map}" if told.map else ""),
            "problem": problem["name"] if problem else "",
            "energy": "{:.6g} → {:.6g}".format(*self["energy"][[0, -1]]) if "energy" in self.names else "",
            "columns": ", ".join(self.names),
        }
        return {name: text for name, text in shown.items() if text}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that `run[name]` knows."""
        return (*self._source.shapes, *self._source.names)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings of the run."""
        return self._source.config

    @property
    def description(self) -> Description:
        """What the scheme of the run says of itself."""
        return schemes.description(self.config)

    @property
    def reference(self) -> Reference:
        """λ of the run; ConfigError where a user's own was not passed to `pwgf.load`."""
        return self._read().reference

    @property
    def has_density(self) -> bool:
        """Whether ρ_t has a density: not that of particles."""
        return self.description.has_density

    def __getitem__(self, name: str) -> np.ndarray:
        """Column by name, float64: (T,), or (T,p) for theta and theta_dot, (T,n,d) for samples.

        Raises:
            ConfigError: no such column.
        """
        if name in self._source.shapes:
            return np.concatenate([rows[name] for rows in self._source.iter_rows()])
        if name not in self._source.names:
            raise ConfigError(
                f"run[{name!r}]: no such column.{nearest(name, self.names)} There are: {', '.join(self.names)}."
            )
        return self._source.column(name)

    @plain_numbers
    def iter_rows(self, batch: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """All rows in order, in batches, so that a file larger than memory can be read through.

        Args:
            batch: most rows at a time, ≥ 1; fewer where θ of so many would take more than 8 MB.

        Yields:
            Columns (b,), theta, theta_dot (b,p) and samples (b,n,d), where they are stored, by name.

        Raises:
            ConfigError: `batch` is not an integer ≥ 1.
        """
        check_integer(batch, "batch", "run.iter_rows")
        return self._source.iter_rows(batch)

    def state(self) -> State:
        """The last restart state: continues the run through `evolve` or `solve(start=…)`."""
        return restart_to_state(self._source.restart(), self.dtype)

    def theta(self, t: float) -> Tensor:
        """θ(t), (p,)."""
        from_rows = schemes.base.hermite(SourceRows(self._source), checked_time(t))
        return from_rows.to(self.dtype)

    def push(self, t: float, z: Tensor) -> Tensor:
        """T_θ(t)(z), (n,d): samples of ρ_t from samples z of the reference."""
        t = checked_time(t)
        self._check_interpolation(t)
        return self._read().push(SourceRows(self._source), t, torch.as_tensor(z))

    @plain_numbers
    def sample(self, t: float, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n samples of ρ_t, (n,d); equal seeds couple times and runs."""
        check_integer(n, "n", "run.sample")
        generator = as_generator(seed, "run.sample")
        reference = self.reference
        with memory_told("run.sample", "a smaller n"):
            return self.push(t, reference.sample(n, generator).to(self.dtype))

    def at(self, t: float) -> RunLaw:
        """The law ρ_t, as problems and references give theirs.

        Raises:
            ConfigError: t is no number or lies outside the run; a user's own map was not handed to `pwgf.load`.
        """
        return RunLaw(self, t)

    def log_density(self, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,d) → (n,); by inverting the map at x. −∞ where x is infinite.

        Raises:
            ConfigError: x has NaN.
            ConfigError: the run holds particles.
            SolverError: the map cannot be inverted at some x.
        """
        check_ambient("run.log_density(t, x)")
        t = checked_time(t)
        self._check_interpolation(t)
        reader, rows = self._read(), SourceRows(self._source)
        return density_at(torch.as_tensor(x), lambda x: reader.log_density(rows, t, x))

    def score(self, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d); errors as `log_density`, and ConfigError where x is infinite."""
        check_ambient("run.score(t, x)")
        t = checked_time(t)
        self._check_interpolation(t)
        return self._read().score(SourceRows(self._source), t, torch.as_tensor(x))

    def moments(self, t: float) -> tuple[Tensor, Tensor] | None:
        """Mean (d,) and covariance (d,d) of the particles, float64; None for a run of maps. Errors as `push`."""
        return schemes.ask(self._read(), "moments")(SourceRows(self._source), checked_time(t))

    def error_bound(self, convexity: float) -> np.ndarray:
        """A bound of W₂ to the exact law at every row, (T,), for a K-convex energy; see `pwgf.run.bound`."""
        if not {"projection_residual", "velocity_rms"} <= set(self.names):
            raise ConfigError(
                "run.error_bound(convexity) needs the velocity that a map has missed; this run has none "
                f"({self.description.no_projection or 'it follows an acceleration'}). Solve by scheme PWGF."
            )
        return error_bound(self.t, self["velocity_rms"] * self["projection_residual"] ** 0.5, convexity)

    def _read(self) -> Replay:
        if self._reader is None:
            raise ConfigError(self._missing)
        return self._reader

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and of what is read from the run."""
        return DTYPES[self.config["scheme"]["dtype"]]

    def _check_interpolation(self, t: float) -> None:
        """Warns once per gap when the interpolant between rows is off by more than the tolerance."""
        if self._reader is None or nearest_row(self.t, t) is not None:
            return
        gap = int(np.searchsorted(self.t, t)) - 1
        if gap in self._checked:
            return
        self._checked.add(gap)
        error = schemes.ask(self._reader, "interpolation_error")(SourceRows(self._source), gap)
        allowed = self.config["scheme"].get("tolerance") or 1e-3
        if error is not None and error > allowed:
            _log.warning(
                "between rows t = %g and %g the interpolated samples are off by about %.1e (tolerance %.1e): store "
                "rows more densely (times) to read the measure there",
                self.t[gap],
                self.t[gap + 1],
                error,
                allowed,
            )


class RunLaw(Law):
    """The law ρ_t of a run; made by `run.at(t)`. Samples and densities are those of the run, in its dtype.

    `log_density` and `score` invert the map; they raise ConfigError for particles, which have neither: compare samples
    instead, by `distances.energy_distance`.
    """

    def __init__(self, run: Trajectory, t: float) -> None:
        self.t, self._run, self.dim = checked_time(t), run, run.reference.dim
        nearest_row(run.t, self.t)  # refuses a t outside the run
        self.has_density = run.has_density

    def __repr__(self) -> str:
        return f"{self._run!r}.at({self.t:g})"

    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """n samples (n,d); equal seeds couple times and runs. Particles come without replacement as far as they go."""
        return self._run.sample(self.t, n, seed)

    def log_density(self, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,d) → (n,), detached; −inf at infinity.

        Raises:
            ConfigError: the run holds particles.
            ShapeError: x is not (n,d).
            SolverError: the map cannot be inverted at some x.
        """
        x = as_points(x, self.dim, "run.at(t).log_density(x): x").detach()
        return self._run.log_density(self.t, x).detach()

    def score(self, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d), at twice the cost of `run.score`, which does not look where ρ_t vanishes.

        Raises:
            ConfigError, ShapeError, SolverError: as `log_density`.
            NonFiniteError: ρ_t vanishes at a row of x.
        """
        x = as_points(x, self.dim, "run.at(t).score(x): x").detach().cpu()
        finite_score(x, x[:, 0], x)  # no map is inverted at infinity
        return finite_score(self._run.score(self.t, x).detach(), self.log_density(x), x)

    def mean(self) -> Tensor:
        """(d,) float64, of the particles where the run has some, else of 100 000 evenly spread samples: exact but for
        rounding where an affine map moves a Gaussian, else with a standard error of at most about √(Var x_k/100 000).
        """
        known = self._run.moments(self.t)
        return self._even().mean(0) if known is None else known[0]

    def cov(self) -> Tensor:
        """(d,d) float64, as `mean`; by samples of a law near a Gaussian within about 0.5 % of a variance."""
        known = self._run.moments(self.t)
        return sample_cov(self._even()) if known is None else known[1]

    def _even(self) -> Tensor:
        z = self._run.reference.matched_sample(NUM_FOR_MOMENTS, 0)
        return self._run.push(self.t, z.to(self._run.dtype)).double()


def checked_time(t: Any) -> float:
    """t as a float; ConfigError unless it is a number. The rows refuse NaN and times outside their range."""
    wrong = "it has a unit"
    if not isinstance(t, (np.timedelta64, np.datetime64)):
        try:
            return float(plain(t))
        except (TypeError, ValueError, RuntimeError) as error:
            wrong = str(error)
    raise ConfigError(f"run.sample(t=…) and the like need a number for t; got {t!r:.60} ({wrong}). Give e.g. t=0.5.")


def load(
    path: str | os.PathLike[str],
    *,
    map: PushForward | None = None,
    reference: Reference | None = None,
    energy: Energy | None = None,
) -> Trajectory:
    """Opens a trajectory file: finished, still running, killed or failed.

    Args:
        path: as given to `solve(out=…)`.
        map, reference: a user's own map or reference, which cannot be rebuilt from the file; needed only to read
            measures, not columns.
        energy: a user's own energy. What is given is compared with values of it that the file holds (T, log λ and v at
            a few points).

    Returns:
        A `Trajectory` of all rows that are on disk now.

    Raises:
        PathError: no such file, or a folder.
        SchemaError: not a trajectory, damaged, or written by a newer version.
        ConfigError, ShapeError: map, reference or energy is not one, or not that of this run.
    """
    path = storage.checked_path(path, "load(path)")
    with storage.open_record(path) as record:
        check_config(record)
        map = as_solved(record, map)
        _check_given(record, map, reference, energy)
        if len(record) == 0:
            stopped = "the run was stopped before its first row was stored; solve it with resume=True."
            begun = "the run has begun, and its first row is not stored yet; load it again later."
            raise ConfigError(f"{path}: {begun if record.status == 'running' else stopped}")
        missing, reader = "", None
        try:
            reader = reader_of(record, map, reference)
            check_rebuilt(record, reader, map, reference)
        except SchemaError:
            raise
        except ConfigError as error:  # reported when the map is needed: the columns can be read without it
            missing = f"{path}: {error}"
        return Trajectory(FileRows(record), reader, path, missing)


def _check_given(
    record: storage.Record, map: PushForward | None, reference: Reference | None, energy: Energy | None
) -> None:
    """Raises if what the user passed to `load` cannot have made this run; another map would read θ without an error."""
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("map", map, PushForward),
        ("reference", reference, Reference),
        ("energy", energy, Energy),
    )
    for name, given, kind in kinds:
        if given is None:
            continue
        if not isinstance(given, kind):
            raise ConfigError(
                f"load({name}=…) must be the {name} that the run was solved with; got {type(given).__name__}."
            )
        if given is not energy and given.dim != record.dim:
            raise ShapeError(
                f"load({name}=…): the run has dimension {record.dim}; got a {name} with dim = {given.dim}. Give the "
                "one that it was solved with."
            )
    if map is not None and map.num_params != record.num_params and "map" in record.config["scheme"]:
        raise ShapeError(
            f"load(map=…): the run has {record.num_params} parameters; got a map with {map.num_params}. Give the one "
            "that it was solved with."
        )
    dtype = DTYPES.get(record.config["scheme"].get("dtype"), torch.float64)
    now = values_of(dtype, dim=record.dim, map=map, reference=reference, energy=energy)
    what = differing(record.arrays, now, dtype)
    if what:
        raise ConfigError(
            f"load({record.path!r}): {what}. Give the one that the run was solved with: the same module with the "
            "weights and buffers that it had when its map was made (torch.save(module.state_dict(), …) keeps them), "
            "the same functions."
        )
