"""`pwgf sweep`: a file for each combination; one that fails stops no other; killed, it goes on where it was."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time

import pytest

import pwgf
from pwgf import cli, storage
from pwgf.cli import settings, sweep
from pwgf.errors import PathError
from tests.cli.test_cli import refused

CODE = '''
import os
import signal
import time

import numpy as np
import torch

import pwgf
from pwgf import energies, problems


class Well(problems.Problem):
    """|x|²/2 at a temperature T from N(0, 1): variance T + (1 − T)e^{−2t}. Each step takes `wait` seconds."""

    def __init__(self, temperature: float = 1.0, wait=0.0, trouble="none"):
        self.T, self.wait, self.trouble = temperature, wait, trouble

    dim, times = 1, np.linspace(0, 0.2, 6)
    reference = property(lambda self: pwgf.Gaussian(1))
    energy = property(lambda self: energies.Potential(self.V) + self.T * energies.Entropy())

    def V(self, x):
        time.sleep(self.wait)
        if self.trouble == "error":
            raise RuntimeError("boom")
        if self.trouble == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return x.square().sum(-1) / 2

    def exact(self, t):
        return pwgf.Gaussian(1, cov=self.T + (1 - self.T) * float(np.exp(-2 * t)))

    def _arguments(self):
        return {"temperature": self.T, "wait": self.wait, "trouble": self.trouble}
'''
PARTICLES = ["--scheme", "particles", "--num-samples", "40", "--dt", "0.02"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with well.py."""
    (tmp_path / "well.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("well", None)


def asked(problem="ornstein-uhlenbeck", **given):
    return sweep.combinations(settings.Sweep(problem, given=given))


def test_every_combination_has_a_readable_name_and_its_settings():
    found = asked(**{"map.width": ["8", "16"], "seed": ["0", "1"], "dim": ["3"]})
    assert [member.name for member in found] == [
        f"ornstein-uhlenbeck-map.width-{width}-seed-{seed}" for width in (8, 16) for seed in (0, 1)
    ]
    last = found[-1].settings
    assert (last.seed, last.dim, last.given, last.threads) == (1, 3, {"map.width": ["16"]}, 1)
    assert last.out == os.path.join("runs", "ornstein-uhlenbeck-map.width-16-seed-1.h5") and last.resume
    assert found[-1].swept == {"map.width": "16", "seed": "1"}


def test_overwrite_begins_anew():
    (member,) = asked(overwrite=[])
    assert member.settings.overwrite and not member.settings.resume


def test_a_failing_member_stops_no_other(here, capsys):
    words = [
        "well.py:Well",
        "--temperature",
        "0.5",
        "-1",
        "--trouble",
        "none",
        "error",
        "death",
        "--jobs",
        "2",
        "--csv",
    ]
    assert cli.main(["sweep", *words, *PARTICLES]) == 1
    said = capsys.readouterr()
    rows = {row["run"]: row for row in csv.DictReader(said.out.partition("\n\n")[2].splitlines())}
    states = [row["status"] for row in rows.values()]
    assert states == ["complete", *["failed"] * 5]
    assert list(next(iter(rows.values())))[1:3] == ["temperature", "trouble"]
    messages = [row["message"] for row in rows.values()]
    assert messages[0] == "" and "RuntimeError: boom" in messages[1] and "killed by SIGKILL" in messages[2]
    assert all("the entropy's coefficient must be ≥ 0; got -1" in message for message in messages[3:])
    assert "5 of 6 runs are not complete" in said.err and "6 of 6: " in said.out
    assert len(pwgf.load("runs/well-temperature-0.5-trouble-none.h5")) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aggregation", "--tempreture", "1", "2"], "pwgf sweep aggregation has no option --tempreture."),
        (["aggregation", "--map.widht", "1", "2"], "pwgf sweep --map residual has no option --map.widht."),
        (["aggregation", "--seed", "1", "1"], "--seed has the value 1 twice"),
        (["aggregation", "--seed", "1", "--out", "a.h5"], "pwgf sweep has no option --out; give --out-dir"),
        (["aggregation", "--jobs", "0"], "--jobs needs an integer ≥ 1; got 0"),
        (["nothing", "--seed", "1", "2"], "pwgf sweep needs one of the problems ornstein-uhlenbeck"),
        (["aggregation", "--out-dir", "file/runs"], "--out-dir file/runs: cannot make this folder (Not a directory)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_anything_is_solved(here, capsys, words, message):
    (here / "file").write_text("")
    assert message in refused(capsys, "sweep", *words)
    assert not (here / "runs").exists()


def test_a_value_of_another_type_exits_2(here, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "aggregation", "--seed", "0", "x"])
    assert "--seed" in capsys.readouterr().err


def statuses(folder):
    """Status and identity of every run in a folder."""
    found = {}
    for path in sorted({entry.name.removesuffix(".parts") for entry in os.scandir(folder)}):
        with contextlib.suppress(PathError), storage.open_record(folder / path) as record:  # begun this very moment
            found[path] = (record.status, record.run_id, len(record))
    return found


def until(condition, seconds=120):
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_eighteen_runs_killed_in_the_middle_and_resumed_by_the_same_line(here):
    grid = ["--temperature", "0.1", "0.2", "0.4", "0.6", "0.8", "1", "--seed", "0", "1", "2"]
    line = [sys.executable, "-m", "pwgf", "sweep", "well.py:Well", *grid, "--wait", "0.05", *PARTICLES, "--jobs", "2"]
    runs = here / "runs"
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as first:
        until(lambda: len(list(runs.glob("*.h5"))) >= 5)
        until(lambda: any(status == "running" and rows > 1 for status, _, rows in statuses(runs).values()))
        first.send_signal(signal.SIGKILL)
    until(lambda: not any(status == "running" for status, _, _ in statuses(runs).values()))
    before = statuses(runs)
    kept = {path: (runs / path).read_bytes() for path, (status, _, _) in before.items() if status == "complete"}
    begun = {path: run_id for path, (status, run_id, rows) in before.items() if status == "interrupted" and rows > 1}
    assert 5 <= len(kept) < 18 and begun
    done = subprocess.run([*line, "--csv"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.partition("\n\n")[2].splitlines()))
    assert [(row["temperature"], row["seed"]) for row in rows] == [(t, s) for t in grid[1:7] for s in grid[8:]]
    assert {row["status"] for row in rows} == {"complete"} and len(list(runs.iterdir())) == 18
    assert all(float(row["bures_w2"]) < 0.5 for row in rows)  # 40 particles
    assert all((runs / path).read_bytes() == data for path, data in kept.items())
    after = statuses(runs)
    assert {path: after[path][1] for path in begun} == begun  # continued, not begun anew
    path = next(iter(begun))
    words = path.removesuffix(".h5").split("-")
    alone = ["run", "well.py:Well", "--temperature", words[2], "--seed", words[4], "--wait", "0.05", *PARTICLES]
    assert cli.main([*alone, "--threads", "1", "--out", "alone.h5"]) == 0
    assert (pwgf.load("alone.h5")["theta"] == pwgf.load(runs / path)["theta"]).all()


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_in_order(here):
    line = [sys.executable, "-m", "pwgf", "sweep", "well.py:Well", "--seed", "0", "1", "2", "--wait", "0.3", *PARTICLES]
    runs = here / "runs"
    with subprocess.Popen([*line, "--jobs", "2"], stderr=subprocess.PIPE, text=True) as process:
        until(lambda: runs.is_dir() and sum(rows > 0 for _, _, rows in statuses(runs).values()) == 2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130
    each, last = said.splitlines()[:-1], said.splitlines()[-1]
    assert last == "pwgf: interrupted; pwgf run goes on with --resume, pwgf sweep with the same command"
    assert set(each) == {"pwgf: stopping after this step; again stops now"}
    assert [status for status, _, _ in statuses(runs).values()] == ["interrupted", "interrupted"]
