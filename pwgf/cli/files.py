"""The commands that look after a run's file: `pwgf pack` and `pwgf doctor`."""

from __future__ import annotations

from .. import storage
from ._terminal import say
from .settings import Doctor, Pack


def pack(settings: Pack) -> int:
    """Packs and says what is there now; exit status 0."""
    with storage.open_record(storage.pack(settings.file)) as record:
        say(f"{settings.file}: one file, {len(record)} rows, {record.status}")
    return 0


def doctor(settings: Doctor) -> int:
    """Examines, and salvages when asked to; exit status 1 for damage that was not salvaged."""
    found = (
        storage.examine(settings.file) if settings.salvage is None else storage.salvage(settings.file, settings.salvage)
    )
    say(f"{settings.file}: {found.status}")
    say(f"Rows: {found.rows} of {found.stored} are good{_span(found)}")
    for problem in found.problems:
        say(f"Damage: {problem}")
    say(f"Can be resumed after its good rows: {'yes' if found.resumable else 'no'}")
    if settings.salvage is not None:
        say(f"Salvaged: {settings.salvage}, {found.rows} rows")
    elif found.problems:
        say(f"Cure: pwgf doctor {settings.file} --salvage OUT copies the good rows", error=True)
        return 1
    return 0


def _span(found: storage.Health) -> str:
    """The times of the good rows."""
    if found.good is None:
        return ""
    t = found.good.column("t")
    return f", from t = {t[0]:g} to {t[-1]:g}"
