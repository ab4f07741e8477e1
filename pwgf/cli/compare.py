"""The command `pwgf compare`: one problem through several methods, as a table, a file and a figure."""

from __future__ import annotations

import dataclasses
import os

from ..errors import ConfigError
from ..parallel import world
from ..plots import compare as compare_plots
from ..problems import Problem
from ..schemes import names_for
from ..study.compare import compare, named
from ._options import check_prefixes, numbers
from ._own import posed
from ._terminal import say as to_terminal
from .settings import Compare

_CALL = "pwgf compare"
_USUAL = ("pwgf", "sw-jko", "particles")
_OWN = tuple(field.name for field in dataclasses.fields(Compare) if field.name != "given")


def perform(settings: Compare) -> int:
    """Compares, prints the table and draws the figure; exit status 0 also where members failed."""
    check_prefixes(settings.given, ["problem"], _CALL)
    dims = [None] if settings.dims is None else integers(settings.dims, "--dims")
    found = [posed(settings.problem, settings.given, dim, _CALL, beside=_OWN) for dim in dims]
    if not isinstance(found[0].problem, Problem):
        raise ConfigError(
            f"{_CALL} {settings.problem} needs a problem whose exact law is known, to which methods can be compared: a "
            "class that derives from pwgf.problems.Problem. Without one, use pwgf run --scheme."
        )
    usual = _USUAL if found[0].flow == "gradient" else names_for(found[0].flow)
    given = usual if settings.methods is None else settings.methods.split(",")
    methods = named(part.strip() for part in given)
    out = settings.out or f"results/compare-{found[0].name}.h5"
    times = None if settings.times is None else numbers(settings.times, float, f"{_CALL} --times")
    table = compare(
        [one.problem for one in found], methods, times=times, seeds=integers(settings.seeds, "--seeds"),
        num_samples=settings.num_samples, out=out, overwrite=settings.overwrite, runs=settings.runs, tell=say,
    )  # fmt: skip
    say("")
    for line in table.lines():
        to_terminal(line)
    picture = os.path.splitext(out)[0] + ".png"
    say(f"Written to {out}")
    if world().rank == 0:
        say(f"Drawn: {compare_plots.save(out, picture)}")
    return 0


def say(line: str) -> None:
    """Prints a line; one process of several does."""
    if world().rank == 0:
        to_terminal(line)


def integers(text: str, option: str) -> list[int]:
    """Integers ≥ 0 with commas between them."""
    found = numbers(text, int, f"{_CALL} {option}")
    if min(found) < 0:
        raise ConfigError(f"{_CALL} {option} needs integers ≥ 0; got {text!r}.")
    return found
