"""A run for other programs: its columns as an `xarray.Dataset`, samples of its law in a file of another format."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from .. import storage
from .._version import __version__
from ..checks import check_integer
from ..errors import ConfigError, PathError
from .asked import Dims, Times, checked_dims, checked_times

_CALL = "run.export"


class Exports:
    """The exports of a `Trajectory`, which inherits these methods."""

    def to_xarray(self: Any) -> Any:
        """All columns as an `xarray.Dataset` over t (needs the extra `xarray`), with their names and units."""
        xarray = _xarray("to_xarray()")
        axes = {"theta": ("t", "param"), "theta_dot": ("t", "param"), "samples": ("t", "sample", "dim")}
        columns = {name: (axes.get(name, "t"), self[name]) for name in self.names if name != "t"}
        found = xarray.Dataset(columns, coords={"t": self.t}, attrs={"config": json.dumps(self.config)})
        for name in found.variables:
            found[name].attrs.update(storage.attributes(name))
        return found

    def export(
        self: Any,
        path: str | os.PathLike[str],
        n: int = 1000,
        *,
        times: Times = None,
        dims: Dims = None,
        seed: int = 0,
    ) -> str:
        """Writes samples of ρ_t for programs without pwgf; what is at `path` is replaced.

        The same z are pushed at all times, so that sample k moves along a path. A `.nc` (netCDF 4, which is HDF5) or
        `.zarr` holds one array `samples` (sample, dim, t) with its coordinates; a `.csv` or `.parquet` a row for each
        sample and time, with the columns t, sample, x0, x1, ….

        Args:
            path: ends in .nc or .zarr (extra `xarray`; the latter also zarr), .parquet (pandas and pyarrow), or .csv.
            n: samples of each law.
            times: between the first row and the last; None: all rows.
            dims: coordinates, counted from 0; None: all.
            seed: of the samples, as in `run.sample`.

        Returns:
            The path written.

        Raises:
            ConfigError: another ending, a library that is missing, coordinates or times that the run has not.
            PathError: the folder does not exist or cannot be written, or a run lies there.
        """
        path = os.fsdecode(path)
        ending = os.path.splitext(path)[1].lower()
        if ending not in _WRITERS:
            raise ConfigError(f"{_CALL}(path={path!r}) must end in {', '.join(_WRITERS)}. Give e.g. 'samples.nc'.")
        target = storage.path_without_run(path, f"{_CALL}(path={path!r})")
        libraries, write = _WRITERS[ending]
        for library, extra in libraries.items():
            _needed(library, extra, f"{_CALL}(path={path!r})")
        check_integer(n, "n", _CALL)
        found = checked_times(times, self, _CALL, default=len(self), most=10**6)
        dim = self.reference.dim
        shown = checked_dims(dims, dim, _CALL, default=range(dim), most=dim)
        samples = np.stack([self.sample(t, n, seed).double().numpy()[:, shown] for t in found], axis=-1)
        told = {"pwgf_version": __version__, "seed": int(seed)}
        try:
            write(target, samples, np.array(found), shown, json.dumps(self.config), told)
        except OSError as error:
            raise PathError(f"{_CALL}(path={path!r}): cannot write there ({error}). Make the folder first.") from error
        return path


def _needed(library: str, extra: str, call: str) -> None:
    if find_spec(library) is None:
        raise ConfigError(f"{call} needs {library}, which is not installed: pip install {extra}.")


def _xarray(call: str) -> Any:
    try:
        import xarray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"{call} needs xarray: pip install 'pwgf[xarray]'.") from error
    return xarray


def _dataset(samples: np.ndarray, times: np.ndarray, dims: list[int], config: str, told: dict[str, Any]) -> Any:
    """The samples (n, k, T) with their coordinates."""
    coordinates = {"sample": np.arange(len(samples)), "dim": np.array(dims), "t": times}
    values = {"samples": (("sample", "dim", "t"), samples), "config": ((), config)}  # which an attribute may not hold
    found = _xarray(_CALL).Dataset(values, coords=coordinates, attrs=told)
    names = {"samples": "samples x of ρ_t", "sample": "sample; the same one at all times", "dim": "coordinate"}
    for name, text in names.items():
        found[name].attrs.update(long_name=text, units="units of x" if name == "samples" else "1")
    for name in ("t", "config"):
        found[name].attrs.update(storage.attributes(name))
    return found


def _netcdf(
    path: str, samples: np.ndarray, times: np.ndarray, dims: list[int], config: str, told: dict[str, Any]
) -> None:
    _dataset(samples, times, dims, config, told).to_netcdf(path, engine="h5netcdf")


def _zarr(
    path: str, samples: np.ndarray, times: np.ndarray, dims: list[int], config: str, told: dict[str, Any]
) -> None:
    found = _dataset(samples, times, dims, config, told).drop_vars(
        "config"
    )  # a text of a length that Zarr does not know
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is")  # without it readers warn
        found.assign_attrs(config=config).to_zarr(path, mode="w", consolidated=True)


def _table(samples: np.ndarray, times: np.ndarray, dims: list[int]) -> dict[str, np.ndarray]:
    """Columns of n·T entries, time by time."""
    count = len(samples)
    columns = {f"x{k}": samples[:, place].T.ravel() for place, k in enumerate(dims)}
    return {"t": np.repeat(times, count), "sample": np.tile(np.arange(count), len(times)), **columns}


def _csv(path: str, samples: np.ndarray, times: np.ndarray, dims: list[int], config: str, told: dict[str, Any]) -> None:
    columns = _table(samples, times, dims)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))


def _parquet(
    path: str, samples: np.ndarray, times: np.ndarray, dims: list[int], config: str, told: dict[str, Any]
) -> None:
    import pandas  # noqa: PLC0415

    pandas.DataFrame(_table(samples, times, dims)).to_parquet(path, engine="pyarrow", index=False)


_XARRAY = {"xarray": "'pwgf[xarray]'"}
_WRITERS: dict[str, tuple[dict[str, str], Callable[..., None]]] = {
    ".nc": (_XARRAY | {"h5netcdf": "'pwgf[xarray]'"}, _netcdf),
    ".csv": ({}, _csv),
    ".parquet": ({"pandas": "pandas", "pyarrow": "pyarrow"}, _parquet),
    ".zarr": (_XARRAY | {"zarr": "zarr"}, _zarr),
}
"""Of each ending the libraries it needs, with what installs them, and what writes it."""
