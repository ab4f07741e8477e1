"""What is chosen by name, map, integrator, scheme and solver, made of the tables of the package and the options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .. import maps, problems
from ..errors import ConfigError
from ..integrate import INTEGRATORS, Integrator, get_integrator
from ..linalg import SOLVERS, LinearSolver, get_solver
from ..maps.base import PushForward
from ..schemes import SCHEMES
from ._options import arguments, nested, option, settable, told, written
from ._terminal import say
from .settings import Options, Run

PREFIXES = ("problem", "map", "integrator", "scheme", "solver", "reference")
_OF_SCHEME = ("energy", "map", "reference", "integrator", "solver", "theta0", "dtype", "device")


def map_of(name: str, dim: int, texts: Mapping[str, str], call: str) -> PushForward:
    """The map of that name and dimension."""
    kind, label = maps.find(name, f"{call} --map"), f"{call} --map {name}"
    found: PushForward = _made(kind, texts, "map", label, {"dim": dim})
    return found


def integrator_of(name: str, texts: Mapping[str, str], call: str) -> Integrator:
    """The integrator of that name."""
    if name not in INTEGRATORS:
        return get_integrator(name)  # says which there are
    kind, label = INTEGRATORS[name], f"{call} --integrator {name}"
    found: Integrator = _made(kind, texts, "integrator", label)
    return found


def solver_of(name: str, texts: Mapping[str, str], call: str) -> LinearSolver:
    """The linear solver of that name."""
    if name not in SOLVERS:
        return get_solver(name)
    found: LinearSolver = _made(SOLVERS[name], texts, "solver", f"{call} --solver {name}")
    return found


def scheme_settings(kind: Any) -> dict[str, inspect.Parameter]:
    """The options that are settings of a scheme's own; the length of its steps is --dt for all of them."""
    found = settable(kind, without=_OF_SCHEME)
    return {name: parameter for name, parameter in found.items() if parameter.default is not parameter.empty}


def scheme_arguments(name: str, texts: Mapping[str, str], call: str) -> dict[str, Any]:
    """Values of the scheme's own settings."""
    kind = SCHEMES[name]
    without = set(inspect.signature(kind).parameters) - set(scheme_settings(kind))
    return arguments(kind, texts, "scheme.", f"{call} --scheme {name}", without)


def _made(
    maker: Callable[..., Any], texts: Mapping[str, str], prefix: str, label: str, known: Mapping[str, Any] | None = None
) -> Any:
    """The member; ConfigError where an argument that it needs is missing."""
    found = {**(known or {}), **arguments(maker, texts, f"{prefix}.", label, without=known or ())}
    can = settable(maker)
    for name, parameter in inspect.signature(maker).parameters.items():
        if name in found or parameter.default is not parameter.empty:
            continue
        if name in can:
            raise ConfigError(f"{label} needs {option(f'{prefix}.{name}')} ({told(can[name])}).")
        raise ConfigError(f"{label} needs {name}, which no option can give. Solve it in Python: pwgf.solve(…).")
    with written(found, f"{prefix}."):
        return maker(**found)


def options(settings: Options) -> int:
    """Lists the tables; exit status 0."""
    own: dict[str, dict[str, Any]] = {
        "problem": {short: problems.kind(short, "pwgf options") for short in problems.short_names()},
        "map": {short: maps.find(short, "pwgf options") for short in maps.short_names()},
        "integrator": dict(INTEGRATORS),
        "scheme": dict(SCHEMES),
        "solver": dict(SOLVERS),
    }
    for kind, table in own.items():
        if settings.kind in ("all", kind):
            for name, maker in table.items():
                _list(kind, name, maker)
    return 0


def _list(kind: str, name: str, maker: Any) -> None:
    """Says what a member is called, and its options below."""
    found = scheme_settings(maker) if kind == "scheme" else settable(maker, without=["dim"])
    needed = [p.name for p in inspect.signature(maker).parameters.values() if p.default is p.empty]
    beyond = [one for one in needed if one not in found and one != "dim"] if kind == "map" else []
    note = f"  (in Python only: needs {', '.join(beyond)})" if beyond else ""
    say((f"PROBLEM {name}" if kind == "problem" else f"--{kind} {name}") + note)
    for setting, parameter in found.items():
        alone = kind == "problem" and setting not in {field.name for field in dataclasses.fields(Run)}
        shown = option(setting if alone else f"{kind}.{setting}")
        as_other = f".…  as --{kind} {setting}"
        say(f"    {shown}" + (as_other if nested(parameter) else f"  {told(parameter)}"))
