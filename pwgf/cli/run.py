"""The command `pwgf run`: a problem, by one of the schemes, with the settings that were given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import schemes
from ..checks import DTYPES
from ..errors import ConfigError
from ..integrate import INTEGRATORS
from ..parallel import world
from ..run.solve import solve
from ..run.trajectory import Trajectory
from ..schemes import SCHEMES, Scheme
from ._options import as_options, check_prefixes, numbers, option, part
from ._own import Posed, is_own, posed
from ._terminal import say
from .facts import error_facts, facts
from .members import PREFIXES, integrator_of, map_of, scheme_arguments, solver_of
from .report import about, energy_lines, error_lines
from .settings import Run

CALL = "pwgf run"
_OF_SCHEMES = ("num_samples", "num_eval", "tolerance", "damping", "momentum", "form")
_BY_NAME = ("map", "integrator", "solver")
OWN = tuple(field.name for field in dataclasses.fields(Run) if field.name != "given")


def perform(settings: Run) -> int:
    """Solves, and says how good the run is; exit status 0."""
    what = problem_of(settings)
    out = settings.out or f"results/{what.name}-d{what.reference.dim}.h5"
    run, altered = solved(settings, what, out)
    if world().rank > 0:  # one process of several speaks
        return 0
    found = facts(run) | error_facts(run, None if altered else what.exact)
    for line in (*about(found), *energy_lines(found), *error_lines(found)):
        say(line)
    if altered:
        say(f"With {option(f'scheme.{altered}')} this is another flow than that of {settings.problem}: no exact law.")
    say(f"Written to {out}; see also: pwgf info {out}, pwgf plot {out}")
    return 0


def in_options(error: Exception) -> str:
    """What an error says, with options in place of Python arguments."""
    return as_options(str(error), dict(zip(OWN, OWN, strict=True)))


def problem_of(settings: Run) -> Posed:
    """What there is to solve; ConfigError where an option belongs to nothing."""
    check_prefixes(settings.given, PREFIXES, CALL)
    return posed(settings.problem, settings.given, settings.dim, CALL, beside=OWN)


def solved(settings: Run, what: Posed, out: str) -> tuple[Trajectory, str]:
    """The run, in a file, and the option that makes it another flow than that of the problem, if any."""
    if settings.threads is not None:
        if settings.threads < 1:
            raise ConfigError(f"pwgf run --threads needs an integer ≥ 1; got {settings.threads}.")
        torch.set_num_threads(settings.threads)
    scheme, times = planned(settings, what)
    altered = schemes.ask(scheme, "altered_by")()
    same = ("seed", "resume", "overwrite", "max_seconds", "max_steps", "store_samples")
    to: dict[str, Any] = {name: getattr(settings, name) for name in same}
    source = {"problem": settings.problem} if is_own(settings.problem) else None
    recorded = None if altered else what.recorded
    return solve(scheme, times, out=out, problem=recorded, metadata=source, **to), altered


def planned(settings: Run, what: Posed) -> tuple[Scheme, np.ndarray]:
    """The scheme, and the times of its rows."""
    times = _times(settings, what)
    scheme = _scheme(settings, what, times)
    return scheme, schemes.ask(scheme, "rows_for")(times)


def _times(settings: Run, what: Posed) -> np.ndarray:
    if settings.times is not None:
        for name in ("end_time", "num_rows"):
            if getattr(settings, name) is not None:
                raise ConfigError(f"pwgf run takes --times or {option(name)}, not both. Leave one out.")
        return np.array(numbers(settings.times, float, f"{CALL} --times"))
    if what.times is None:
        raise ConfigError(f"pwgf run {settings.problem} is an energy, which has no times. Give e.g. --times 0,0.5,1.")
    own = what.times
    end = float(own[-1]) if settings.end_time is None else settings.end_time
    count = len(own) if settings.num_rows is None else settings.num_rows
    if not np.isfinite(end) or end <= own[0]:
        raise ConfigError(f"pwgf run --end-time must lie after the start, t = {own[0]:g}; got {end:g}.")
    if count < 2:
        raise ConfigError(f"pwgf run --num-rows needs at least 2, the start and the end; got {count}.")
    if settings.end_time is None and settings.num_rows is None:
        return own
    return np.linspace(own[0], end, count)


def _scheme(settings: Run, what: Posed, times: np.ndarray) -> Scheme:
    """The scheme of that name in the registry, with the options that were given and are arguments of it."""
    name_of_scheme = settings.scheme or schemes.names_for(what.flow)[0]
    kind = schemes.find(name_of_scheme, f"{CALL} --scheme")
    given = _given(settings)
    for name, shown in _belongings(settings, given):
        if not _takes(kind, name):
            having = [other for other, cls in SCHEMES.items() if _takes(cls, name)]
            raise ConfigError(
                f"pwgf run {shown} belongs to --scheme {' or '.join(having)}; got --scheme {name_of_scheme}, which "
                "has no use for it. Leave it out."
            )
    arguments = {name: given[name] for name in _OF_SCHEMES if name in given}
    own = scheme_arguments(name_of_scheme, part(settings.given, "scheme"), CALL)
    for name in own.keys() & arguments:
        both = f"{option(name)} or {option(f'scheme.{name}')}"
        raise ConfigError(f"pwgf run takes {both}, which are one. Leave one out.")
    arguments |= own | _by_name(settings, given, what, kind)
    arguments |= {"dtype": DTYPES[settings.dtype], "device": settings.device}
    return schemes.suited(kind, what, times, CALL, **arguments)


def _given(settings: Run) -> dict[str, Any]:
    """The options of the command's own that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(Run)}
    return {name: value for name, value in vars(settings).items() if name != "given" and value != defaults[name]}


