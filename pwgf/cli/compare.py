"""The command `pwgf compare`: one problem through several methods, as a table, a file and a figure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from .. import problems
from ..errors import ConfigError
from ..parallel import world
from ..plots import compare as compare_plots
from ..study.compare import compare, named
from ._terminal import say as to_terminal


@dataclass(frozen=True)
class Compare:
    """Solve one problem by several methods and print their errors, CPU seconds and failures side by side."""

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
    """ornstein-uhlenbeck, styblinski-tang, barenblatt or aggregation"""
    methods: str = "pwgf,sw-jko,particles"
    """names with commas between them; an unknown one lists them all"""
    dims: str = "2"
    """dimensions with commas between them"""
    times: str | None = None
    """times to store and score, from the start on, with commas (None: five over the problem's own range)"""
    seeds: str = "0"
    """seeds of the runs with commas between them"""
    num_samples: int = 10_000
    """samples of each law behind densities and moments; particles use what they have"""
    out: str | None = None
    """HDF5 file of the table (None: results/compare-PROBLEM.h5); the figure goes beside it as .png"""
    runs: str | None = None
    """folder for the runs themselves; those that are there already are not repeated"""
    overwrite: bool = False
    """replace the table at --out"""

    def perform(self) -> int:
        """Compares, prints the table and draws the figure; exit status 0 also where members failed."""
        methods = named(part.strip() for part in self.methods.split(","))
        members = [problems.find(self.problem, "pwgf compare", dim=dim) for dim in integers(self.dims, "--dims")]
        out = self.out or f"results/compare-{self.problem.lower()}.h5"
        times = None if self.times is None else numbers(self.times, "--times")
        table = compare(
            members, methods, times=times, seeds=integers(self.seeds, "--seeds"), num_samples=self.num_samples,
            out=out, overwrite=self.overwrite, runs=self.runs, tell=say,
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
