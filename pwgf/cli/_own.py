"""A problem by name, or from the user's own code: module:Name or path/script.py:Name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np

from .. import problems
from ..energies import Energy
from ..errors import ConfigError, PWGFError, nearest
from ..measures import Gaussian, Reference
from ..problems import Problem
from ..run.spec import check_times
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


def is_own(spec: str) -> bool:
    """Whether a problem's name points into the user's code."""
    return ":" in spec or spec.endswith(".py")


def maker_of(spec: str, call: str) -> Any:
    """The class of a problem, or what the user's code has under that name: class, function, problem or energy.

    Raises:
        ConfigError: nothing there, or the user's code failed.
    """
    if not is_own(spec):
        return problems.kind(spec, call)
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConfigError(
            f"{call} needs FILE.py:NAME or MODULE:NAME; got {spec!r}. Give e.g. {spec.strip(':')}:MyProblem."
        )
    is_file = where.endswith(".py") or os.sep in where
    module = _from_file(where, call) if is_file else _from_path(where, call)
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if _is_candidate(key, value, module)]
        raise ConfigError(
            f"{call}: {where} has no {name!r}; it defines {', '.join(defined) or 'nothing of use'}."
            + nearest(name, defined)
        )
    return getattr(module, name)


def _is_candidate(name: str, value: Any, module: ModuleType) -> bool:
    """Whether a name of the module may be a problem."""
    own = getattr(value, "__module__", None) == module.__name__
    return not name.startswith("_") and (isinstance(value, (Energy, Problem)) or (own and callable(value)))


def _from_path(name: str, call: str) -> ModuleType:
    """The module of that name; the current folder comes first."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with passing_on(f"{call}: importing {name}"):
            return importlib.import_module(name)
    except ConfigError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
        found = [module.name for module in pkgutil.iter_modules([here])]
        raise ConfigError(
            f"{call} found no module {missing!r}, neither in {here} nor among those installed.{nearest(missing, found)}"
            " A file is written as path/script.py:NAME."
        ) from cause


def _from_file(path: str, call: str) -> ModuleType:
    """The file as a module; its folder is searched for what it imports."""
    whole = os.path.abspath(path)
    folder, file = os.path.split(whole)
    if not os.path.isfile(whole):
        beside = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
        raise ConfigError(f"{call} found no file {whole}.{nearest(file, beside)}")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _executed(whole, os.stat(whole).st_mtime_ns, f"{call}: running {path}")


@functools.cache
def _executed(whole: str, changed: int, what: str) -> ModuleType:
    """The module of a file as it is since `changed`, run once."""
    name = os.path.basename(whole).removesuffix(".py")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != whole:  # such as a script called torch.py
        name = f"script_{name}"
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{what} failed: {whole} is no Python file. Give path/script.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    try:
        with passing_on(what):
            spec.loader.exec_module(module)
    except ConfigError:
        del sys.modules[name]
        raise
    return module


class passing_on:
    """A block of the user's code: what it raises is passed on as ConfigError, with its traceback from their lines on.

    Args:
        what: was done, for the message.
        kinds: of errors that are passed on so; others, and those of pwgf, stay as they are.
    """

    def __init__(self, what: str, kinds: tuple[type[BaseException], ...] = (Exception, SystemExit)) -> None:
        self._what, self._kinds = what, kinds

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._kinds) and not isinstance(error, PWGFError):
            told = "".join(traceback.format_exception(type(error), error, _of_user(trace)))
            raise ConfigError(f"{self._what} failed.\n{told.rstrip()}") from error


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is neither of this module nor of the import system."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            return trace
        trace = trace.tb_next
    return None


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
