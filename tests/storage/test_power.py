"""A power cut: what was not synced is lost, in part or out of order; what was acknowledged is there."""

import numpy as np
import pytest

from pwgf.storage import open_record, rows
from tests.storage.helpers import FaultyDisk, Killed, PowerDisk, abandon, check_rows
from tests.storage.test_crashes import ROWS, finish, start_finished, start_nothing, write_run


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(rows, "SEGMENT_ROWS", 3)


def cuts(rng):
    """Ways for a file system to lose what was not synced: names kept or not, bytes kept, lost, cut short or zeroed."""
    yield (lambda: False), (lambda synced, present: synced)
    yield (lambda: True), (lambda synced, present: b"")  # the rename is there, the bytes are not

    def some(synced, present):
        return [synced, present, present[: len(present) // 2], bytes(len(present))][rng.integers(4)]

    yield (lambda: rng.integers(2) == 1), some


CASES = [(start, 53) for start in (start_nothing, start_finished)]
LONG = [
    pytest.param(start, 1, marks=[pytest.mark.slow, pytest.mark.faults]) for start in (start_nothing, start_finished)
]


@pytest.mark.parametrize(("start", "every"), CASES + LONG)
def test_a_power_cut_loses_no_acknowledged_row(tmp_path, start, every, record_property):
    wanted = write_run(str(tmp_path / "whole.h5"), ROWS).content_sha256
    rng, tried, at = np.random.default_rng(0), 0, 0
    while True:
        at += every
        root = tmp_path / "live" / str(at)
        path = str(root / "new" / "run.h5")
        root.mkdir(parents=True)
        acknowledged, writers = [start(path)], []
        disk = PowerDisk(str(root), at)
        try:
            finish(path, disk, acknowledged, writers)
        except Killed:
            pass
        else:
            break  # fewer calls than `at`: every one has been a power cut
        for writer in writers:
            abandon(writer)
        for number, (keep_name, keep_bytes) in enumerate(cuts(rng)):
            target = tmp_path / "cut" / str(at) / str(number)
            target.mkdir(parents=True)
            disk.after_cut(str(target), keep_name, keep_bytes)
            left = str(target / "new" / "run.h5")
            if acknowledged[0]:
                check_rows(open_record(left), acknowledged[0], acknowledged[0] + 1)
            finish(left, FaultyDisk(), [0], [])
            assert open_record(left).complete and open_record(left).content_sha256 == wanted
            tried += 1
    assert tried >= 6
    record_property("faults", ("power cut at a disk call, three kinds", tried, "0 acknowledged rows lost"))


def test_the_simulation_loses_what_is_not_synced(tmp_path):
    """It would find a writer that forgets an fsync."""
    root = tmp_path / "live"
    root.mkdir()
    disk = PowerDisk(str(root))
    disk.publish(str(root / "good"), b"synced")
    fd = disk.create(str(root / "bad.tmp"))
    disk.write(fd, b"not synced", 0)
    disk.replace(str(root / "bad.tmp"), str(root / "bad"))
    disk.remove(str(root / "good"))
    for kept, names in ((False, {"good"}), (True, {"bad"})):
        target = tmp_path / str(kept)
        target.mkdir()
        disk.after_cut(str(target), lambda: kept, lambda synced, present: synced)  # noqa: B023 - called at once
        assert {path.name for path in target.iterdir()} == names
    assert (tmp_path / "False" / "good").read_bytes() == b"synced" and (tmp_path / "True" / "bad").read_bytes() == b""
