"""What is written comes back, to the bit, while the run is written and after it."""

import json
import os
import pathlib

import h5py
import numpy as np
import pytest

from pwgf.errors import ConfigError, PathError, ShapeError, StorageError
from pwgf.storage import Header, Writer, open_record, pack, rows
from tests.storage.helpers import HEADER, P, check_rows, row, same, state, write_run


@pytest.mark.parametrize("count", [1, 5, 64, 65, 130])
def test_rows_come_back(tmp_path, count):
    path = str(tmp_path / "new folder" / "run.h5")
    with Writer.create(path, HEADER, max_cost=0.5) as writer:
        for k in range(count):
            writer.append(row(k), state(k))
        writer.publish()
        parts = open_record(path)
        assert parts.status == "running" and not parts.complete
        check_rows(parts, count, count)
    record = open_record(path)
    check_rows(record, count, count)
    check_rows(parts, count, count)  # a record opened before the packing reads on
    assert os.listdir(os.path.dirname(path)) == ["run.h5"]
    assert record.complete and record.status == "complete" and record.schema == "1.0"
    assert record.names == ("t", "energy", "num_stages")
    assert (record.config, record.layout, record.provenance) == (HEADER.config, HEADER.layout, HEADER.provenance)
    assert (record.dim, record.num_params) == (2, P)
    same(record.arrays, dict(HEADER.arrays))
    batches = list(record.iter_rows(batch=7))
    np.testing.assert_array_equal(np.concatenate([b["theta"] for b in batches])[-1], row(count - 1)["theta"])
    np.testing.assert_array_equal(record.vector("theta", -1), row(count - 1)["theta"])
    assert max(len(b["t"]) for b in batches) <= 7 and sum(len(b["t"]) for b in batches) == count


def test_wide_rows_make_short_segments(tmp_path):
    path, p = str(tmp_path / "run.h5"), 200_000  # 3.2 MB a row: two rows a segment, and two chunks a vector
    header = Header({}, [], {}, 1, p)
    with Writer.create(path, header) as writer:
        for k in range(5):
            writer.append(row(k, p), {"k": k})
        assert sum(name.startswith("seg") for name in os.listdir(path + ".parts")) == 3
    with h5py.File(path) as file:
        assert file["theta"].chunks == (1, 131072) and file["theta"].fletcher32
    np.testing.assert_array_equal(open_record(path).vector("theta_dot", 3), row(3, p)["theta_dot"])


def test_packed_file_opens_in_xarray_as_labelled_rows(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = str(tmp_path / "run.h5")
    write_run(path, 6)
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert data["energy"].dims == ("t",) and data["theta"].dims == ("t", "param")
        assert "t" in data.coords and data.attrs["signal"] == "energy" and data.attrs["NX_class"] == "NXdata"
        np.testing.assert_array_equal(data["t"], np.arange(6) / 7)
        assert float(data["energy"].sel(t=2 / 7)) == np.exp(-2)
        assert json.loads(bytes(data["config"].values).decode()) == HEADER.config


def test_packed_file_has_the_documented_schema(tmp_path):
    path = str(tmp_path / "run.h5")
    write_run(path, 6)
    with h5py.File(path) as file:
        assert {"pwgf_schema", "pwgf_version", "run_id", "created", "complete", "content_sha256"} <= set(file.attrs)
        assert file.attrs["complete"] == 1 and list(file.attrs["axes"]) == ["t"]
        assert file["t"].is_scale and file["t"].maxshape == (None,) and file["t"].fletcher32
        assert file["theta"].chunks == (1, P) and file["theta"].maxshape == (None, P)
        assert file["restart/rng"].dtype == np.uint8 and file["restart/rng"].shape == (5056,)
        assert json.loads(file["layout"].asstr()[()]) == HEADER.layout
        assert list(file["param"][:]) == [0, 1, 2] and list(file["dim"][:]) == [0, 1]
        assert json.loads(file["provenance/argv"].asstr()[()]) == ["x", "--y"]


def test_equal_runs_have_equal_content(tmp_path):
    a, b = write_run(str(tmp_path / "a.h5"), 70), write_run(str(tmp_path / "b.h5"), 70, max_cost=0.01)
    assert a.content_sha256 == b.content_sha256 and a.run_id != b.run_id
    assert write_run(str(tmp_path / "c.h5"), 69).content_sha256 != a.content_sha256


def test_a_finished_run_can_grow(tmp_path):
    path = str(tmp_path / "run.h5")
    before = write_run(path, 66)
    packed = pathlib.Path(path).read_bytes()
    writer, found = Writer.resume(path)
    with writer:
        assert len(found) == 66 and found.complete
        same(found.restart(), state(65))
        now = open_record(path)
        assert now.status == "running" and len(now) == 66 and now.run_id == before.run_id
        grown = Header({**HEADER.config, "times": [0, 1, 2]}, HEADER.layout, {}, 2, P, HEADER.arrays)
        writer.update_header(grown)
        for k in range(66, 70):
            writer.append(row(k), state(k))
        assert pathlib.Path(path).read_bytes() == packed  # untouched until the longer one replaces it
        check_rows(open_record(path), 70, 70)
    record = open_record(path)
    check_rows(record, 70, 70)
    check_rows(now, 66, 66)
    assert record.config["times"] == [0, 1, 2] and record.created == before.created
    assert len(before) == 66 and before.vector("theta", 65)[0] == row(65)["theta"][0]
    assert len(before.refresh()) == 70


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ends_early_keeps_its_parts_and_its_status(tmp_path, status):
    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER)
    writer.append(row(0), state(0))
    writer.close(status)
    writer.close(status)
    assert open_record(path).status == status and not os.path.exists(path)
    assert pack(path) == path and not os.path.exists(path + ".parts")
    record = open_record(path)
    assert record.status == status and not record.complete
    check_rows(record, 1, 1)
    pack(path)
    writer, _ = Writer.resume(path)
    with writer:
        writer.append(row(1), state(1))
    assert open_record(path).complete
    check_rows(open_record(path), 2, 2)


