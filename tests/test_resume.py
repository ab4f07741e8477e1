"""Resuming: finished, failed, killed and interrupted runs go on to the bit; other settings or energies are refused."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from flow_helpers import TIMES, assert_same_rows, scheme, solve

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, PathError, ResumeMismatchError, SolverError
from pwgf.schemes.right_side import RightSide
from pwgf.signals import Signals


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run."""
    return solve()


@pytest.fixture
def right_sides(monkeypatch):
    """Counts the right sides evaluated from here on."""
    calls, original = [], RightSide.__call__
    monkeypatch.setattr(RightSide, "__call__", lambda self, theta: calls.append(1) or original(self, theta))
    return calls


# ---- resuming in one process ----------------------------------------------------------------------------------------


def test_resume_where_nothing_is_starts_afresh(whole, tmp_path):
    assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), whole)


def test_resume_of_a_finished_run_returns_it(tmp_path, right_sides):
    first = solve(out=tmp_path / "run.h5")
    del right_sides[:]
    assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), first, but=())
    assert not right_sides


def test_without_resume_or_overwrite_an_old_run_is_safe(tmp_path):
    solve(TIMES[:1], out=tmp_path / "run.h5")
    with pytest.raises(PathError, match="a run is there already.*resume=True.*overwrite=True"):
        solve(out=tmp_path / "run.h5")
    assert len(pwgf.load(tmp_path / "run.h5")) == 1
    assert len(solve(TIMES[:2], out=tmp_path / "run.h5", overwrite=True)) == 2


def test_longer_times_go_on(whole, tmp_path, right_sides):
    solve(TIMES[:3], out=tmp_path / "run.h5")
    del right_sides[:]
    longer = solve(TIMES, out=tmp_path / "run.h5", resume=True)
    assert_same_rows(longer, whole)
    assert len(right_sides) == 16 + 2  # two of four intervals, and a row each
    assert longer.config["times"] == TIMES
    assert (np.diff(longer["wall_time"]) > 0).all()


@pytest.fixture(scope="module")
def three_rows(tmp_path_factory):
    """A finished run of three rows, for tests that leave it as it is."""
    path = tmp_path_factory.mktemp("stored") / "run.h5"
    solve(TIMES[:3], out=path)
    return path


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"settings": {"num_samples": 51}}, r"scheme\.num_samples: stored 50, now 51"),
        ({"settings": {"damping": 1e-5}}, r"scheme\.damping: stored 1e-06, now 1e-05"),
        ({"seed": 4}, "seed: stored 3, now 4"),
        ({"times": [0.0, 0.1, 0.25]}, r"times: stored \[0\.0, 0\.1, 0\.2.*now \[0\.0, 0\.1, 0\.25\]"),
        ({"times": [0.0, 0.1]}, "times may only grow at the end"),
        (
            {"settings": {"theta0": maps.ResidualMLP(2, width=4).initial()}},
            r"scheme\.theta0\.sha256: stored none, now '",
        ),
    ],
)
def test_changed_settings_are_refused_by_name(three_rows, changed, key):
    with pytest.raises(ResumeMismatchError, match=key):
        solve(**{"times": TIMES, **changed}, out=three_rows, resume=True)
    assert len(pwgf.load(three_rows)) == 3


def test_all_changed_settings_are_listed(three_rows):
    moving = pwgf.PWGF(scheme().energy, maps.ResidualMLP(2, width=7), pwgf.Gaussian(2, cov=2.0), num_samples=9)
    with pytest.raises(ResumeMismatchError, match=r"map\.width: stored 4, now 7.*num_samples.*reference\.cov"):
        pwgf.solve(moving, TIMES, out=three_rows, seed=3, resume=True)


def test_a_changed_energy_is_refused_by_its_values(three_rows):
    """The settings name a lambda alike; only its values tell the difference."""
    with pytest.raises(ResumeMismatchError, match=r"energy and velocity at the stored state \(t = 0\.2\) differ"):
        solve(TIMES, shift=1e-5, out=three_rows, resume=True)


