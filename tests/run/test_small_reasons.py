"""A run does not end for a small reason: no stderr, a name that is no UTF-8, too many open files, little memory."""

import copy
import datetime
import errno
import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, filtering, maps, sampling
from pwgf.cli._terminal import Output
from pwgf.errors import ConfigError, StorageError
from pwgf.run import progress
from pwgf.storage import Writer, open_record
from tests.run.helpers import TIMES, assert_same_rows, solve
from tests.storage.helpers import HEADER, FaultyDisk, row, state

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Broken(io.StringIO):
    """A stderr whose reader has gone, or whose disk is full."""

    def __init__(self, code, terminal):
        super().__init__()
        self.code, self.isatty = code, lambda: terminal

    def write(self, text):
        raise OSError(self.code, os.strerror(self.code))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = [lambda: None, closed, *(
    lambda code=code, terminal=terminal: Broken(code, terminal)
    for code in (errno.EPIPE, errno.ENOSPC) for terminal in (True, False)
)]  # fmt: skip


@pytest.mark.parametrize("make", STREAMS)
def test_a_stderr_that_takes_nothing(monkeypatch, make):
    monkeypatch.setattr(sys, "stderr", make())
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    assert len(solve(TIMES[:3], progress=True)) == 3


def test_an_argument_that_is_no_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", os.fsdecode(b"caf\xe9.csv")])
    solve(TIMES[:2], out=tmp_path / "run.h5")
    assert open_record(tmp_path / "run.h5").provenance["argv"] == ["run.py", "caf\\udce9.csv"]


