"""Every disk call is a crash point: what was acknowledged is never lost, and a resumed run ends with equal content."""

import errno
import os
import shutil

import pytest

from pwgf.errors import PathError, StorageError
from pwgf.storage import Writer, open_record, pack, rows
from pwgf.storage.lock import lock_run
from tests.run.helpers import TIMES, assert_same_rows, solve
from tests.storage.helpers import HEADER, FaultyDisk, Killed, abandon, check_rows, row, state, write_run

ROWS = 4


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(rows, "SEGMENT_ROWS", 3)


def begin(path, disk):
    """A writer that goes on with what is there, as a solver does with resume=True."""
    try:
        return Writer.resume(path, disk=disk)[0]
    except PathError:
        return Writer.create(path, HEADER, disk=disk)


def finish(path, disk, acknowledged, writers):
    """The whole run from what is there: ROWS rows with a checkpoint after the second, packed."""
    writer = begin(path, disk)
    writers.append(writer)
    for k in range(len(open_record(path)), ROWS):
        writer.append(row(k), state(k))
        acknowledged[0] = k + 1
        if k == 1:
            writer.checkpoint(state(k, between=True))
    writer.close()


def start_nothing(path):
    """A run that begins."""
    return 0


def start_finished(path):
    """A finished run of two rows that is to grow; written once, copied after that."""
    first = os.path.join(os.path.dirname(os.path.dirname(path)), "two.h5")
    if not os.path.exists(first):
        write_run(first, 2)
    os.mkdir(os.path.dirname(path))
    shutil.copy(first, path)
    return 2


LONG = [pytest.mark.slow, pytest.mark.faults]
SCENARIOS = [  # start, and which disk calls: one in 23, or (make test-faults) every one
    *((start, 23) for start in (start_nothing, start_finished)),
    *(pytest.param(start, 1, marks=LONG) for start in (start_nothing, start_finished)),
]


def crash_points(start, every, tmp_path):
    """Numbers of the disk calls of the scenario: one in `every`."""
    path = str(tmp_path / "count" / "run.h5")
    start(path)
    disk = FaultyDisk()
    finish(path, disk, [0], [])
    assert len(disk.log) > 60
    return range(1, len(disk.log) + 1, every)


@pytest.mark.parametrize(("start", "every"), SCENARIOS)
def test_killed_at_every_disk_call(tmp_path, start, every, record_property):
    wanted = write_run(str(tmp_path / "whole.h5"), ROWS).content_sha256
    points = crash_points(start, every, tmp_path)
    for at in points:
        path = str(tmp_path / str(at) / "run.h5")
        acknowledged, writers = [start(path)], []
        with pytest.raises(Killed):
            finish(path, FaultyDisk(at, "kill"), acknowledged, writers)
        for writer in writers:
            abandon(writer)
        if acknowledged[0]:
            check_rows(open_record(path), acknowledged[0], acknowledged[0] + 1)
        finish(path, FaultyDisk(), acknowledged, [])
        check_rows(open_record(path), ROWS, ROWS)
        assert open_record(path).complete and open_record(path).content_sha256 == wanted
        assert os.listdir(os.path.dirname(path)) == ["run.h5"]
    record_property("faults", ("killed at a disk call (writes half done)", len(points), "0 acknowledged rows lost"))


@pytest.mark.parametrize(("start", "every"), SCENARIOS)
def test_disk_full_at_every_disk_call(tmp_path, start, every, record_property):
    """The process lives on: each call that failed is tried again once, on the same writer."""
    wanted = write_run(str(tmp_path / "whole.h5"), ROWS).content_sha256
    failures, points = 0, crash_points(start, every, tmp_path)
    for at in points:
        path, disk = str(tmp_path / str(at) / "run.h5"), FaultyDisk(at, "fail")
        stored = start(path)

        def attempt(call, again=None, least=0):
            nonlocal failures
            try:
                return call()
            except StorageError as error:
                failures += 1
                assert "run.h5" in str(error) and ("missing" in str(error) or "No space" in str(error))
                if least:
                    check_rows(open_record(path), least, least + 1)  # noqa: B023 - called at once
                return (again or call)()

        writer = attempt(lambda: begin(path, disk), least=stored)  # noqa: B023
        for k in range(stored, ROWS):
            attempt(lambda: writer.append(row(k), state(k)), writer.publish, least=k)  # noqa: B023
            check_rows(open_record(path), k + 1, k + 1)
        attempt(writer.close, least=ROWS)
        check_rows(open_record(path), ROWS, ROWS)
        assert open_record(path).complete
        if os.path.exists(path + ".parts"):  # a part that did not go: it changes nothing, and pack() removes it
            pack(path)
        assert open_record(path).content_sha256 == wanted
    assert failures > 3
    record_property("faults", ("disk full at a disk call", len(points), "the process goes on, 0 rows lost"))


