"""Small tables, such as a comparison: columns of numbers and of text, with settings, published as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from pwgf.errors import PathError, ShapeError
from pwgf.storage.disk import Disk, in_memory
from pwgf.storage.guard import checked_path, open_guarded, open_stored, refused, trusting
from pwgf.storage.lock import make_folder
from pwgf.storage.schema import check_names, get, image, put, to_json

Column = np.ndarray | list[str]


def write_table(
    path: str | os.PathLike, columns: Mapping[str, Sequence[float] | Sequence[str]], config: dict[str, Any]
) -> str:
    """Writes a table, replacing an existing one; a reader sees the old one or the new one.

    Args:
        path: of the file; missing folders are made.
        columns: by name, all of one length: numbers become f8 datasets, text one JSON list each.
        config: what JSON can hold.

    Returns:
        The absolute path.

    Raises:
        ConfigError: a name that is not a path, or a config that JSON cannot hold.
        ShapeError: columns of different lengths.
        StorageError: the disk refused.
    """
    path, call = checked_path(path, "write_table(path)"), "write_table(columns=…)"
    check_names(call, columns)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ShapeError(f"{call} needs columns of one length; got {lengths}.")

    def fill(file: h5py.File) -> None:
        put(file, "config", to_json("write_table(config=…)", config))
        for name, values in columns.items():
            text = len(values) > 0 and isinstance(values[0], str)
            put(file, f"columns/{name}", to_json(call, list(values)) if text else np.asarray(values, dtype=np.float64))

    disk = Disk()
    with in_memory(f"writing {path!r}"):
        data = image("table", {}, fill)
    with disk.telling(path, path + ".tmp", len(data)):
        make_folder(disk, os.path.dirname(path))
        disk.publish(path, data)
    return path


def read_table(path: str | os.PathLike) -> tuple[dict[str, Column], dict[str, Any]]:
    """Columns and settings of a table.

    Raises:
        PathError: nothing is there.
        SchemaError: foreign, damaged, hostile, or not a table.
    """
    path = checked_path(path, "read_table(path)")
    try:
        stored = open_stored(path)
    except FileNotFoundError as error:
        raise PathError(f"opening {path!r}: no such file; expected a table. Check the path.") from error
    with stored:
        file, datasets = open_guarded(stored, path, "table")
        with trusting(path), file:
            values = {name: get(dataset) for name, dataset in datasets.items()}
            config = json.loads(values.pop("config"))
            found = {name.removeprefix("columns/"): value for name, value in values.items()}
            columns = {name: json.loads(value) if isinstance(value, str) else value for name, value in found.items()}
    if len({len(column) for column in columns.values()}) > 1:
        raise refused(path, "its columns have different lengths")
    return columns, config
