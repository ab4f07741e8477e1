"""Options that belong to what is chosen by name: settings of a map (--map.width), arguments of a problem (--c).

They are known once the member is, so `split` sets them aside unread, and `arguments` reads them by the types in the
signature of the member.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ..errors import ConfigError, ShapeError, nearest
from ._code import is_own, loaded

N = TypeVar("N", int, float)

Given = Mapping[str, Sequence[str]]
"""Values by option, as they were written; the names without dashes in front, and with underscores."""

_WORDS = {"none": None, "true": True, "false": False}
_SIMPLE = (bool, int, float, str)
_LISTS = (list, tuple, collections.abc.Sequence)


def split(argv: Sequence[str], own: Collection[str], *, several: bool = False) -> tuple[list[str], Given]:
    """The arguments that the command's own class reads, and all other options.

    Args:
        argv: arguments after the command's name.
        own: names of the options of the class.
        several: whether any number of values follow an option, rather than one.

    Raises:
        ConfigError: an option is there twice.

    Example:
        >>> split(["aggregation", "--seed", "1", "--map.width", "64"], ["seed"])
        (['aggregation', '--seed', '1'], {'map.width': ['64']})
    """
    kept: list[str] = []
    given: dict[str, list[str]] = {}
    values: list[str] | None = None  # where the next words go; None: to the class
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name not in own and name not in ("", "help"):
            if name in given:
                raise ConfigError(f"{option(name)} is there twice. Leave one out.")
            values = given[name] = [value] if equals else []
        elif values is None or word.startswith("--") or (values and not several):
            values = None
            kept.append(word)
        else:
            values.append(word)
    return kept, given


def option(name: str) -> str:
    """What the command line calls a setting."""
    return f"--{name.replace('_', '-')}"


def numbers(text: str, kind: type[N], where: str) -> list[N]:
    """Integers or numbers with commas between them; `where` names the option.

    Raises:
        ConfigError: the text is something else.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "integers" if kind is int else "numbers"
        raise ConfigError(f"{where} needs {what} with commas between them; got {text!r}. Give e.g. 0,1.") from error


def part(given: Given, prefix: str) -> dict[str, str]:
    """The settings under a prefix, and their texts; a flag without a value is "true".

    Example:
        >>> part({"map.width": ["64"], "c": ["1"]}, "map")
        {'width': '64'}
    """
    found = {name.removeprefix(f"{prefix}."): values for name, values in given.items() if name.startswith(f"{prefix}.")}
    return {name: values[0] if values else "true" for name, values in found.items()}


def bare(given: Given) -> dict[str, str]:
    """The settings without a prefix."""
    return {name: values[0] if values else "true" for name, values in given.items() if "." not in name}


def check_prefixes(given: Given, known: Sequence[str], call: str) -> None:
    """ConfigError for an option with a dot that belongs to nothing."""
    for name in given:
        prefix, dot, _ = name.partition(".")
        if dot and prefix not in known:
            there = ", ".join(f"--{one}.…" for one in known)
            raise ConfigError(
                f"{call} has no option {option(name)}; with a dot there are {there}.{near(prefix, known)}"
            )


def settable(maker: Callable[..., Any], without: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """The parameters of a class or function that can be written as a text, with resolved annotations.

    Example:
        >>> def power(x: float, degree: int = 2, name: object = None): ...
        >>> list(settable(power, without=["x"]))
        ['degree']
    """
    try:
        found = inspect.signature(maker, eval_str=True).parameters
    except NameError:  # an annotation that exists for type checkers alone
        found = inspect.signature(maker).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in found.items()
        if name not in without and parameter.kind in named and (_readable(parameter) or nested(parameter))
    }


def nested(parameter: inspect.Parameter) -> bool:
    """Whether the parameter is a dataclass with settings of its own."""
    return inspect.isclass(parameter.annotation) and dataclasses.is_dataclass(parameter.annotation)


def arguments(
    maker: Callable[..., Any],
    texts: Mapping[str, str],
    prefix: str,
    call: str,
    without: Collection[str] = (),
    beside: Collection[str] = (),
) -> dict[str, Any]:
    """The values of these settings, read by the types in the maker's signature.

    Args:
        maker: a class or function.
        texts: by name of the parameter.
        prefix: of the options, such as "map.".
        call: what the options belong to, such as "pwgf run --map convex-ridge".
        without: parameters that are no options.
        beside: other options, one of which may have been meant.

    Raises:
        ConfigError: no such setting, or a text that is no value of its type.
    """
    known = settable(maker, without)
    found: dict[str, Any] = {}
    for name, parameter in known.items():
        inner = {key.partition(".")[2]: text for key, text in texts.items() if key.startswith(f"{name}.")}
        if inner and nested(parameter):
            kind = parameter.annotation
            with written(inner, f"{prefix}{name}."):
                found[name] = kind(**arguments(kind, inner, f"{prefix}{name}.", call))
    for name, text in texts.items():
        if name.partition(".")[0] in found:
            continue
        if name not in known or nested(known[name]):
            hint = near(name, [*known, *beside], prefix)
            raise ConfigError(f"{call} has no option {option(prefix + name)}. {listed(known, prefix)}{hint}")
        found[name] = _read(known[name], text, f"{call}: {option(prefix + name)}")
    return found


