"""The commands that look after a run's file: `pwgf pack` and `pwgf doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .. import storage
from ._terminal import say


@dataclass(frozen=True)
class Pack:
    """Make one file of a run that was killed, failed or interrupted; it can still be resumed."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """what was given as out; its parts go once the file is written and checked"""

    def perform(self) -> int:
        """Packs and says what is there now; exit status 0."""
        with storage.open_record(storage.pack(self.file)) as record:
            say(f"{self.file}: one file, {len(record)} rows, {record.status}")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Read and hash all of a run, say what is damaged and how many rows are good; exit status 1 for damage."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """what was given as out; nothing in it is changed"""
    salvage: str | None = None
    """copy the good rows, up to the first damaged one, to this new file"""

    def perform(self) -> int:
        """Examines, and salvages when asked to; exit status 1 for damage that was not salvaged."""
        found = storage.examine(self.file) if self.salvage is None else storage.salvage(self.file, self.salvage)
        say(f"{self.file}: {found.status}")
        say(f"Rows: {found.rows} of {found.stored} are good{_span(found)}")
        for problem in found.problems:
            say(f"Damage: {problem}")
        say(f"Can be resumed after its good rows: {'yes' if found.resumable else 'no'}")
        if self.salvage is not None:
            say(f"Salvaged: {self.salvage}, {found.rows} rows")
        elif found.problems:
            say(f"Cure: pwgf doctor {self.file} --salvage OUT copies the good rows", error=True)
            return 1
        return 0


def _span(found: storage.Health) -> str:
    """The times of the good rows."""
    if found.good is None:
        return ""
    t = found.good.column("t")
    return f", from t = {t[0]:g} to {t[-1]:g}"
