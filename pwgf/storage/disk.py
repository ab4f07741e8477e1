"""Disk: every change of a file goes through this one small layer, so that a test can fail or kill at the k-th call.

A file is published as a whole: written beside its place under a fresh name, fsynced, renamed, and the folder fsynced. A
reader sees the old file or the new one, and neither a kill nor a power cut leaves half of one (POSIX).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any

from pwgf.errors import StorageError

TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{16}\.tmp")
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what file systems answer that have no fsync of folders
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
_log = logging.getLogger("pwgf")


class Disk:
    """The primitive changes of files; each is one call that may fail, and does no more than its name says."""

    def create(self, path: str) -> int:
        """Makes the new file `path` and returns its file descriptor; FileExistsError where anything is there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`."""
        rest = memoryview(data)
        while rest:
            done = os.pwrite(fd, rest, offset)
            rest, offset = rest[done:], offset + done

    def truncate(self, fd: int, size: int) -> None:
        """Cuts or extends the open file to `size` bytes."""
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        """Returns when the open file's bytes have reached the disk."""
        os.fsync(fd)

    def replace(self, source: str, target: str) -> None:
        """Renames `source` to `target` in one atomic step; a file that was there hands its permissions on."""
        with contextlib.suppress(OSError):
            os.chmod(source, os.stat(target).st_mode & 0o777)
        os.replace(source, target)

    def fsync_dir(self, folder: str) -> None:
        """Returns when the folder's entries have reached the disk, on file systems that can say so."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            say_once(f"{folder!r} is on a file system without fsync of folders: a power cut may lose the newest rows")
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Removes one file."""
        os.remove(path)

    def make_dir(self, path: str) -> None:
        """Makes a folder, unless it exists, in one that exists."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def remove_dir(self, path: str) -> None:
        """Removes an empty folder."""
        os.rmdir(path)

    def publish(self, path: str, data: bytes) -> None:
        """Puts `data` at `path` as a whole, through a temporary file beside it.

        Args:
            path: the target.
            data: the content of the file.

        Raises:
            StorageError: writing failed; a file that was at `path` is still there.
        """
        with self.temporary(path, path, len(data)) as temporary:
            fd = self.create(temporary)
            try:
                self.write(fd, data, 0)
                self.fsync(fd)
            finally:
                os.close(fd)
            self.replace(temporary, path)
            self.fsync_dir(os.path.dirname(path))

    @contextlib.contextmanager
    def temporary(self, path: str, stem: str, needed: int) -> Iterator[str]:
        """A fresh name for what is to become `path`, beginning with `stem`; the file goes when the block fails.

        Nobody else has the name, so that two writers to one path end with the file of one of them.
        """
        name = f"{stem}.{secrets.token_hex(8)}.tmp"
        try:
            with self.telling(path, name, needed):
                yield name
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(name)
            raise

    @contextlib.contextmanager
    def telling(self, path: str, temporary: str, needed: int) -> Iterator[None]:
        """Turns an OSError of the block into a StorageError with path and bytes missing."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            written = os.path.getsize(temporary) if os.path.exists(temporary) else 0
            raise StorageError(refusal(error, path, needed, written)) from error

    def require(self, path: str, needed: int) -> None:
        """StorageError unless the file system of `path` has enough space."""
        there = os.statvfs(os.path.dirname(path))
        free = there.f_bavail * there.f_frsize
        if free < needed:
            raise StorageError(refusal(OSError(errno.ENOSPC, "No space left on device"), path, needed, free))


@functools.cache
def say_once(message: str) -> None:
    """Warns of what is missing on this system, once a process."""
    _log.warning(message)


def too_many_files(call: str) -> str:
    """The message for a process that has reached its limit of open files."""
    return (
        f"{call} failed: this process has too many files open. Close what you no longer need, or raise the limit "
        "(ulimit -n 4096 in the shell that starts it), then try again."
    )


def refusal(error: OSError, path: str, needed: int, written: int) -> str:
    """The message for a failed write of `needed` bytes, of which `written` were written."""
    if error.errno in TOO_MANY_FILES:
        return too_many_files(f"writing {path!r}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        missing = max(needed - written, 0) or needed
        return (
            f"writing {path!r}: the disk is full; the file needs {needed} bytes, of which {missing} bytes are missing. "
            "What was published before is untouched. Free some space, then publish again or continue with resume=True."
        )
    return (
        f"writing {path!r} ({needed} bytes) failed: {error}. What was published before is untouched. "
        "Check the disk and the permissions, then publish again or continue with resume=True."
    )


@contextlib.contextmanager
def in_memory(call: str) -> Iterator[None]:
    """Turns a MemoryError of the block, also one met when its own file is read back, into a StorageError."""
    try:
        yield
    except (MemoryError, StorageError) as error:
        if not isinstance(error, MemoryError) and not isinstance(error.__cause__, MemoryError):
            raise
        raise StorageError(
            f"{call}: there is not enough memory to prepare the file. What was published before is untouched. "
            "Free some memory, then publish again or continue with resume=True."
        ) from error


class Stored(io.RawIOBase):
    """A file open for reading, in the form that h5py reads through; closed with the last reference to it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._position = 0

    def readinto(self, buffer: Any) -> int:
        """Reads at the present position."""
        data = os.pread(self._fd, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def readall(self) -> bytes:
        """All bytes from the present position on, in one piece of memory."""
        data = bytearray(max(0, os.fstat(self._fd).st_size - self._position))
        view, done = memoryview(data), 0
        while done < len(data) and (count := self.readinto(view[done:])):
            done += count
        view.release()
        return bytes(data[:done]) if done < len(data) else bytes(data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Closes the descriptor."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class Image(io.BytesIO):
    """A new file in memory that HDF5 writes to; as a `Stream` does, it remembers its failure and shows HDF5 none."""

    def __init__(self) -> None:
        super().__init__()
        self._failure: MemoryError | None = None

    def check(self) -> None:
        """Raises the MemoryError of the first write that had no room, if there was one."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        """Writes at the present position; nothing after the first failure."""
        view = memoryview(data).cast("B")
        if self._failure is None:
            try:
                return super().write(view)
            except MemoryError as failure:
                self._failure = failure
                super().__init__()  # for the calls still to come: the failure has closed it
        return len(view)


class Stream(Stored):
    """A new file that HDF5 writes to; it never shows HDF5 an error, since HDF5 crashes the process on one.

    The first failure (a full disk, a kill) is remembered and what follows is dropped; `check` raises it.
    """

    def __init__(self, disk: Disk, path: str) -> None:
        super().__init__(disk.create(path))
        self._disk = disk
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raises the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _attempt(self, change: str, *args: Any) -> None:
        if self._failure is None:
            try:
                getattr(self._disk, change)(self._fd, *args)
            except BaseException as failure:  # not even KeyboardInterrupt may unwind through HDF5; check() raises it
                self._failure = failure

    def write(self, data: Any) -> int:
        """Writes at the present position."""
        view = memoryview(data).cast("B")
        self._attempt("write", view, self._position)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cuts or extends the file."""
        size = self._position if size is None else size
        self._attempt("truncate", size)
        return size

    def fsync(self) -> None:
        """Returns when all bytes have reached the disk; raises the first failure."""
        self._attempt("fsync")
        self.check()
