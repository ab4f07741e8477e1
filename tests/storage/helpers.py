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


class PowerDisk(FaultyDisk):
    """A disk that loses power: of what was not synced, `after_cut` keeps what the worst file system might keep.

    A file's bytes are safe after its fsync, a name (made, renamed, removed) after the fsync of its folder.
    """

    def __init__(self, root, at=None):
        super().__init__(at, "kill")
        self.root, self.files, self.numbers = root, {}, 0  # files: number → [synced bytes, present bytes]
        self.of_fd, self.of_path, self.pending, self.names = {}, {}, [], {root: None}  # names: path → number, or None
        for folder, _, names in os.walk(root):
            self.names[folder] = None
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    data = file.read()
                self.names[path] = self.of_path[path] = self._new(data)

    def _new(self, data=b""):
        self.numbers += 1
        self.files[self.numbers] = [data, bytearray(data)]
        return self.numbers

    def create(self, path):
        fd = super().create(path)
        if path not in self.of_path:
            self.of_path[path] = self._new()
            self.pending.append(("set", path, self.of_path[path]))
        self.of_fd[fd] = self.of_path[path]
        self.files[self.of_fd[fd]][1].clear()
        return fd

    def write(self, fd, data, offset):
        super().write(fd, data, offset)
        if fd in self.of_fd:  # not the lock, which says nothing after a power cut
            present = self.files[self.of_fd[fd]][1]
            present.extend(bytes(max(0, offset - len(present))))
            present[offset : offset + len(data)] = bytes(data)

    def truncate(self, fd, size):
        super().truncate(fd, size)
        if fd in self.of_fd:
            present = self.files[self.of_fd[fd]][1]
            present.extend(bytes(max(0, size - len(present))))
            del present[size:]

    def fsync(self, fd):
        super().fsync(fd)
        number = self.of_fd[fd]
        self.files[number][0] = bytes(self.files[number][1])

    def replace(self, source, target):
        super().replace(source, target)
        self.of_path[target] = self.of_path.pop(source)
        self.pending.append(("move", target, self.of_path[target], source))

    def remove(self, path):
        super().remove(path)
        self.of_path.pop(path)
        self.pending.append(("drop", path))

    def make_dir(self, path):
        there = os.path.isdir(path)
        super().make_dir(path)
        if not there:
            self.pending.append(("set", path, None))

    def remove_dir(self, path):
        super().remove_dir(path)
        self.pending.append(("drop", path))

    def fsync_dir(self, folder):
        super().fsync_dir(folder)
        mine = [change for change in self.pending if os.path.dirname(change[1]) == folder]
        self.pending = [change for change in self.pending if change not in mine]
        for change in mine:
            self._apply(self.names, change)

    @staticmethod
    def _apply(names, change):
        kind, path, *rest = change
        if kind == "drop":
            names.pop(path, None)
            return
        names[path] = rest[0]
        if kind == "move":
            names.pop(rest[1], None)

    def after_cut(self, target, keep_name, keep_bytes):
        """Makes the folder `target` with what is left.

        `keep_name()` says whether a pending change of a name took place, `keep_bytes(synced, present)` gives the bytes
        of a file that has changed since its fsync.
        """
        names = dict(self.names)
        for change in self.pending:
            if keep_name():
                self._apply(names, change)
        for path in sorted(names):
            above = os.path.dirname(path)
            if path != self.root and above in names and os.path.isdir(self._moved(above, target)):
                if names[path] is None:
                    os.mkdir(self._moved(path, target))
                    continue
                synced, present = self.files[names[path]]
                with open(self._moved(path, target), "wb") as file:
                    file.write(synced if synced == present else keep_bytes(synced, bytes(present)))

    def _moved(self, path, target):
        return target + path[len(self.root) :]


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