def _belongings(settings: Run, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Arguments of schemes that options stand for, each with its option."""
    found = [(name, option(name)) for name in (*_BY_NAME, *_OF_SCHEMES) if name in given]
    found += [("map", option(name)) for name in ("width", "depth") if name in given]
    prefixed = {name.partition(".")[0]: name for name in settings.given if "." in name}
    return found + [(name, option(prefixed[name])) for name in _BY_NAME if name in prefixed]


def _by_name(settings: Run, given: Mapping[str, Any], what: Posed, kind: Any) -> dict[str, Any]:
    """Map, integrator and solver where an option asks for one, and the length of a step."""
    texts = {name: part(settings.given, name) for name in _BY_NAME}
    for name in ("width", "depth"):
        _short(given, name, texts["map"], "map")
    takes_integrator = _takes(kind, "integrator")
    if takes_integrator:
        _check_fixed(settings, given)
        _short(given, "dt", texts["integrator"], "integrator")
    found: dict[str, Any] = {}
    if "map" in given or texts["map"]:
        found["map"] = map_of(settings.map or "residual", what.reference.dim, texts["map"], CALL)
    if "integrator" in given or texts["integrator"]:
        found["integrator"] = integrator_of(settings.integrator, texts["integrator"], CALL)
    if texts["solver"]:
        found["solver"] = solver_of(settings.solver, texts["solver"], CALL)
    elif "solver" in given:
        found["solver"] = settings.solver
    return found | ({"dt": given["dt"]} if "dt" in given and not takes_integrator else {})


def _short(given: Mapping[str, Any], name: str, texts: dict[str, str], prefix: str) -> None:
    """Puts an option that is short for a setting of a member beside the others."""
    if name not in given:
        return
    if name in texts:
        raise ConfigError(f"pwgf run takes --{name} or --{prefix}.{name}, which are one. Leave one out.")
    texts[name] = str(given[name])


def _check_fixed(settings: Run, given: Mapping[str, Any]) -> None:
    having = [name for name, maker in INTEGRATORS.items() if _takes(maker, "dt")]
    if "dt" in given and settings.integrator in INTEGRATORS and settings.integrator not in having:
        raise ConfigError(
            f"pwgf run --dt needs an integrator of fixed steps, --integrator {', '.join(having)}; got "
            f"{settings.integrator}, which chooses its own. Leave --dt out, or name one of them."
        )


def _takes(kind: Any, name: str) -> bool:
    return name in inspect.signature(kind).parameters
