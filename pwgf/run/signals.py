"""SIGINT and SIGTERM as a flag that a long run checks after every step and every stored row."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


def _say(line: str) -> None:
    """Answers at once, also amid a write to the same stream, which refuses another one then."""
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError, RuntimeError):
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


class Signals:
    """Turns SIGINT and SIGTERM into a flag for the duration of a `with` block; a second one takes effect at once.

    The first is answered on stderr.

    `number` is the signal received, 0 before. Outside the main thread, where Python allows no handlers, it stays 0. A
    signal that has not been handled takes effect when the block ends. A handler that was not set from Python is left
    alone, because it could not be put back.
    """

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            self.act(number)
        self.number = number
        _say("pwgf: stopping after this step; again stops now\n")

    @staticmethod
    def act(number: int) -> None:
        """Raises the exception that belongs to a signal; nothing for 0."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if kind is None:
            self.act(self.number)
