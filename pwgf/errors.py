"""Every error the package raises on purpose; all derive from `PWGFError`.

Misuse is reported before anything is computed (`ConfigError`, `ShapeError`), numerical failure where it occurs
(`NonFiniteError`, `SolverError`), failures of files by `StorageError` and its subclasses. Messages state the call, what
was expected, what was given, and the cure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

# C0 and C1 controls but tab and line end, marks that turn the direction of writing, halves of surrogate pairs
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text with the characters that would command a terminal written out, as \\x1b; tabs and line ends stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PWGFError(Exception):
    """Base class of all errors of this package.

    `run` holds the rows so far (a `Trajectory`) when a run without a file failed, else None.
    """

    run: Any = None

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(PWGFError, ValueError):
    """An argument has a value that cannot work; the message names the argument and the cure."""


class ShapeError(PWGFError, ValueError):
    """An array, or what a user's function returned, has the wrong shape, type or dtype."""


class NonFiniteError(PWGFError):
    """A term became NaN or infinite; the message names the term, the time, likely causes and cures."""


class SolverError(PWGFError):
    """A numerical method failed (linear solve, Newton inverse, step control); the message names the cure."""


class ParallelError(PWGFError):
    """Another process of the run has stopped or does not answer, so this one stops too; stored rows stay valid."""


class StorageError(PWGFError, OSError):
    """A file could not be written or read (disk full, no permission, locked by another run)."""


class PathError(ConfigError, StorageError):
    """A path given by the user cannot be used: it is missing, a folder, already there, or not writable."""


class SchemaError(PathError):
    """A file exists but is not a trajectory that this version can read: foreign, damaged, hostile or too new."""


class ResumeMismatchError(ConfigError):
    """A run is resumed under settings, or with an energy, that differ from the stored ones."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest known name, or "" when nothing is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
