"""The command line: reads the arguments, and has the module of that command perform it.

Those modules are imported once the arguments are read, so that help, the version and a misspelt option need no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from .._version import __version__
from ..errors import PWGFError
from ._terminal import say
from .settings import Animate, Command, Compare, Doctor, Export, Info, Pack, Plot, Run


def main(argv: Sequence[str] | None = None) -> int:
    """The command `pwgf`.

    Args:
        argv: arguments without the program's name; None means those of the process.

    Returns:
        The exit status: 0; 1 for damage found by `pwgf doctor`; 2 for an error that the user can cure, told on
        stderr; 130 after an interrupt.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        say(f"pwgf {__version__}")
        return 0
    about = "Wasserstein gradient flows in any dimension, without a grid. `pwgf --version` prints the version."
    config = (tyro.conf.FlagCreatePairsOff,)
    command: Any = tyro.cli(Command, prog="pwgf", description=about, args=arguments, config=config)
    try:
        return _perform(command)
    except PWGFError as error:
        say(f"pwgf: error: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("pwgf: interrupted; a run goes on with the same command and --resume", error=True)
        return 130


def _perform(command: Any) -> int:
    """The exit status of a command, given its settings."""
    from .compare import perform as compare  # not above: these import torch
    from .files import doctor, pack
    from .pictures import animate, export, plot
    from .report import info
    from .run import perform as run

    performers: dict[type, Callable[[Any], int]] = {
        Run: run,
        Info: info,
        Plot: plot,
        Animate: animate,
        Export: export,
        Compare: compare,
        Pack: pack,
        Doctor: doctor,
    }
    return performers[type(command)](command)
