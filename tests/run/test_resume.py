"""Resuming: finished, failed, killed and interrupted runs go on to the bit; other settings or energies are refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, PathError, ResumeMismatchError, SolverError
from pwgf.run.signals import Signals
from pwgf.schemes.pwgf.right_side import RightSide
from tests.run.crash_server import LARGE
from tests.run.helpers import TIMES, assert_same_rows, scheme, solve


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run."""
    return solve()


@pytest.fixture
def right_sides(monkeypatch):
    """Counts the right sides evaluated from here on."""
    calls, original = [], RightSide.__call__
    monkeypatch.setattr(RightSide, "__call__", lambda self, *at: calls.append(1) or original(self, *at))
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


@pytest.mark.parametrize("integrator", ["implicit", "auto"])
def test_implicit_steps_go_on_to_the_bit(integrator, tmp_path):
    """From a row, and from between two rows: which side is in charge, its order and its counts are in the state."""
    weights = torch.tensor([1.0, 300.0], dtype=torch.float64)
    stiff = energies.Potential(lambda x: (weights * (x - 1).square()).sum(-1) / 2) + energies.Entropy()

    def run(times=TIMES, **arguments):
        made = pwgf.PWGF(stiff, maps.Affine(2), pwgf.Gaussian(2), num_samples=100, num_eval=200, integrator=integrator)
        return pwgf.solve(made, times, seed=3, progress=False, **arguments)

    def interrupt(state, info):
        if state.t > 0.25:
            signal.raise_signal(signal.SIGINT)

    straight = run()
    assert 0 < straight["num_implicit"][1] < straight["num_implicit"][-1]
    run(TIMES[:3], out=tmp_path / "rows.h5")
    assert_same_rows(run(out=tmp_path / "rows.h5", resume=True), straight)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path / "between.h5", callbacks=[interrupt])
    assert_same_rows(run(out=tmp_path / "between.h5", resume=True), straight)


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
        ({"settings": {"damping": 1e-5}}, r"scheme\.damping: stored None, now 1e-05"),
        ({"seed": 4}, "seed: stored 3, now 4"),
        ({"times": [0.0, 0.1, 0.25]}, r"times: stored \[0\.0, 0\.1, 0\.2.*now \[0\.0, 0\.1, 0\.25\]"),
        ({"times": [0.0, 0.1]}, "times may only be extended at the end"),
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
    like = scheme()
    moving = pwgf.PWGF(
        like.energy, maps.ResidualMLP(2, width=7), pwgf.Gaussian(2, cov=2.0), num_samples=9, integrator=like.integrator
    )
    with pytest.raises(ResumeMismatchError, match=r"map\.width: stored 4, now 7.*num_samples.*reference\.cov"):
        pwgf.solve(moving, TIMES, out=three_rows, seed=3, resume=True)


def test_times_in_single_precision_are_the_same_times(tmp_path, whole):
    """torch.linspace is float32 unless told otherwise: .1 becomes .10000000149, and the run is still that run."""
    solve(TIMES[:3], out=tmp_path / "run.h5")
    longer = solve(torch.tensor(TIMES[:3] + [TIMES[3]]), out=tmp_path / "run.h5", resume=True)
    assert longer.t[:3].tolist() == TIMES[:3] and len(longer) == 4
    assert longer.t[3] == np.float32(TIMES[3])
    with pytest.raises(ResumeMismatchError, match="times may only be extended at the end"):
        solve([0.0, 0.1 + 1e-6, *TIMES[2:]], out=tmp_path / "run.h5", resume=True)


def test_another_thread_count_goes_on_with_a_warning(tmp_path, whole, caplog, monkeypatch):
    solve(TIMES[:3], out=tmp_path / "run.h5")
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with caplog.at_level("WARNING", "pwgf"):
        assert len(solve(out=tmp_path / "run.h5", resume=True)) == len(whole)
    told = f"with {threads + 1} threads in 1 processes a run begun with {threads} in 1"
    assert f"{told}: results may differ in the last bits" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "seg-"])
def test_resume_never_begins_afresh_over_damaged_rows(tmp_path, name):
    """What cannot be read may still be salvaged: nothing goes without overwrite=True."""

    def stop(state, info):
        raise SolverError("enough")

    with pytest.raises(SolverError):
        solve(out=tmp_path / "run.h5", callbacks=[stop])
    part = next(part for part in (tmp_path / "run.h5.parts").iterdir() if part.name.startswith(name))
    part.write_bytes(part.read_bytes()[:-9])
    before = {each.name: each.read_bytes() for each in part.parent.iterdir()}
    for arguments in ({"resume": True}, {}):
        with pytest.raises(PathError, match="run.h5"):
            solve(out=tmp_path / "run.h5", **arguments)
        left = {each.name: each.read_bytes() for each in part.parent.iterdir() if each.name != "run.lock"}
        assert left == before


