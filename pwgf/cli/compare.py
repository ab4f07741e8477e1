"""The command `pwgf compare`: one problem through several methods, as a table, a file and a figure."""

from __future__ import annotations

import os

from .. import problems
from ..errors import ConfigError
from ..parallel import world
from ..plots import compare as compare_plots
from ..schemes import names_for
from ..study.compare import compare, named
from ._terminal import say as to_terminal
from .settings import Compare

_USUAL = ("pwgf", "sw-jko", "particles")


def perform(settings: Compare) -> int:
    """Compares, prints the table and draws the figure; exit status 0 also where members failed."""
    members = [problems.find(settings.problem, "pwgf compare", dim=dim) for dim in integers(settings.dims, "--dims")]
    usual = _USUAL if members[0].flow == "gradient" else names_for(members[0].flow)
    given = usual if settings.methods is None else settings.methods.split(",")
    methods = named(part.strip() for part in given)
    out = settings.out or f"results/compare-{settings.problem.lower()}.h5"
    times = None if settings.times is None else numbers(settings.times, "--times")
    table = compare(
        members, methods, times=times, seeds=integers(settings.seeds, "--seeds"), num_samples=settings.num_samples,
        out=out, overwrite=settings.overwrite, runs=settings.runs, tell=say,
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
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"pwgf compare {option} needs integers with commas between them; got {text!r}.") from error
    if min(found) < 0:
        raise ConfigError(f"pwgf compare {option} needs integers ≥ 0; got {text!r}.")
    return found


def numbers(text: str, option: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"pwgf compare {option} needs numbers with commas between them; got {text!r}.") from error