def test_a_terminal_that_knows_ascii_only(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.h5"
    solve(TIMES[:2], out=path)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": ROOT}
    for command in ("info", "doctor"):
        arguments = [sys.executable, "-m", "pwgf", command, path]
        done = subprocess.run(arguments, capture_output=True, check=False, env=environment)
        assert done.returncode == 0 and b"caf\\udce9.h5: complete" in done.stdout, done.stderr
    assert b"no known answer" in done.stdout or b"Rows: 2 of 2 are good" in done.stdout
    done = subprocess.run([*arguments[:3], "run", "--help"], capture_output=True, check=False, env=environment)
    assert done.returncode == 0 and b"\\u2026" in done.stdout, done.stderr  # an ellipsis


def to_a_full_disk(*arguments):
    """What a command whose stdout is full says on stderr."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pwgf", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment,
        )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr


FULL = "pwgf: error: standard output could not be written: [Errno 28] No space left on device"


def test_a_run_whose_stdout_is_full_is_stored(tmp_path):
    said = to_a_full_disk("run", "ornstein-uhlenbeck", "--dim", "1", "--times", "0,0.01", "--out", tmp_path / "run.h5")
    assert f"{FULL}. Redirect it. What the command stores is complete." in said
    assert open_record(tmp_path / "run.h5").complete


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_whose_stdout_is_full(arguments):
    assert FULL in to_a_full_disk(*arguments)


def test_an_output_whose_disk_is_full_keeps_the_first_reason():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, text)

    found = Output(Full())
    found.writelines(["first", " line"])
    found.write("second")
    assert found.failure.strerror == "first line" and not found.isatty()
    assert copy.copy(found).failure is found.failure


def test_help_without_a_stdout():
    command = f"{sys.executable} -m pwgf --help >&-"
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 0 and done.stderr == ""


def test_too_many_open_files_has_its_own_cure(tmp_path, monkeypatch):
    disk = FaultyDisk()
    writer = Writer.create(tmp_path / "run.h5", HEADER, disk=disk)
    writer.append(row(0), state(0))
    disk.at, disk.code = disk.calls + 1, errno.EMFILE
    with pytest.raises(StorageError, match=r"writing .*seg-.*too many files open.*ulimit -n"):
        writer.append(row(1), state(1))
    writer.close()
    assert len(open_record(tmp_path / "run.h5")) == 2
    refuse = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    monkeypatch.setattr(os, "open", lambda *given: (_ for _ in ()).throw(refuse))
    with pytest.raises(StorageError, match=r"opening .*too many files open.*ulimit -n"):
        open_record(tmp_path / "run.h5")


def test_a_trajectory_holds_no_file_open(tmp_path):
    made = solve(TIMES, out=tmp_path / "run.h5")
    before = len(os.listdir("/proc/self/fd"))
    runs = [pwgf.load(tmp_path / "run.h5") for _ in range(20)]
    for run in runs:
        assert run["energy"][1] == made["energy"][1] and torch.equal(run.sample(0.25, 10), made.sample(0.25, 10))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_a_trajectory_is_copied_and_pickled_as_its_path(tmp_path, again):
    made = solve(TIMES[:3], out=tmp_path / "run.h5")
    for run in (made, pwgf.load(tmp_path / "run.h5")):
        other = again(run)
        assert other.path == run.path and np.array_equal(other["theta"], run["theta"])
        assert torch.equal(other.sample(0.1, 10), run.sample(0.1, 10))


def test_a_trajectory_whose_file_was_replaced_says_so(tmp_path):
    run = solve(TIMES[:3], out=tmp_path / "run.h5")
    solve(TIMES[:2], out=tmp_path / "run.h5", overwrite=True)
    with pytest.raises(StorageError, match="was replaced by another run since it was loaded. Load it again"):
        run["energy"]


@pytest.mark.parametrize("ask", [
    lambda: pwgf.solve(pwgf.EulerMaruyama(energies.Entropy(), pwgf.Gaussian(2), num_samples=10**15, dt=0.1), [0, 1]),
    lambda: solve(TIMES[:2], settings={"num_samples": 10**16}),
    lambda: solve(TIMES[:2]).sample(0.0, 10**16),
    lambda: pwgf.Gaussian(10**7),
    lambda: pwgf.Gaussian(2).sample(10**16),
    lambda: pwgf.problems.StyblinskiTang(2).exact(2.0).sample(10**16),
    lambda: sampling.sample(lambda x: -x.square().sum(-1), 1, 10**16, map=maps.Affine(1), progress=False),
    lambda: pwgf.distances.sliced_w2(torch.zeros(2, 2), torch.ones(2, 2), num_directions=10**16),
    lambda: pwgf.distances.w2(torch.zeros(1, 2).expand(10**7, 2), torch.ones(1, 2).expand(10**7, 2)),
])  # fmt: skip
def test_memory_that_is_not_there(ask):
    with pytest.raises(ConfigError, match=r"asks for (\d+ bytes|[\d.]+ .iB|more bytes than can be counted) of memory"):
        ask()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_clock_that_jumps(tmp_path, monkeypatch, stream):
    """By a year ahead and back, at each look at it: nothing but the date of creation depends on the time of day."""
    jumps = itertools.cycle([0.0, 3.2e7, -3.2e7])

    class Date(datetime.datetime):
        @classmethod
        def now(cls, zone):
            return cls.fromtimestamp(time.time(), zone)

    real = time.time
    jumping = lambda: real() + next(jumps)  # noqa: E731
    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr("tqdm.std.time", jumping)
    monkeypatch.setattr(datetime, "datetime", Date)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    monkeypatch.setattr(sys, "stderr", stream())
    path, whole = tmp_path / "run.h5", solve()
    solve(TIMES[:3], out=path, progress=True)
    run = solve(out=path, resume=True, progress=True, max_cost=0.5, checkpoint_seconds=1e-9)
    assert_same_rows(run, whole)
    for name in ("wall_time", "cpu_time"):
        assert run[name][0] >= 0 and (np.diff(run[name]) > 0).all() and run[name][-1] < 1000
    created = datetime.datetime.fromisoformat(open_record(path).created)
    assert abs(created.timestamp() - real()) < 3.3e7
    assert "t = 0.4" in sys.stderr.getvalue() or "100%" in sys.stderr.getvalue()


def log_density(x):
    """Of N(2, 1) in one dimension."""
    return -(x - 2).square().sum(-1) / 2


def test_sampling_is_resumed_to_the_bit(tmp_path, monkeypatch):
    def sample(**to):
        given = {"map": maps.Affine(1), "n": 100, "tolerance": 1e-4, "progress": False, "num_samples": 100}
        given |= {"finish": False, "whiten": None}  # rows enough to be stopped between them
        return sampling.sample(log_density, 1, **given, **to)

    whole, path = sample(), tmp_path / "run.h5"
    measure, calls = pwgf.PWGF.measure, []

    def stopped(scheme, state):
        calls.append(state.t)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(scheme, state)

    monkeypatch.setattr(pwgf.PWGF, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        sample(out=path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="a run is there already. Continue it with resume=True"):
        sample(out=path)
    for _ in range(2):  # the second time it is finished
        found = sample(out=path, resume=True)
        assert torch.equal(found.x, whole.x) and found.converged == whole.converged and found.t == whole.t


def test_filtering_is_resumed(tmp_path):
    def run(times, **to):
        model = filtering.StateSpace(
            lambda x: x.square().sum(-1) / 2, lambda y, x: -(x - y).square().sum(-1) / 2, pwgf.Gaussian(1)
        )
        return filtering.run(model, times, [1.0, 0.5][: len(times)], map=maps.Affine(1), progress=False, **to)

    run([0.5], out=tmp_path / "flows")
    with pytest.raises(ConfigError, match="a run is there already. Continue it with resume=True"):
        run([0.5, 1.0], out=tmp_path / "flows")
    before = (tmp_path / "flows" / "flow-000.h5").stat().st_mtime_ns
    found = run([0.5, 1.0], out=tmp_path / "flows", resume=True)
    assert (tmp_path / "flows" / "flow-000.h5").stat().st_mtime_ns == before
    assert torch.equal(found.law.theta, run([0.5, 1.0]).law.theta)
