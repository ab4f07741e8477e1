"""What lies beside a run belongs to somebody else: links, devices, pipes, files of like names, other writers."""

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading

import pytest

import pwgf
from pwgf.errors import PathError, StorageError
from pwgf.run.signals import Signals
from pwgf.storage import Writer, examine, open_record, pack, salvage
from pwgf.storage.disk import Disk, say_once
from tests.run.helpers import solve
from tests.storage.helpers import HEADER, abandon, check_rows, row, state, write_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def begun(path, count=2):
    """A run in parts whose writer is gone."""
    writer = Writer.create(path, HEADER)
    for k in range(count):
        writer.append(row(k), state(k))
    abandon(writer)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_or_device_is_not_replaced(tmp_path, make, overwrite):
    path = tmp_path / "run.h5"
    try:
        make(path)
    except PermissionError:
        make = os.mkfifo  # making a device needs root
        make(path)
    before = path.stat().st_mode
    with pytest.raises(PathError, match=r"run\.h5.*expected a file, got a pipe or a device\. Give another path"):
        Writer.create(path, HEADER, overwrite=overwrite)
    with pytest.raises(PathError, match="expected a file, got a pipe or a device"):
        open_record(path)
    assert path.stat().st_mode == before and os.listdir(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_followed_to_its_target(tmp_path, dangling):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.h5", tmp_path / "run.h5"
    if not dangling:
        write_run(str(target), 3)
    link.symlink_to("there/target.h5")
    if not dangling:
        with pytest.raises(PathError, match="a run is there already"):
            Writer.create(link, HEADER)
    write_run(str(link), 5, overwrite=not dangling)
    assert os.readlink(link) == "there/target.h5" and os.listdir(target.parent) == ["target.h5"]
    check_rows(open_record(link), 5, 5)
    check_rows(open_record(target), 5, 5)


def test_a_link_at_the_folder_of_the_parts_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "run.h5.parts").symlink_to("mine")
    with pytest.raises(PathError, match=r"expected a folder of its own at .*run\.h5\.parts', got a link. Remove the"):
        Writer.create(tmp_path / "run.h5", HEADER, overwrite=True)
    assert os.listdir(tmp_path / "mine") == []


@pytest.mark.parametrize("kind", ["link", "second name", "folder", "pipe"])
def test_what_stands_for_the_lock_is_left_alone(tmp_path, kind):
    mine, lock, path = tmp_path / "mine.txt", tmp_path / "run.h5.parts" / "run.lock", tmp_path / "run.h5"
    mine.write_text("precious")
    begun(path)
    lock.unlink()
    {"link": lambda: lock.symlink_to(mine), "second name": lambda: lock.hardlink_to(mine), "folder": lock.mkdir}.get(
        kind, lambda: os.mkfifo(lock)
    )()
    for attempt in (Writer.resume, pack, lambda path: Writer.create(path, HEADER, overwrite=True)):
        with pytest.raises(PathError, match=r"run\.h5.*expected a lock file at .*run\.lock'"):
            attempt(path)
    check_rows(open_record(path), 2, 2)  # a pipe there would never answer
    assert open_record(path).status == "killed" and examine(path).rows == 2
    assert mine.read_text() == "precious" and os.path.lexists(lock)


def test_files_of_the_names_that_come_to_mind_are_left_alone(tmp_path):
    mine = [tmp_path / "run.h5.tmp", tmp_path / "run.h5.parts" / "manifest.json.tmp", tmp_path / "out.h5.tmp"]
    (tmp_path / "run.h5.parts").mkdir()
    (tmp_path / "precious").write_text("precious")
    mine[0].write_text("mine")
    mine[1].symlink_to("../precious")
    mine[2].symlink_to("precious")
    path = write_run(str(tmp_path / "run.h5"), 3).path
    salvage(path, tmp_path / "out.h5")
    assert mine[0].read_text() == "mine" and mine[1].is_symlink() and mine[2].is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    check_rows(open_record(tmp_path / "out.h5"), 3, 3)


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_run("~/run.h5", 3)
    assert os.listdir(tmp_path / "home") == ["run.h5"] and os.listdir(tmp_path) == ["home"]
    check_rows(open_record("~/run.h5"), 3, 3)


def test_homes_and_working_folders_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PathError, match=r"no user has the home folder that '~no\.such\.user/run\.h5' names\. Give '\./~no"
    ):
        write_run("~no.such.user/run.h5", 3)
    write_run("./~no.such.user.h5", 2)
    assert sorted(os.listdir(tmp_path)) == ["gone", "~no.such.user.h5"]
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(PathError, match=r"the working folder was removed\. Change to another"):
        write_run("run.h5", 3)
    monkeypatch.chdir(tmp_path)


