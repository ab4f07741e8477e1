"""What is known of a run, as JSON values: `pwgf info` puts it into words, `pwgf table` into a row."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import plots, storage
from ..errors import ConfigError
from ..problems import Problem, names
from ..run.trajectory import Trajectory, load
from ..schemes.base import FEW_FOLDS
from ..study import accuracy
from ._own import maker_of, passing_on, posed

Facts = dict[str, Any]

VERDICTS = (
    ("excellent", "", 5e-4),
    ("good", "", 4e-3),
    ("fair", ", compare with a wider map", 2e-2),
    ("poor", "", math.inf),
)
"""Words, advice, and the estimated errors below which they hold, in spreads of the law."""


def read(path: str, problem: Callable[[Trajectory], Problem | None] = accuracy.problem_of) -> Facts:
    """The facts of the run at `path`.

    Args:
        path: of the run.
        problem: gives the problem of a run, whose exact law the last row is measured by; None where there is none.

    Raises:
        PWGFError: it cannot be read.
    """
    run = load(path)
    with storage.open_record(path) as record:
        status, result = record.status, _result(record)
    try:
        exact = problem(run)
        error = error_facts(run, exact)
    except ConfigError as reason:  # a user's own map, or a problem of their own: the columns can still be told
        error = {"error": None, "error_unknown": f"not measured ({reason}{_hint(run)})"}
    return {"file": path, "kind": "run", "status": status, **facts(run, status), **error, "result": result}


def _result(record: storage.Record) -> Facts | None:
    """The numbers of what was made of the run after its end, and what they are about; None where nothing was."""
    values = dict(record.result)
    try:
        about = storage.load_json(str(values.pop("about", "{}")))
    except ValueError as error:
        raise storage.refused(record.path, f"its result is damaged ({error})") from error
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
    return {"about": about, **numbers} if values else None


def _hint(run: Trajectory) -> str:
    """How to have the error measured of a run whose problem was the user's own."""
    own = (run.config.get("metadata") or {}).get("problem")
    return f" It was solved as {own}; give --problem {own}." if own else ""


def problem_from(spec: str | None, call: str) -> Callable[[Trajectory], Problem | None]:
    """What gives the problem of a run: the one that its file names, or that of the user's own under this name."""
    if spec is None:
        return accuracy.problem_of
    maker = maker_of(spec, call)

    def given(run: Trajectory) -> Problem | None:
        config = run.config.get("problem")
        if config and config["name"] in names() and config["name"] != getattr(maker, "__name__", ""):
            return accuracy.problem_of(run)
        if config and callable(getattr(maker, "from_config", None)):
            with passing_on(f"{call}: {spec} of the settings in the file"):
                rebuilt: Problem = maker.from_config(config)
            return rebuilt
        return posed(spec, {}, None, call).exact

    return given


def error_facts(run: Trajectory, problem: Problem | None) -> Facts:
    """Distances of the last row to the exact law, and why there are none where it is not known."""
    if problem is None:
        why = "the file names no problem with a known answer"
        return {"error": None, "error_unknown": f"not known ({why})"}
    found = {name: float(values[0]) for name, values in accuracy.errors(run, problem, rows=[-1]).items()}
    spread = float(problem.exact(float(run.t[-1])).cov().trace().sqrt())
    return {"error": {**found, "spread": spread}, "error_unknown": None}


def facts(run: Trajectory, status: str = "complete") -> Facts:
    """Everything but the error against an exact law."""
    energy = run.config["scheme"].get("energy", {"name": "not named by the scheme"})
    columns = {"num_stages": "work", "num_steps": "num_steps", "num_implicit": "num_implicit"}
    columns |= {"num_rejected": "num_rejected", "wall_time": "seconds", "cpu_time": "cpu_seconds"}
    return {
        "title": plots.title(run),
        "rows": len(run),
        "t_first": float(run.t[0]),
        "t_last": float(run.t[-1]),
        "t_end": float(run.config["times"][-1]),
        **{key: float(run[name][-1]) if name in run.names else None for name, key in columns.items()},
        "work_unit": run.description.work_unit,
        "sources": dict(run.description.sources),
        "energy_terms": [str(term["name"]) for term in energy.get("terms", [energy])],
        **_energy(run),
        "residual_max": _of(run, "projection_residual", np.max),
        "residual_last": _of(run, "projection_residual", lambda column: column[-1]),
        **verdict(run),
        "fold_fraction": _of(run, "fold_fraction", np.max),
        "warnings": _warnings(run, status),
        "config": run.config,
    }


def verdict(run: Trajectory) -> Facts:
    """The largest estimated error of a row's law, in its spreads, when that was, the word for it, what was tried."""
    estimate, t = accuracy.estimated_error(run)
    if not math.isfinite(estimate):
        return {"verdict": None, "estimated_error": None, "estimated_error_t": None, "error_95": None, "tried": {}}
    word = next(word for word, _, limit in VERDICTS if estimate < limit)
    above = accuracy.error_95(run)
    facts = {"verdict": word, "estimated_error": estimate, "estimated_error_t": t}
    return {**facts, "error_95": above if math.isfinite(above) else None, "tried": accuracy.tried_cures(run)}


def _of(run: Trajectory, name: str, of: Callable[[np.ndarray], float]) -> float | None:
    return float(of(run[name])) if name in run.names else None


def _energy(run: Trajectory) -> Facts:
    """First and last value, in how many rows it rises beyond its sampling error, and by how much it ever changed.

    Where there is a kinetic energy, those of the total energy.
    """
    name = next((name for name in ("total_energy", "energy") if name in run.names), None)
    energy = run[name] if name else np.array([np.nan])
    about: Facts = {
        "energy_name": name or "energy",
        "energy_balance": run.description.balance,
        "has_density": run.has_density,
    }
    if not np.isfinite(energy).all():
        return {"energy_first": None, "energy_last": None, "energy_rises": None, "energy_change": None, **about}
    noise = np.nan_to_num(run["energy_stderr"]) if "energy_stderr" in run.names else np.zeros_like(energy)
    rises = np.diff(energy) > 3 * np.hypot(noise[1:], noise[:-1]) + 1e-9 * (1 + np.abs(energy[1:]))
    ends = {"energy_first": float(energy[0]), "energy_last": float(energy[-1])}
    change = float(np.abs(energy - energy[0]).max())
    return {**ends, "energy_rises": int(rises.sum()), "energy_change": change, **about}


def _warnings(run: Trajectory, status: str) -> list[str]:
    found = []
    if status != "complete":
        found.append(f"the run is {status}: it ends at t = {run.t[-1]:g} of {run.config['times'][-1]:g}")
    if "fold_fraction" in run.names and run["fold_fraction"].max() > FEW_FOLDS:
        found.append(
            "the map folds at some samples, where its density is wrong: more samples, or a map that cannot fold"
        )
    if (_last(run, "num_rejected") or 0) > 0.5 * (_last(run, "num_steps") or math.inf):
        found.append(f"many steps were rejected: {run.description.advice}")
    return found


def _last(run: Trajectory, name: str) -> float | None:
    return _of(run, name, lambda column: column[-1])


def plain(value: Any) -> Any:
    """The same with None in place of numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_of(path: str) -> tuple[str, bool]:
    """The run that a path belongs to, and whether the path is that of one of its parts."""
    folder = os.path.dirname(os.path.abspath(path))
    if path.rstrip("/").endswith(".parts"):
        return path.rstrip("/").removesuffix(".parts"), False
    return (folder.removesuffix(".parts"), True) if folder.endswith(".parts") else (path, False)
