"""A comparison: what is scored and how, members that fail, the table's file, its lines, its figure and the command."""

import functools
import math
import os
import re
import signal

import matplotlib
import numpy as np
import pytest
import torch

import pwgf
from pwgf import cli, distances, energies, maps, problems
from pwgf.errors import ConfigError, PathError, SchemaError, SolverError, StorageError
from pwgf.plots import compare as compare_plots
from pwgf.schemes._arguments import even_step
from pwgf.study.compare import METHODS, NUMBERS, Comparison, compare

TIMES = [0.0, 0.05, 0.1]
OU = problems.OrnsteinUhlenbeck(2)


def affine(problem, times):
    return pwgf.PWGF(problem.energy, maps.Affine(problem.dim), problem.reference, num_samples=100, num_eval=200)


def particles(problem, times):
    return pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=300, dt=0.01)


def refused(problem, times):
    return pwgf.EulerMaruyama(energies.PorousMedium(2), problem.reference, num_samples=10, dt=0.1)


def breaks(problem, times):
    """Its drift is NaN once the particles' mean has moved by .2, between the second row and the third."""
    far = lambda x: torch.where(x.mean() > 0.6, math.nan, 0.0) * x  # noqa: E731
    energy = energies.Potential(lambda x: OU.potential(x) + far(x).sum(-1))
    return pwgf.EulerMaruyama(energy, problem.reference, num_samples=300, dt=0.01)


def out_of_memory(problem, times):
    raise RuntimeError("no memory is left")


class Unreadable(pwgf.EulerMaruyama):
    """Its law cannot be read back after the start."""

    def push(self, rows, t, z):
        if t > 0:
            raise SolverError("the map has no inverse")
        return super().push(rows, t, z)


def unreadable(problem, times):
    return Unreadable(problem.energy, problem.reference, num_samples=300, dt=0.01)


ALL = {"affine": affine, "particles": particles, "refused": refused, "breaks": breaks, "memory": out_of_memory}


def of(table, method, column):
    return np.array([entry[column] for entry in table.entries if entry["method"] == method])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path, said = tmp_path_factory.mktemp("compare") / "table.h5", []
    members = [problems.OrnsteinUhlenbeck(1), OU, problems.OrnsteinUhlenbeck(2, mean=[1.0, 0.0])]
    table = compare(members, ALL, times=TIMES, num_samples=500, out=path, tell=said.append)
    return path, table, said


def test_an_entry_for_each_method_problem_and_time(stored):
    _, table, said = stored
    assert len(table.entries) == 5 * 3 * 3
    assert len(said) == 15
    assert of(table, "affine", "dim").tolist() == [1] * 3 + [2] * 6
    assert of(table, "affine", "variant").tolist() == [0] * 6 + [1] * 3
    assert of(table, "affine", "t").tolist() == TIMES * 3


def test_figures_are_those_of_the_run_against_the_exact_law(stored):
    _, table, _ = stored
    run = pwgf.solve(affine(OU, TIMES), TIMES, progress=False)
    mine = {name: of(table, "affine", name)[3:6] for name in NUMBERS}
    w = run["theta"][2].reshape(2, 3)
    law = OU.exact(0.1)
    exact = float(distances.bures_w2(w[:, 2], w[:, :2] @ w[:, :2].T, law.mean(), law.cov()))
    assert mine["bures_w2"][2] == pytest.approx(exact, rel=1e-6)
    kl = float(distances.gaussian_sym_kl(w[:, 2], w[:, :2] @ w[:, :2].T, law.mean(), law.cov()))
    assert mine["sym_kl"][2] == pytest.approx(kl, rel=0.3)  # sampled
    assert set(of(table, "affine", "kind")) == {"density"}
    assert mine["work"].tolist() == run["num_stages"].tolist()
    assert (np.diff(mine["cpu_seconds"]) >= 0).all()
    assert (mine["energy_distance"] < 5 * mine["energy_distance_floor"]).all()


def test_particles_are_scored_by_moments_with_their_floor(stored):
    _, table, _ = stored
    assert set(of(table, "particles", "kind")) == {"moments"}
    assert of(table, "particles", "sym_kl_floor")[-1] == pytest.approx((2**2 + 3 * 2) / (2 * 300))
    run = pwgf.solve(particles(OU, TIMES), TIMES, progress=False)
    x, law = run["theta"][2].reshape(300, 2), OU.exact(0.1)
    kl = distances.gaussian_sym_kl(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T)), law.mean(), law.cov())
    assert of(table, "particles", "sym_kl")[5] == pytest.approx(float(kl))


