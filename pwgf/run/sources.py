"""The source text of the user's functions and classes in a scheme, so that its file tells what was solved."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MOST_BYTES = 100_000  # of all texts together
_MOST_PARTS = 1000  # looked at in a scheme
_LIBRARIES = tuple(str(Path(path).resolve()) for name, path in sysconfig.get_paths().items() if name.endswith("lib"))
_PACKAGE = str(Path(__file__).resolve().parents[1])


def sources_of(scheme: object) -> dict[str, dict[str, str]]:
    """Text and sha256 of every function and class in a scheme that belongs to no library, by qualified name.

    Where there is no text, as for what was typed at Python's prompt, or for more than 100 kB in all, it is "".
    """
    found: dict[str, dict[str, str]] = {}
    left = _MOST_BYTES
    for thing in _own(scheme):
        name = f"{thing.__module__}.{thing.__qualname__}"
        text = _text(thing)
        text = text if len(text.encode()) <= left else ""
        while name in found and found[name]["source"] != text:
            name += "'"  # another lambda
        found[name] = {"source": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        left -= len(text.encode())
    return found


def _own(scheme: object) -> Iterator[Any]:
    """The user's functions and classes among the attributes of a scheme, of their attributes, and so on."""
    todo: list[Any] = [scheme]
    seen: set[int] = set()
    while todo and len(seen) < _MOST_PARTS:
        part = todo.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, types.FunctionType):
            if _is_own(part):
                yield part
        elif isinstance(part, types.MethodType):
            todo += [part.__func__, part.__self__]
        elif isinstance(part, functools.partial):
            todo.append(part.func)
        elif isinstance(part, Mapping):
            todo += part.values()
        elif isinstance(part, (list, tuple)):
            todo += part
        elif hasattr(part, "__dict__") and not isinstance(part, (type, types.ModuleType)):
            if _is_own(type(part)):
                yield type(part)
            todo += vars(part).values()


def _is_own(thing: Any) -> bool:
    """Whether a function or class comes from elsewhere than an installed library or this package."""
    try:
        path = inspect.getsourcefile(thing)
    except (TypeError, OSError):  # built in; or made where there is no file
        return thing.__module__ == "__main__"
    return path is not None and not str(Path(path).resolve()).startswith((*_LIBRARIES, _PACKAGE))


def _text(thing: Any) -> str:
    try:
        return inspect.getsource(thing).encode("utf-8", "backslashreplace").decode()
    except (OSError, TypeError, SyntaxError, IndentationError):
        return ""
