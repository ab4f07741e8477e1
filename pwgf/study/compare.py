"""The same problem, reference and seeds through several schemes: errors with their floors, seconds, work, failures."""

from __future__ import annotations

import functools
import html
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import distances, schemes, storage
from ..checks import check_integer, plain_numbers
from ..errors import ConfigError, ParallelError, PathError, PWGFError, StorageError, nearest
from ..measures.law import Law, sample_cov
from ..parallel import world
from ..problems import Problem
from ..run.solve import solve
from ..run.spec import check_times
from ..run.trajectory import Trajectory, load
from ..schemes import SCHEMES, Scheme, ask
from ..shown import as_table
from .accuracy import errors, num_particles

Make = Callable[[Problem, np.ndarray], Scheme]
"""Makes the scheme of a method for a problem and the times to be stored."""

Entry = dict[str, float | str]
"""A row of the table: one method on one problem with one seed at one time."""

TEXTS = ("method", "kind", "message")
NUMBERS = (
    "dim", "variant", "seed", "t", "sym_kl", "sym_kl_floor", "bures_w2", "bures_w2_floor", "energy_distance",
    "energy_distance_floor", "cpu_seconds", "work", "failed",
)  # fmt: skip
_MEASURED = NUMBERS[4:10]
_PAIRS = 2000  # samples of each law in the energy distance, whose cost is their square
_FLOORS = 3  # pairs of samples of the exact law behind its floor


def _suited(kind: Any, problem: Problem, times: np.ndarray, **settings: Any) -> Scheme:
    return schemes.suited(kind, problem, times, "compare", **settings)


METHODS: dict[str, Make] = {
    **{name: functools.partial(_suited, kind) for name, kind in SCHEMES.items()},
    "sw-jko-particles": functools.partial(_suited, SCHEMES["sw-jko"], map=None, num_samples=1000),
}
"""Methods by name, at default settings."""


def named(methods: Iterable[str]) -> dict[str, Make]:
    """The methods of these names; ConfigError for an unknown one or none."""
    found = {}
    for name in methods:
        if name not in METHODS:
            raise ConfigError(
                f"compare(methods=…) needs names out of {', '.join(METHODS)}; got {name!r}.{nearest(name, METHODS)}"
            )
        found[name] = METHODS[name]
    if not found:
        raise ConfigError(f"compare(methods=…) needs at least one name out of {', '.join(METHODS)}; got none.")
    return found