def test_a_run_that_grows_keeps_the_permissions_of_its_file(tmp_path):
    path = tmp_path / "run.h5"
    solve([0.0, 0.1], out=path)
    path.chmod(0o600)
    assert len(solve([0.0, 0.1, 0.2], out=path, resume=True)) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_the_last_folder_is_made(tmp_path):
    write_run(str(tmp_path / "results" / "run.h5"), 2)
    with pytest.raises(PathError, match=r"expected a place where files can be made.*give another path"):
        Writer.create(tmp_path / "mistyped" / "results" / "run.h5", HEADER)
    assert os.listdir(tmp_path) == ["results"]


def test_a_fork_leaves_the_run_to_its_parent(tmp_path):
    """The child of a callback ends by SystemExit, which unwinds through the parent's frames."""
    path = str(tmp_path / "run.h5")
    code = "import os, sys\nfrom tests.storage.test_belongings import forked\nforked(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "refused", "5"]
    assert open_record(path).complete and not os.path.exists(path + ".parts")


def forked(path):
    """Solves with a callback that forks a child which ends by SystemExit; says how it ended and what came of it."""
    ends = []

    def fork(state, info):
        if state.t > 0.2 and not ends:
            child = os.fork()
            if not child:
                sys.exit(7)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            try:
                solve(out=path, resume=True)
            except StorageError as error:
                ends.append("refused" if "a run has one writer" in str(error) else str(error))

    run = solve(out=path, callbacks=[fork])
    sys.stdout.write(f"{ends[0]} {ends[1]} {len(run)}\n")


def test_a_writer_handed_to_a_fork_says_whose_run_it_is(tmp_path):
    writer = Writer.create(tmp_path / "run.h5", HEADER)
    writer._lock._pid += 1  # as the child sees it
    with pytest.raises(StorageError, match=r"is being written by process \d+; process \d+, a fork of it, cannot"):
        writer.append(row(0), state(0))
    writer.__exit__(None, None, None)
    assert os.path.exists(tmp_path / "run.h5.parts" / "run.lock") and open_record(tmp_path / "run.h5").status


@pytest.mark.parametrize("gone", ["run.lock", "folder"])
def test_a_lock_that_was_removed_lets_no_second_writer_in(tmp_path, gone):
    path = str(tmp_path / "run.h5")
    first = Writer.create(path, HEADER)
    first.append(row(0), state(0))
    if gone == "folder":
        os.rename(path + ".parts", path + ".moved")
        second = Writer.create(path, HEADER)
    else:
        os.remove(path + ".parts/run.lock")
        second = Writer.resume(path)[0]
    for k in range(2):
        with pytest.raises(StorageError, match=r"its lock .*run\.lock' was removed or replaced.*pwgf doctor"):
            first.append(row(1 + k), state(1 + k))
    with pytest.raises(StorageError, match="was removed or replaced"):
        first.close()
    first._lock.release()
    with second:
        for k in range(len(open_record(path)), 4):
            second.append(row(k), state(k))
    check_rows(open_record(path), 4, 4)


def test_two_that_salvage_to_one_path_leave_a_whole_file(tmp_path, monkeypatch):
    """The one is stopped before its rename until the other is done."""
    path, out = write_run(str(tmp_path / "run.h5"), 5).path, str(tmp_path / "out.h5")
    replace, waits, done = Disk.replace, threading.Event(), threading.Event()

    def slow(disk, source, target):
        if threading.current_thread() is not threading.main_thread():
            waits.set()
            done.wait(60)
        replace(disk, source, target)

    monkeypatch.setattr(Disk, "replace", slow)
    other = threading.Thread(target=salvage, args=(path, out))
    other.start()
    assert waits.wait(60)
    salvage(path, out)
    check_rows(open_record(out), 5, 5)
    done.set()
    other.join()
    check_rows(open_record(out), 5, 5)
    assert sorted(os.listdir(tmp_path)) == ["out.h5", "run.h5"]


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """`signal.getsignal` gives None for one set from C, which Python can replace and not put back."""
    import signal

    before, real = signal.getsignal(signal.SIGTERM), signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number))
    with Signals():
        assert real(signal.SIGTERM) is before and real(signal.SIGINT) is not signal.default_int_handler
    assert real(signal.SIGTERM) is before and len(solve([0.0, 0.1])) == 2


@pytest.mark.parametrize("code", [524, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_flock(tmp_path, monkeypatch, caplog, code):
    def refuse(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "pwgf"):
        write_run(str(tmp_path / "run.h5"), 3)
        write_run(str(tmp_path / "run.h5"), 3, overwrite=True)
    assert len(caplog.records) == 1 and "without flock" in caplog.text
    check_rows(open_record(tmp_path / "run.h5"), 3, 3)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_without_fsync_of_folders(tmp_path, monkeypatch, caplog, code):
    real = os.fsync

    def refuse(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = solve([0.0, 0.1], out=tmp_path / "run.h5")
    assert "without fsync of folders" in caplog.text and len(run) == len(pwgf.load(tmp_path / "run.h5")) == 2