def test_an_energy_made_elsewhere_is_the_same_energy(tmp_path, whole):
    """A function's name and module say nothing about its values: a script's own module is `__main__`."""
    solve(TIMES[:3], out=tmp_path / "run.h5")
    like = scheme()

    def same_potential(x):
        return 2 * (x - 1).square().sum(-1)

    moving = pwgf.PWGF(
        energies.Potential(same_potential) + energies.Entropy(), like.map, like.reference,
        num_samples=50, num_eval=200, method="midpoint", dt=0.025,
    )  # fmt: skip
    assert_same_rows(pwgf.solve(moving, TIMES, seed=3, progress=False, out=tmp_path / "run.h5", resume=True), whole)


def test_loop_settings_may_change(tmp_path, whole):
    solve(TIMES[:3], out=tmp_path / "run.h5")
    again = solve(out=tmp_path / "run.h5", resume=True, checkpoint_seconds=1, max_cost=0.5, callbacks=[print])
    assert_same_rows(again, whole)


def test_a_failed_run_is_resumed_where_it_stood(tmp_path):
    """A solver that gave up once does not have to give up again."""
    calls = []

    def giving_up(state, info):
        calls.append(state.t)
        if state.t > 0.25:
            raise SolverError("enough")

    with pytest.raises(SolverError, match="enough"):
        solve(out=tmp_path / "run.h5", callbacks=[giving_up])
    assert pwgf.load(tmp_path / "run.h5").t.tolist() == [0.0, 0.1, 0.2]
    assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), solve())


# ---- other processes: kills, signals, loading -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """A folder with what killed and interrupted processes left, and how they ended."""
    folder = tmp_path_factory.mktemp("crashes")
    solve(out=folder / "loads.h5")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    server = os.path.join(os.path.dirname(__file__), "crash_server.py")
    done = subprocess.run(
        [sys.executable, server, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_killed_run_resumes_to_the_bit(crashes, whole, right_sides):
    folder, ends = crashes
    assert ends["killed"] == -9
    path = folder / "killed.h5"
    assert not path.exists()
    assert pwgf.load(path).t.tolist() == TIMES[:3]
    resumed = solve(out=path, resume=True)
    assert_same_rows(resumed, whole)
    assert 0 < len(right_sides) <= 16 + 2 < whole["num_stages"][-1]
    assert path.exists()


def test_a_run_killed_between_rows_resumes_from_its_checkpoint(crashes, whole, right_sides):
    folder, ends = crashes
    assert ends["killed_between_rows"] == -9
    path = folder / "killed_between_rows.h5"
    assert pwgf.load(path).t.tolist() == TIMES[:3]
    assert pwgf.load(path).state().t == pytest.approx(0.25)
    assert_same_rows(solve(out=path, resume=True), whole)
    assert len(right_sides) == 6 * 2 + 2  # the two steps from t = .2 to .25 were not lost


def test_a_run_killed_before_its_first_row_starts_afresh(crashes, whole):
    folder, ends = crashes
    assert ends["killed_before_the_first_row"] == -9
    path = folder / "killed_before_the_first_row.h5"
    with pytest.raises(ConfigError, match="before its first row was stored.*resume=True"):
        pwgf.load(path)
    assert_same_rows(solve(out=path, resume=True), whole)


@pytest.mark.parametrize(("job", "status"), [("interrupted", 130), ("terminated", 143)])
def test_signals_finish_the_step_and_keep_everything(crashes, whole, job, status):
    folder, ends = crashes
    assert ends[job] == status
    run = pwgf.load(folder / f"{job}.h5")
    assert run.t.tolist() == TIMES[:3]
    assert run.state().t == pytest.approx(0.275)  # the step during which the signal came is not lost
    assert_same_rows(solve(out=folder / f"{job}.h5", resume=True), whole)


def test_a_new_process_reads_the_same_measure(crashes, whole):
    folder, ends = crashes
    assert ends["loads"] == 0
    values = json.loads((folder / "loads.h5.json").read_text())
    assert values["sample"] == whole.sample(0.25, 50).tolist()
    assert values["log_density"] == whole.log_density(0.25, torch.zeros(3, 2)).tolist()


def test_a_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), 2)
        assert signals.number == 2
        os.kill(os.getpid(), 2)
        math.sqrt(2)  # not reached: the handler raised
        pytest.fail("the second signal did not act")


def test_handlers_are_given_back(whole):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    solve(TIMES[:2])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
