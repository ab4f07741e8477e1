"""Lock: one writer per run. `run.lock` is held by flock and names its holder; readers read it and never take it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat

from pwgf.errors import PathError, StorageError
from pwgf.storage.disk import UNSUPPORTED, Disk, refusal, say_once
from pwgf.storage.guard import open_stored
from pwgf.storage.manifest import parts_of

NAME = "run.lock"
NO_FLOCK = (*UNSUPPORTED, errno.ENOLCK, errno.EOPNOTSUPP, 524)  # 524: the kernel's ENOTSUPP, of Cray DVS and autofs


class RunLock:
    """The lock of one run, held from `acquire` to `release` or to the end of the process.

    The kernel releases the lock of a dead process, so it can be taken over. A child made by a fork has no part in it.

    Args:
        path: the lock file.
        fd: descriptor that holds the flock.
    """

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._pid = os.getpid()

    @classmethod
    def acquire(cls, path: str, disk: Disk) -> RunLock:
        """Takes the lock.

        Args:
            path: the lock file; its folder is there.
            disk: layer of writes.

        Returns:
            The lock.

        Raises:
            StorageError: another writer holds it; the message names its pid.
            PathError: something else than a file of ours is there.
        """
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                fd = os.open(path, flags, 0o666)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
                raise PathError(_odd(path)) from error
            try:
                about = os.fstat(fd)
                if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                    raise PathError(_odd(path))
                cls._flock(fd, path)
                if _is_at(fd, path):
                    disk.truncate(fd, 0)
                    disk.write(fd, json.dumps(_myself()).encode(), 0)
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # the previous holder removed the file between our open and our flock: it locks nothing

    @staticmethod
    def _flock(fd: int, path: str) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            if not held and error.errno not in NO_FLOCK:
                raise
            if held or holder_alive(path):  # on a file system without flock only the pid is left
                raise StorageError(_refusal(path, held)) from None
            say_once(f"{os.path.dirname(path)!r} is on a file system without flock: let no two hosts write one run")

    @property
    def released(self) -> bool:
        """Whether it has been released."""
        return self._fd < 0

    @property
    def is_mine(self) -> bool:
        """Was it taken by this process, and not by the one that forked it?"""
        return self._pid == os.getpid()

    def require(self) -> None:
        """StorageError unless this process still holds the lock that others see."""
        run = _run_of(self._path)
        if not self.is_mine:
            raise StorageError(
                f"{run!r} is being written by process {self._pid}; process {os.getpid()}, a fork of it, cannot write "
                "there too. Write from the process that began, or elsewhere."
            )
        if not _is_at(self._fd, self._path):
            raise StorageError(
                f"writing {run!r}: its lock {self._path!r} was removed or replaced while it was written, so another "
                "process may write there. Nothing more is written; see what is there with pwgf doctor."
            )

    def release(self) -> None:
        """Releases the lock; a second call does nothing, and in a fork the parent keeps it."""
        if self._fd >= 0:
            fd = self._fd
            self._fd = -1
            if self.is_mine and _is_at(fd, self._path):
                with contextlib.suppress(OSError):
                    os.remove(self._path)  # while still held, so that it is certainly ours
            os.close(fd)


def lock_run(path: str, disk: Disk) -> RunLock:
    """Makes the folder of a run's parts, and the one it lies in, and takes its lock there.

    Args:
        path: of the run.
        disk: layer of writes.

    Returns:
        The lock.

    Raises:
        PathError: the folder is not writable.
        StorageError: another writer holds it, or the disk is full.
    """
    try:
        if os.path.islink(parts_of(path)):
            raise PathError(
                f"writing {path!r}: expected a folder of its own at {parts_of(path)!r}, got a link. Remove the link, "
                "or give another path."
            )
        for _ in range(100):
            if not os.path.isdir(os.path.dirname(path)):
                make_folder(disk, os.path.dirname(path))
            make_folder(disk, parts_of(path))
            with contextlib.suppress(FileNotFoundError):  # a writer that ended just now removed the folder
                return RunLock.acquire(os.path.join(parts_of(path), NAME), disk)
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise StorageError(refusal(error, parts_of(path), 4096, 0)) from error
        raise PathError(
            f"writing {path!r}: expected a place where files can be made; {error}. "
            "Check the permissions and the disk, or give another path."
        ) from error
    raise StorageError(f"writing {path!r}: the folder {parts_of(path)!r} keeps vanishing. Give another path.")


def make_folder(disk: Disk, path: str) -> None:
    """Makes a folder in one that exists, and syncs its entry, so that a power cut does not lose what is in it."""
    above = os.path.dirname(path)
    disk.make_dir(path)
    disk.fsync_dir(above)


def holder_alive(path: str) -> bool:
    """Whether the process named in the lock file is alive; assumed for another host. Takes no lock."""
    who = _holder(path)
    pid = who.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    if who.get("host") != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    started = _started(pid)
    return started != "dead" and (started is None or who.get("started") in (None, started))


def _is_at(fd: int, path: str) -> bool:
    """Is the open file the one at `path`?"""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except OSError:
        return False


def _run_of(path: str) -> str:
    return path.removesuffix("/" + NAME).removesuffix(".parts")


def _odd(path: str) -> str:
    return (
        f"writing {_run_of(path)!r}: expected a lock file at {path!r}, got a link, a folder or a device, or a file "
        "with a second name. Remove it, or give another path."
    )


def _refusal(path: str, held: bool) -> str:
    run, who = _run_of(path), _holder(path)
    name = f"process {who.get('pid', 'unknown')} on {who.get('host', 'an unknown host')}"
    if held and not holder_alive(path):
        name += " (gone, but a process that it started, or one in another container, still holds the lock)"
    return f"{run!r} is being written by {name}; a run has one writer. Wait for it or end it, or write elsewhere."


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def _holder(path: str) -> dict:
    try:
        with open_stored(path) as file:
            who = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return who if isinstance(who, dict) else {}


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks (pids are reused); "dead" for a zombie, None where /proc has no entry."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in (b"Z", b"X") else fields[19].decode()