def listed(known: Mapping[str, inspect.Parameter], prefix: str) -> str:
    """The options of a member in words."""
    who = "The problem" if prefix in ("", "problem.") else "It"
    names = [f"{option(prefix + name)} ({told(p)})" for name, p in known.items() if not nested(p)]
    names += [option(prefix + name) + ".…" for name, p in known.items() if nested(p)]
    return f"{who} has {', '.join(names) or 'none'}."


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns " Did you mean --x?" for the closest option, or "" when nothing is close."""
    return re.sub(r"'(.*)'", lambda found: option(prefix + found[1]), nearest(name, known))


def told(parameter: inspect.Parameter) -> str:
    """Type and default of a parameter, such as "integer, default 16"."""
    words, default = _words(_alternatives(parameter.annotation)), parameter.default
    if default is parameter.empty:
        return f"{words}, required"
    return f"{words}, default {default:g}" if isinstance(default, float) else f"{words}, default {default}"


def _words(kinds: Sequence[Any]) -> str:
    """The types in words."""
    simple = sorted((kind for kind in kinds if kind is None or _simple(kind)), key=lambda kind: kind is None)
    return " or ".join(dict.fromkeys(_WORD.get(kind) or _of_list(kind) for kind in simple)) or "any value"


_WORD: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", None: "none"}


def _of_list(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(str(value) for value in typing.get_args(kind))
    if _of_functions(kind):
        return "FILE.py:NAME of a function"
    return "values with commas between them"


def _alternatives(kind: Any) -> list[Any]:
    """The types, in the order in which they are tried, that a text may be read as; [] where any value will do."""
    if kind in (Any, object, inspect.Parameter.empty) or isinstance(kind, str):
        return []
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        found = [simple for member in typing.get_args(kind) for simple in _alternatives(member)]
        order = (None, bool, int, float)
        return sorted(found, key=lambda one: order.index(one) if one in order else len(order) + (one is str))
    if kind in (None, type(None)):
        return [None]
    return [kind]


def _readable(parameter: inspect.Parameter) -> bool:
    """Whether a text can be a value of the parameter."""
    if isinstance(parameter.annotation, str) or parameter.annotation is object:
        return False
    kinds = [kind for kind in _alternatives(parameter.annotation) if kind is not None]
    return not kinds or any(_simple(kind) for kind in kinds)


def _simple(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in _LISTS:
        return all(inner is ... or inner in _SIMPLE for inner in typing.get_args(kind))
    return kind in _SIMPLE or kind in _LISTS or origin is Literal or _of_functions(kind)


def _of_functions(kind: Any) -> bool:
    return typing.get_origin(kind) is collections.abc.Callable


def _read(parameter: inspect.Parameter, text: str, where: str) -> Any:
    kinds = _alternatives(parameter.annotation)
    if not kinds:
        return _guess(text)
    for kind in kinds:
        try:
            return _as(kind, text, where)
        except ConfigError:  # of the user's own code
            raise
        except (ValueError, KeyError):
            continue
    raise ConfigError(f"{where} got {text!r}; expected: {_words(kinds)}.")


def _as(kind: Any, text: str, where: str) -> Any:
    """The text as a value of that type; ValueError or KeyError where it is none."""
    if _of_functions(kind) and is_own(text):
        return loaded(text, where, "my.py:f")
    origin, inner = typing.get_origin(kind), [one for one in typing.get_args(kind) if one is not ...]
    if kind is None or kind is bool:
        value = _WORDS[text.lower()]
        if (value is None) != (kind is None):
            raise KeyError(text)
        return value
    if origin is Literal:
        return {str(value): value for value in inner}[text]
    if origin in _LISTS or kind in _LISTS:
        values = [_as(inner[0], one, where) if inner else _guess(one) for one in text.split(",")]
        return tuple(values) if tuple in (origin, kind) else values
    if kind not in _SIMPLE:
        raise KeyError(text)
    return kind(text)


def _guess(text: str) -> Any:
    """Without a type: JSON where it is that, numbers with commas between them, or the text itself."""
    for one in (text, f"[{text}]"):
        try:
            return json.loads(_WORDS_IN_JSON.get(one.lower(), one))
        except ValueError:
            continue
    return text


_WORDS_IN_JSON = {"none": "null", "true": "true", "false": "false"}


@contextlib.contextmanager
def written(names: Iterable[str], prefix: str = "") -> Iterator[None]:
    """A block whose errors of misuse speak of options, PREFIX.NAME, in place of Python arguments of these names."""
    try:
        yield
    except (ConfigError, ShapeError) as error:
        raise type(error)(as_options(str(error), {name: prefix + name for name in names})) from error


def as_options(message: str, names: Mapping[str, str]) -> str:
    """A message with options in place of Python arguments.

    Args:
        message: of an error.
        names: options by the name of the argument.

    Example:
        >>> names = {name: name for name in ("num_samples", "overwrite")}
        >>> as_options("PWGF(num_samples=…) must be ≥ 1. Give overwrite=True.", names)
        '--num-samples must be ≥ 1. Give --overwrite.'
        >>> as_options("run.plot(num_samples=…) must be ≥ 1.", names)
        '--num-samples must be ≥ 1.'
    """

    def as_option(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in names:
            return found[0]
        alone = value in ("", "…", "True")
        return option(names[name]) if alone else f"{option(names[name])} {value.strip(chr(39))}"

    value = r"(?P<value>…|'[^']*'|[\w.+-]*\w)"
    message = re.sub(r"\b[\w.]*\w\((?P<name>[a-z]\w*)(?P<value>)\): (?P=name)\b", as_option, message)
    message = re.sub(rf"\b[\w.]*\w\((?P<name>[a-z]\w*)={value}\)", as_option, message)
    return re.sub(rf"(?<![\w.(])(?P<name>[a-z]\w*)={value}", as_option, message)
