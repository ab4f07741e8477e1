"""Progress of a long run: a bar on a terminal or in a notebook, a plain line every 30 seconds elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from tqdm.auto import tqdm

_INTERVAL = 30.0  # seconds between plain lines


def _in_notebook() -> bool:
    """Whether `tqdm.auto` draws widgets."""
    return any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)


class Progress:
    """Shows how far t has come; everything shown is also stored in the rows.

    Args:
        first, last: times of the run.
        show: True, False, or None to show unless `PWGF_PROGRESS=0` is set.
    """

    def __init__(self, first: float, last: float, show: bool | None = None) -> None:
        wanted = os.environ.get("PWGF_PROGRESS", "1") != "0" if show is None else show
        self._first = first
        self._last = last
        self._said = time.monotonic()
        self._plain = False
        self._bar = None
        with self._perhaps_unheard():
            widget = _in_notebook()
            self._plain = wanted and not widget and not sys.stderr.isatty()
            if wanted and not self._plain:
                layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
                self._bar = tqdm(
                    total=last - first, bar_format=layout, file=None if widget else sys.stderr, leave=False
                )

    @contextlib.contextmanager
    def _perhaps_unheard(self) -> Iterator[None]:
        """Where stderr is missing, closed, full or a broken pipe, nothing more is shown, and the run goes on."""
        try:
            yield
        except (AttributeError, OSError, ValueError):
            self._plain, self._bar = False, None

    def update(self, t: float, **figures: float) -> None:
        """The run has reached t."""
        shown = ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
        with self._perhaps_unheard():
            if self._bar is not None:
                self._bar.n = t - self._first
                self._bar.set_postfix_str(f"t {t:.4g}, {shown}")
            elif self._plain and time.monotonic() - self._said >= _INTERVAL:
                self._said = time.monotonic()
                sys.stderr.write(f"pwgf: t = {t:.4g} of {self._last:g}, {shown}\n")
                sys.stderr.flush()

    def close(self) -> None:
        """Removes the bar."""
        with self._perhaps_unheard():
            if self._bar is not None:
                self._bar.close()
