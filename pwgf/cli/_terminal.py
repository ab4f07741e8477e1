"""What the commands print: no control character of a file's reaches the terminal, and no letter is beyond it."""

from __future__ import annotations

import contextlib
import sys

from ..errors import printable


def say(line: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or stderr; letters that the stream's encoding lacks are written out.

    Whoever reads may have gone, or there may be no stream at all; then there is nobody to tell.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    with contextlib.suppress(BrokenPipeError):
        print(text, file=stream, flush=True)
