"""Pieces: the HDF5 files from which a run is read, each opened through the guard and checked against its hash."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from pwgf.errors import SchemaError
from pwgf.storage.guard import columns, open_guarded, open_stored, read_attr, refused, trusting
from pwgf.storage.manifest import Part, is_count
from pwgf.storage.schema import DTYPES, SAMPLES, VECTORS, Header, content_digest, dataset_digest, get, load_json

BATCH_BYTES = 8 << 20


class Piece:
    """One open HDF5 file of a run.

    Args:
        path: of the file, for messages.
        file: the open file.
        datasets: all its datasets by name.
        digests: sha256 of each dataset by name, for a packed file; None for a part, whose bytes were hashed whole.
    """

    def __init__(
        self,
        path: str,
        file: h5py.File,
        datasets: Mapping[str, h5py.Dataset],
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._file = file
        self._datasets = datasets
        self._digests = digests

    @classmethod
    def packed(cls, path: str) -> Piece:
        """Opens a packed file and checks that its dataset hashes are those with which it was published.

        Raises:
            FileNotFoundError: it is not there.
            SchemaError: it is not a trajectory, or damaged.
        """
        file, datasets = open_guarded(open_stored(path), path, "trajectory")
        with trusting(path):
            digests = {name: str(read_attr(dataset, "sha256")) for name, dataset in datasets.items()}
            if content_digest(digests) != read_attr(file, "content_sha256"):
                raise refused(path, "its hashes do not match content_sha256: it is damaged or was changed")
        return cls(path, file, datasets, digests)

    @classmethod
    def part(cls, folder: str, part: Part, kind: str, run_id: str) -> Piece:
        """Reads a part whole and checks its bytes; FileNotFoundError or SchemaError."""
        path = os.path.join(folder, part.file)
        with open_stored(path) as stream:
            data = stream.readall()
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise refused(path, "it is damaged: its bytes do not match the sha256 in the manifest")
        piece = cls(path, *open_guarded(io.BytesIO(data), path, kind, run_id))
        if kind == "rows" and piece.rows != part.rows:
            raise refused(path, f"it has {piece.rows} rows where the manifest says {part.rows}")
        return piece

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._datasets["t"].shape[0]

    @property
    def is_packed(self) -> bool:
        """Whether this is a packed file, whose datasets have their own hashes, and not a part."""
        return self._digests is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all datasets."""
        return tuple(self._datasets)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the scalar columns, "t" first."""
        return columns(self._datasets)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a row by name."""
        return {name: self._datasets[name].shape[1:] for name in (*VECTORS, SAMPLES) if name in self._datasets}

    def attr(self, name: str) -> str | int | None:
        """A root attribute."""
        with trusting(self.path):
            return read_attr(self._file, name)

    def text(self, name: str) -> str:
        """A root attribute that must be text."""
        value = self.attr(name)
        if not isinstance(value, str):
            raise refused(self.path, f"it has no attribute {name!r}")
        return value

    def number(self, name: str) -> int:
        """A root attribute that must be an integer."""
        value = self.attr(name)
        if not isinstance(value, int):
            raise refused(self.path, f"it has no attribute {name!r}")
        return value

    def value(self, name: str) -> Any:
        """A whole dataset, checked against its hash."""
        with trusting(self.path):
            dataset = self._datasets[name]
            if self._digests is not None and dataset_digest(dataset) != self._digests[name]:
                raise refused(self.path, f"{name!r} is damaged: it does not match its sha256")
            return get(dataset)

    def values(self, group: str) -> dict[str, Any]:
        """All datasets below a group by their names within it, but not its scales; {} where there is no such group."""
        return {name: self.value(f"{group}/{name}") for name in self.names_in(group)}

    def names_in(self, group: str) -> tuple[str, ...]:
        """Names within a group of the datasets below it that are no dimension scales."""
        prefix = group + "/"
        with trusting(self.path):
            found = [name for name, item in self._datasets.items() if name.startswith(prefix) and not item.is_scale]
        return tuple(name.removeprefix(prefix) for name in found)

    def header(self) -> Header:
        """Config, layout, provenance, arrays and result."""
        with trusting(self.path):
            config, layout = load_json(self.value("config")), load_json(self.value("layout"))
            provenance = {name: load_json(value) for name, value in self.values("provenance").items()}
        dim, num_params = self.number("dim"), self.number("num_params")
        if dim < 1 or num_params < 1:
            raise refused(self.path, f"it says dim={dim}, num_params={num_params}")
        if not isinstance(config, dict) or not _tiles(layout, num_params):
            raise refused(self.path, "its config or layout has the wrong form")
        return Header(config, layout, provenance, dim, num_params, _Arrays(self), _Values(self, "result"))

    def vectors(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start … stop−1 of θ, θ̇ (stop − start, p) or samples; their chunks are checked by fletcher32."""
        with trusting(self.path):
            return np.asarray(self._datasets[name][start:stop])

    def problems(self) -> list[str]:
        """The problems found by reading every byte; [] if there are none."""
        found = list(self.problems_by_name().values())
        return found or self.possible_rows()[1]

    def possible_rows(self) -> tuple[int, list[str]]:
        """Rows before the first that no run writes, though all hashes fit, and what is wrong with that one.

        Times increase, and the parameters are finite.
        """
        t = self.value("t")
        wrong = ~np.isfinite(t) | ~(np.diff(t, prepend=-np.inf) > 0)
        rows = int(np.argmax(wrong)) if wrong.any() else len(t)
        step = max(1, BATCH_BYTES // (8 * self._datasets["theta"].shape[1]))
        for start in range(0, rows, step):
            finite = np.isfinite(self.vectors("theta", start, min(start + step, rows))).all(axis=1)
            if not finite.all():
                rows = start + int(np.argmin(finite))
                return rows, [f"{self.path!r}: the parameters of its row {rows} are not finite"]
        return rows, [] if rows == len(t) else [
            f"{self.path!r}: the time of its row {rows} is not after the last one's"
        ]

    def problems_by_name(self) -> dict[str, str]:
        """The damaged datasets, each with its problem; reads every byte."""
        found = {}
        for name in self.shapes if self._digests is None else self._digests:
            try:
                with trusting(self.path):
                    digest = dataset_digest(self._datasets[name])
                if self._digests is not None and digest != self._digests[name]:
                    raise refused(self.path, f"{name!r} is damaged: it does not match its sha256")
            except SchemaError as error:
                found[name] = str(error) if name in str(error) else f"{name!r}: {error}"
        return found

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Values(Mapping[str, Any]):
    """The values in a group of a header, each read when it is asked for."""

    def __init__(self, piece: Piece, group: str) -> None:
        self._piece, self._group = piece, group
        self._names = piece.names_in(group)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._piece.value(f"{self._group}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Arrays(_Values):
    """The arrays of a header."""

    def __init__(self, piece: Piece) -> None:
        super().__init__(piece, "arrays")

    def __getitem__(self, name: str) -> np.ndarray:
        values = np.asarray(super().__getitem__(name))
        if values.dtype not in DTYPES:
            raise refused(self._piece.path, f"arrays/{name[:40]} is no array of numbers")
        return values


def increases(t: np.ndarray) -> bool:
    """Are the times (T,) finite and strictly increasing?"""
    return bool(np.isfinite(t).all() and (np.diff(t) > 0).all())


def _tiles(layout: object, num_params: int) -> bool:
    """Is it a list of blocks that cover the parameters one after another? An empty one says nothing."""
    if not isinstance(layout, list):
        return False
    end = 0
    for block in layout:
        if not isinstance(block, dict) or not isinstance(block.get("name"), str) or block.get("offset") != end:
            return False
        shape = block.get("shape")
        if not isinstance(shape, list) or not all(is_count(n) for n in shape):
            return False
        end += math.prod(shape)
    return not layout or end == num_params
