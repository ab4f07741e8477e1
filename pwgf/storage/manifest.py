"""Manifest: the one small file that names the parts of a run; replacing it publishes them.

Parts are written under new names first and the manifest last, so that every manifest names complete files that exist.
The parts it no longer names are removed afterwards; a reader that still needs one reads the manifest again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass

from pwgf._version import __version__
from pwgf.errors import SchemaError
from pwgf.storage.guard import open_stored, refused
from pwgf.storage.schema import SCHEMA, load_json

NAME = "manifest.json"
PART = re.compile(r"(header|restart)-\d{6,12}\.h5|seg-\d{6,12}-\d{6,12}\.h5")
STATUSES = ("running", "failed", "interrupted", "complete")
ENDED = ("killed", "salvaged")  # which no manifest says of itself
MAX_BYTES = 16 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """One file of a run: its name, the sha256 of its bytes and, for a segment, its rows."""

    file: str
    sha256: str
    rows: int = 0


@dataclass(frozen=True)
class Manifest:
    """Which parts make the run.

    Args:
        run_id, created: identity and UTC time of the run.
        status: "running", "failed", "interrupted" or "complete".
        serial: number of publications; later ones are greater, also across resumes.
        dim, num_params: d and p.
        config_sha256: of the JSON text of the config.
        header: the part with the header.
        segments: the parts with rows, in order of time.
        restart: the part with the newest restart state; None when there is none, or when the base has it.
        base_rows, base_sha256: rows and content_sha256 of the packed file that this run continues, else 0 and "".
    """

    run_id: str
    created: str
    status: str
    serial: int
    dim: int
    num_params: int
    config_sha256: str
    header: Part
    segments: tuple[Part, ...] = ()
    restart: Part | None = None
    base_rows: int = 0
    base_sha256: str = ""

    @property
    def rows(self) -> int:
        """Number of rows of the run."""
        return self.base_rows + sum(segment.rows for segment in self.segments)

    def files(self) -> set[str]:
        """Names of all parts."""
        return {part.file for part in (self.header, self.restart, *self.segments) if part is not None}

    def encode(self) -> bytes:
        """JSON with its own sha256."""
        body = {"schema": SCHEMA, "pwgf_version": __version__, **dataclasses.asdict(self)}
        return json.dumps({"sha256": _digest(body), **body}, indent=1).encode()


def decode(data: bytes, path: str) -> Manifest:
    """The manifest in `data`; SchemaError where it is damaged, foreign or of a newer major schema."""
    try:
        body = load_json(data)
        digest = body.pop("sha256")
        schema, version = str(body.pop("schema")), body.pop("pwgf_version")
        if int(schema.split(".")[0]) > int(SCHEMA.split(".")[0]):
            raise SchemaError(
                f"opening {path!r}: it has schema {schema[:40]}, and pwgf {__version__} reads schemas up to "
                f"{SCHEMA[0]}.x. It was written by pwgf {str(version)[:40]}: install that version or a newer one."
            )
        if digest != _digest({"schema": schema, "pwgf_version": version, **body}):
            raise refused(path, "it does not match its own sha256")
        known = {field.name for field in dataclasses.fields(Manifest)}
        values = {name: value for name, value in body.items() if name in known}  # a later minor schema may add some
        values["header"] = _part(values["header"])
        values["segments"] = tuple(_part(segment) for segment in values["segments"])
        values["restart"] = None if values["restart"] is None else _part(values["restart"])
        manifest = Manifest(**values)
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, SchemaError):
            raise
        raise refused(path, f"it is not a manifest ({type(error).__name__}: {error})") from error
    return manifest


def _part(values: dict) -> Part:
    part = Part(values["file"], values["sha256"], values["rows"])
    if not PART.fullmatch(part.file):  # a manifest may name no file outside its own folder
        raise ValueError(f"{part.file!r} is not the name of a part")
    if not SHA256.fullmatch(part.sha256) or not is_count(part.rows):
        raise ValueError(f"impossible values of {part.file!r}")
    return part


def _check(manifest: Manifest) -> None:
    """ValueError or TypeError unless every value has its type and range, and no part is named twice."""
    if manifest.status not in STATUSES:
        raise ValueError(f"status {str(manifest.status)[:40]!r}")
    for name, least in {"serial": 0, "dim": 1, "num_params": 1, "base_rows": 0}.items():
        if not is_count(getattr(manifest, name), least):
            raise ValueError(f"{name} is {str(getattr(manifest, name))[:40]!r}")
    for name, limit in {"run_id": 64, "created": 64, "config_sha256": 64, "base_sha256": 64}.items():
        text = getattr(manifest, name)
        if not isinstance(text, str) or len(text) > limit:
            raise ValueError(f"{name} is no text of up to {limit} characters")
    kinds = [("header", manifest.header), *(("seg", segment) for segment in manifest.segments)]
    if not all(part.file.startswith(kind) and (part.rows > 0) == (kind == "seg") for kind, part in kinds):
        raise ValueError("a part stands where another kind of part belongs")
    for k, segment in enumerate(manifest.segments):
        if int(segment.file.split("-")[1]) != k:
            raise ValueError(f"segment {segment.file!r} stands at place {k}: one is missing, or named twice")
    state = manifest.restart
    if state is None or state in manifest.segments[-1:] or (state.file.startswith("restart") and not state.rows):
        return
    raise ValueError(f"{state.file!r} is not the state after the last row")


def is_count(value: object, least: int = 0) -> bool:
    """Is it an integer from `least` up to what HDF5 and float64 can count?"""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parts_of(path: str) -> str:
    """The folder of a run's parts."""
    return path + ".parts"


def read(path: str) -> tuple[Manifest, bytes] | None:
    """The manifest of the run at `path` with its bytes, or None where there is none; SchemaError when damaged."""
    name = os.path.join(parts_of(path), NAME)
    try:
        with open_stored(name) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise refused(name, f"it has more than {MAX_BYTES} bytes")
            data = file.readall()
    except FileNotFoundError:
        return None
    return decode(data, name), data


def serial_at(path: str) -> int:
    """The serial of the existing parts, so that new parts get new names; 0 where there are none or damaged ones."""
    try:
        found = read(path)
    except SchemaError:
        return 0
    return 0 if found is None else found[0].serial
