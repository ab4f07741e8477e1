"""What is made of a finished run lies in its file, and no crash leaves it half there."""

import contextlib
import os
import shutil

import numpy as np
import pytest

from pwgf.errors import ConfigError, PathError, ShapeError, StorageError
from pwgf.storage import Header, Writer, examine, open_record, salvage, set_result
from tests.storage.helpers import HEADER, FaultyDisk, Killed, check_rows, row, same, state, write_run

RESULT = {"x": np.arange(12.0).reshape(6, 2), "log_z": 1.5, "count": 3, "about": '{"kind": "∇"}'}
OTHER = {"log_z": 2.5}


def test_a_result_comes_back_and_is_replaced(tmp_path):
    path = str(tmp_path / "run.h5")
    before = write_run(path, 5)
    reader = open_record(path)
    set_result(path, RESULT)
    record = open_record(path)
    same(dict(record.result), RESULT)
    check_rows(record, 5, 5)
    check_rows(reader, 5, 5)  # reads on
    assert record.complete and record.run_id == before.run_id and os.listdir(tmp_path) == ["run.h5"]
    number = os.stat(path).st_ino
    set_result(path, RESULT)
    assert os.stat(path).st_ino == number  # not written again
    set_result(path, OTHER)
    same(dict(open_record(path).result), OTHER)


def test_a_run_that_grows_loses_it_and_one_that_is_resumed_in_vain_does_not(tmp_path):
    path = str(tmp_path / "run.h5")
    write_run(path, 5)
    set_result(path, RESULT)
    Writer.resume(path)[0].close()
    same(dict(open_record(path).result), RESULT)
    with Writer.resume(path)[0] as writer:
        writer.update_header(HEADER)
        writer.append(row(5), state(5))
    assert dict(open_record(path).result) == {}


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.faults])])
@pytest.mark.parametrize("mode", ["fail", "kill"])
def test_after_a_crash_there_is_the_old_result_or_the_new_one(tmp_path, monkeypatch, mode, every):
    first = str(tmp_path / "first.h5")
    write_run(first, 3)
    set_result(first, OTHER)
    counter = FaultyDisk()
    monkeypatch.setattr("pwgf.storage.packing.Disk", lambda: counter)
    path = str(tmp_path / "run.h5")
    shutil.copy(first, path)
    set_result(path, RESULT)
    assert counter.calls > 8
    found = set()
    for at in [*range(1, counter.calls - 8, every), *range(counter.calls - 8, counter.calls + 1)]:
        path, disk = str(tmp_path / f"{at}.h5"), FaultyDisk(at, mode)
        shutil.copy(first, path)
        monkeypatch.setattr("pwgf.storage.packing.Disk", lambda disk=disk: disk)
        with contextlib.suppress(Killed, StorageError, PathError):
            set_result(path, RESULT)
        record = open_record(path)
        check_rows(record, 3, 3)
        assert record.complete
        found.add("x" in record.result)
        same(dict(record.result), RESULT if "x" in record.result else OTHER)
        monkeypatch.setattr("pwgf.storage.packing.Disk", FaultyDisk)
        set_result(path, RESULT)
        same(dict(open_record(path).result), RESULT)
    assert found == {False, True}


def test_a_damaged_result_is_found_and_the_rows_are_saved(tmp_path):
    path = str(tmp_path / "run.h5")
    write_run(path, 5)
    set_result(path, {"x": np.full(1000, np.pi)})
    data = bytearray((tmp_path / "run.h5").read_bytes())
    place = data.index(np.full(1000, np.pi).tobytes())
    data[place] ^= 1
    (tmp_path / "run.h5").write_bytes(data)
    health = examine(path)
    assert health.rows == 5 and ["result/x" in problem for problem in health.problems] == [True]
    salvage(path, tmp_path / "saved.h5")
    saved = open_record(tmp_path / "saved.h5")
    check_rows(saved, 5, 5)
    assert dict(saved.result) == {}


def test_what_cannot_be_a_result_is_refused(tmp_path):
    path = str(tmp_path / "run.h5")
    write_run(path, 2)
    with pytest.raises(ConfigError, match=r"Header\(result=…\) needs numbers, text and NumPy arrays; got list at 'x'"):
        set_result(path, {"x": [1.0]})
    with pytest.raises(ShapeError, match=r"Header\(result=…\) needs arrays of float64"):
        Header({}, [], {}, 1, 1, result={"x": np.zeros(2, np.int32)})
    with pytest.raises(PathError, match="no such file"):
        set_result(tmp_path / "no.h5", OTHER)
    assert dict(open_record(path).result) == {}
