"""A problem by name, or from the user's own code: module:Name or path/script.py:Name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import problems
from ..energies import Energy
from ..errors import ConfigError
from ..measures import Gaussian, Reference
from ..problems import Problem
from ..run.spec import check_times
from ._code import is_own, loaded, passing_on
from ._options import Given, arguments, bare, option, part, written

_MEMBERS = ("dim", "energy", "reference", "times")


class Posed(NamedTuple):
    """What there is to solve.

    Args:
        name: for files, such as "ornstein-uhlenbeck".
        energy, reference: F and λ.
        times: of the problem itself; None for a bare energy.
        problem: with or without an exact law; None for a bare energy.
    """

    name: str
    energy: Energy
    reference: Reference
    times: np.ndarray | None
    problem: Any = None

    @property
    def recorded(self) -> Any:
        """What `solve` records of the problem."""
        return self.problem if callable(getattr(self.problem, "to_config", None)) else None

    @property
    def flow(self) -> str:
        """Which law the flow obeys, "gradient" or "Hamiltonian"."""
        return str(getattr(self.problem, "flow", "gradient"))

    @property
    def needed_map(self) -> Any:
        """The map that the problem needs; None: any serves."""
        return getattr(self.problem, "needed_map", None)

    @property
    def exact(self) -> Problem | None:
        """The problem where it has an exact law."""
        return self.problem if callable(getattr(self.problem, "exact", None)) else None


def maker_of(spec: str, call: str) -> Any:
    """The class of a problem, or what the user's code has under that name: class, function, problem or energy.

    Raises:
        ConfigError: nothing there, or the user's code failed.
    """
    if not is_own(spec):
        return problems.kind(spec, call)
    return loaded(spec, call, f"{spec.strip(':')}:MyProblem", (Energy, Problem))


def posed(spec: str, given: Given, dim: int | None, call: str, beside: Collection[str] = ()) -> Posed:
    """The problem of that name, with the constructor's arguments that were given.

    Args:
        spec: a name out of `problems.short_names()`, MODULE:NAME or FILE.py:NAME.
        given: arguments by name, as texts; `problem.NAME` is the same as NAME.
        dim: of the space; None: the problem's own, else 2.
        call: such as "pwgf run".
        beside: the command's own options, one of which may have been meant.

    Raises:
        ConfigError: no such problem, it takes no such argument, or it lacks a member.
    """
    maker, label = maker_of(spec, call), f"{call} {spec}"
    texts = _texts(given, label)
    made = maker
    if inspect.isclass(maker) or inspect.isroutine(maker) or isinstance(maker, functools.partial):
        made = _made(maker, texts, dim, label, beside)
    elif any(texts.values()):
        name = next(prefix + name for prefix, values in texts.items() for name in values)
        raise ConfigError(
            f"{label} has no option {option(name)}: {spec} is no class, and takes no arguments. Leave it out."
        )
    if isinstance(made, Energy):
        return _bare(file_name(spec), made, given, dim, label)
    for name in part(given, "reference"):
        raise ConfigError(f"{label} has no option --reference.{name}: the problem has its own reference. Leave it out.")
    return _checked(file_name(spec), made, dim, label)


def _texts(given: Given, label: str) -> dict[str, dict[str, str]]:
    """Arguments of the problem by the prefix of their options, "" and "problem."."""
    alone = bare(given)
    dotted = part(given, "problem")
    for name in alone.keys() & dotted:
        raise ConfigError(f"{label} takes --{name} or --problem.{name}, which are one. Leave one out.")
    return {"": alone, "problem.": dotted}


def file_name(spec: str) -> str:
    """A name for files: "double-well" of "my/script.py:DoubleWell"."""
    if not is_own(spec):
        return {full.lower(): short for short, full in problems.short_names().items()}.get(spec.lower(), spec.lower())
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", spec.rpartition(":")[2]).lower()


def _made(
    maker: Any, texts: Mapping[str, Mapping[str, str]], dim: int | None, label: str, beside: Collection[str]
) -> Any:
    """What the class or function makes of these arguments."""
    if inspect.isabstract(maker):
        missing = sorted(maker.__abstractmethods__)
        raise ConfigError(f"{label}: the class lacks {', '.join(missing)}, which a problem has. Define them in it.")
    found: dict[str, Any] = {}
    for prefix, values in texts.items():
        found |= arguments(maker, values, prefix, label, without=("dim",), beside=beside)
    parameters = inspect.signature(maker).parameters
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind.name.startswith(("POS", "KEY"))]
    if "dim" in parameters and (dim is not None or parameters["dim"] in needed):
        found["dim"] = 2 if dim is None else dim
    for parameter in needed:
        if parameter.name not in found:
            hint = "" if inspect.isclass(maker) else " If it is a potential V(x), write energy = energies.Potential(V)."
            raise ConfigError(f"{label} needs {option(parameter.name)}, an argument without a default.{hint}")
    with written(found), passing_on(f"{label}: making it"):
        return maker(**found)


def _checked(name: str, made: Any, dim: int | None, label: str) -> Posed:
    """The problem once it is known to have what it needs."""
    missing = [member for member in _MEMBERS if inspect.getattr_static(made, member, None) is None]
    if missing:
        raise ConfigError(
            f"{label} is no problem and no energy, but {type(made).__name__}: it lacks {', '.join(missing)}. A problem "
            f"has {', '.join(_MEMBERS)}, and exact(t) where its law is known: derive from pwgf.problems.Problem."
        )
    with passing_on(f"{label}: reading its members"):
        energy, reference, own_dim = made.energy, made.reference, made.dim
        times = check_times(made.times, label)
    for member, value, kind in (("energy", energy, Energy), ("reference", reference, Reference)):
        if not isinstance(value, kind):
            raise ConfigError(
                f"{label}: its {member} must be one of pwgf's, {kind.__module__}.{kind.__name__}; got {value!r:.60}."
            )
    if dim is not None and dim != own_dim:
        raise ConfigError(f"{label} is of dimension {own_dim}, always; got --dim {dim}. Leave --dim out.")
    return Posed(name, energy, reference, times, made)


def _bare(name: str, energy: Energy, given: Given, dim: int | None, label: str) -> Posed:
    """An energy, from a Gaussian."""
    if dim is None:
        raise ConfigError(f"{label} is an energy, which has no dimension of its own. Give --dim, and --times.")
    texts = part(given, "reference")
    return Posed(name, energy, Gaussian(dim, **arguments(Gaussian, texts, "reference.", label, ["dim"])), None)
