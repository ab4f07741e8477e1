"""The command `pwgf table`: several runs side by side."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .. import storage
from ..errors import ConfigError, PathError, PWGFError, SchemaError
from ..problems import Problem
from ..run.resume import flatten
from ..run.trajectory import Trajectory
from ._terminal import say
from .facts import plain, problem_from, read, run_of
from .settings import Table

_MEASURED = ("bures_w2", "bures_w2_floor", "sym_kl", "energy", "estimated_error", "verdict", "cpu_seconds")
_HEADS = ("Bures–W₂", "floor", "symmetric KL", "energy", "estimated error", "verdict", "CPU s")


@dataclasses.dataclass(frozen=True)
class Line:
    """A run in the table.

    Args:
        name: of its file.
        status: "complete", "killed", …; "failed", "damaged" and the like where `message` says why.
        settings: flat, by dotted name.
        values: what was measured; None where it is not known.
        message: what went wrong.
    """

    name: str
    status: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    message: str = ""


def table(settings: Table) -> int:
    """Prints the table; exit status 1 where a file cannot be read."""
    if not settings.files:
        raise ConfigError("pwgf table needs files, or a folder of them, such as runs/*.h5; got none.")
    problem = problem_from(settings.problem, "pwgf table --problem")
    found = [line_of(path, problem) for path in runs_in(settings.files)]
    tell(found, as_csv=settings.csv)
    return 1 if any(line.message for line in found) else 0


def tell(found: Sequence[Line], *, as_csv: bool = False) -> None:
    """Prints the rows."""
    for line in comma_separated(found) if as_csv else markdown(found):
        say(line)


def runs_in(paths: Iterable[str]) -> list[str]:
    """The runs at these paths, each once; a folder stands for those in it, finished or not."""
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path) and not path.rstrip(os.sep).endswith(".parts"):
            inside = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith((".h5", ".parts"))]
            if not inside:
                raise ConfigError(f"pwgf table found no run in the folder {path}. Give files, or another folder.")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(run_of(path)[0] for path in found))


def line_of(path: str, problem: Callable[[Trajectory], Problem | None]) -> Line:
    """The run at a path; one that cannot be read has a line that says so."""
    try:
        known = read(path, problem)
    except PWGFError as error:
        return _unread(path, error)
    off = known["error"] or {}
    values = {name: off.get(name) for name in _MEASURED[:3]} | {"energy": known["energy_last"]}
    values |= {name: known[name] for name in _MEASURED[4:]}
    return Line(path, known["status"], _settings(known["config"]), values)


def _unread(path: str, error: PWGFError) -> Line:
    """The line of a file that is no run with rows."""
    if isinstance(error, SchemaError):
        with contextlib.suppress(PWGFError):
            _, about = storage.read_table(path)
            return Line(path, "comparison" if "methods" in about else "table")  # such as that of a filter
    kinds = {"damaged": SchemaError, "missing": PathError, "empty": ConfigError, "not read": PWGFError}
    status = next(word for word, kind in kinds.items() if isinstance(error, kind))
    return Line(path, status, message=str(error))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells runs apart: scheme, problem, seed, last time; energy and reference only where no problem has them."""
    found = flatten({"scheme": config["scheme"], "problem": config.get("problem") or {}, "seed": config["seed"]})
    if config.get("problem"):
        found = {key: v for key, v in found.items() if not key.startswith(("scheme.energy.", "scheme.reference."))}
    return found | {"end_time": config["times"][-1], "num_rows": len(config["times"])}


def differing(found: Sequence[Line]) -> dict[str, str]:
    """Names of the settings in which runs differ, as the options have them, by their full names.

    A setting that some runs lack makes a difference between members of one name, as between two runs of PWGF; between
    members of other names the names tell enough.
    """
    read = [line.settings for line in found if line.settings]
    full = dict.fromkeys(key for settings in read for key in settings)
    kept = [key for key in full if _differs(key, read)]
    short = {key: key.removesuffix(".name").removeprefix("scheme.").removeprefix("problem.") for key in kept}
    names = list(short.values())
    return {key: name if names.count(name) == 1 else key for key, name in short.items()}


def _differs(key: str, read: Sequence[Mapping[str, Any]]) -> bool:
    having = [settings for settings in read if key in settings]
    named = f"{key.rpartition('.')[0]}.name"
    like_these = [settings for settings in read if settings.get(named) in [one.get(named) for one in having]]
    return len({repr(settings[key]) for settings in having}) > 1 or (
        len(like_these) > len(having) and any(settings[key] is not None for settings in having)
    )


def markdown(found: Sequence[Line]) -> list[str]:
    """The table as Markdown, with messages below it."""
    settings = differing(found)
    used = [k for k, name in enumerate(_MEASURED) if any(line.values.get(name) is not None for line in found)]
    head = ["run", *settings.values(), *(_HEADS[k] for k in used), "status"]
    rows = [
        [
            os.path.basename(line.name),
            *(_shown(line.settings.get(key)) for key in settings),
            *(_figure(_MEASURED[k], line.values.get(_MEASURED[k])) for k in used),
            line.status,
        ]
        for line in found
    ]
    below = [f"{line.status.capitalize()}: {line.name}: {line.message}" for line in found if line.message]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], *([""] if below else []), *below]


def _shown(value: Any) -> str:
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 20 else text[:19] + "…"


def _figure(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.5g}" if name == "energy" else f"{value:.1f}" if name == "cpu_seconds" else f"{value:.1e}"


def comma_separated(found: Sequence[Line]) -> list[str]:
    """The table as CSV, empty where nothing is known."""
    settings = differing(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *settings.values(), *_MEASURED, "status", "message"])
    for line in found:
        own = [line.settings.get(key) for key in settings]
        measured = [plain(line.values.get(name)) for name in _MEASURED]
        writer.writerow([line.name, *own, *measured, line.status, line.message])
    return text.getvalue().splitlines()
