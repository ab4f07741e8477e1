"""What the commands print: no control character of a file's reaches the terminal, and no letter is beyond it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from ..errors import printable


class Output:
    """Standard output whose errors end no command: a full disk is kept in `failure`, a reader that has gone is ignored.

    Args:
        stream: what it writes to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes the text as far as that can be done."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each of the lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hands on what is buffered."""
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        try:
            action(self._stream)
        except BrokenPipeError:
            pass
        except OSError as failure:
            self.failure = self.failure or failure

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def output() -> Iterator[Output]:
    """Puts an `Output` in the place of stdout, of which a process has one: commands do not run in several threads.

    It and stderr write out letters that their encoding lacks.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(Output(io.StringIO() if sys.stdout is None else sys.stdout)) as found:
        yield found


def say(line: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or stderr; letters that the stream's encoding lacks are written out."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(OSError):  # of stderr: then nobody can be told
        print(text, file=stream, flush=True)
