"""Reads the docstrings of the package for its reference pages: an extension of griffe, named in mkdocs.yml."""

import re
from typing import Any

import griffe

_STAR = re.compile(r"(?<=\w)\*(?=[)|])")  # of |Jx*|, not of *emphasis*
_SEVERAL = re.compile(r"^( {4})((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*)$", re.MULTILINE)  # "    lower, upper: bounds."


def one_a_line(docstring: str) -> str:
    """Gives each of several arguments that share a line of `Args` a line of its own.

    Example:
        >>> print(one_a_line("    lower, upper: bounds, (d,)."))
            lower: bounds, (d,).
            upper: bounds, (d,).
    """

    def split(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))

    return _SEVERAL.sub(split, docstring)


class Docstrings(griffe.Extension):
    """One line for each argument, examples as code, and the fields of named tuples as attributes."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        if obj.docstring is None:
            return
        text = _STAR.sub(r"\*", one_a_line(obj.docstring.value)).replace("\nExample:\n", "\nExamples:\n")
        if isinstance(obj, griffe.Class) and any(str(base).endswith("NamedTuple") for base in obj.bases):
            text = text.replace("\nArgs:\n", "\nAttributes:\n")
        obj.docstring.value = text
