"""The command line: reads the arguments, and has the module of that command perform it.

Those modules are imported once the arguments are read, so that help and the version need no torch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from .._version import __version__
from ..errors import PWGFError
from ._options import Given, as_options, split
from ._terminal import output, say
from .settings import Animate, Command, Compare, Doctor, Export, Info, Options, Pack, Plot, Run, Sweep, Table

_OPEN: dict[str, type] = {
    "run": Run,
    "compare": Compare,
    "sweep": Sweep,
}  # take options of what is chosen by name as well


def main(argv: Sequence[str] | None = None) -> int:
    """The command `pwgf`.

    Args:
        argv: arguments without the program's name; None means those of the process.

    Returns:
        The exit status: 0; 1 for damage found by `pwgf doctor` or `pwgf table`, and for a sweep whose runs are not
        all complete; 2 for an error that the user can cure, told on stderr; 130 after an interrupt.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with output() as out:
        try:
            status = _answer(arguments)
        except SystemExit:  # after help, or options that do not exist
            out.flush()
            if out.failure is None:
                raise
            status = 2
    if out.failure is None:
        return status
    files = " What the command stores is complete." if status == 0 else ""
    say(f"pwgf: error: standard output could not be written: {out.failure}. Redirect it.{files}", error=True)
    return status or 2


def _answer(arguments: list[str]) -> int:
    """The exit status of a command line."""
    if arguments == ["--version"]:
        say(f"pwgf {__version__}")
        return 0
    about = "Wasserstein gradient flows in any dimension, without a grid. `pwgf --version` prints the version."
    config = (tyro.conf.FlagCreatePairsOff,)
    kind = _OPEN.get(arguments[0]) if arguments else None
    own = [field.name for field in dataclasses.fields(kind) if field.name != "given"] if kind else []
    try:
        given: Given = {}
        if kind is not None:
            arguments[1:], given = split(arguments[1:], own, several=kind is Sweep)
        command: Any = tyro.cli(Command, prog="pwgf", description=about, args=arguments, config=config)
        return _perform(dataclasses.replace(command, given=given) if given else command)
    except PWGFError as error:
        names = [*own, *(field.name for field in dataclasses.fields(Run))]
        say(f"pwgf: error: {as_options(str(error), dict(zip(names, names, strict=True)))}", error=True)
        return 2
    except KeyboardInterrupt:
        say("pwgf: interrupted; pwgf run goes on with --resume, pwgf sweep with the same command", error=True)
        return 130


def _perform(command: Any) -> int:
    """The exit status of a command, given its settings."""
    from .compare import perform as compare  # not above: these import torch
    from .files import doctor, pack
    from .members import options
    from .pictures import animate, export, plot
    from .report import info
    from .run import perform as run
    from .sweep import perform as sweep
    from .table import table

    performers: dict[type, Callable[[Any], int]] = {
        Run: run,
        Info: info,
        Plot: plot,
        Animate: animate,
        Export: export,
        Compare: compare,
        Table: table,
        Sweep: sweep,
        Pack: pack,
        Doctor: doctor,
        Options: options,
    }
    return performers[type(command)](command)
