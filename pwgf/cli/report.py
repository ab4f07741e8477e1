"""The command `pwgf info`, and what `pwgf run` says at its end: a run in words."""

from __future__ import annotations

import numpy as np

from .. import plots, storage
from ..errors import ConfigError
from ..problems import Problem
from ..run.trajectory import Trajectory, load
from ..study import accuracy
from ._terminal import say
from .settings import Info


def info(settings: Info) -> int:
    """Says in words what is in a file and how good it is; exit status 0."""
    run, problem = load(settings.file), None
    with storage.open_record(settings.file) as record:
        status = record.status
    say(f"{settings.file}: {status}")
    try:
        problem = accuracy.problem_of(run)
        judged = error_lines(run, problem)
    except ConfigError as error:  # a user's own map, or a problem of a later version: the columns can still be told
        judged = [f"Error: not measured ({error})"]
    for line in (*about(run), *energy_lines(run), *_quality_lines(run), *judged, *_warnings(run, status)):
        say(line)
    return 0


def _last(run: Trajectory, name: str) -> float:
    return float(run[name][-1]) if name in run.names else float("nan")


def about(run: Trajectory) -> list[str]:
    """Problem, scheme, rows, work and energy of a run."""
    energy = run.config["scheme"].get("energy", {"name": "not named by the scheme"})
    kinds = " + ".join(str(term["name"]) for term in energy.get("terms", [energy]))
    rejected = _last(run, "num_rejected")
    counted = "num_stages" in run.names
    work = f"{_last(run, 'num_stages'):.0f} {run.description.work_unit}" if counted else "work not counted"
    if "num_implicit" in run.names:
        work += f" in {_last(run, 'num_steps'):.0f} steps ({_last(run, 'num_implicit'):.0f} implicit)"
    work += f", {rejected:.0f} steps rejected" if rejected > 0 else ""
    return [
        plots.title(run),
        f"Rows: {len(run)}, from t = {run.t[0]:g} to {run.t[-1]:g}; {work}, {_last(run, 'wall_time'):.3g} s",
        f"Energy terms: {kinds}",
    ]


def energy_lines(run: Trajectory) -> list[str]:
    """Whether the energy falls."""
    energy = run["energy"] if "energy" in run.names else np.array([np.nan])
    if not np.isfinite(energy).all():
        return [f"Energy: not known{'' if run.description.has_density else ' (particles have no density)'}"]
    noise = np.nan_to_num(run["energy_stderr"]) if "energy_stderr" in run.names else np.zeros_like(energy)
    rises = np.diff(energy) > 3 * np.hypot(noise[1:], noise[:-1]) + 1e-9 * (1 + np.abs(energy[1:]))
    fall = "falls in every row, as it should" if not rises.any() else f"RISES at {rises.sum()} of {len(rises)} rows"
    return [f"Energy: {energy[0]:.5g} -> {energy[-1]:.5g}; it {fall} (up to its sampling error)"]


def _quality_lines(run: Trajectory) -> list[str]:
    if not {"projection_residual", "velocity_rms"} <= set(run.names):
        return []
    residual, (error, t) = run["projection_residual"], accuracy.estimated_error(run)
    lines = [f"Projection residual: at most {residual.max():.2g}, last {residual[-1]:.2g}"]
    if np.isfinite(error):
        words = (
            ("excellent", 5e-4),
            ("good", 4e-3),
            ("fair, compare with a wider map", 2e-2),
            ("poor, use a wider map or more samples", np.inf),
        )
        verdict = next(word for word, limit in words if error < limit)
        lines += [
            f"Verdict: {verdict}; the law is off by some {100 * error:.2g} % of its spread at most, at t = {t:g} (W2, "
            "estimated from the velocity that the map missed; errors may be a few times as large)"
        ]
    if "fold_fraction" in run.names:
        lines.append(f"Folded samples: at most {100 * float(run['fold_fraction'].max()):.2g} %")
    return lines


def error_lines(run: Trajectory, problem: Problem | None) -> list[str]:
    """Distance of the last row to the exact law."""
    if problem is None:
        return ["Error: not known (the file names no problem with a known answer)"]
    found = {name: float(values[0]) for name, values in accuracy.errors(run, problem, rows=[-1]).items()}
    kl = f"{found['sym_kl']:.2g} nats" if np.isfinite(found["sym_kl"]) else "not defined (no density, or other support)"
    spread = float(problem.exact(float(run.t[-1])).cov().trace().sqrt())
    return [
        f"Error against the exact law at t = {run.t[-1]:g}: Bures-W2 {found['bures_w2']:.2g} in units of x "
        f"(its sampling error {found['bures_w2_floor']:.1g}; the law's spread is {spread:.3g})",
        f"  mean off by {found['mean']:.2g}, covariance by {100 * found['cov']:.2g} %, symmetric KL {kl}",
    ]


def _warnings(run: Trajectory, status: str) -> list[str]:
    found = []
    if status != "complete":
        found.append(f"the run is {status}: it ends at t = {run.t[-1]:g} of {run.config['times'][-1]:g}")
    folds = run["fold_fraction"] if "fold_fraction" in run.names else np.zeros(1)
    if folds.max() > 0:
        found.append(
            "the map folds at some samples, where its density is wrong: more samples, or a map that cannot fold"
        )
    if _last(run, "num_rejected") > 0.5 * _last(run, "num_steps"):
        found.append(f"many steps were rejected: {run.description.advice}")
    return [f"Warning: {line}" for line in found] or ["Warnings: none"]
