"""Doctor: the damage of a run on disk, its good rows, and a copy of those."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import pwgf.storage.manifest as manifests
from pwgf.errors import PathError, SchemaError
from pwgf.storage.disk import Disk
from pwgf.storage.guard import checked_path, refused
from pwgf.storage.lock import make_folder
from pwgf.storage.manifest import Manifest, Part, parts_of
from pwgf.storage.packing import write_packed
from pwgf.storage.pieces import Piece
from pwgf.storage.reader import Record
from pwgf.storage.snapshot import RETRIES, Snapshot, Span, check_header, of_packed, packed_counts, status_of
from pwgf.storage.writer import refuse_existing


@dataclass(frozen=True)
class Health:
    """The result of an examination.

    Args:
        path: of the run, absolute.
        status: as in `Record`; "unreadable" if not even the header is valid.
        stored: number of rows according to the run.
        problems: what is wrong, one line each; () for a good run.
        good: the rows before the first damaged one, without damaged columns; None when there are none.
    """

    path: str
    status: str
    stored: int
    problems: tuple[str, ...]
    good: Record | None

    @property
    def rows(self) -> int:
        """Number of good rows."""
        return 0 if self.good is None else len(self.good)

    @property
    def resumable(self) -> bool:
        """Whether there is a state that continues the good rows."""
        return self.good is not None and bool(self.good.restart())


def examine(path: str | os.PathLike) -> Health:
    """Reads and hashes everything that a run has on disk; changes nothing and disturbs no writer.

    A part is good when its bytes match the sha256 in the manifest. In a packed file a column is good when it matches
    its own sha256; if θ as a whole does not, a row is good when its chunk matches its fletcher32.

    Args:
        path: of the run.

    Returns:
        What was found.

    Raises:
        PathError: nothing is there, or a folder.
    """
    path = checked_path(path, "examine(path)")
    for _ in range(RETRIES):
        before = _manifest_bytes(path)
        health = _examine(path)
        if not health.problems or before == _manifest_bytes(path):  # else a writer replaced parts meanwhile
            break
    return health


def _manifest_bytes(path: str) -> bytes | None:
    try:
        found = manifests.read(path)
    except SchemaError:
        return b""
    return None if found is None else found[1]


def _examine(path: str) -> Health:
    problems: list[str] = []
    try:
        found, packed = manifests.read(path), _packed(path, problems)
        if packed is not None and (found is None or packed_counts(packed, found[0])):
            return _examine_packed(path, packed, problems)
        if found is not None:
            return _examine_parts(path, found[0], packed, problems)
        if not problems:
            raise PathError(f"examining {path!r}: no such file; expected a run. Check the path given as out=….")
        return Health(path, "unreadable", 0, tuple(problems), None)
    except SchemaError as error:  # a manifest or a header, without which nothing can be read
        return Health(path, "unreadable", 0, (*problems, str(error)), None)


def salvage(path: str | os.PathLike, out: str | os.PathLike) -> Health:
    """Copies the good rows of a damaged run into a new packed file; the old one is not changed.

    The copy has the state to continue from when that belongs to its last row; its status is "salvaged", or "complete"
    when nothing was wrong.

    Args:
        path: of the run.
        out: file to make; its folder is made where that is missing.

    Returns:
        What was found at `path`; its `rows` were copied.

    Raises:
        PathError: nothing at `path`, or something at `out`.
        SchemaError: not one row is good.
        StorageError: the disk refused.
    """
    target, disk = checked_path(out, "salvage(out)"), Disk()
    refuse_existing(target)
    health = examine(path)
    if health.good is None:
        raise refused(health.path, f"not one row is good ({'; '.join(health.problems) or 'it has none'})")
    whole = not health.problems and health.status == "complete"
    _copy(health.good, target, "complete" if whole else "salvaged", disk)
    return health


def _copy(record: Record, target: str, status: str, disk: Disk) -> None:
    folder = os.path.dirname(target)
    try:
        if not os.path.isdir(folder):
            make_folder(disk, folder)
    except OSError as error:
        raise PathError(
            f"writing {target!r}: expected a place where files can be made; {error}. Give another path."
        ) from error
    write_packed(record, target, status, disk)


def _packed(path: str, problems: list[str]) -> Piece | None:
    """The packed file; None if there is none, or if it is not valid, which is noted."""
    try:
        return Piece.packed(path)
    except FileNotFoundError:
        return None
    except SchemaError as error:
        problems.append(str(error))
        return None


def _examine_packed(path: str, packed: Piece, problems: list[str]) -> Health:
    now = of_packed(packed)
    rows, names = _good_rows(packed, problems)
    restart = packed if rows == now.rows and _restart_of(packed, problems) else None
    if any(name.startswith("result/") for name in packed.problems_by_name()):
        now = dataclasses.replace(now, header=dataclasses.replace(now.header, result={}))
    spans = (Span(0, rows, now.spans[0].part, packed),) if rows else ()
    return _health(path, now.status, now.rows, problems, dataclasses.replace(now, spans=spans, restart=restart), names)


def _examine_parts(path: str, manifest: Manifest, packed: Piece | None, problems: list[str]) -> Health:
    folder = parts_of(path)
    header = _part(folder, manifest.header, "header", manifest.run_id, problems)
    status = status_of(path, manifest)
    if header is None:
        return Health(path, "unreadable", manifest.rows, tuple(problems), None)
    check_header(header, manifest)
    spans, names, last = list[Span](), None, None  # last: the piece with the state after the last good row
    rows = 0
    if manifest.base_rows:
        if packed is None or packed.text("content_sha256") != manifest.base_sha256:
            problems.append(f"{path!r}: the packed file with the first {manifest.base_rows} rows is missing or damaged")
            return _health(path, status, manifest.rows, problems, None, names)
        rows, names = _good_rows(packed, problems)
        last = packed if rows == manifest.base_rows else None
        spans += [Span(0, rows, Part(path, manifest.base_sha256, rows), packed)] if rows else []
    broken = rows < manifest.base_rows
    for part in manifest.segments:
        piece = _part(folder, part, "rows", manifest.run_id, problems)  # also behind the first damage, to report it
        wrong = [] if piece is None else piece.possible_rows()[1]
        problems += wrong
        broken = broken or piece is None or bool(wrong)
        if piece is not None and not broken:
            spans.append(Span(rows, rows + part.rows, part))
            rows, last = rows + part.rows, piece
    if not broken and manifest.restart is not None and manifest.restart.file.startswith("restart"):
        last = _part(folder, manifest.restart, "restart", manifest.run_id, problems) or last
    restart = last if last is not None and _restart_of(last, problems) else None
    now = Snapshot(
        header.header(), manifest.run_id, manifest.created, header.text("pwgf_schema"), status, manifest.serial,
        tuple(spans), restart, manifest,
    )  # fmt: skip
    return _health(path, status, manifest.rows, problems, now, names)


def _health(
    path: str, status: str, stored: int, problems: list[str], now: Snapshot | None, names: tuple[str, ...] | None
) -> Health:
    good = None if now is None or not now.rows else Record(path, now)
    if good is not None and now is not None and names is not None and names != good.names:
        good = Record(path, dataclasses.replace(now, restart=None))  # a longer run needs all its columns
        good.names = names
    try:
        if good is not None:
            good.column("t")
    except SchemaError as error:
        problems.append(str(error))
        good = None
    return Health(path, status, stored, tuple(problems), good)


def _part(folder: str, part: Part, kind: str, run_id: str, problems: list[str]) -> Piece | None:
    try:
        return Piece.part(folder, part, kind, run_id)
    except FileNotFoundError:
        problems.append(f"{os.path.join(folder, part.file)!r} is missing")
    except SchemaError as error:
        problems.append(str(error))
    return None


def _restart_of(piece: Piece, problems: list[str]) -> bool:
    """Whether the piece has a readable state to continue from."""
    try:
        return bool(piece.values("restart"))
    except SchemaError as error:
        problems.append(str(error))
        return False


def _good_rows(packed: Piece, problems: list[str]) -> tuple[int, tuple[str, ...]]:
    """Number of rows of a packed file before the first damaged one, and its good columns."""
    found = packed.problems_by_name()
    problems += found.values()
    names = tuple(name for name in packed.column_names if name not in found)
    if "t" in found:
        return 0, names
    rows = packed.rows
    for name in packed.shapes:
        if name in found:
            first = next((k for k in range(rows) if not _readable(packed, name, k)), 0)  # 0: it is unknown where
            rows = min(rows, first)
    if "theta" not in found:
        possible, wrong = packed.possible_rows()
        rows = min(rows, possible)
        problems += wrong
    return rows, names


def _readable(packed: Piece, name: str, k: int) -> bool:
    try:
        packed.vectors(name, k, k + 1)
    except SchemaError:
        return False
    return True
