"""Where the system sets a limit: small disks, file size limits, memory, descriptors, places that cannot be written."""

import json
import os
import subprocess
import sys

import pytest

from pwgf.errors import PathError
from pwgf.storage import Writer, open_record, pack
from tests.storage.helpers import HEADER, check_rows, row, state, write_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PRELUDE = """
import errno, json, os, resource, subprocess, sys
sys.path.insert(0, {root!r})
from tests.storage.helpers import *
from pwgf.errors import StorageError
path = {path!r}
"""
FILL = """
told, k = [], 0
writer = Writer.create(path, Header({}, [], {}, 1, 500))
while not told:
    try:
        writer.append(row(k, 500), {"k": k})
        k += 1
    except StorageError as error:
        told.append(str(error))
try:
    writer.close()
except StorageError as error:
    told.append(str(error))
writer._lock.release()
record = open_record(path)
good = all((record.vector("theta", j) == row(j, 500)["theta"]).all() for j in range(len(record)))
print(json.dumps({"acknowledged": k, "rows": len(record), "good": bool(good), "wrong": record.verify(), "told": told}))
"""


def run(path, code, *prefix):
    """What a Python process prints, as JSON; `prefix` is a command that starts it."""
    whole = PRELUDE.format(root=ROOT, path=str(path)) + code
    done = subprocess.run([*prefix, sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_full(found, path, word):
    """The process lived, lost nothing, and said where and how many bytes."""
    assert found["rows"] == found["acknowledged"] > 3 and found["good"] and found["wrong"] == []
    for message in found["told"]:
        assert str(path) in message and "bytes" in message and word in message
        assert "What was published before is untouched" in message


def test_a_file_size_limit_of_the_system(tmp_path):
    """RLIMIT_FSIZE: the kernel itself refuses to write on."""
    path = tmp_path / "run.h5"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    found = run(path, limit + FILL)
    check_full(found, path, "File too large")
    assert len(found["told"]) == 2  # neither the last row nor a packed file of that size can be written
    pack(path)  # without the limit
    assert len(open_record(path)) == found["rows"]


def test_a_file_system_that_is_really_full(tmp_path):
    """A tmpfs of 200 kB, mounted in a name space of the test's own."""
    path = tmp_path / "small" / "run.h5"
    path.parent.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs name spaces, which this system does not allow")
    mount = f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', {str(path.parent)!r}], check=True)\n"
    found = run(path, mount + FILL, "unshare", "-rm")
    check_full(found, path, "the disk is full")
    assert all("bytes are missing" in message for message in found["told"])


SCARCE = """
def within(margin, call):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + margin, resource.RLIM_INFINITY))
    try:
        call()
        return ""
    except StorageError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
told = []
for number, margin in enumerate({margins}):
    each = path + str(number)
    writer = Writer.create(each, Header({}, [], {}, 1, 200_000))
    for k in range(9):
        writer.append(row(k, 200_000), {"k": k})
    writer._pending, writer._restart = [row(9, 200_000)], {"k": 9}  # as a row waits after a publication that failed
    for call, rows in ((writer.publish, 9), (writer.close, 10)):
        told.append(within(margin, call))
        record = open_record(each)
        assert len(record) >= rows and record.verify() == []
        assert all((record.vector("theta", j) == row(j, 200_000)["theta"]).all() for j in range(len(record)))
        call()
    assert len(open_record(each)) == 10 and open_record(each).complete
print(json.dumps({"told": told}))
"""


@pytest.mark.parametrize(
    "margins", [[2**20], pytest.param([k * 2**20 for k in range(24)], marks=[pytest.mark.slow, pytest.mark.faults])]
)
def test_memory_that_ends_while_a_file_is_made(tmp_path, margins, record_property):
    """RLIMIT_AS, so many bytes above what the process has: rows of 3.2 MB find no room, and then they do."""
    found = run(tmp_path / "run.h5", SCARCE.replace("{margins}", repr(margins)))
    refused = [message for message in found["told"] if message]
    assert found["told"][0] and found["told"][1]  # with the least margin neither a segment nor a packed file is made
    for message in refused:
        assert str(tmp_path) in message and "there is not enough memory to prepare the file" in message
        assert "What was published before is untouched. Free some memory" in message
    outcome = f"{len(refused)} refused by name, 0 rows lost, the same writer goes on"
    record_property("faults", ("memory ends while a segment or a packed file is made", len(found["told"]), outcome))


FLAT = """
def now():
    with open("/proc/self/statm") as file:
        return len(os.listdir("/proc/self/fd")), int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
writer, seen = Writer.create(path, Header({}, [], {}, 1, {p})), []
theta = np.random.default_rng(0).standard_normal({p})
for k in range({count}):
    writer.append({"t": k, "theta": theta, "theta_dot": theta, "energy": 0.0}, {"k": k})
    if k in ({count} // 4, {count} - 1):
        seen.append(now())
spent = writer._spent / {count}
writer.close()
seen.append(now())
record = open_record(path)
total = sum(len(batch["t"]) for batch in record.iter_rows())
last = record.vector("theta", -1)
seen.append(now())
print(json.dumps({"seen": seen, "rows": total, "same": bool((last == theta).all()), "publish": spent}))
"""


@pytest.mark.parametrize(
    ("count", "p"),
    [(100, 100_000), pytest.param(2000, 100_000, marks=[pytest.mark.slow, pytest.mark.faults])],
)
def test_memory_and_descriptors_are_flat(tmp_path, count, p, record_property):
    """While rows are written, packed and read through; the rows together are far larger than the growth allowed."""
    code = FLAT.replace("{count}", str(count)).replace("{p}", str(p))
    found = run(tmp_path / "run.h5", code)
    assert found["rows"] == count and found["same"]
    fds, memory = zip(*found["seen"], strict=True)
    size = count * p * 16 / 2**20  # MB
    assert fds[0] == fds[1] and fds[2] <= fds[0] and fds[3] <= fds[0] + 1
    assert max(memory) - memory[0] < 70 < size / 2, (memory, size)  # a few copies of 8 MB, however many rows
    growth, publish = max(memory) - memory[0], 1000 * found["publish"]
    what = f"{count} rows of {p} parameters: resident memory grew by {growth:.0f} MB, {publish:.0f} ms a row published"
    record_property("faults", ("rows written, packed and read", count, what))


def test_places_that_cannot_be_written(tmp_path):
    """/sys refuses even root; a folder that may be read only can still be read from."""
    for place in ("/sys/run.h5", "/proc/run.h5"):
        if os.path.isdir(os.path.dirname(place)):
            with pytest.raises(PathError, match="expected a place where files can be made.*give another path"):
                Writer.create(place, HEADER)
    path = tmp_path / "results" / "run.h5"
    write_run(str(path), 3)
    os.chmod(path, 0o444)
    os.chmod(path.parent, 0o555)
    try:
        check_rows(open_record(path), 3, 3)
        assert pack(path) == str(path)  # nothing to do
        if os.geteuid():
            with pytest.raises(PathError, match="expected a place where files can be made"):
                Writer.resume(path)
    finally:
        os.chmod(path.parent, 0o755)
    assert os.listdir(path.parent) == ["run.h5"]


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "mes résultats/flow ∇ρ.h5"
    writer = Writer.create(name, HEADER)
    writer.append(row(0), state(0))
    record = open_record(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.append(row(1), state(1))  # relative names mean what they meant when they were given
    assert len(record.refresh()) == 2
    writer.close()
    check_rows(open_record(os.fsencode(tmp_path / name)), 2, 2)
    assert not os.listdir()


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", ["run.h5"]])
def test_what_is_no_path(path):
    for call in (open_record, pack, lambda path: Writer.create(path, HEADER)):
        with pytest.raises(PathError, match=r"needs a path.*got .*Give e\.g\. 'results/run\.h5'"):
            call(path)
