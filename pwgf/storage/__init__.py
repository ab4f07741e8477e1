"""Runs on disk: the only place that knows HDF5.

While a run is written, `run.h5` is accompanied by the folder `run.h5.parts/` with segments of rows, each published
completely, and a manifest that names them; at the end they become the one file `run.h5`. `open_record` reads either, at
any moment.
"""

from pwgf.storage.doctor import Health, examine, salvage
from pwgf.storage.guard import checked_path, path_without_run, refused
from pwgf.storage.meanings import attributes, meaning
from pwgf.storage.packing import pack, set_result
from pwgf.storage.reader import Record, open_record
from pwgf.storage.schema import Header, load_json
from pwgf.storage.table import read_table, write_table
from pwgf.storage.writer import Writer, refuse_existing

__all__ = [
    "Header",
    "Health",
    "Record",
    "Writer",
    "attributes",
    "checked_path",
    "examine",
    "load_json",
    "meaning",
    "open_record",
    "pack",
    "path_without_run",
    "read_table",
    "refuse_existing",
    "refused",
    "salvage",
    "set_result",
    "write_table",
]