class Summary(NamedTuple):
    """Medians over the problems of one dimension and the seeds, for one method at one time.

    Args:
        method, dim, t: of what.
        kind: how the symmetric KL was found: "density", "moments", "published", or "" where it is not known.
        values: medians by column name, NaN where nothing is known.
        failed, members: how many failed, and of how many.
    """

    method: str
    dim: int
    t: float
    kind: str
    values: dict[str, float]
    failed: int
    members: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """A table with an entry for each method, problem, seed and time.

    Args:
        entries: rows with the columns `NUMBERS` and `TEXTS`.
        config: what was compared, as JSON.
    """

    entries: list[Entry]
    config: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes the table as HDF5; raises StorageError where the disk refuses."""
        columns = {name: [entry[name] for entry in self.entries] for name in (*NUMBERS, *TEXTS)}
        return storage.write_table(path, columns, self.config)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Reads what `save` wrote.

        Raises:
            PathError, SchemaError: nothing is there, or it is no comparison.
        """
        columns, config = storage.read_table(path)
        missing = [name for name in (*NUMBERS, *TEXTS) if name not in columns]
        if missing:
            raise PathError(f"Comparison.load({os.fspath(path)!r}): the table has no column {missing[0]!r}.")
        count = len(columns["t"])
        pick = {name: str if name in TEXTS else float for name in (*NUMBERS, *TEXTS)}
        return cls([{name: kind(columns[name][k]) for name, kind in pick.items()} for k in range(count)], config)

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in self.lines() if line[:1] == "|")
        remarks = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines() if line and line[0] != "|")
        return as_table(rows, head) + remarks

    def summaries(self) -> list[Summary]:
        """Medians in the order of the entries."""
        groups: dict[tuple[str, float, float], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((str(entry["method"]), float(entry["dim"]), float(entry["t"])), []).append(entry)
        return [_summary(*key, members) for key, members in groups.items()]

    def lines(self) -> list[str]:
        """A Markdown table of the medians, with what failed and why, and other remarks, below it."""
        head = [
            "method", "d", "t", "symmetric KL", "floor", "by", "Bures–W₂", "floor", "energy distance", "floor", "CPU s",
            "work", "failed",
        ]  # fmt: skip
        table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for s in self.summaries():
            kl = [_figure(s.values["sym_kl"]), _figure(s.values["sym_kl_floor"]), s.kind or "–"]
            rest = [_figure(s.values[name]) for name in _MEASURED[2:]]
            cost = [_count(s.values["cpu_seconds"]), _count(s.values["work"])]
            failed = f"{s.failed} of {s.members}" if s.failed else "–"
            table.append("| " + " | ".join([s.method, str(s.dim), f"{s.t:g}", *kl, *rest, *cost, failed]) + " |")
        seen = dict.fromkeys(_remark(entry) for entry in self.entries if entry["message"])
        return [*table, *([""] if seen else []), *seen]


def _remark(entry: Entry) -> str:
    variant = f", problem {entry['variant']:.0f}" if entry["variant"] else ""
    member = f"{entry['method']}, d = {entry['dim']:.0f}"
    if not entry["failed"]:
        return f"{member}: {entry['message']}"
    return f"Failed: {member}{variant}, seed {entry['seed']:.0f}: {entry['message']}"


def _summary(method: str, dim: float, t: float, members: list[Entry]) -> Summary:
    values = {}
    for name in (*_MEASURED, "cpu_seconds", "work"):
        found = [float(entry[name]) for entry in members if math.isfinite(float(entry[name]))]
        values[name] = float(np.median(found)) if found else math.nan
    kinds = sorted({str(entry["kind"]) for entry in members} - {""})
    failed = sum(int(entry["failed"]) for entry in members)
    return Summary(method, int(dim), t, " and ".join(kinds), values, failed, len(members))


def _figure(value: float) -> str:
    return "–" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _count(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


@plain_numbers
def compare(
    members: Sequence[Problem],
    methods: Mapping[str, Make] | Sequence[str] = ("pwgf", "sw-jko", "particles"),
    *,
    times: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    num_samples: int = 10_000,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    runs: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """Solves every problem by every method with every seed, and scores each stored time against the exact law.

    A member that fails is listed as failed, with its message, and the others go on. The symmetric KL is by exact
    densities where the scheme has them and the supports agree, else that of the Gaussians with the moments of the exact
    law and of N samples, whose floor is (d²+3d)/(2N). The energy distance is squared, of at most 2000 samples of each
    law, beside its mean between two such samples of the exact law. CPU seconds are those of the run, scoring excluded.

    Args:
        members: problems; several of one dimension are variants, summarised by their medians.
        methods: names out of `METHODS`, or functions of (problem, times) that make a scheme, by name.
        times: stored times, the first of them the problem's start; None: five of the problem's own range.
        seeds: of the runs.
        num_samples: samples of each law behind densities and moments; particles use what they have.
        out: HDF5 file of the table, written anew after each member.
        overwrite: replace what is at `out`.
        runs: folder for the runs themselves; those that are there already are not repeated.
        tell: called with a line after each member.

    Returns:
        The table.

    Raises:
        ConfigError: an unknown method, no problem, or times that cannot work.
        PathError: something is at `out`.
        StorageError: the disk refused.
    """
    makes = dict(methods) if isinstance(methods, Mapping) else named(methods)
    check_integer(num_samples, "num_samples", "compare", least=100)
    if not members or not all(isinstance(problem, Problem) for problem in members):
        raise ConfigError(f"compare(members=…) needs a list of problems out of pwgf.problems; got {members!r:.60}.")
    if out is not None and os.path.exists(out) and not overwrite:
        raise PathError(
            f"compare(out={os.fspath(out)!r}): a file is there already. Replace it with overwrite=True, which repeats "
            "no run that is in runs=…, or give another path."
        )
    given = None if times is None else _checked_times(times, members)
    config = {"methods": list(makes), "problems": [p.to_config() for p in members], "seeds": list(seeds)}
    table, judge = Comparison([], config), _Judge(num_samples)
    for problem, variant in _variants(members):
        own = np.linspace(problem.times[0], problem.times[-1], 5) if given is None else given
        for method, make in makes.items():
            for seed in seeds:
                member = _Member(method, make, problem, variant, seed, own)
                found = member.entries(judge, None if runs is None else os.fspath(runs))
                table.entries.extend(found)
                if out is not None:
                    world().on_first(functools.partial(table.save, out))
                if tell is not None:
                    tell(member.told(found))
    return table


def _checked_times(times: Sequence[float], members: Sequence[Problem]) -> np.ndarray:
    """times as float64; ConfigError unless there are two or more, from the start of every problem on."""
    t = check_times(times, "compare")
    starts = sorted({float(problem.times[0]) for problem in members})
    if len(t) < 2 or any(abs(t[0] - start) > 1e-9 for start in starts):
        raise ConfigError(
            f"compare(times=…) needs two or more times, the first the problem's start ({starts[0]:g}); "
            f"got {t.tolist()}."
        )
    return t


def _variants(members: Sequence[Problem]) -> list[tuple[Problem, int]]:
    seen: dict[int, int] = {}
    found = []
    for problem in members:
        seen[problem.dim] = seen.get(problem.dim, -1) + 1
        found.append((problem, seen[problem.dim]))
    return found


@dataclass(frozen=True)
class _Member:
    """One method on one problem with one seed."""

    method: str
    make: Make
    problem: Problem
    variant: int
    seed: int
    times: np.ndarray

    def entries(self, judge: _Judge, folder: str | None) -> list[Entry]:
        """Scores of the rows, and failed entries for the times that were not reached."""
        run, message = self._solved(folder)
        found = []
        for t in self.times:
            entry: Entry = {**dict.fromkeys(NUMBERS, math.nan), **dict.fromkeys(TEXTS, "")}
            entry.update(method=self.method, dim=float(self.problem.dim), variant=float(self.variant))
            entry.update(seed=float(self.seed), t=float(t), failed=0.0)
            try:
                if run is not None and len(run) and run.t[-1] >= t - 1e-9:
                    entry.update(judge.scores(run, self.problem, int(abs(run.t - t).argmin())))
                else:
                    entry.update(failed=1.0, message=message)
            except PWGFError as error:  # a law that cannot be read back: the member's failure, not the comparison's
                entry.update(failed=1.0, message=f"{type(error).__name__}: {error}")
            found.append(entry)
        return found

    def _solved(self, folder: str | None) -> tuple[Trajectory | None, str]:
        out = None
        if folder is not None:
            name = f"{self.problem.name}-d{self.problem.dim}-{self.variant}-{self.method}-seed{self.seed}.h5"
            out = os.path.join(folder, name)
        try:
            scheme = self.make(self.problem, self.times)
            times, problem, resume = ask(scheme, "rows_for")(self.times), self.problem, out is not None
            return solve(scheme, times, out=out, seed=self.seed, problem=problem, resume=resume), ""
        except ParallelError:
            raise
        except (PWGFError, RuntimeError) as error:  # RuntimeError: torch's own, such as memory that is not there
            if isinstance(error, StorageError) and not isinstance(error, ConfigError):
                raise
            return self._so_far(error, out), f"{type(error).__name__}: {error}"

    @staticmethod
    def _so_far(error: Exception, out: str | None) -> Trajectory | None:
        """The rows before the failure, if any."""
        run: Trajectory | None = getattr(error, "run", None)
        if run is None and out is not None and not isinstance(error, ConfigError):
            try:
                run = load(out)
            except ConfigError:  # not one row was stored
                return None
        return run

    def told(self, entries: list[Entry]) -> str:
        """One line about what came out."""
        name = f"{self.method}, d = {self.problem.dim}, problem {self.variant}, seed {self.seed}"
        last = entries[-1]
        if last["failed"]:
            return f"{name}: failed: {last['message']}"
        return f"{name}: Bures–W₂ {last['bures_w2']:.1e} at t = {last['t']:g}, {last['cpu_seconds']:.0f} CPU s"


class _Judge:
    """Scores rows; remembers the floors, which many members share."""

    def __init__(self, num_samples: int) -> None:
        self.n = num_samples
        self._floors: dict[tuple[int, float, int], float] = {}

    def scores(self, run: Trajectory, problem: Problem, k: int) -> Entry:
        """All figures of row k."""
        t = float(run.t[k])
        law, n = problem.exact(t), min(self.n, num_particles(run) or self.n)
        by_run = {name: float(value[0]) for name, value in errors(run, problem, n=n, rows=[k]).items()}
        scores: Entry = {name: by_run[name] for name in ("bures_w2", "bures_w2_floor")}
        if math.isfinite(by_run["sym_kl"]):
            scores.update(sym_kl=by_run["sym_kl"], sym_kl_floor=0.0, kind="density")
        else:
            value = _by_moments(run.sample(t, n).double(), law)
            floor = (problem.dim**2 + 3 * problem.dim) / (2 * n)
            scores.update(sym_kl=value, sym_kl_floor=floor, kind="moments" if math.isfinite(value) else "")
        m = min(n, _PAIRS)
        x, y = run.sample(t, m, seed=1).double(), law.sample(m, torch.Generator().manual_seed(2))
        scores["energy_distance"] = float(distances.energy_distance(x, y))
        scores["energy_distance_floor"] = self._floor(problem, law, t, m)
        for name, column in (("cpu_seconds", "cpu_time"), ("work", "num_stages")):
            scores[name] = float(run[column][k]) if column in run.names else math.nan
        return scores

    def _floor(self, problem: Problem, law: Law, t: float, m: int) -> float:
        key = (id(problem), t, m)
        if key not in self._floors:
            self._floors[key] = distances.floor(distances.energy_distance, law.sample, m, repeats=_FLOORS)
        return self._floors[key]


def _by_moments(x: torch.Tensor, law: Law) -> float:
    """KL + KL of the Gaussians with the moments of the samples and of the law; NaN where a covariance is singular."""
    try:
        return float(distances.gaussian_sym_kl(x.mean(0), sample_cov(x), law.mean(), law.cov()))
    except ConfigError:
        return math.nan
