"""What the commands print: no control character of a file's reaches the terminal, and no letter is beyond it."""

from __future__ import annotations

import io
import sys

from ..errors import printable

_lost: list[OSError] = []  # why lines did not reach stdout


def begin() -> None:
    """Lets stdout and stderr write out letters that their encoding lacks, also those of the help texts."""
    _lost.clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or stderr; letters that the stream's encoding lacks are written out.

    Whoever reads may have gone, or there may be no stream at all; then nobody can be told. A full disk ends no run:
    `end` reports it.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        pass
    except OSError as failure:
        if not error:
            _lost.append(failure)


def end(status: int) -> int:
    """The exit status of a command that ends with this one; 2, told on stderr, where lines of its output are lost."""
    if not _lost:
        return status
    say(
        f"pwgf: error: standard output could not be written: {_lost[0]}. Redirect it; the files are complete.",
        error=True,
    )
    return status or 2
