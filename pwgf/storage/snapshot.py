"""Snapshot: the files of a run at one moment, consistent also while a writer replaces them."""

from __future__ import annotations

import bisect
import os
import time
from dataclasses import dataclass

import pwgf.storage.lock as lock
import pwgf.storage.manifest as manifests
from pwgf.errors import PathError, StorageError
from pwgf.storage.guard import refused
from pwgf.storage.manifest import ENDED, STATUSES, Manifest, Part, parts_of
from pwgf.storage.pieces import Piece
from pwgf.storage.schema import Header

RETRIES = 200


@dataclass(frozen=True)
class Span:
    """Rows first … last−1 of the run and their file, identified by its hash: held open, or a part that is not."""

    first: int
    last: int
    part: Part
    held: Piece | None = None

    @property
    def key(self) -> str:
        """The hash of the file."""
        return self.part.sha256


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Args:
        header: the data known before the first row.
        run_id, created, schema, status: see `Record`.
        serial: number of publications so far.
        spans: where the rows lie, in order. A closed segment stays until the run is packed; the packed file and the
            newest segment may be replaced at any time, so they are held open.
        restart: the piece with the restart state, held open; None when there is none.
        manifest: the manifest; None for a packed file.
        content_sha256: of a packed file, else "".
    """

    header: Header
    run_id: str
    created: str
    schema: str
    status: str
    serial: int
    spans: tuple[Span, ...]
    restart: Piece | None
    manifest: Manifest | None
    content_sha256: str = ""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.spans[-1].last if self.spans else 0

    def span(self, row: int) -> Span:
        """The span with `row`."""
        return self.spans[bisect.bisect_right(self.spans, row, key=lambda span: span.first) - 1]

    def close(self) -> None:
        """Closes the files that are held open."""
        for piece in (self.restart, *(span.held for span in self.spans)):
            if piece is not None:
                piece.close()


def take(path: str) -> Snapshot:
    """The run at `path` now.

    Args:
        path: of the run.

    Returns:
        The packed file, or the parts where these are newer.

    Raises:
        PathError: nothing is there, or a folder.
        SchemaError: foreign, damaged, hostile, or of a newer major schema.
        StorageError: it cannot be read, or changes faster than it can be read.
    """
    before = b""
    for attempt in range(RETRIES):
        found = manifests.read(path)  # first: when a run is finished, the packed file exists before this one is removed
        packed = _open_packed(path)
        if found is None:
            if packed is not None:
                return of_packed(packed)
            raise PathError(f"opening {path!r}: no such file; expected a run. Check the path given as out=….")
        manifest, data = found
        if packed is not None and packed_counts(packed, manifest):
            return of_packed(packed)
        try:
            return of_parts(path, manifest, packed)
        except FileNotFoundError as error:  # replaced while we read; a part missing from an unchanged run is damage
            if data == before:
                raise refused(path, f"a part that its manifest names is missing ({error})") from error
            before = data
        time.sleep(0.001 * attempt)
    raise StorageError(f"opening {path!r}: it changed {RETRIES} times while it was opened. Open it again.")


def _open_packed(path: str) -> Piece | None:
    try:
        return Piece.packed(path)
    except FileNotFoundError:
        return None


def packed_counts(packed: Piece, manifest: Manifest) -> bool:
    """Whether the packed file counts, and not the parts. Parts of another run count from their first row on."""
    if packed.text("run_id") != manifest.run_id:
        return manifest.rows == 0
    return packed.number("serial") >= manifest.serial


def status_of(path: str, manifest: Manifest) -> str:
    """The status of a run in parts: that of its manifest, or "killed" if that says running and no process writes."""
    alive = manifest.status != "running" or lock.holder_alive(os.path.join(parts_of(path), lock.NAME))
    return manifest.status if alive else "killed"


def check_header(header: Piece, manifest: Manifest) -> None:
    """SchemaError unless the header is of the sizes that the manifest gives."""
    if (header.number("dim"), header.number("num_params")) != (manifest.dim, manifest.num_params):
        raise refused(header.path, "it has another dim or num_params than the manifest")


def of_packed(piece: Piece) -> Snapshot:
    """The snapshot of a packed file."""
    span = Span(0, piece.rows, Part(piece.path, piece.text("content_sha256"), piece.rows), piece)
    text = piece.text
    if text("status") not in (*STATUSES, *ENDED):
        raise refused(piece.path, f"its status is {text('status')[:40]!r}")
    return Snapshot(
        piece.header(),
        text("run_id"),
        text("created"),
        text("pwgf_schema"),
        text("status"),
        piece.number("serial"),
        (span,) if piece.rows else (),
        piece,
        None,
        text("content_sha256"),
    )


def of_parts(path: str, manifest: Manifest, packed: Piece | None) -> Snapshot:
    """The snapshot of a run in parts; FileNotFoundError when a part vanished."""
    folder, spans = parts_of(path), []
    header = Piece.part(folder, manifest.header, "header", manifest.run_id)
    check_header(header, manifest)
    if manifest.base_rows:
        if packed is None or packed.text("content_sha256") != manifest.base_sha256:
            raise FileNotFoundError(f"the packed file of {manifest.base_rows} rows that the run continues")
        spans.append(Span(0, manifest.base_rows, Part(path, manifest.base_sha256, manifest.base_rows), packed))
    for part in manifest.segments:
        first = spans[-1].last if spans else 0
        newest = part is manifest.segments[-1]
        held = Piece.part(folder, part, "rows", manifest.run_id) if newest else None
        spans.append(Span(first, first + part.rows, part, held))
    restart = packed if manifest.base_rows else None
    if manifest.restart is not None:
        kind = "restart" if manifest.restart.file.startswith("restart") else "rows"
        restart = Piece.part(folder, manifest.restart, kind, manifest.run_id)
    return Snapshot(
        header.header(),
        manifest.run_id,
        manifest.created,
        header.text("pwgf_schema"),
        status_of(path, manifest),
        manifest.serial,
        tuple(spans),
        restart,
        manifest,
    )
