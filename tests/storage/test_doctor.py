"""The doctor finds damage and copies the good prefix; migration copies an older schema; old files open for ever."""

import os
import pathlib
import shutil

import h5py
import numpy as np
import pytest
import torch

import pwgf
from pwgf.errors import PathError, SchemaError
from pwgf.storage import Writer, examine, open_record, pack, rows, salvage
from pwgf.storage.schema import put_attr
from tests.storage.forging import forge
from tests.storage.helpers import HEADER, abandon, check_rows, row, same, state, write_run

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A run of seven rows in three segments, killed after a checkpoint, and the names of its segments."""
    monkeypatch.setattr(rows, "SEGMENT_ROWS", 3)
    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER)
    for k in range(7):
        writer.append(row(k), state(k))
    writer.checkpoint(state(6, between=True))
    abandon(writer)
    os.remove(path + ".parts/run.lock")
    return path, sorted(name for name in os.listdir(path + ".parts") if name.startswith("seg"))


def spoil(path):
    data = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def packed(path, change, count=70):
    """A packed run after `change(file)`."""
    write_run(path, count, max_cost=0.5)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_a_good_run_is_good(parts, tmp_path):
    path, _ = parts
    found = examine(path)
    assert (found.status, found.stored, found.rows, found.problems) == ("killed", 7, 7, ())
    assert found.resumable
    check_rows(found.good, 7, 7)
    same(found.good.restart(), state(6, between=True))
    whole = write_run(str(tmp_path / "whole.h5"), 5)
    found = examine(whole.path)
    assert (found.status, found.rows, found.problems, found.resumable) == ("complete", 5, (), True)


@pytest.mark.parametrize(("segment", "good"), [(2, 6), (1, 3), (0, 0)])
def test_rows_before_a_damaged_segment_are_salvaged_and_resumed(parts, tmp_path, segment, good):
    path, segments = parts
    spoil(os.path.join(path + ".parts", segments[segment]))
    before = {name: pathlib.Path(path + ".parts", name).read_bytes() for name in os.listdir(path + ".parts")}
    found, out = examine(path), str(tmp_path / "new folder" / "saved.h5")
    assert (found.stored, found.rows, found.resumable) == (7, good, good > 0)
    assert len(found.problems) == 1 and segments[segment] in found.problems[0] and "sha256" in found.problems[0]
    if not good:
        with pytest.raises(SchemaError, match=f"not one row is good.*{segments[0]}"):
            salvage(path, out)
        assert not os.path.exists(out)
        return
    assert salvage(path, out).rows == good
    saved = open_record(out)
    assert saved.status == "salvaged" and not saved.complete
    check_rows(saved, good, good)
    same(saved.restart(), state(good - 1))  # not the newer one, which belongs to rows that are lost
    writer, _ = Writer.resume(out)
    with writer:
        for k in range(good, 7):
            writer.append(row(k), state(k))
    whole = write_run(str(tmp_path / "whole.h5"), 7)
    assert open_record(out).content_sha256 == whole.content_sha256
    assert before == {name: pathlib.Path(path + ".parts", name).read_bytes() for name in os.listdir(path + ".parts")}


def test_a_damaged_checkpoint_costs_only_itself(parts, tmp_path):
    path, _ = parts
    restart = next(name for name in os.listdir(path + ".parts") if name.startswith("restart"))
    spoil(os.path.join(path + ".parts", restart))
    with pytest.raises(SchemaError, match=restart):
        open_record(path)
    found = salvage(path, tmp_path / "saved.h5")
    assert found.rows == 7 and restart in found.problems[0]
    same(open_record(tmp_path / "saved.h5").restart(), state(6))


def test_parts_behind_the_first_damage_are_reported_too(parts):
    path, segments = parts
    spoil(os.path.join(path + ".parts", segments[0]))
    os.remove(os.path.join(path + ".parts", segments[2]))
    problems = examine(path).problems
    assert segments[0] in problems[0] and segments[2] in problems[1] and "missing" in problems[1]


@pytest.mark.parametrize("name", ["manifest.json", "header-"])
def test_without_manifest_or_header_nothing_can_be_trusted(parts, tmp_path, name):
    path, _ = parts
    spoil(next(str(part) for part in pathlib.Path(path + ".parts").iterdir() if part.name.startswith(name)))
    found = examine(path)
    assert (found.status, found.rows, found.good, found.resumable) == ("unreadable", 0, None, False)
    assert name in found.problems[0]
    with pytest.raises(SchemaError, match="not one row is good"):
        salvage(path, tmp_path / "saved.h5")


def test_rows_before_a_damaged_row_of_a_packed_file(tmp_path):
    """The bytes of row 40 of θ are changed behind HDF5's back, as a bad sector does."""
    path = write_run(str(tmp_path / "run.h5"), 70, max_cost=0.5).path
    with h5py.File(path) as file:
        offset = file["theta"].id.get_chunk_info_by_coord((40, 0)).byte_offset
    data = bytearray(pathlib.Path(path).read_bytes())
    data[offset] ^= 1
    pathlib.Path(path).write_bytes(data)
    found = salvage(path, tmp_path / "saved.h5")
    assert (found.status, found.stored, found.rows) == ("complete", 70, 40) and "'theta'" in found.problems[0]
    saved = open_record(tmp_path / "saved.h5")
    assert len(saved) == 40 and saved.verify() == [] and not found.resumable
    for k in (0, 39):
        np.testing.assert_array_equal(saved.vector("theta", k), row(k)["theta"])
    assert saved.restart() == {}  # the stored state belongs to row 69
    np.testing.assert_array_equal(saved.column("energy"), [row(k)["energy"] for k in range(40)])


