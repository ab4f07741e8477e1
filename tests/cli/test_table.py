"""`pwgf info` as JSON and of other files than runs, and `pwgf table`: what they say is what the files hold."""

import csv
import json
import shutil

import numpy as np
import pytest

import pwgf
from pwgf import cli, maps, problems, storage
from pwgf.cli import table
from pwgf.study import accuracy
from pwgf.study.compare import Comparison, compare
from tests.cli.test_cli import refused, stopped_run
from tests.cli.test_own import CODE


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a flow with a known law, one of them by another solver, and a bare flow."""
    folder = tmp_path_factory.mktemp("table")
    problem = problems.OrnsteinUhlenbeck(1)
    for seed, solver in ((0, "auto"), (1, "primal")):
        scheme = pwgf.PWGF(
            problem.energy, maps.Affine(1), problem.reference, solver=solver, num_samples=50, num_eval=100
        )
        pwgf.solve(scheme, [0, 0.1], out=folder / f"ou-{seed}.h5", seed=seed, problem=problem, progress=False)
    scheme = pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=50, dt=0.05)
    pwgf.solve(scheme, [0, 0.1], out=folder / "particles.h5", progress=False)
    return folder


def told(capsys, *arguments, status=0):
    """What a command prints."""
    assert cli.main([str(one) for one in arguments]) == status
    return capsys.readouterr().out


def test_info_as_json_holds_what_the_words_say(runs, capsys):
    path = runs / "ou-0.h5"
    found, run = json.loads(told(capsys, "info", path, "--json")), pwgf.load(path)
    problem = problems.OrnsteinUhlenbeck(1)
    assert (found["kind"], found["status"], found["rows"], found["t_last"]) == ("run", "complete", 2, 0.1)
    assert found["energy_last"] == run["energy"][-1] and found["energy_rises"] == 0
    assert found["residual_max"] == run["projection_residual"].max()
    assert found["error"]["bures_w2"] == pytest.approx(
        accuracy.errors(run, problem, rows=[-1])["bures_w2"][0], rel=1e-4
    )
    assert found["error"]["spread"] == pytest.approx(np.sqrt(0.25 + 0.75 * np.exp(-0.8)))  # Σ + E(I − Σ)E
    assert found["verdict"] == "excellent" and found["warnings"] == []
    assert found["config"] == run.config


def test_info_as_json_has_null_for_what_is_not_known(runs, capsys):
    found = json.loads(told(capsys, "info", runs / "particles.h5", "--json"), parse_constant=pytest.fail)
    assert [found[name] for name in ("energy_last", "residual_max", "verdict", "error")] == [None] * 4
    assert found["error_unknown"].startswith("not known") and found["has_density"] is False


def test_info_of_a_comparison_shows_it(tmp_path, capsys):
    def few(problem, times):
        return pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=50, dt=0.01)

    compared = compare(
        [problems.OrnsteinUhlenbeck(1)], {"few": few}, times=[0, 0.01], num_samples=100, out=tmp_path / "c.h5"
    )
    said = told(capsys, "info", tmp_path / "c.h5")
    assert said == f"{tmp_path / 'c.h5'}: a comparison of few\n\n" + "\n".join(compared.lines()) + "\n"
    found = json.loads(told(capsys, "info", tmp_path / "c.h5", "--json"))
    assert found["kind"] == "comparison" and [entry["t"] for entry in found["entries"]] == [0, 0.01]


def test_info_of_a_part_names_the_run(tmp_path, capsys):
    stopped_run(tmp_path / "a.h5")
    part = next((tmp_path / "a.h5.parts").glob("seg-*"))
    said = told(capsys, "info", part)
    assert said.startswith(f"{part}: a part of the run {tmp_path / 'a.h5'}")
    assert json.loads(told(capsys, "info", part, "--json"))["run"] == str(tmp_path / "a.h5")
    assert told(capsys, "info", tmp_path / "a.h5.parts").startswith(f"{tmp_path / 'a.h5'}: interrupted\n")


def test_info_table_and_plot_measure_by_a_problem_of_the_users_own(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "warm.py").write_text(CODE)
    words = "warm.py:Heat --temperature 0.5 --dim 1 --map affine --num-samples 50 --num-eval 100 --out a.h5"
    words += " --damping 1e-3"  # an error far above rounding, which goes by the threads
    assert cli.main(["run", *words.split()]) == 0
    error = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Error"))
    error = error.partition(" (its sampling error")[0]
    assert "got 'Heat'. Did you mean 'HeatInBox'? It was solved as warm.py:Heat; give --problem warm.py:Heat." in told(
        capsys, "info", "a.h5"
    )
    assert error in told(capsys, "info", "a.h5", "--problem", "warm.py:Heat")
    shutil.copy(runs / "ou-0.h5", "ou.h5")
    rows = list(
        csv.DictReader(told(capsys, "table", "a.h5", "ou.h5", "--csv", "--problem", "warm.py:Heat").splitlines())
    )
    found = [pwgf.load("a.h5"), pwgf.load("ou.h5")]
    exact = [pwgf.Gaussian(1, cov=1 + 2 * 0.5 * 0.1), problems.OrnsteinUhlenbeck(1).exact(0.1)]
    for row, run, law in zip(rows, found, exact, strict=True):
        off = abs(float(run.at(0.1).cov().sqrt()) - float(law.cov().sqrt()))
        assert float(row["bures_w2"]) == pytest.approx(off, abs=1e-4)
    for words in (["plot", "a.h5"], ["plot", "a.h5", "--problem", "warm.py:Heat"]):
        assert told(capsys, *words) == "Drawn: a.png\n"


def test_table_has_a_row_a_run_with_the_settings_that_differ(runs, capsys):
    names = ["ou-0.h5", "ou-1.h5"]
    said = told(capsys, "table", *(runs / name for name in names), "--csv")
    rows = list(csv.DictReader(said.splitlines()))
    assert [row["run"] for row in rows] == [str(runs / name) for name in names]
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert [row["solver"] for row in rows] == ["auto", "primal"]
    assert list(rows[0])[:4] == ["run", "solver", "seed", "bures_w2"]
    for row, name in zip(rows, names, strict=True):
        run = pwgf.load(runs / name)
        assert float(row["energy"]) == run["energy"][-1] and float(row["cpu_seconds"]) == run["cpu_time"][-1]
        error = accuracy.errors(run, problems.OrnsteinUhlenbeck(1), rows=[-1])
        for column in ("bures_w2", "sym_kl"):
            assert float(row[column]) == pytest.approx(error[column][0], rel=1e-4)  # rounding goes by the threads
        assert (row["verdict"], row["status"], row["message"]) == ("excellent", "complete", "")


def test_table_in_words_and_of_a_folder(runs, capsys):
    lines = told(capsys, "table", runs).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "| run", "|" + "---|" * lines[0].count(" | ") + "---|", "| ou-0.h5", "| ou-1.h5", "| particles.h5",
    ]  # fmt: skip
    assert lines[0].startswith("| run | scheme | solver | seed | Bures–W₂ | floor | symmetric KL | energy |")
    assert lines[2].startswith("| ou-0.h5 | PWGF | auto | 0 | ")
    assert lines[4].startswith("| particles.h5 | EulerMaruyama | – | 0 | – | – | – | – | – | – | ")


def test_a_setting_that_one_of_two_like_members_lacks_is_a_difference():
    one, two = {"map.name": "A", "map.width": 3, "seed": 0}, {"map.name": "A", "seed": 0}
    other = {"map.name": "B", "map.units": 3, "seed": 0}
    assert table.differing([table.Line("", "", one), table.Line("", "", two)]) == {"map.width": "map.width"}
    assert table.differing([table.Line("", "", two), table.Line("", "", other)]) == {"map.name": "map"}


def test_a_damaged_run_and_a_missing_one_have_a_row(runs, tmp_path, capsys):
    shutil.copy(runs / "ou-0.h5", tmp_path / "good.h5")
    data = (runs / "ou-1.h5").read_bytes()
    (tmp_path / "bad.h5").write_bytes(data[: len(data) // 2])
    files = [tmp_path / name for name in ("good.h5", "bad.h5", "gone.h5")]
    said = told(capsys, "table", *files, status=1)
    assert "| damaged |\n" in said and f"Damaged: {tmp_path / 'bad.h5'}: opening " in said
    assert f"Missing: {tmp_path / 'gone.h5'}: " in said and "no such file" in said
    rows = list(csv.DictReader(told(capsys, "table", *files, "--csv", status=1).splitlines()))
    assert [row["status"] for row in rows] == ["complete", "damaged", "missing"] and rows[1]["energy"] == ""


def test_a_run_in_parts_has_a_row(tmp_path, capsys):
    stopped_run(tmp_path / "a.h5")
    assert "| a.h5 | " in told(capsys, "table", tmp_path)
    assert told(capsys, "table", tmp_path / "a.h5.parts") == told(capsys, "table", tmp_path / "a.h5")


def test_a_folder_without_runs_is_told(tmp_path, capsys):
    assert "found no run in the folder" in refused(capsys, "table", str(tmp_path))
    assert "needs files, or a folder of them" in refused(capsys, "table")


def test_a_comparison_among_the_runs_is_no_damage(tmp_path, capsys):
    Comparison([], {"methods": []}).save(tmp_path / "c.h5")
    assert "| c.h5 | comparison |" in told(capsys, "table", tmp_path)


def test_the_table_of_a_filter_says_what_it_is(tmp_path, capsys):
    """As `filtering.run(out=…)` leaves it beside its flows."""
    columns = {"t": [0.5, 1.0], "run_id": ["a", "b"], "log_evidence": [-0.25, float("nan")]}
    path = storage.write_table(tmp_path / "filter.h5", columns, {"kind": "filtering.run", "num_updates": 1})
    said = told(capsys, "info", path).splitlines()
    assert said[0] == f"{path}: a table of filtering.run" and sorted(said[2].split()[1::2]) == sorted(columns)
    assert {"0.5", "a", "-0.25"} <= set(said[4].split()) and {"1", "b", "nan"} <= set(said[5].split())
    found = json.loads(told(capsys, "info", path, "--json"))
    assert found["kind"] == "table" and found["columns"]["log_evidence"] == [-0.25, None]
    assert "| filter.h5 | table |" in told(capsys, "table", tmp_path)