def test_an_exception_loses_no_row(tmp_path):
    path = str(tmp_path / "run.h5")
    for first, error, status in ((0, ZeroDivisionError, "failed"), (3, KeyboardInterrupt, "interrupted")):
        writer = Writer.resume(path, max_cost=1e-9)[0] if first else Writer.create(path, HEADER, max_cost=1e-9)
        with pytest.raises(error), writer:
            for k in range(first, first + 3):
                writer.append(row(k), state(k))
            raise error
        assert open_record(path).status == status
        check_rows(open_record(path), first + 3, first + 3)


def test_checkpoint_stores_the_state_between_rows(tmp_path):
    path = str(tmp_path / "run.h5")
    with Writer.create(path, HEADER) as writer:
        writer.append(row(0), state(0))
        segments = [name for name in os.listdir(path + ".parts") if name.startswith("seg")]
        for _ in range(3):
            writer.checkpoint(state(0, between=True))
        same(open_record(path).restart(), state(0, between=True))
        assert segments == [name for name in os.listdir(path + ".parts") if name.startswith("seg")]  # not rewritten
        assert len(os.listdir(path + ".parts")) == 5  # lock, manifest, header, segment, restart
    same(open_record(path).restart(), state(0, between=True))


def test_cadence_follows_the_share_of_the_run_time(tmp_path, monkeypatch):
    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER, max_cost=0.01)
    clock = [0.0]
    writer._clock, writer._began = lambda: clock[0], 0.0
    publish = writer._publish_rows

    def slow(restart):
        clock[0] += 1.0  # a publication takes one second, a row ten
        publish(restart)

    monkeypatch.setattr(writer, "_publish_rows", slow)
    published = []
    for k in range(100):
        writer.append(row(k), state(k))
        published.append(len(open_record(path)))
        clock[0] += 10.0
    assert published[0] == 1 and published[-1] > 50
    assert 5 <= len(set(published)) <= 11  # 1000 s allow 10 s of writing
    assert rows.segment_rows(("t",), {"theta": (P,), "theta_dot": (P,)}) == 64
    writer.close()
    check_rows(open_record(path), 100, 100)


def test_without_max_cost_every_row_is_published(tmp_path):
    with Writer.create(tmp_path / "run.h5", HEADER) as writer:
        for k in range(5):
            writer.append(row(k), state(k))
            assert len(open_record(tmp_path / "run.h5")) == k + 1


def test_killed_before_the_first_row_counts_as_nothing(tmp_path):
    from tests.storage.helpers import abandon

    path = str(tmp_path / "run.h5")
    abandon(Writer.create(path, HEADER))
    assert len(open_record(path)) == 0 and open_record(path).names == ("t",)
    with pytest.raises(PathError, match="expected a run with rows"):
        Writer.resume(path)
    with pytest.raises(PathError, match="at least one row"):
        pack(path)
    check_rows(write_run(path, 2), 2, 2)


def test_overwrite_replaces_and_nothing_else_does(tmp_path):
    path = str(tmp_path / "run.h5")
    old = write_run(path, 3)
    with pytest.raises(PathError, match="a run is there already.*resume=True.*overwrite=True"):
        Writer.create(path, HEADER)
    assert os.listdir(tmp_path) == ["run.h5"]
    assert open_record(path).run_id == old.run_id
    new = write_run(path, 2, overwrite=True)
    assert new.run_id != old.run_id
    check_rows(new, 2, 2)
    writer = Writer.create(path, HEADER, overwrite=True)
    writer.append(row(0), state(0))
    writer.close("failed")
    with pytest.raises(PathError, match="a run is there already"):
        Writer.create(path, HEADER)
    check_rows(write_run(path, 4, overwrite=True), 4, 4)