def test_a_finished_run_that_was_not_packed_is_packed(tmp_path, whole, monkeypatch, caplog):
    """Stopped while its parts became one file; without room for that file it can still be read."""

    def stopped(*given):
        raise pwgf.errors.StorageError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("pwgf.storage.writer.pack_record", stopped)
        with pytest.raises(pwgf.errors.StorageError, match="no room"):
            solve(out=tmp_path / "run.h5")
        patch.setattr("pwgf.storage.packing.pack_record", stopped)
        with caplog.at_level("WARNING", "pwgf"):
            assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), whole)
        assert "the finished run stays in parts: no room" in caplog.text
    assert not (tmp_path / "run.h5").exists()
    assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_without_a_stored_state_is_not_resumed(tmp_path):
    """The salvaged rows of a damaged file can be read; what the damage took cannot be continued."""
    solve(TIMES[:3], out=tmp_path / "run.h5")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        file["restart/dt"][()] = 1.0
    assert pwgf.storage.salvage(tmp_path / "run.h5", tmp_path / "saved.h5").rows == 3
    assert len(pwgf.load(tmp_path / "saved.h5")) == 3
    with pytest.raises(pwgf.errors.StorageError, match="salvaged without one.*pwgf.load; start again"):
        solve(out=tmp_path / "saved.h5", resume=True)


def test_a_folder_changed_while_running_and_odd_names(tmp_path, monkeypatch, whole):
    """Relative paths mean what they meant at the start; spaces and letters of all kinds are letters."""
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    run = solve(out="mes résultats/flow ∇ρ.h5", callbacks=[lambda state, info: os.chdir(moved)])
    assert_same_rows(run, whole)
    assert [path.name for path in (tmp_path / "mes résultats").iterdir()] == ["flow ∇ρ.h5"] and not any(moved.iterdir())
    monkeypatch.chdir(tmp_path)
    loaded = pwgf.load("mes résultats/flow ∇ρ.h5")
    monkeypatch.chdir(moved)
    assert torch.equal(loaded.sample(0.3, 5), whole.sample(0.3, 5))


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
        num_samples=50, num_eval=1000, integrator=pwgf.FixedStep("midpoint", 0.025),
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
    return folder, served(folder)


def served(folder, *arguments):
    """What `crash_server.py` prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    server = os.path.join(os.path.dirname(__file__), "crash_server.py")
    command = [sys.executable, server, str(folder), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def test_a_run_that_is_about_to_store_its_first_row_is_not_called_stopped(tmp_path):
    moving, seen = scheme(), []

    def looked(state):
        if not seen:
            with pytest.raises(ConfigError, match="has begun, and its first row is not stored yet; load it again"):
                pwgf.load(tmp_path / "run.h5")
        seen.append(state.t)
        return pwgf.PWGF.measure(moving, state)

    moving.measure = looked
    pwgf.solve(moving, TIMES[:2], out=tmp_path / "run.h5", seed=3, progress=False)
    assert seen == TIMES[:2]


@pytest.mark.parametrize(("job", "status"), [("interrupted", 130), ("terminated", 143)])
def test_signals_finish_the_step_and_keep_everything(crashes, whole, job, status):
    folder, ends = crashes
    assert ends[job] == status
    run = pwgf.load(folder / f"{job}.h5")
    assert run.t.tolist() == TIMES[:3]
    assert run.state().t == pytest.approx(0.275)  # the step during which the signal came is not lost
    assert_same_rows(solve(out=folder / f"{job}.h5", resume=True), whole)


@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize(
    ("place", "rows", "t"),
    [("linear solve", 2, 0.125), ("evaluation", 3, 0.2), ("save", 3, 0.2), ("first row", 1, 0.0), ("packing", 5, 0.4)],
)
def test_a_signal_in_the_midst_of_work_ends_within_one_step(crashes, whole, place, rows, t, number):
    """The step or the save under way is finished and on disk."""
    folder, ends = crashes
    path = folder / f"{place} {number}.h5"
    assert ends[f"{place} {number}"] == 128 + number
    run = pwgf.load(path)
    assert run.t.tolist() == TIMES[:rows]
    assert run.state().t == pytest.approx(t)
    assert_same_rows(solve(out=path, resume=True), whole)


@pytest.mark.parametrize("number", [2, 15])
def test_a_second_signal_stops_in_the_midst_of_a_step(crashes, whole, number):
    folder, ends = crashes
    path = folder / f"linear solve {number} twice.h5"
    assert ends[f"linear solve {number} twice"] == 128 + number
    assert pwgf.load(path).state().t == pytest.approx(0.1)  # the step is lost, the last row is not
    assert_same_rows(solve(out=path, resume=True), whole)


def test_a_run_that_gets_no_more_memory_ends_by_name_and_resumes(crashes):
    folder, ends = crashes
    path = folder / "without memory.h5"
    assert ends["without memory"] == 0
    said = (folder / "without memory.h5.txt").read_text()
    assert re.match(r"ConfigError: solve asks for (\d+ bytes of memory at once|memory), more than there is\.", said)
    kept = pwgf.load(path).t.tolist()
    assert kept == TIMES[: len(kept)] and 3 <= len(kept) < len(TIMES)  # what it holds already may serve for a row
    assert_same_rows(solve(out=path, settings=LARGE, resume=True), solve(settings=LARGE))


@pytest.mark.parametrize("runs", [2, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.faults])])
def test_killed_at_random_times_and_resumed(tmp_path, runs, record_property):
    """Run → kill → resume → kill → resume …: every file loads, every run ends as the uninterrupted one."""
    found = served(tmp_path, runs, 1)
    assert found["identical"] == found["runs"] == runs
    assert found["loaded"] == found["kills"] >= runs / 2
    record_property("faults", ("kill -9 of a solve at a random time", found["kills"], "loads a prefix of whole rows"))
    record_property("faults", ("solve killed one to three times, then resumed", runs, "equal to the bit"))


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
