"""What every scheme does, those of the registry and one of a user's: steps, files, resuming, summaries, figures."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pwgf
from pwgf import cli, plots
from pwgf.errors import ConfigError
from pwgf.schemes import SCHEMES, Answers, Description, ask
from pwgf.study.compare import compare
from tests.run.helpers import assert_same_rows
from tests.schemes.contract_members import ENDS, MEMBERS, PROBLEM, TIMES, problem_of, scheme_of, solve

FIXTURE = Path(__file__).parents[1] / "storage" / "fixtures" / "ou-1.0.h5"
FOR = {"gradient": "aggregation", "Hamiltonian": "harmonic-hamiltonian"}
members = pytest.mark.parametrize("name", MEMBERS)


def served(folder, *arguments):
    """What `contract_members.py` prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = os.path.join(os.path.dirname(__file__), "contract_members.py")
    command = [sys.executable, script, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Runs of all members whose processes got a signal: folder."""
    folder = tmp_path_factory.mktemp("stopped")
    assert served(folder) == {f"{name} {number}": end for name in MEMBERS for number, end in ENDS.items()}
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run of a member in a file, solved without interruption."""
    folder, found = tmp_path_factory.mktemp("whole"), {}

    def run(name):
        if name not in found:
            found[name] = solve(name, out=folder / f"{name}.h5")
        return found[name]

    return run


def tensors(state):
    return [state.theta, state.theta_dot, state.rng, *state.extra.values()]


def test_all_schemes_of_the_registry_are_here():
    assert {known for known, _ in MEMBERS.values()} - {None} == set(SCHEMES)
    for name, (known, _) in MEMBERS.items():
        assert known is None or type(scheme_of(name)) is SCHEMES[known]


@members
def test_a_limit_keeps_the_state_and_the_run_goes_on_to_the_bit(name, runs, tmp_path):
    out = tmp_path / "run.h5"
    part = solve(name, out=out, max_steps=1)
    assert len(part) < len(runs(name))
    assert_same_rows(solve(name, out=out, resume=True, max_steps=1000), runs(name))


@members
def test_a_step_changes_no_state_repeats_and_never_passes(name):
    scheme = scheme_of(name)
    state = scheme.start(2)
    for t1 in (1e-3, 0.04, 0.05):
        while state.t < t1:
            before = [x.clone() for x in tensors(state)]
            counters = dict(state.counters)
            one, info = scheme.step(state, t1)
            other, _ = scheme.step(state, t1)
            assert state.t < one.t <= t1
            assert (info.t0, info.t1) == (state.t, one.t)
            assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
            assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
            assert state.counters == counters
            state = one
        assert state.t == t1
    assert scheme.start(2).theta.equal(scheme.start(2).theta)


@members
@pytest.mark.parametrize("number", ENDS)
def test_it_resumes_to_the_bit(name, number, stopped, runs):
    """After a kill, and after SIGTERM, which lets the step under way come to its end."""
    path = stopped / f"{name} {number}.h5"
    stored = pwgf.load(path)
    assert 0 < len(stored) < len(runs(name))
    assert number == signal.SIGKILL or stored.state().t > TIMES[1]
    assert_same_rows(solve(name, out=path, resume=True), runs(name))


@pytest.mark.slow
@pytest.mark.faults
@members
def test_killed_at_random_times_and_resumed(name, tmp_path, record_property):
    """The short version is the kill of the test above."""
    found = served(tmp_path, name, "9")
    assert found["identical"] == found["runs"] == 9
    assert found["loaded"] == found["kills"] >= 4
    record_property("faults", ("kill -9 of a run of another scheme", found["kills"], "loads a prefix of whole rows"))
    record_property("faults", ("the runs of these, killed one to three times, then resumed", 9, "equal to the bit"))


@members
def test_a_file_is_read_without_the_scheme(name, runs):
    run = runs(name)
    loaded = pwgf.load(run.path)
    assert loaded.description == scheme_of(name).describe() == run.description
    for t in (0.0, 0.07, 0.2):
        assert torch.equal(loaded.sample(t, 20), run.sample(t, 20))
    x = run.sample(0.2, 5)
    if loaded.description.has_density:
        assert torch.equal(loaded.log_density(0.2, x), run.log_density(0.2, x))
    else:
        with pytest.raises(ConfigError, match="particles, which have no density"):
            loaded.log_density(0.2, x)


@members
def test_a_file_is_summarised_and_drawn(name, runs, capsys):
    run = runs(name)
    assert cli.main(["info", run.path]) == 0
    said = capsys.readouterr().out
    told = run.description
    assert f"{plots.run._TITLES[problem_of(name).name]}, d = 2 · {told.name}" in said
    assert ("particles" if told.has_particles else f"with {told.map} (") in said.splitlines()[1]
    assert (told.work_unit if "num_stages" in run.names else "work not counted") in said
    assert "Error against the exact law at t = 0.2" in said
    figure = plots.draw(pwgf.load(run.path), n=60)
    below = " ".join(text.get_text() for text in figure.texts)
    assert ("no projection residual" in below) == ("projection_residual" not in run.names)
    assert told.no_projection in below
    assert ("not stored by this scheme" in below) == ("energy" not in run.names)
    assert "dt 0.0" in below or "tau 0.05" in below or "h 0.05" in below or "tolerance" in below
    assert "{" not in below


@members
def test_it_is_compared(name):
    table = compare([problem_of(name)], {name: MEMBERS[name][1]}, times=list(TIMES), num_samples=100)
    assert [entry["message"] for entry in table.entries] == [""] * len(TIMES)
    assert table.entries[0]["bures_w2"] < 0.5
    assert [entry["t"] for entry in table.entries] == list(TIMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_command_line_knows_it(name, tmp_path, capsys):
    out = str(tmp_path / "run.h5")
    settings = ["--dim", "1", "--end-time", "0.02", "--num-rows", "2", "--num-samples", "50", "--out", out]
    if name in ("jko-icnn", "sw-jko"):
        settings += ["--dt", "0.01"]  # by default 20 minimisations
    assert cli.main(["run", FOR[SCHEMES[name].flow], "--scheme", name, *settings]) == 0
    assert SCHEMES[name].__name__ in capsys.readouterr().out.splitlines()[0]
    assert pwgf.load(out).t[-1] == 0.02


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="run needs a scheme out of pwgf, jko-icnn.*got 'pwgff'. Did you mean 'pwgf'"):
        pwgf.schemes.find("pwgff", "run")


class Alone:
    """A scheme without a base that reads its rows by itself: z + a(t), a in the rows."""

    def __init__(self):
        self.reference, self.dtype = PROBLEM.reference, torch.float64

    def start(self, seed=0, t=0.0):
        rng = torch.Generator().manual_seed(seed).get_state()
        zero = torch.zeros(2, dtype=torch.float64)
        return pwgf.state.State(t, zero, torch.ones_like(zero), 1.0, rng)

    def step(self, state, t1):
        after = pwgf.state.State(t1, state.theta + (t1 - state.t), state.theta_dot, 1.0, state.rng)
        return after, pwgf.state.Info(state.t, t1, t1 - state.t, 1, 0)

    def measure(self, state):
        return {"theta": state.theta, "theta_dot": state.theta_dot}

    def fingerprint(self, state):
        return state.theta.numpy()

    def layout(self):
        return [pwgf.maps.Block("shift", (2,), 0)]

    def to_config(self):
        return {"name": "Alone", "dt": 0.5, "h": "as far as the next row"}

    def push(self, rows, t, z):
        return z + pwgf.schemes.base.hermite(rows, t)

    def log_density(self, rows, t, x):
        return self.reference.log_density(x - pwgf.schemes.base.hermite(rows, t))


def test_a_scheme_without_a_base_gets_the_common_answers(tmp_path, capsys):
    scheme, path = Alone(), tmp_path / "run.h5"
    assert list(ask(scheme, "rows_for")(TIMES)) == list(TIMES)
    told = Description(
        "Alone", settings=("dt 0.5", "float64"), no_projection="this scheme does not project the velocity"
    )
    assert ask(scheme, "describe")() == told
    run = pwgf.solve(scheme, TIMES, out=path, problem=PROBLEM, progress=False)
    assert torch.allclose(run.sample(0.15, 9), run.sample(0.0, 9) + 0.15)
    assert "Alone (2 parameters)" in plots.title(pwgf.load(path))
    assert cli.main(["info", str(path)]) == 0
    assert "Error: not measured" in capsys.readouterr().out
    figure = plots.draw(pwgf.load(path), n=50)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["Wall time"]
    words = " ".join(text.get_text() for text in figure.texts)
    assert "law not shown: only the scheme itself reads its rows as one" in words
    assert "error not measured: the law cannot be read from the file" in words
    assert len(plots.draw(run, n=50).axes) > 3  # in the process that solved
    with pytest.raises(ConfigError, match=r"rows of scheme 'Alone' can only be read .* by the scheme itself"):
        pwgf.load(path).sample(0.1, 3)
    table = compare([PROBLEM], {"alone": lambda problem, times: Alone()}, times=list(TIMES), num_samples=100)
    assert not any(entry["failed"] for entry in table.entries)


def test_another_reading_of_the_same_rows_is_not_taken_for_that_of_the_base():
    class Mirrored(SCHEMES["particles"]):
        def push(self, rows, t, z):
            return -super().push(rows, t, z)

    assert scheme_of("particles").describe().rows == "particles"
    assert Mirrored(PROBLEM.energy, PROBLEM.reference, dt=0.1).describe().rows == "own"
    assert Answers().ROWS == "own"


def test_a_file_of_version_0_1_is_loaded_summarised_and_drawn(capsys):
    """Its config holds no description: that comes from the class in the registry."""
    run = pwgf.load(FIXTURE)
    assert "description" not in run.config
    assert (run.description.rows, run.description.map) == ("map", "Affine")
    assert len(run.sample(0.1, 5)) == 5
    assert cli.main(["info", str(FIXTURE)]) == 0
    said = capsys.readouterr().out
    assert "PWGF with Affine (2 parameters)" in said and "32 right sides" in said
    (settings,) = [text for text in plots.draw(run, n=50).texts if "tolerance" in text.get_text()]
    assert settings.get_text() == (
        "tolerance 0.0001 · damping 1e-06 · float64 · 500 samples per right side · 0.872 s · seed 0"
    )


@pytest.mark.parametrize(
    ("scheme", "rows"),
    [
        ({"name": "EulerMaruyama", "num_samples": 5, "dt": 0.1, "dtype": "float64"}, "particles"),
        ({"name": "SWJKO", "num_samples": 5, "tau": 0.1, "dtype": "float64"}, "particles"),
        ({"name": "SWJKO", "map": {"name": "Affine"}, "num_samples": 5, "tau": 0.1, "dtype": "float64"}, "map"),
        ({"name": "JKOICNN", "map": {"name": "A"}, "num_samples": 5, "h": 0.1, "dtype": "float64"}, "chain"),
        ({"name": "Unknown", "dtype": "float64"}, "own"),
    ],
)
def test_settings_of_version_0_1_say_how_rows_are_read(scheme, rows):
    assert pwgf.schemes.description({"scheme": scheme}).rows == rows


def test_entries_of_a_later_version_are_passed_over():
    stored = {**scheme_of("pwgf").describe().to_config(), "colour": "red"}
    assert pwgf.schemes.description({"description": stored}) == scheme_of("pwgf").describe()
