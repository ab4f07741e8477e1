"""What a user's own code has under a name: MODULE:NAME or path/script.py:NAME. Nothing here imports torch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
from types import ModuleType, TracebackType
from typing import Any

from ..errors import ConfigError, PWGFError, nearest


def is_own(spec: str) -> bool:
    """Whether a name points into the user's code."""
    return ":" in spec or spec.endswith(".py")


def loaded(spec: str, call: str, example: str, kinds: tuple[type, ...] = ()) -> Any:
    """What the user's code has under that name.

    Args:
        spec: FILE.py:NAME or MODULE:NAME.
        call: what messages name.
        example: of a right name.
        kinds: objects that may be meant beside functions and classes, for a hint.

    Raises:
        ConfigError: nothing there, or the user's code failed.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConfigError(f"{call} needs FILE.py:NAME or MODULE:NAME; got {spec!r}. Give e.g. {example}.")
    is_file = where.endswith(".py") or os.sep in where
    module = _from_file(where, call) if is_file else _from_path(where, call)
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if _is_candidate(key, value, module, kinds)]
        raise ConfigError(
            f"{call}: {where} has no {name!r}; it defines {', '.join(defined) or 'nothing of use'}."
            + nearest(name, defined)
        )
    return getattr(module, name)


def _is_candidate(name: str, value: Any, module: ModuleType, kinds: tuple[type, ...]) -> bool:
    """Whether a name of the module may be meant."""
    own = getattr(value, "__module__", None) == module.__name__
    return not name.startswith("_") and (isinstance(value, kinds) or (own and callable(value)))


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
    """The traceback from the first frame on that is neither of this folder nor of the import system."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if os.path.dirname(file) != os.path.dirname(__file__) and "importlib" not in file:
            return trace
        trace = trace.tb_next
    return None
