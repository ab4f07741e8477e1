"""The command `pwgf run`: one of the problems, by one of the schemes, with the settings that were given."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import torch

from .. import maps, problems, schemes
from ..checks import DTYPES
from ..errors import ConfigError
from ..integrate import FIXED, FixedStep, Implicit, Integrator
from ..parallel import world
from ..problems import Problem
from ..run.solve import solve
from ..schemes import SCHEMES, Scheme
from ._terminal import say
from .report import about, energy_lines, error_lines
from .settings import Run


def perform(settings: Run) -> int:
    """Solves, and says how good the run is; exit status 0."""
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
        return 0
    for line in (*about(run), *energy_lines(run), *error_lines(run, problem)):
        say(line)
    say(f"Written to {out}; see also: pwgf info {out}, pwgf plot {out}")
    return 0


def _problem(settings: Run) -> Problem:
    given = {name: getattr(settings, name) for name in ("c", "m") if getattr(settings, name) is not None}
    kind = type(problems.find(settings.problem, "pwgf run", dim=settings.dim)).__name__
    wanted = {"StyblinskiTang": "c", "BarenblattFlow": "m", "ConfinedPorousMedium": "m"}.get(kind)
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
    name_of_scheme = settings.scheme or schemes.names_for(problem.flow)[0]
    kind = schemes.find(name_of_scheme, "pwgf run --scheme")
    defaults = {field.name: field.default for field in dataclasses.fields(Run)}
    given = {name: value for name, value in vars(settings).items() if value != defaults[name]}
    for name in (*_MAP, *_OF_SCHEMES):
        if name in given and not _takes(kind, "map" if name in _MAP else name):
            having = [other for other, cls in SCHEMES.items() if _takes(cls, "map" if name in _MAP else name)]
            raise ConfigError(
                f"pwgf run --{name.replace('_', '-')} belongs to --scheme {' or '.join(having)}; got --scheme "
                f"{name_of_scheme}, which has no use for it. Leave it out."
            )
    arguments = {name: given[name] for name in _OF_SCHEMES if name in given}
    if any(name in given for name in _MAP):
        arguments["map"] = _map(settings, problem.dim)
    if "dt" in given and _takes(kind, "integrator"):
        arguments["integrator"] = _fixed(settings.integrator, given["dt"])
    elif "dt" in given:
        arguments["dt"] = given["dt"]
    arguments |= {"dtype": DTYPES[settings.dtype], "device": settings.device}
    return schemes.suited(kind, problem, times, "pwgf run", **arguments)


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