def test_a_scheme_whose_rows_are_its_steps_is_scored_at_the_times_asked_for():
    def jko(problem, times):
        return pwgf.JKOICNN(
            problem.energy, problem.reference, h=0.03, width=8, num_samples=64, num_eval=64, num_batches=1,
            max_iterations=20,
        )  # fmt: skip

    rows = jko(OU, TIMES).rows_for(np.array(TIMES))
    assert rows == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    table = compare([OU], {"jko": jko}, times=TIMES, num_samples=300)
    assert of(table, "jko", "t").tolist() == TIMES
    assert set(of(table, "jko", "kind")) == {"density"}
    assert (np.diff(of(table, "jko", "work")) > 0).all()
    run = pwgf.solve(jko(OU, TIMES), rows, progress=False)
    assert of(table, "jko", "work").tolist() == run["num_stages"][[0, 2, 4]].tolist()


def test_the_moment_floor_is_what_exact_samples_score():
    """(d²+3d)/(2N): mean over exact samples of the law itself."""
    d, n, law = 3, 400, pwgf.Gaussian(3)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        x = law.sample(n, generator)
        found.append(float(distances.gaussian_sym_kl(x.mean(0), x.T.cov(), law.mean(), law.cov())))
    assert np.mean(found) == pytest.approx((d * d + 3 * d) / (2 * n), rel=0.1)


def test_it_shows_the_table_and_what_failed(stored):
    _, table, _ = stored
    shown = table._repr_html_()
    assert repr(table) == "\n".join(table.lines()) and shown.startswith("<table><tr><th>method</th><th>d</th>")
    assert shown.count("<tr>") == 1 + len(table.summaries()) and "<p>Failed: " in shown


def test_members_that_fail_do_not_stop_the_others(stored):
    _, table, said = stored
    assert of(table, "refused", "failed").tolist() == [1] * 9
    assert all("PorousMedium needs" in message for message in of(table, "refused", "message"))
    assert np.isnan(of(table, "refused", "bures_w2")).all()
    assert all("RuntimeError: no memory is left" in message for message in of(table, "memory", "message"))
    assert any(re.search(r"refused, d = 2, problem 1, seed 0: failed: ConfigError", line) for line in said)


def test_rows_before_a_failure_are_scored(stored, tmp_path):
    """In memory they come with the error, from a folder out of the file."""
    _, table, _ = stored
    again = compare([OU], {"breaks": breaks}, times=TIMES, num_samples=500, runs=tmp_path / "runs")
    for found in (of(table, "breaks", "failed")[3:6], of(again, "breaks", "failed")):
        assert found.tolist() == [0, 0, 1]
    assert "drift is NaN" in of(again, "breaks", "message")[2]
    assert np.isfinite(of(again, "breaks", "bures_w2")[:2]).all()


def test_laws_that_cannot_be_read_are_failures():
    table = compare([OU], {"unreadable": unreadable}, times=TIMES, num_samples=100)
    assert of(table, "unreadable", "failed").tolist() == [0, 1, 1]
    assert of(table, "unreadable", "message")[1] == "SolverError: the map has no inverse"


def test_a_problem_in_a_box_takes_its_own_map_and_refuses_methods_without_one():
    problem = problems.HeatInBox(1)
    methods = {name: METHODS[name] for name in ("particles", "sw-jko-particles")}
    methods["pwgf"] = functools.partial(METHODS["pwgf"], num_samples=200, num_eval=200)
    table = compare([problem], methods, times=[0.0, 0.02], num_samples=2000)
    assert of(table, "pwgf", "failed").tolist() == [0, 0]
    assert float(of(table, "pwgf", "sym_kl")[1]) < 1e-5
    for name in ("particles", "sw-jko-particles"):
        assert of(table, name, "failed").tolist() == [1, 1]
        assert "which only its own map, InBox, knows" in of(table, name, "message")[0]


def test_lines_are_medians_and_say_what_failed(stored):
    _, table, _ = stored
    lines = table.lines()
    line = next(line for line in lines if line.startswith("| particles | 2 | 0.1 |"))
    assert f"| {np.median(of(table, 'particles', 'bures_w2')[[5, 8]]):.1e} |" in line
    assert "| moments |" in line
    assert any(line.startswith("| refused | 2 | 0.1 | – ") and line.endswith("| 2 of 2 |") for line in lines)
    assert sum(line.startswith("Failed: refused, d = 2, problem 1, seed 0: ConfigError: ") for line in lines) == 1


