"""The command line: `pwgf run` solves a problem with a known answer, `pwgf info` and `pwgf plot` read a run's file.

The commands that look after the file itself are in `files`, `pwgf compare` is in `compare`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from .. import maps, plots, problems, schemes, storage
from .._version import __version__
from ..checks import DTYPES
from ..errors import ConfigError, PWGFError
from ..integrate import FIXED, FixedStep, Implicit, Integrator
from ..parallel import world
from ..problems import Problem
from ..run.solve import solve
from ..run.trajectory import Trajectory, load
from ..schemes import SCHEMES, Scheme
from ..study import accuracy
from ._terminal import say
from .compare import Compare
from .files import Doctor, Pack


@dataclass(frozen=True)
class Run:
    """Solve a problem with a known answer, write the run to a file, and say how good it is."""

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
    """ornstein-uhlenbeck, styblinski-tang, barenblatt, aggregation; gaussian-mixture, rosenbrock, funnel or
    double-banana"""
    dim: int = 2
    """dimension of the space"""
    c: float | None = None
    """styblinski-tang: steepness of the double wells (None: 0.06)"""
    m: float | None = None
    """barenblatt: exponent of the porous medium, above 1 (None: 2)"""
    end_time: float | None = None
    """last time stored, in units of t (None: the problem's own)"""
    num_rows: int | None = None
    """number of stored times, evenly spaced, both ends included (None: the problem's own)"""
    scheme: str = "pwgf"
    """pwgf moves the parameters of a map, jko-icnn and sw-jko minimise step by step, particles are Euler-Maruyama
    steps"""
    map: Literal["residual", "affine"] = "residual"
    """residual is affine plus a small network; affine is exact for ornstein-uhlenbeck and barenblatt"""
    width: int | None = None
    """residual map: units of a hidden layer (None: about 16 dim, at least 32)"""
    depth: int = 1
    """residual map: hidden layers"""
    num_samples: int | None = None
    """samples of a right side or inner iteration, or number of particles (None: the scheme's default)"""
    num_eval: int | None = None
    """fresh samples on which the figures of a row are measured (None: the scheme's default)"""
    integrator: str = "auto"
    """auto, implicit, explicit, an adaptive method (bosh3, dopri5, adaptive_heun, fehlberg2, dopri8), or with --dt
    implicit or a method of fixed steps (euler, midpoint, heun2, heun3, rk4)"""
    tolerance: float | None = None
    """rms displacement error of a sample per step, in units of x (None: 1e-4 explicit, 1e-3 implicit)"""
    dt: float | None = None
    """fixed step of --integrator implicit, euler, rk4, …, or of the other schemes, in units of t (None: steps by error
    control; particles: a thousandth of the time range, jko-icnn and sw-jko: at most a twentieth)"""
    damping: float | None = None
    """of the linear solve, relative to the trace of the metric (None: 1e-6; 1e-7 in implicit steps of small maps, on a
    line 1e-8)"""
    momentum: float | None = None
    """the damping is centred at up to momentum times the last rate of the parameters, 0 to 1 (None: .9; 0 there)"""
    form: Literal["velocity", "gradient"] = "velocity"
    """right side: project the velocity, or differentiate the sampled energy as published"""
    solver: str = "auto"
    """of the linear system: auto, primal, dual, block-pcg, pcg, cg or lsmr"""
    seed: int = 0
    """of all randomness"""
    dtype: Literal["float64", "float32"] = "float64"
    """floating point format of parameters and samples"""
    device: str = "cpu"
    """where to compute, e.g. cuda"""
    threads: int | None = None
    """CPU threads (None: torch's own choice)"""
    out: str | None = None
    """file to write (None: results/PROBLEM-dDIM.h5)"""
    resume: bool = False
    """continue the run at --out; starts afresh where nothing is"""
    overwrite: bool = False
    """replace the run at --out"""
    max_seconds: float | None = None
    """stop after so many seconds of wall time; --resume continues (None: no limit)"""
    max_steps: int | None = None
    """stop after so many steps; --resume continues (None: no limit)"""


@dataclass(frozen=True)
class Info:
    """Say in words what is in a run's file and how good it is."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """written by pwgf run or pwgf.solve"""


@dataclass(frozen=True)
class Plot:
    """Draw energy, projection residual, error and law of a run, from its file alone."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """written by pwgf run or pwgf.solve"""
    out: str | None = None
    """picture to write, .png, .pdf or .svg (None: FILE with the ending .png)"""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `pwgf`.

    Args:
        argv: arguments without the program's name; None means those of the process.

    Returns:
        The exit status: 0; 1 for damage found by `pwgf doctor`; 2 for an error that the user can cure, told on
        stderr; 130 after an interrupt.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        say(f"pwgf {__version__}")
        return 0
    about = "Wasserstein gradient flows in any dimension, without a grid. `pwgf --version` prints the version."
    config = (tyro.conf.FlagCreatePairsOff,)
    command: Any = tyro.cli(Command, prog="pwgf", description=about, args=arguments, config=config)
    try:
        if isinstance(command, Run):
            _run(command)
        elif isinstance(command, Info):
            _info(command)
        elif isinstance(command, Plot):
            _plot(command)
        else:
            return command.perform()
    except PWGFError as error:
        say(f"pwgf: error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("pwgf: interrupted; a run goes on with the same command and --resume", error=True)
        return 130
    return 0


def _run(settings: Run) -> None:
    if settings.threads is not None:
        if settings.threads < 1:
            raise ConfigError(f"pwgf run --threads needs an integer ≥ 1; got {settings.threads}.")
        torch.set_num_threads(settings.threads)
    problem = _problem(settings)
    times = _times(settings, problem)
    scheme = _scheme(settings, problem, times)
    name = next(short for short, full in problems.short_names().items() if full == problem.name)
    out = settings.out or f"results/{name}-d{problem.dim}.h5"
    resume, overwrite = settings.resume, settings.overwrite
    rows = schemes.ask(scheme, "rows_for")(times)
    limits = {"max_seconds": settings.max_seconds, "max_steps": settings.max_steps}
    to: dict[str, Any] = {"out": out, "resume": resume, "overwrite": overwrite, **limits}
    run = solve(scheme, rows, seed=settings.seed, problem=problem, **to)
    if world().rank > 0:  # one process of several speaks
        return
    for line in (*_about(run), *_energy_lines(run), *_error_lines(run, problem)):
        say(line)
    say(f"Written to {out}; see also: pwgf info {out}, pwgf plot {out}")


def _problem(settings: Run) -> Problem:
    given = {name: getattr(settings, name) for name in ("c", "m") if getattr(settings, name) is not None}
    kind = type(problems.find(settings.problem, "pwgf run", dim=settings.dim)).__name__
    wanted = {"StyblinskiTang": "c", "BarenblattFlow": "m"}.get(kind)
    for name in given:
        if name != wanted:
            raise ConfigError(
                f"pwgf run {settings.problem} has no parameter --{name}; got {given[name]:g}. Leave it out."
            )
    return problems.find(settings.problem, "pwgf run", dim=settings.dim, **given)


def _times(settings: Run, problem: Problem) -> np.ndarray:
    own = problem.times
    end = float(own[-1]) if settings.end_time is None else settings.end_time
    count = len(own) if settings.num_rows is None else settings.num_rows
    if not np.isfinite(end) or end <= own[0]:
        raise ConfigError(f"pwgf run --end-time must lie after the start, t = {own[0]:g}; got {end:g}.")
    if count < 2:
        raise ConfigError(f"pwgf run --num-rows needs at least 2, the start and the end; got {count}.")
    return np.linspace(own[0], end, count)


_MAP = ("map", "width", "depth")
_OF_SCHEMES = ("num_samples", "num_eval", "integrator", "tolerance", "damping", "momentum", "form", "solver")


def _scheme(settings: Run, problem: Problem, times: np.ndarray) -> Scheme:
    """The scheme of that name in the registry, with the options that were given and are arguments of it."""
    kind = schemes.find(settings.scheme, "pwgf run --scheme")
    defaults = {field.name: field.default for field in dataclasses.fields(Run)}
    given = {name: value for name, value in vars(settings).items() if value != defaults[name]}
    for name in (*_MAP, *_OF_SCHEMES):
        if name in given and not _takes(kind, "map" if name in _MAP else name):
            having = [other for other, cls in SCHEMES.items() if _takes(cls, "map" if name in _MAP else name)]
            raise ConfigError(
                f"pwgf run --{name.replace('_', '-')} belongs to --scheme {' or '.join(having)}; got --scheme "
                f"{settings.scheme}, which has no use for it. Leave it out."
            )
    arguments = {name: given[name] for name in _OF_SCHEMES if name in given}
    if any(name in given for name in _MAP):
        arguments["map"] = _map(settings, problem.dim)
    if "dt" in given and _takes(kind, "integrator"):
        arguments["integrator"] = _fixed(settings.integrator, given["dt"])
    elif "dt" in given:
        arguments["dt"] = given["dt"]
    arguments |= {"dtype": DTYPES[settings.dtype], "device": settings.device}
    return kind.suited(problem.energy, problem.reference, times, **arguments)


def _takes(kind: type, name: str) -> bool:
    return name in inspect.signature(kind).parameters


def _map(settings: Run, dim: int) -> maps.base.PushForward:
    if settings.map == "residual":
        return maps.ResidualMLP(dim, settings.width, settings.depth)
    if settings.width is not None or settings.depth != 1:
        raise ConfigError("pwgf run --width and --depth belong to --map residual; an affine map has no layers.")
    return maps.Affine(dim)


def _fixed(name: str, dt: float) -> Integrator:
    """The integrator of this name with steps of length dt."""
    if name == "implicit":
        return Implicit(dt=dt)
    if name not in FIXED:
        raise ConfigError(
            f"pwgf run --dt needs an integrator of fixed steps, --integrator {', '.join(('implicit', *FIXED))}; got "
            f"{name}, which chooses its own. Leave --dt out, or name one of them."
        )
    return FixedStep(name, dt)


def _info(settings: Info) -> None:
    run, problem = load(settings.file), None
    with storage.open_record(settings.file) as record:
        status = record.status
    say(f"{settings.file}: {status}")
    try:
        problem = accuracy.problem_of(run)
        judged = _error_lines(run, problem)
    except ConfigError as error:  # a user's own map, or a problem of a later version: the columns can still be told
        judged = [f"Error: not measured ({error})"]
    for line in (*_about(run), *_energy_lines(run), *_quality_lines(run), *judged, *_warnings(run, status)):
        say(line)


def _plot(settings: Plot) -> None:
    out = settings.out or re.sub(r"\.(h5|hdf5)$", "", settings.file) + ".png"
    say(f"Drawn: {plots.save(load(settings.file), out)}")


def _last(run: Trajectory, name: str) -> float:
    return float(run[name][-1]) if name in run.names else float("nan")


def _about(run: Trajectory) -> list[str]:
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


def _energy_lines(run: Trajectory) -> list[str]:
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
    residual, missed = run["projection_residual"], accuracy.missed_share(run)
    words = ("excellent", 1e-3), ("good", 1e-2), ("fair", 0.1), ("poor: use a wider map or more samples", np.inf)
    verdict = next(word for word, limit in words if missed < limit)
    lines = [
        f"Projection residual: at most {residual.max():.2g}, last {residual[-1]:.2g}",
        f"Verdict: the map missed {100 * missed:.2g} % of the squared velocity over the run, which is {verdict}",
    ]
    if "fold_fraction" in run.names:
        lines.append(f"Folded samples: at most {100 * float(run['fold_fraction'].max()):.2g} %")
    return lines


def _error_lines(run: Trajectory, problem: Problem | None) -> list[str]:
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
