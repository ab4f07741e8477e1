"""Axes: every array of a packed file names its axes by dimension scales, as netCDF has it, so that xarray opens them.

The scales of rows are /t, /param, /dim and /sample. No dataset in a group has one of these names: libraries that read
netCDF would take it for the axis. Arrays in groups that belong to none of these get scales of their own in the group,
axis0_8 for a first axis of length 8 (axis0_8_ where that name is taken), which name the axis and have no values.
"""

from __future__ import annotations

from collections.abc import Iterable

import h5py
import numpy as np

from pwgf.storage.guard import walk
from pwgf.storage.schema import SAMPLES, VECTORS

GROUPS = ("restart", "arrays", "result")
_WITHOUT_VALUES = "This is a netCDF dimension but not a netCDF variable.{:10d}"  # a name that netCDF prescribes
_NAMED = {  # axes that have a name of their own
    "restart/theta": ("/param",),
    "restart/theta_dot": ("/param",),
    "result/x": ("draw", "/dim"),
    "result/log_density": ("draw",),
    "result/log_weights": ("draw",),
    "result/centre": ("/dim",),
    "result/mean": ("/dim",),
    "result/theta": ("/param",),
}


def add_scales(file: h5py.File, names: Iterable[str], dim: int, num_params: int) -> None:
    """Makes the dimension scales of the rows and names their axes, for xarray and NeXus."""
    lengths = {"param": num_params, "dim": dim} | ({"sample": file[SAMPLES].shape[1]} if SAMPLES in file else {})
    for name, length in lengths.items():
        file.create_dataset(name, data=np.arange(length, dtype=np.int64))
    for name in ("t", *lengths):
        file[name].make_scale(name)
    for name in names:
        if name != "t":
            _name(file[name], [file["t"]])
    for name in VECTORS:
        _name(file[name], [file["t"], file["param"]])
    if SAMPLES in file:
        _name(file[SAMPLES], [file["t"], file["sample"], file["dim"]])
    columns = list(names)
    file.attrs["NX_class"] = "NXdata"
    file.attrs["signal"] = "energy" if "energy" in columns else columns[-1]
    file.attrs["axes"] = ["t"]


def name_axes(file: h5py.File, path: str) -> None:
    """Names the axes of the arrays in groups; after `add_scales`."""
    arrays = [(name, item) for name, item in walk(file, path) if name.split("/")[0] in GROUPS]
    for name, item in arrays:
        _name(item, [_scale(file, name, axis, length) for axis, length in enumerate(item.shape)])


def _scale(file: h5py.File, name: str, axis: int, length: int) -> h5py.Dataset:
    """The scale of one axis of a dataset."""
    named = _NAMED.get(name, ())
    inner = named[axis] if axis < len(named) else f"axis{axis}_{length}"
    own = inner if inner.startswith("/") else f"{name.split('/')[0]}/{inner}"
    while own in file and not getattr(file[own], "is_scale", False):  # an array or a group that has this name
        own += "_"
    if own not in file:
        file.create_dataset(own, data=np.zeros(length, dtype=np.uint8))
        file[own].make_scale(_WITHOUT_VALUES.format(length))
    return file[own]


def _name(dataset: h5py.Dataset, scales: list[h5py.Dataset]) -> None:
    for axis, scale in zip(dataset.dims, scales, strict=True):
        axis.attach_scale(scale)