def test_the_file_holds_it_all(stored):
    path, table, _ = stored
    read = Comparison.load(path)
    assert read.config == table.config
    assert read.lines() == table.lines()
    for one, other in zip(read.entries, table.entries, strict=True):
        assert one.keys() == other.keys()
        assert all(a == other[k] or math.isnan(a) and math.isnan(other[k]) for k, a in one.items())


def test_stored_runs_are_not_repeated(tmp_path):
    runs = tmp_path / "runs"
    first = compare([OU], {"affine": affine}, times=TIMES, num_samples=100, runs=runs)
    (file,) = runs.iterdir()
    assert file.name == "OrnsteinUhlenbeck-d2-0-affine-seed0.h5"
    before = file.read_bytes()
    again = compare([OU], {"affine": affine}, times=TIMES, num_samples=100, runs=runs)
    assert file.read_bytes() == before
    assert of(again, "affine", "cpu_seconds").tolist() == of(first, "affine", "cpu_seconds").tolist()


def test_every_method_makes_a_scheme_or_says_why_not():
    times = np.array([0.0, 0.5, 1.0])
    for name, make in METHODS.items():
        scheme = make(problems.Aggregation(2), times)
        assert scheme.to_config()["name"] in ("PWGF", "JKOICNN", "SWJKO", "EulerMaruyama", "FittedParticles", "PWHF"), (
            name
        )
    with pytest.raises(ConfigError, match="Give a map"):
        METHODS["sw-jko-particles"](OU, times)


@pytest.mark.parametrize(
    ("times", "step"), [([0, 0.1, 0.5, 0.9], 0.1 / 3), ([0, 1], 0.05), ([0, 0.01, 1], 0.01), ([1, 1.5, 2], 0.05)]
)
def test_steps_divide_the_smallest_gap(times, step):
    assert even_step(np.array(times)) == pytest.approx(step)


# ---- the figure ------------------------------------------------------------------------------------------------------


def test_the_figure_shows_the_medians_of_the_file(stored):
    path, table, _ = stored
    before = dict(matplotlib.rcParams)
    figure = compare_plots.draw(Comparison.load(path))
    over_time, energy, over_dim, seconds = figure.axes
    curve = next(line for line in over_time.lines if line.get_label() == "particles")
    rows = of(table, "particles", "sym_kl")
    assert curve.get_ydata() == pytest.approx([np.median(rows[[k, k + 3]]) for k in (4, 5)])
    assert list(curve.get_xdata()) == pytest.approx(sorted({row for row in of(table, "particles", "t")})[1:])
    assert next(line for line in over_dim.lines if line.get_label() == "affine").get_xdata() == pytest.approx([1, 2])
    assert [panel.get_ylabel() for panel in (energy, seconds)] == ["energy distance (squared)", "CPU seconds"]
    assert "refused" not in {text.get_text() for text in figure.legends[0].get_texts()}
    assert dict(matplotlib.rcParams) == before


def test_published_values_are_dashed(stored):
    _, table, _ = stored
    theirs = {**table.entries[0], "method": "theirs", "kind": "published", "sym_kl": 0.1, "t": 0.1, "dim": 2.0}
    theirs["message"] = "5 s on a GPU"
    both = Comparison([*table.entries, theirs], {})
    assert "theirs, d = 2: 5 s on a GPU" in both.lines()
    figure = compare_plots.draw(both, dim=2)
    (curve,) = [line for line in figure.axes[0].lines if line.get_label() == "theirs"]
    assert curve.get_linestyle() == "--" and curve.get_ydata() == pytest.approx([0.1])


def test_figure_errors(stored, tmp_path):
    path, table, _ = stored
    with pytest.raises(ConfigError, match=r"needs a dimension out of \[1, 2\]"):
        compare_plots.draw(table, dim=5)
    with pytest.raises(PathError, match="cannot write there"):
        compare_plots.save(path, tmp_path / "no" / "a.png")
    with pytest.raises(PathError, match="no such file; expected a table"):
        compare_plots.save(tmp_path / "no.h5", tmp_path / "a.png")