def test_places_that_cannot_serve(tmp_path):
    with pytest.raises(PathError, match="expected a file, got a folder"):
        Writer.create(tmp_path, HEADER)
    with pytest.raises(PathError, match="expected a file, got a folder"):
        open_record(tmp_path)
    with pytest.raises(PathError, match="run.h5': no such file"):
        open_record(tmp_path / "run.h5")
    with pytest.raises(PathError, match="no such file"):
        Writer.resume(tmp_path / "run.h5")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PathError, match="file/run.h5': expected a place where files can be made"):
        Writer.create(tmp_path / "file" / "run.h5", HEADER)
    with pytest.raises(PathError, match="pipe or a device"):
        open_record("/dev/null")


def test_rows_are_checked_at_the_door(tmp_path):
    with Writer.create(tmp_path / "run.h5", HEADER) as writer:
        with pytest.raises(ConfigError, match=r"missing \['theta_dot'\]"):
            writer.append({"t": 0.0, "theta": np.zeros(P)}, {})
        with pytest.raises(ConfigError, match=r"unexpected \['config'\]"):
            writer.append({**row(0), "config": 1.0}, {})
        writer.append(row(0), state(0))
        with pytest.raises(ConfigError, match=r"missing \['energy'\], unexpected \['enregy'\]"):
            writer.append({**{k: v for k, v in row(1).items() if k != "energy"}, "enregy": 0.0}, {})
        with pytest.raises(ConfigError, match=r"needs t > 0.0, the time of the last row; got 0.0"):
            writer.append(row(0), state(0))
        with pytest.raises(ShapeError, match=r"needs shape \(3,\) at 'theta'; got \(4,\)"):
            writer.append({**row(1), "theta": np.zeros(4)}, state(1))
        with pytest.raises(ShapeError, match="needs numbers at 'energy'"):
            writer.append({**row(1), "energy": "low"}, state(1))
        with pytest.raises(ShapeError, match="got complex128 at 'a'"):
            writer.append(row(1), {"a": np.zeros(1, complex)})
        with pytest.raises(ConfigError, match="got list at 'a'"):
            writer.append(row(1), {"a": [1]})
        with pytest.raises(ConfigError, match="got '../a'"):
            writer.append(row(1), {"../a": 1})
        with pytest.raises(ConfigError, match="'a' and another one below"):
            writer.append(row(1), {"a": 1, "a/b": 2})
        with pytest.raises(ConfigError, match="64 bits"):
            writer.append(row(1), {"a": 2**64})
        with pytest.raises(ConfigError, match="without NUL"):
            writer.append(row(1), {"a": "x\0"})
        with pytest.raises(ConfigError, match="'complete', 'failed' or 'interrupted'; got 'done'"):
            writer.close("done")
        with pytest.raises(ConfigError, match="needs dim=2, num_params=3"):
            writer.update_header(Header({}, [], {}, 2, 4))
    with pytest.raises(StorageError, match="append was called after close"):
        writer.append(row(1), state(1))
    check_rows(open_record(tmp_path / "run.h5"), 1, 1)
    with pytest.raises(ConfigError, match=r"fraction in \(0, 1\]"):
        Writer.create(tmp_path / "b.h5", HEADER, max_cost=0)


def test_headers_and_reads_are_checked_at_the_door(tmp_path):
    with pytest.raises(ConfigError, match=r"Header\(config=…\) needs what JSON can hold"):
        Header({"a": np.zeros(2)}, [], {}, 1, 1)
    with pytest.raises(ConfigError, match=r"Header\(num_params=…\) needs an integer ≥ 1; got 0"):
        Header({}, [], {}, 1, 0)
    with pytest.raises(ShapeError, match="got float16 at 'a'"):
        Header({}, [], {}, 1, 1, {"a": np.zeros(2, np.float16)})
    record = write_run(str(tmp_path / "run.h5"), 2)
    with pytest.raises(ConfigError, match="got 'enrgy'. Did you mean 'energy'"):
        record.column("enrgy")
    with pytest.raises(ConfigError, match="a row of 2; got 'theta', 2"):
        record.vector("theta", 2)


def test_rows_and_states_are_copies(tmp_path):
    with Writer.create(tmp_path / "run.h5", HEADER, max_cost=1e-9) as writer:
        for k in range(3):
            values, restart = row(k), state(k)
            writer.append(values, restart)
            values["theta"][:], restart["rng"][:] = 0, 0
    check_rows(open_record(tmp_path / "run.h5"), 3, 3)