def test_a_damaged_column_is_left_out(tmp_path):
    def change(file):
        file["energy"][3] = 0.5  # with a fletcher32 that fits

    path = packed(str(tmp_path / "run.h5"), change)
    found = salvage(path, tmp_path / "saved.h5")
    saved = open_record(tmp_path / "saved.h5")
    assert found.rows == len(saved) == 70 and saved.names == ("t", "num_stages")
    assert "'energy' is damaged" in found.problems[0] and not found.resumable


@pytest.mark.parametrize(("name", "rows_left"), [("t", 0), ("theta", 0), ("restart/rng", 70)])
def test_damage_that_cannot_be_located_costs_all_rows(tmp_path, name, rows_left):
    def change(file):
        file[name][3] = 1

    found = examine(packed(str(tmp_path / "run.h5"), change))
    assert found.rows == rows_left and not found.resumable and f"{name!r} is damaged" in found.problems[0]


def test_damage_in_the_packed_beginning_of_a_longer_run(tmp_path):
    path = write_run(str(tmp_path / "run.h5"), 6).path
    writer, _ = Writer.resume(path)
    writer.append(row(6), state(6))
    abandon(writer)
    assert examine(path).rows == 7
    check_rows(examine(path).good, 7, 7)
    spoil(path + ".parts/" + next(name for name in os.listdir(path + ".parts") if name.startswith("seg")))
    salvage(path, tmp_path / "saved.h5")
    check_rows(open_record(tmp_path / "saved.h5"), 6, 6)
    with h5py.File(path, "r+") as file:
        put_attr(file, "content_sha256", "0" * 64)
    found = examine(path)
    assert found.rows == 0 and "first 6 rows is missing or damaged" in found.problems[-1]


def test_the_doctor_disturbs_no_writer(tmp_path):
    path = str(tmp_path / "run.h5")
    with Writer.create(path, HEADER) as writer:
        for k in range(3):
            writer.append(row(k), state(k))
            assert (examine(path).status, examine(path).rows, examine(path).problems) == ("running", k + 1, ())
    check_rows(open_record(path), 3, 3)


@pytest.mark.parametrize("taken", ["restart/axis0_1", "restart/axis0_1/inner"])
def test_a_state_that_bears_the_name_of_an_axis_is_copied(tmp_path, taken):
    path = write_run(str(tmp_path / "run.h5"), 4).path

    def change(file):
        file[taken] = np.arange(3.0)
        file["restart/extra_one"] = np.zeros(1)

    forge(path, change)
    salvage(path, tmp_path / "saved.h5")
    assert open_record(tmp_path / "saved.h5").verify() == []
    with h5py.File(tmp_path / "saved.h5") as file:
        np.testing.assert_array_equal(file[taken], np.arange(3.0))
        assert not file[taken].is_scale and file["restart/extra_one"].dims[0].values()[0].is_scale


def test_salvage_replaces_nothing(tmp_path):
    path = write_run(str(tmp_path / "run.h5"), 3).path
    with pytest.raises(PathError, match="a run is there already"):
        salvage(path, path)
    with pytest.raises(PathError, match="no such file"):
        examine(tmp_path / "none.h5")
    with pytest.raises(PathError, match="no such file"):
        salvage(tmp_path / "none.h5", tmp_path / "saved.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="expected a place where files can be made"):
        salvage(path, tmp_path / "file" / "saved.h5")
    salvage(path, tmp_path / "saved.h5")
    assert open_record(tmp_path / "saved.h5").complete  # nothing was wrong
    assert open_record(tmp_path / "saved.h5").content_sha256 == open_record(path).content_sha256


def test_files_of_schema_1_0_open_for_ever(tmp_path):
    """ou-1.0.h5: Ornstein–Uhlenbeck, V = 2|x − 1|², d = 1, affine map, three rows to t = .2; m = 1 − exp(−4t)."""
    path = tmp_path / "run.h5"
    shutil.copy(FIXTURES / "ou-1.0.h5", path)
    assert open_record(path).schema == "1.0" and open_record(path).verify() == []
    run = pwgf.load(path)
    assert run.t.tolist() == [0.0, 0.1, 0.2]
    z = run.sample(0.0, 20_000)
    assert torch.equal(z, pwgf.Gaussian(1).sample(20_000, torch.Generator().manual_seed(0)))  # T is the identity
    decay = float(np.exp(-0.8))
    assert float(run.theta(0.2)[1]) == pytest.approx(1 - decay, abs=1e-4)
    assert float(run.theta(0.2)[0]) ** 2 == pytest.approx(0.25 + 0.75 * decay**2, abs=1e-3)
    assert pack(path) == str(path)
