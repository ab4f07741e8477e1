"""Rows: checked when they arrive, and turned into the parts that are published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from pwgf.errors import ConfigError, ShapeError
from pwgf.storage.manifest import Manifest
from pwgf.storage.schema import (
    RESERVED,
    SAMPLES,
    VECTORS,
    Header,
    check_values,
    image,
    put_header,
    put_restart,
    row_bytes,
    to_json,
)

SEGMENT_ROWS = 64
SEGMENT_BYTES = 8 << 20
Row = dict[str, Any]


def column_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the scalars of a row, "t" first."""
    return ("t", *(name for name in row if name not in ("t", *VECTORS, SAMPLES)))


def row_shapes(row: Mapping[str, Any], dim: int, num_params: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a row by name: θ and θ̇, and samples where it has some."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(VECTORS, (num_params,))
    return shapes | ({SAMPLES: (len(np.atleast_1d(row[SAMPLES])), dim)} if SAMPLES in row else {})


def checked_row(
    row: Mapping[str, Any], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], after: float
) -> Row:
    """A row as float64 copies, "t" first.

    Args:
        row: as given to `Writer.append`.
        names: of the scalars, "t" first.
        shapes: of the arrays.
        after: time of the last row.

    Returns:
        Scalars and arrays by name.

    Raises:
        ConfigError: other names, or a time that does not increase.
        ShapeError: a value of the wrong shape or type.
    """
    expected, taken = {*names, *shapes}, RESERVED.difference(VECTORS, [SAMPLES])
    odd = {str(n) for n in row if not (isinstance(n, str) and n.isidentifier()) or n in taken}
    if set(row) != expected or odd:
        raise ConfigError(
            f"Writer.append(row) needs the values {', '.join(sorted(map(str, expected - odd)))} in every row; missing "
            f"{sorted(expected - set(row))}, unexpected {sorted({str(n) for n in row if n not in expected} | odd)}. "
            f"Give the names of the first row, and not {', '.join(sorted(taken))}."
        )
    values: Row = {}
    for name in (*names, *shapes):
        shape = shapes.get(name, ())
        try:
            array = np.array(row[name], dtype="<f8")
        except (TypeError, ValueError) as error:
            raise ShapeError(f"Writer.append(row) needs numbers at {name!r}; {error}. Turn it into float64.") from error
        if array.shape != shape:
            raise ShapeError(f"Writer.append(row) needs shape {shape} at {name!r}; got {array.shape}. Reshape it.")
        values[name] = array if shape else float(array)
    if not values["t"] > after:
        raise ConfigError(
            f"Writer.append(row) needs t > {after}, the time of the last row; got {values['t']}. "
            "After a StorageError the row is kept: call publish() instead."
        )
    return values


def copied(restart: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the restart state, independent of the caller's arrays; ConfigError, ShapeError."""
    check_values("Writer.append(restart)", restart)
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in restart.items()}


def segment_rows(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of rows of a full segment: 64, fewer where they exceed 8 MB, at least 1."""
    return max(1, min(SEGMENT_ROWS, SEGMENT_BYTES // row_bytes(names, shapes)))


def rows_image(manifest: Manifest, rows: Sequence[Row], restart: Mapping[str, Any] | None) -> bytes:
    """A segment: rows, and the restart state after the last one.

    The datasets are plain: the manifest has the sha256 of the whole file, so checksums of chunks would only take time.
    """

    def fill(file: h5py.File) -> None:
        for name in rows[0]:
            file.create_dataset(name, data=np.array([row[name] for row in rows]))
        if restart is not None:
            put_restart(file, restart)

    return image("rows", _stamps(manifest), fill)


def restart_image(manifest: Manifest, restart: Mapping[str, Any]) -> bytes:
    """A restart state alone."""
    return image("restart", _stamps(manifest), lambda file: put_restart(file, restart))


def header_image(manifest: Manifest, header: Header) -> bytes:
    """A header."""
    return image("header", _stamps(manifest), lambda file: put_header(file, header))


def config_digest(header: Header) -> str:
    """sha256 of the JSON text of the config."""
    return hashlib.sha256(to_json("Header(config=…)", header.config).encode()).hexdigest()


def _stamps(manifest: Manifest) -> dict[str, str | int]:
    stamps: dict[str, str | int] = {"run_id": manifest.run_id, "created": manifest.created}
    return stamps | {"dim": manifest.dim, "num_params": manifest.num_params}