@pytest.mark.parametrize("every", [97, pytest.param(4, marks=LONG)])
@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_a_solve_that_meets_a_fault_resumes_to_the_bit(tmp_path, monkeypatch, mode, every, record_property):
    """The same for a real run: solve dies, or raises StorageError and the process lives; solve(resume=True) goes on."""
    whole, at, tried = solve(TIMES[:3]), 1, 0
    path = str(tmp_path / "run.h5")
    while True:
        disk, locks = FaultyDisk(at, mode), []
        monkeypatch.setattr("pwgf.storage.writer.Disk", lambda disk=disk: disk)
        held = lambda *given, locks=locks: locks.append(lock_run(*given)) or locks[-1]  # noqa: E731
        monkeypatch.setattr("pwgf.storage.writer.lock_run", held)
        try:
            solve(TIMES[:3], out=path)
        except (Killed, StorageError) as error:
            assert isinstance(error, Killed) == (mode == "kill")
        for lock in locks:
            lock.release()
        monkeypatch.undo()
        assert_same_rows(solve(TIMES[:3], out=path, resume=True), whole)
        assert open_record(path).complete and os.path.isfile(path)
        if disk.calls < at:
            break
        shutil.rmtree(path + ".parts", ignore_errors=True)  # empty, or with a part that did not go
        os.remove(path)
        at, tried = at + every, tried + 1
    assert tried >= 2
    record_property("faults", (f"solve: {mode} at a disk call, then resume=True", tried, "equal to the bit"))


def test_a_failed_manifest_never_costs_the_parts_it_may_name(tmp_path):
    """The folder's fsync fails after the manifest's rename, then the disk fills up, then the process dies."""
    path, disk = str(tmp_path / "run.h5"), FaultyDisk()
    writer = Writer.create(path, HEADER, disk=disk)
    writer.append(row(0), state(0))
    calls = disk.calls
    writer.append(row(1), state(1))
    each = disk.log[calls:].index("fsync_dir", disk.log[calls:].index("fsync_dir") + 1) + 1  # calls up to that fsync
    disk.at, disk.mode = disk.calls + each, "fail"
    with pytest.raises(StorageError):
        writer.append(row(2), state(2))
    assert len(open_record(path)) == 3
    disk.at = disk.calls + 2
    with pytest.raises(StorageError):
        writer.publish()
    abandon(writer)
    check_rows(open_record(path), 2, 3)


def test_the_message_of_a_full_disk(tmp_path):
    path, disk = str(tmp_path / "run.h5"), FaultyDisk()
    writer = Writer.create(path, HEADER, disk=disk)
    writer.append(row(0), state(0))
    disk.at = disk.calls + 2  # the write of the segment, of which one half finds room
    with pytest.raises(
        StorageError, match=r"run.h5.parts/seg-.*the disk is full; the file needs (\d+) bytes"
    ) as caught:
        writer.append(row(1), state(1))
    words = str(caught.value).split()
    needed, missing = (int(words[words.index("bytes,") - 1]), int(words[words.index("missing.") - 2 - 1]))
    assert missing == needed - needed // 2
    assert not [name for name in os.listdir(path + ".parts") if name.endswith(".tmp")]
    disk.at, disk.code = disk.calls + 2, errno.EIO
    with pytest.raises(StorageError, match="Input/output error.*Check the disk"):
        writer.publish()
    writer.close()
    check_rows(open_record(path), 2, 2)


def test_no_room_for_the_packed_file_is_told_before_it_is_written(tmp_path, monkeypatch):
    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER)
    writer.append(row(0), state(0))
    full = os.statvfs(tmp_path)
    values = [*full[:4], 0, *full[5:10]]
    monkeypatch.setattr(os, "statvfs", lambda folder: os.statvfs_result(values))
    with pytest.raises(StorageError, match="disk is full"):
        writer.close()
    monkeypatch.undo()
    assert open_record(path).complete and not os.path.exists(path)  # complete, in parts
    abandon(writer)
    pack(path)
    assert open_record(path).complete and os.listdir(tmp_path) == ["run.h5"]


def test_a_missing_or_changed_part_is_named(tmp_path):
    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER)
    for k in range(4):
        writer.append(row(k), state(k))
    abandon(writer)
    first, second = sorted(name for name in os.listdir(path + ".parts") if name.startswith("seg"))
    name = os.path.join(path + ".parts", first)
    with open(name, "rb") as file:
        data = file.read()
    with open(name, "wb") as file:
        file.write(data[:-1] + b"x")
    record = open_record(path)
    assert len(record.verify()) == 1 and f"{first}" in record.verify()[0] and "sha256" in record.verify()[0]
    with pytest.raises(StorageError, match=f"{first}.*do not match the sha256"):
        record.vector("theta", 0)
    assert record.vector("theta", 3)[0] == row(3)["theta"][0]
    with pytest.raises(StorageError, match="do not match the sha256"):
        pack(path)
    os.remove(name)
    with pytest.raises(StorageError, match="a part that its manifest names is missing"):
        record.vector("theta", 0)
    os.remove(os.path.join(path + ".parts", second))
    with pytest.raises(StorageError, match="a part that its manifest names is missing"):
        open_record(path)
    with open(os.path.join(path + ".parts", "manifest.json"), "r+") as file:
        file.write("[")
    with pytest.raises(StorageError, match="it is not a manifest"):
        open_record(path)
