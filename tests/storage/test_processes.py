"""Several processes: one writer a run, readers that look at any moment, and a process that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from pwgf.errors import StorageError
from pwgf.storage import Writer, open_record, pack
from tests.storage.helpers import HEADER, abandon, check_rows, row, state, write_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WRITE = """
import sys; sys.path.insert(0, {root!r})
from tests.storage.helpers import *
writer = Writer.create({path!r}, HEADER)
for k in range({count}):
    writer.append(row(k), state(k))
    print(k + 1, flush=True)
{end}
"""


@contextlib.contextmanager
def writing(path, count, end="writer.close()"):
    """A process that writes `count` rows and says the number of acknowledged ones; killed when the block is left."""
    code = WRITE.format(root=ROOT, path=str(path), count=count, end=end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def dead_pid():
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("changes", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.faults])])
def test_a_reader_looks_while_another_process_writes(tmp_path, changes, record_property):
    path, until = tmp_path / "run.h5", tmp_path / "enough"
    end = f"import os, itertools, time\nfor k in itertools.takewhile(lambda k: not os.path.exists({str(until)!r}), "
    end += "itertools.count(1)): writer.append(row(k), state(k)); time.sleep(0.02)\nwriter.close()"
    with writing(path, 1, end) as process:
        process.stdout.readline()
        seen, records = [], []
        while process.poll() is None:
            if len(set(seen)) == changes:
                until.touch()
            record = open_record(path)
            assert record.status in ("running", "complete")
            count = len(record)
            record.column("t")
            if count:
                assert record.vector("theta", -1)[0] == row(count - 1)["theta"][0]
                assert record.vector("theta", 0)[0] == row(0)["theta"][0]
                assert record.restart()["row"] == count - 1
            seen.append(count)
            records = [*records[-20:], record]
        assert process.wait() == 0
    assert seen == sorted(seen) and len(set(seen)) >= changes
    record_property("faults", ("reads while another process writes", len(seen), "no exception on either side"))
    for record in records[:: len(records) // 5]:
        check_rows(record, len(record), len(record))  # also those opened before the parts went
    check_rows(open_record(path), changes)
    assert open_record(path).complete


def test_killed_by_the_system(tmp_path):
    path = tmp_path / "run.h5"
    with writing(path, 10_000) as process:
        for _ in range(20):
            acknowledged = int(process.stdout.readline())
        assert open_record(path).status == "running"
        with pytest.raises(StorageError, match=f"is being written by process {process.pid} on"):
            Writer.resume(path)
        with pytest.raises(StorageError, match=f"is being written by process {process.pid} on"):
            Writer.create(path, HEADER, overwrite=True)
        with pytest.raises(StorageError, match=f"is being written by process {process.pid} on"):
            pack(path)
        process.send_signal(signal.SIGKILL)
        acknowledged = int(([acknowledged, *process.stdout.read().split()])[-1])
        process.wait()
    record = open_record(path)
    assert record.status == "killed" and not record.complete
    check_rows(record, acknowledged, acknowledged + 1)
    count = len(record)
    writer, _ = Writer.resume(path)
    with writer:
        for k in range(count, count + 3):
            writer.append(row(k), state(k))
    check_rows(open_record(path), count + 3, count + 3)
    wanted = write_run(str(tmp_path / "whole.h5"), count + 3, max_cost=0.5)
    assert open_record(path).content_sha256 == wanted.content_sha256


def test_a_killed_run_is_packed_truthfully(tmp_path):
    path = tmp_path / "run.h5"
    with writing(path, 3, "import os; os.kill(os.getpid(), 9)") as process:
        process.wait()
    pack(path)
    assert open_record(path).status == "killed" and os.listdir(tmp_path) == ["run.h5"]
    check_rows(open_record(path), 3, 3)


def test_two_writers_in_one_process(tmp_path):
    path = tmp_path / "run.h5"
    with Writer.create(path, HEADER) as writer:
        writer.append(row(0), state(0))
        with pytest.raises(StorageError, match=f"by process {os.getpid()} on .*a run has one writer"):
            Writer.resume(path)
        writer.append(row(1), state(1))
    check_rows(open_record(path), 2, 2)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "run.h5"
    writer = Writer.create(path, HEADER)
    writer.append(row(0), state(0))
    abandon(writer)
    lock = tmp_path / "run.h5.parts" / "run.lock"
    who = json.loads(lock.read_text())
    assert who["pid"] == os.getpid() and open_record(path).status == "running"
    lock.write_text(json.dumps({**who, "pid": dead_pid()}))
    assert open_record(path).status == "killed"
    lock.write_text(json.dumps({**who, "started": "1"}))  # the pid lives, but it is another process by now
    assert open_record(path).status == "killed"
    lock.write_text("")  # killed before its pid was written
    assert open_record(path).status == "killed"
    writer, _ = Writer.resume(path)
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    writer.close()
    check_rows(open_record(path), 1, 1)


def test_a_zombie_is_dead(tmp_path):
    path = tmp_path / "run.h5"
    with writing(path, 2, "import os; os.kill(os.getpid(), 9)") as process:
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but nobody has asked for its exit status
        assert open_record(path).status == "killed"


def test_a_lock_that_a_child_still_holds_is_respected(tmp_path):
    """A flock outlives its process in the children; taking it over might be two writers."""
    path = tmp_path / "run.h5"
    writer = Writer.create(path, HEADER)
    writer.append(row(0), state(0))
    lock = tmp_path / "run.h5.parts" / "run.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "pid": dead_pid()}))
    with pytest.raises(StorageError, match="gone, but a process that it started"):
        Writer.resume(path)
    writer.close()
