"""How objects show themselves: as the call that makes them and, in notebooks, as a table."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .checks import is_real

_MOST_SHOWN = 6  # numbers of a list


def as_call(config: Mapping[str, Any]) -> str:
    """The settings that `to_config` gives as the call that makes such an object; what is None is left out.

    Example:
        >>> as_call({"name": "Gaussian", "dim": 20, "mean": [0.0] * 20, "cov": None})
        'Gaussian(dim=20, mean=[20 numbers])'
    """
    terms = config.get("terms")
    if isinstance(terms, list):
        return " + ".join(_coefficient(term.get("coefficient", 1.0)) + as_call(term) for term in terms)
    name = str(config.get("name", "")).rpartition(".")[2]
    return f"{name}({', '.join(f'{key}={text}' for key, text in _arguments(config).items())})"


def _arguments(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings as texts."""
    entries = {key: value for key, value in config.items() if key not in ("name", "coefficient") and value is not None}
    own = {key: value for key, value in entries.items() if not str(value).startswith("pwgf.")}  # not its own functions
    return {key: _as_argument(value) for key, value in own.items()}


def _coefficient(value: Any) -> str:
    return "" if value == 1 else f"{value:g}·" if is_real(value) else f"{value}·"


def _as_argument(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return as_call(value)
    shape = value.get("shape") if isinstance(value, Mapping) else getattr(value, "shape", None)
    if isinstance(value, (list, tuple)) and (len(value) > _MOST_SHOWN or any(isinstance(row, list) for row in value)):
        shape = [len(value), *([len(value[0])] if isinstance(value[0], (list, tuple)) else [])]
    if shape:
        return f"[{' × '.join(map(str, shape))} numbers]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_argument, value))}]"
    if isinstance(value, str) and "." in value:
        return value.rpartition(".")[2]  # of a function
    return f"{value:g}" if isinstance(value, float) else repr(value)


def as_table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of texts as HTML, the first of each as its heading.

    Example:
        >>> as_table([["p", "<1"]])
        '<table><tr><th>p</th><td>&lt;1</td></tr></table>'
    """
    lines = ["".join(f"<th>{html.escape(text)}</th>" for text in head)] if head else []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in others)
        lines.append(f"<th>{html.escape(first)}</th>{cells}")
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


class Shown:
    """Shows its settings, `to_config()`."""

    def _settings(self) -> Mapping[str, Any]:
        """What is shown, with the `name` of the class."""
        return self.to_config()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return as_call(self._settings())

    def _repr_html_(self) -> str:
        """A row for each setting, or for each term of a sum."""
        config = self._settings()
        terms = config.get("terms")
        if isinstance(terms, list):
            return as_table([["Sum", ""], *(["", as_call({"terms": [term]})] for term in terms)])
        name = str(config.get("name", "")).rpartition(".")[2]
        return as_table([[name, ""], *([key, text] for key, text in _arguments(config).items())])


def fields_as_table(result: Any) -> str:
    """The fields of a dataclass or named tuple that its `repr` shows; `_repr_html_` of such results."""
    named = dataclasses.is_dataclass(result)
    names = [field.name for field in dataclasses.fields(result) if field.repr] if named else result._fields
    return as_table([[type(result).__name__, ""], *([name, _as_argument(getattr(result, name))] for name in names)])
