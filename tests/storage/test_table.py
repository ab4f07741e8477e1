"""Small tables: what is written comes back, whole or not at all, and foreign files are refused."""

import numpy as np
import pytest

from pwgf.errors import ConfigError, PathError, SchemaError, ShapeError, StorageError
from pwgf.storage import read_table, write_table

COLUMNS = {"t": [0.0, 0.1, np.nan], "name": ["a", 'ü, "b"', ""]}


def test_columns_and_settings_come_back(tmp_path):
    path = write_table(tmp_path / "new" / "table.h5", COLUMNS, {"d": [1, 2], "x": 0.1})
    columns, config = read_table(path)
    assert np.array_equal(columns["t"], COLUMNS["t"], equal_nan=True)
    assert columns["name"] == COLUMNS["name"]
    assert config == {"d": [1, 2], "x": 0.1}
    write_table(path, {"t": []}, {})
    assert len(read_table(path)[0]["t"]) == 0  # replaced
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["table.h5"]


def test_flipped_bits_are_refused_or_harmless(tmp_path):
    """Every byte of the file in turn: an error of ours, or columns of the right shape."""
    path = tmp_path / "table.h5"
    write_table(path, COLUMNS, {})
    whole = path.read_bytes()
    for k in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 16]) + whole[k + 1 :])
        try:
            columns, _ = read_table(path)
        except (SchemaError, StorageError):
            continue
        assert {len(column) for column in columns.values()} <= {3}


def test_what_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="columns of one length"):
        write_table(tmp_path / "a.h5", {"a": [1.0], "b": []}, {})
    with pytest.raises(ConfigError, match="needs names like"):
        write_table(tmp_path / "a.h5", {"": [1.0]}, {})
    with pytest.raises(PathError, match="no such file; expected a table"):
        read_table(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_text("text")
    with pytest.raises(SchemaError, match="no HDF5 file"):
        read_table(tmp_path / "b.h5")
