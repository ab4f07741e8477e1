"""What the storage tests share: a run of known content, and a disk that fails or kills at the k-th call."""

import errno
import os

import numpy as np

from pwgf.storage import Header, Writer, open_record
from pwgf.storage.disk import Disk

P = 3
HEADER = Header(
    config={"energy": {"name": "Potential"}, "tolerance": 0.1 + 0.2, "times": [0.0, 1.0], "umlaut": "ä∇"},
    layout=[{"name": "A", "shape": [3], "offset": 0}],
    provenance={"versions": {"numpy": np.__version__}, "argv": ["x", "--y"], "threads": 1},
    dim=2,
    num_params=P,
    arrays={"reference/mean": np.array([1.0, np.pi]), "mask": np.array([True, False])},
)


def row(k, p=P):
    """Row k: every number is a function of k, so that a test knows what must be in the file."""
    theta = np.random.default_rng(k).standard_normal(p)
    return {"t": k / 7, "theta": theta, "theta_dot": -theta / 3, "energy": np.exp(-k), "num_stages": k}


def state(k, between=False):
    """The restart state after row k, or the one of a checkpoint between rows k and k + 1."""
    return {
        "row": k,
        "between": between,
        "dt": 0.1 / (k + 1),
        "name": "bosh3 ∇",
        "rng": np.random.default_rng(k).integers(0, 256, 5056).astype(np.uint8),
        "extra/momentum": np.float64(k) * np.ones((2, 2), dtype=np.float32),
        "zero_d": np.array(2.5),
        "empty": np.zeros((0, 4)),
    }


def same(a, b):
    """Equal restart states, in types too."""
    assert a.keys() == b.keys()
    for name in a:
        assert type(a[name]) is type(b[name]), name
        if isinstance(a[name], np.ndarray):
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], strict=True)
        else:
            assert a[name] == b[name]


def check_rows(record, least=0, most=10**9):
    """The record holds a prefix of the rows `row(k)`, bit for bit, of a length between `least` and `most`."""
    count = len(record)
    assert least <= count <= most
    assert record.verify() == []
    for name in ("t", "energy", "num_stages") if count else ("t",):
        np.testing.assert_array_equal(record.column(name), np.array([row(k)[name] for k in range(count)]))
    for k in range(count):
        for name in ("theta", "theta_dot"):
            np.testing.assert_array_equal(record.vector(name, k), row(k)[name])
    if count:
        last = record.restart()
        assert last["row"] == count - 1  # never older than the rows, never ahead of them
        same(last, state(count - 1, last["between"]))


class Killed(BaseException):
    """The process is gone."""


class FaultyDisk(Disk):
    """Counts calls; at the k-th one it fails once (a full disk), or kills: every later call is Killed, too."""

    def __init__(self, at=None, mode="fail", code=errno.ENOSPC):
        self.at, self.mode, self.code, self.calls, self.log = at, mode, code, 0, []

    def _strike(self, name, half=None):
        self.calls += 1
        self.log.append(name)
        if self.at is None or self.calls < self.at or (self.mode == "fail" and self.calls > self.at):
            return
        if half is not None and self.calls == self.at:
            half()
        raise Killed if self.mode == "kill" else OSError(self.code, os.strerror(self.code))

    def create(self, path):
        self._strike("create")
        return super().create(path)

    def write(self, fd, data, offset):
        self._strike("write", lambda: os.pwrite(fd, memoryview(data)[: len(data) // 2], offset))
        super().write(fd, data, offset)

    def truncate(self, fd, size):
        self._strike("truncate")
        super().truncate(fd, size)

    def fsync(self, fd):
        self._strike("fsync")  # what a power cut does is not simulated: the test would only wait for the disk

    def replace(self, source, target):
        self._strike("replace")
        super().replace(source, target)

    def fsync_dir(self, folder):
        self._strike("fsync_dir")

    def remove(self, path):
        self._strike("remove")
        super().remove(path)

    def make_dir(self, path):
        self._strike("make_dir")
        super().make_dir(path)

    def remove_dir(self, path):
        self._strike("remove_dir")
        super().remove_dir(path)


def abandon(writer):
    """What the kernel does when a process dies: its descriptors are closed, nothing else happens."""
    if writer is not None and writer._lock._fd >= 0:
        os.close(writer._lock._fd)
        writer._lock._fd = -1


def write_run(path, count=5, **options):
    """A finished run of `count` rows."""
    with Writer.create(path, HEADER, **options) as writer:
        for k in range(count):
            writer.append(row(k), state(k))
    return open_record(path)