# ---- bad input, and the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["pwgff"]}, r"needs names out of pwgf, jko-icnn, sw-jko.*got 'pwgff'\. Did you mean 'pwgf'\?"),
        ({"methods": []}, "needs at least one name"),
        ({"members": []}, r"compare\(members=…\) needs a list of problems"),
        ({"members": ["ou"]}, r"compare\(members=…\) needs a list of problems"),
        ({"times": [0.0]}, r"needs two or more times, the first the problem's start \(0\)"),
        ({"times": [0.5, 1.0]}, r"needs two or more times, the first the problem's start \(0\)"),
        ({"times": [0.0, 0.0]}, "must increase strictly"),
        ({"num_samples": 5}, r"compare\(num_samples=…\) must be an integer ≥ 100"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        compare(**{"members": [OU], "methods": {"affine": affine}, "times": TIMES, **arguments})


def test_a_file_that_is_there_is_safe(stored):
    path, _, _ = stored
    with pytest.raises(PathError, match="is there already. Replace it with overwrite=True, which repeats no run"):
        compare([OU], {"affine": affine}, times=TIMES, out=path)


def test_a_comparison_that_was_stopped_repeats_no_run(tmp_path):
    """Stopped in the second of two runs; the first one is in the table and in the folder of the runs."""

    def stopping(problem, times):
        scheme = particles(problem, times)
        scheme.measure = lambda state: os.kill(os.getpid(), signal.SIGINT) or type(scheme).measure(scheme, state)
        return scheme

    given = {"times": TIMES, "num_samples": 300, "out": tmp_path / "table.h5", "runs": tmp_path / "runs"}
    with pytest.raises(KeyboardInterrupt):
        compare([OU], {"affine": affine, "particles": stopping}, **given)
    assert {entry["method"] for entry in Comparison.load(given["out"]).entries} == {"affine"}
    (first, second) = sorted(given["runs"].iterdir())
    assert (first.name, second.name) == (f"{OU.name}-d2-0-affine-seed0.h5", f"{OU.name}-d2-0-particles-seed0.h5.parts")
    before = first.stat().st_mtime_ns
    table = compare([OU], {"affine": affine, "particles": particles}, **given, overwrite=True)
    assert first.stat().st_mtime_ns == before and not any(entry["failed"] for entry in table.entries)
    alone = pwgf.solve(particles(OU, TIMES), TIMES, progress=False)
    assert np.array_equal(pwgf.load(str(second).removesuffix(".parts"))["theta"], alone["theta"])


def test_a_disk_that_refuses_is_no_failed_member(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        compare([OU], {"affine": affine}, times=TIMES, num_samples=100, out=tmp_path / "file" / "table.h5")


def test_a_table_of_something_else_is_told(stored, tmp_path):
    path, _, _ = stored
    pwgf.storage.write_table(tmp_path / "other.h5", {"t": [1.0]}, {})
    with pytest.raises(PathError, match="the table has no column 'dim'"):
        Comparison.load(tmp_path / "other.h5")
    with pytest.raises(SchemaError, match="'table' where 'trajectory' was expected"):
        pwgf.load(path)


def test_the_command_prints_stores_and_draws(tmp_path, capsys):
    out = tmp_path / "c.h5"
    command = ["compare", "ornstein-uhlenbeck", "--methods", "particles,sw-jko-particles", "--dims", "1,2"]
    command += ["--times", "0,0.02", "--num-samples", "200", "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "\n".join(Comparison.load(out).lines()) in said
    assert f"Written to {out}" in said and (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "| particles | 1 | 0.02 |" in said
    assert "sw-jko-particles, d = 2, problem 0, seed 0: failed: ConfigError: SWJKO(map=None) moves particles" in said
    assert cli.main(command) == 2
    assert f"--out {out}: a file is there already. Replace it with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ornstein-ulenbeck"], "pwgf compare needs one of the problems ornstein-uhlenbeck"),
        (["aggregation", "--methods", "jko"], "needs names out of pwgf"),
        (["aggregation", "--dims", "2;3"], "--dims needs integers with commas between them; got '2;3'"),
        (["aggregation", "--seeds", "-1"], "--seeds needs integers ≥ 0"),
        (["aggregation", "--times", "0,a"], "--times needs numbers with commas between them; got '0,a'"),
        (["aggregation", "--dims", "0"], "got 0"),
    ],
)
def test_the_command_refuses(arguments, message, capsys, tmp_path):
    assert cli.main(["compare", *arguments, "--out", str(tmp_path / "c.h5")]) == 2
    assert message in capsys.readouterr().err
