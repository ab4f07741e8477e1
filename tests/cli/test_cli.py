"""The command line, run in this process: what it writes, says and refuses, and its exit status."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import pwgf
from pwgf import cli, maps, problems, schemes
from pwgf.cli import facts, report, settings
from pwgf.cli import run as command_run
from pwgf.study.compare import METHODS

TINY = ["--num-samples", "100", "--num-eval", "200", "--num-rows", "3", "--end-time", "0.2", "--threads", "1"]


@pytest.fixture(scope="module")
def ou(tmp_path_factory):
    """A tiny run on disk, made by the command."""
    path = tmp_path_factory.mktemp("cli") / "new" / "ou.h5"
    path.parent.mkdir()
    assert cli.main(["run", "ornstein-uhlenbeck", "--dim", "1", "--map", "affine", *TINY, "--out", str(path)]) == 0
    return path


def refused(capsys, *arguments):
    """The message of a refused command; nothing on stdout, no traceback, status 2."""
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert said.err.startswith("pwgf: error: ")
    return said.err


def test_run_stores_what_was_asked_for(ou):
    run = pwgf.load(ou)
    assert run.t == pytest.approx([0, 0.1, 0.2])
    scheme = run.config["scheme"]
    assert (scheme["map"]["name"], scheme["num_samples"], scheme["num_eval"]) == ("Affine", 100, 200)
    assert run.config["problem"] == problems.OrnsteinUhlenbeck(1).to_config()


def test_run_passes_every_setting_on(tmp_path, capsys):
    out = str(tmp_path / "a.h5")
    options = (
        "--map residual --width 5 --depth 2 --integrator rk4 --dt 0.1 --damping 1e-4 --momentum 0.5 --form gradient"
    )
    more = "--solver primal --seed 3 --dtype float32 --c 0.1"
    assert cli.main(["run", "StyblinskiTang", "--dim", "1", *TINY, *options.split(), *more.split(), "--out", out]) == 0
    config = pwgf.load(out).config
    scheme = config["scheme"]
    assert (scheme["map"]["width"], scheme["map"]["depth"]) == (5, 2)
    assert scheme["integrator"] == {"name": "FixedStep", "method": "rk4", "dt": 0.1}
    assert [scheme[name] for name in ("damping", "momentum", "form")] == [1e-4, 0.5, "gradient"]
    assert (scheme["solver"]["name"], config["seed"], scheme["dtype"]) == ("primal", 3, "float32")
    assert config["problem"]["c"] == 0.1


def test_run_tells_the_error_against_the_exact_law(tmp_path, capsys):
    out = str(tmp_path / "a.h5")
    assert (
        cli.main(["run", "barenblatt", "--m", "3", "--map", "affine", *TINY[:6], "--end-time", "1.1", "--out", out])
        == 0
    )
    said = capsys.readouterr().out
    assert "Porous-medium (Barenblatt) flow, d = 2, m = 3" in said
    w2 = float(re.search(r"Bures-W2 (\S+) in units of x", said)[1])
    assert w2 < 1e-3  # the map is exact, the tolerance 1e-4
    assert f"Written to {out}" in said


@pytest.mark.parametrize(("name", "end"), [("heat-in-box", "0.05"), ("kuramoto", "0.2")])
def test_problems_in_a_box_and_on_a_circle_bring_their_map(name, end, tmp_path, capsys):
    out = str(tmp_path / "a.h5")
    settings = ["--num-samples", "200", "--num-eval", "200", "--num-rows", "3", "--threads", "1"]
    assert cli.main(["run", name, "--dim", "1", *settings, "--end-time", end, "--out", out]) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"symmetric KL (\S+)", said)[1]) < 1e-4
    assert cli.main(["info", out]) == 0
    assert cli.main(["plot", out]) == 0
    run = pwgf.load(out)
    assert float(run.log_density(float(end), [[0.3]])) == pytest.approx(
        float(problems.find(name, "test", dim=1).exact(float(end)).log_density([[0.3]])), abs=0.01
    )


def test_out_defaults_to_the_problem_and_its_dimension(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert cli.main(["run", "aggregation", "--dim", "1", "--map", "affine", *TINY]) == 0
    assert (tmp_path / "results" / "aggregation-d1.h5").is_file()


def test_existing_file_resume_and_overwrite(ou, capsys):
    again = ["run", "ornstein-uhlenbeck", "--dim", "1", "--map", "affine", *TINY, "--out", str(ou)]
    assert "overwrite" in refused(capsys, *again)
    before = ou.read_bytes()
    assert cli.main([*again, "--resume"]) == 0
    assert ou.read_bytes() == before
    assert cli.main([*again, "--overwrite"]) == 0


def test_info_says_what_is_there_and_how_good(ou, capsys):
    assert cli.main(["info", str(ou)]) == 0
    said = capsys.readouterr().out
    run = pwgf.load(ou)
    assert said.startswith(f"{ou}: complete\n")
    for text in (
        "Ornstein–Uhlenbeck flow, d = 1 · PWGF with Affine (2 parameters)",
        "Rows: 3, from t = 0 to 0.2",
        "Energy terms: Potential + Entropy",
        f"Energy: {run['energy'][0]:.5g} -> {run['energy'][-1]:.5g}; it falls in every row",
        f"Projection residual: at most {run['projection_residual'].max():.2g}",
        "Verdict: excellent; the law is off by some",
        "Folded samples: at most 0 %",
        "Error against the exact law at t = 0.2: Bures-W2",
        "symmetric KL",
        "Warnings: none",
    ):
        assert text in said


def test_a_driven_flow_is_not_said_to_fall(tmp_path, capsys):
    out = str(tmp_path / "trap.h5")
    assert cli.main(["run", "moving-trap", "--dim", "1", "--map", "affine", *TINY, "--out", out]) == 0
    assert cli.main(["info", out]) == 0
    said = capsys.readouterr().out
    assert said.count("it need not fall, since the flow is driven") == 2
    assert "RISES" not in said
    assert pwgf.load(out).description.balance == "varies"


def test_info_of_a_stopped_run_warns(tmp_path, capsys):
    problem, out = problems.OrnsteinUhlenbeck(1), tmp_path / "a.h5"
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=100, num_eval=200)

    def interrupt(state, info):
        if state.t > 0.05:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pwgf.solve(scheme, [0, 0.05, 1], out=out, problem=problem, progress=False, callbacks=[interrupt])
    assert cli.main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Warning: the run is \w+: it ends at t = 0.05 of 1", said)


def test_info_of_a_users_own_map_tells_the_columns(tmp_path, capsys):
    class Mine(maps.Affine):
        def to_config(self):
            return {"name": "Mine"}

    problem, out = problems.OrnsteinUhlenbeck(1), tmp_path / "a.h5"
    scheme = pwgf.PWGF(problem.energy, Mine(1), problem.reference, num_samples=100, num_eval=200)
    pwgf.solve(scheme, [0, 0.1], out=out, problem=problem, progress=False)
    assert cli.main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Energy: " in said and re.search(r"Error: not measured \(.*pwgf\.load\(path, map=…\)", said)


def test_particles(tmp_path, capsys):
    out = str(tmp_path / "a.h5")
    tiny = [*TINY[:2], *TINY[4:]]
    assert (
        cli.main(
            ["run", "OrnsteinUhlenbeck", "--scheme", "particles", "--dim", "1", "--dt", "0.05", *tiny, "--out", out]
        )
        == 0
    )
    assert pwgf.load(out).config["scheme"]["name"] == "EulerMaruyama"
    assert cli.main(["info", out]) == 0
    said = capsys.readouterr().out
    assert "EulerMaruyama with 100 particles" in said and "particles have no density" in said
    assert "symmetric KL not defined" in said and "Projection residual" not in said


def test_a_problem_of_newtons_law_takes_its_own_scheme(tmp_path, capsys, monkeypatch):
    out, tiny = str(tmp_path / "a.h5"), ["--map", "affine", "--dim", "1", "--num-samples", "40", "--num-eval", "50"]
    assert cli.main(["run", "harmonic-hamiltonian", *tiny, "--dt", "0.2", "--num-rows", "3", "--out", out]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Harmonic oscillator, d = 1 · PWHF with Affine (2 parameters)")
    assert re.search(r"Total energy: 1 -> .*; it should not change, and did by at most 0\.0\d", said)
    assert pwgf.load(out).config["scheme"]["name"] == "PWHF"
    assert "PWGF follows the gradient flow" in refused(
        capsys, "run", "isothermal-gas", "--scheme", "pwgf", "--out", out
    )
    table, few = str(tmp_path / "c.h5"), {"dt": 0.01, "num_samples": 40, "num_eval": 50}
    monkeypatch.setitem(
        METHODS, "pwhf", lambda problem, times: pwgf.PWHF(problem.energy, maps.Affine(1), problem.reference, **few)
    )
    assert cli.main(["compare", "isothermal-gas", "--dims", "1", "--times", "0,0.02", "--out", table]) == 0
    assert "| pwhf | 1 | 0.02 |" in capsys.readouterr().out


def test_the_total_energy_falls_under_friction(tmp_path, capsys):
    spring = pwgf.energies.Potential(lambda x: x.square().sum(-1) / 2)
    scheme = pwgf.PWHF(spring, maps.Affine(1), pwgf.Gaussian(1), dt=0.1, friction=1.0, num_samples=40, num_eval=50)
    pwgf.solve(scheme, [0, 0.5, 1], out=tmp_path / "a.h5", progress=False)
    assert cli.main(["info", str(tmp_path / "a.h5")]) == 0
    assert re.search(r"Total energy: 0\.5\d* -> 0\.\d+; it falls in every row", capsys.readouterr().out)


def test_plot_draws_beside_the_file_or_where_told(ou, tmp_path, capsys):
    assert cli.main(["plot", str(ou)]) == 0
    assert ou.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert cli.main(["plot", str(ou), "--out", str(tmp_path / "b.svg")]) == 0
    assert "<svg" in (tmp_path / "b.svg").read_text()
    assert capsys.readouterr().out == f"Drawn: {ou.with_suffix('.png')}\nDrawn: {tmp_path / 'b.svg'}\n"


def test_plot_shows_what_is_asked_for(ou, tmp_path, capsys):
    for kind in ("energy", "marginals"):
        out = tmp_path / f"{kind}.png"
        assert cli.main(["plot", str(ou), "--kind", kind, "--out", str(out)]) == 0
        assert out.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", str(ou), "--dims", "0", "--times", "0,0.15", "--out", str(out)]) == 0
    capsys.readouterr()
    assert "--dims needs integers with commas between them; got 'x'" in refused(capsys, "plot", str(ou), "--dims", "x")
    assert "coordinates 0, the only one of a law in d = 1; got 3" in refused(capsys, "plot", str(ou), "--dims", "0,3")
    assert "times of the run, from 0 to 0.2; got 7.0" in refused(capsys, "plot", str(ou), "--times", "7")
    assert "needs two coordinates; got [0]" in refused(capsys, "plot", str(ou), "--kind", "density")
    two = ["--kind", "density", "--times", "0,0.1"]
    assert "shows one time; got 2 in --times" in refused(capsys, "plot", str(ou), *two)
    assert "--kind energy shows no law" in refused(capsys, "plot", str(ou), "--kind", "energy", "--dims", "0")


def test_animate_writes_a_film_beside_the_file(ou, capsys):
    assert cli.main(["animate", str(ou), "--frames", "2"]) == 0
    assert f"Drawn: {ou.with_suffix('.gif')}" in capsys.readouterr().out
    assert ou.with_suffix(".gif").read_bytes().startswith(b"GIF")
    assert "must end in .gif or .mp4" in refused(capsys, "animate", str(ou), "--out", "a.avi")


def test_export_writes_samples_beside_the_file(ou, tmp_path, capsys):
    assert cli.main(["export", str(ou), "--samples", "5", "--times", "0,0.2"]) == 0
    assert f"Written to {ou.with_suffix('.nc')}" in capsys.readouterr().out
    out = tmp_path / "x.csv"
    assert cli.main(["export", str(ou), "--samples", "5", "--dims", "0", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1 + 3 * 5
    capsys.readouterr()
    assert "must end in .nc, .csv, .parquet, .zarr" in refused(capsys, "export", str(ou), "--out", str(ou))
    assert "--times needs numbers with commas" in refused(capsys, "export", str(ou), "--times", "a")


def test_plot_without_matplotlib_names_the_extra(ou, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert "pip install 'pwgf[plot]'" in refused(capsys, "plot", str(ou))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ornstein-ulenbeck"], "got 'ornstein-ulenbeck'. Did you mean 'ornstein-uhlenbeck'?"),
        (["aggregation", "--c", "2"], "aggregation has no option --c. The problem has --sigma (number, default 1)."),
        (["barenblatt", "--c", "2"], "barenblatt has no option --c. The problem has --m (number, default 2), --t0"),
        (["barenblatt", "--m", "0.5"], "needs m > 1; got 0.5"),
        (
            ["heat-in-box", "--map", "affine"],
            "takes place in a box or on a circle, which only its own map, InBox, knows",
        ),
        (["heat-in-box", "--scheme", "particles"], "would carry mass through the walls. Solve it by a scheme of maps"),
        (["kuramoto", "--scheme", "jko-icnn", "--dim", "1"], "must be the gradient of a convex function"),
        (["kuramoto", "--dim", "2"], "dim must be 1, an angle; got 2. Leave it out"),
        (["newtonian-aggregation", "--dim", "3"], "must be 2, where −log|x| is Newtonian; got 3"),
        (["aggregation", "--end-time", "0"], "--end-time must lie after the start, t = 0; got 0"),
        (["aggregation", "--num-rows", "1"], "--num-rows needs at least 2, the start and the end; got 1"),
        (["aggregation", "--threads", "0"], "--threads needs an integer ≥ 1; got 0"),
        (["aggregation", "--dim", "0"], "got 0"),
        (["aggregation", "--num-samples", "0"], "error: --num-samples must be an integer ≥ 1; got 0"),
        (["aggregation", "--map", "affine", "--width", "8"], "--map affine has no option --map.width. It has none."),
        (["aggregation", "--scheme", "particles", "--num-eval", "5"], "--num-eval belongs to --scheme pwgf"),
        (["aggregation", "--scheme", "particles", "--num-samples", "0"], "must be an integer ≥ 1; got 0"),
        (["aggregation", "--scheme", "particles", "--dt", "0"], "got 0"),
        (["barenblatt", "--scheme", "particles"], "PorousMedium"),
        (["aggregation", "--integrator", "bosh2"], "Did you mean 'bosh3'?"),
        (["aggregation", "--integrator", "rk4", "--tolerance", "1e-3", "--dt", "0.1"], "rk4"),
        (["aggregation", "--solver", "primel"], "Did you mean 'primal'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_settings(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "run", *arguments)
    assert not list(tmp_path.iterdir())


def stopped_run(path):
    """A run that fails after its first row, in parts."""
    problem = problems.OrnsteinUhlenbeck(1)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=50, num_eval=50)
    with pytest.raises(KeyboardInterrupt):
        pwgf.solve(scheme, [0, 1], out=path, progress=False, callbacks=[lambda state, info: signal.raise_signal(2)])


def test_pack_makes_one_file_of_a_stopped_run(tmp_path, capsys):
    path = tmp_path / "a.h5"
    stopped_run(path)
    assert not path.exists()
    assert cli.main(["pack", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: one file, 1 rows, interrupted\n"
    assert path.is_file() and len(pwgf.load(path)) == 1 and [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert cli.main(["pack", str(path)]) == 0


def test_doctor_finds_damage_and_salvages(tmp_path, capsys):
    path, out = tmp_path / "a.h5", tmp_path / "b.h5"
    stopped_run(path)
    assert cli.main(["doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: interrupted\nRows: 1 of 1 are good, from t = 0 to 0\n")
    assert "Can be resumed after its good rows: yes" in said and "Damage" not in said
    restart = next((tmp_path / "a.h5.parts").glob("restart-*"))
    restart.write_bytes(restart.read_bytes()[:-1])
    assert cli.main(["doctor", str(path)]) == 1
    said = capsys.readouterr()
    assert f"Damage: opening {str(restart)!r}" in said.out and "--salvage OUT" in said.err
    assert cli.main(["doctor", str(path), "--salvage", str(out)]) == 0
    assert f"Salvaged: {out}, 1 rows" in capsys.readouterr().out
    assert len(pwgf.load(out)) == 1
    assert "a run is there already" in refused(capsys, "doctor", str(path), "--salvage", str(out))


def test_a_missing_file_is_told(capsys):
    for command in ("pack", "doctor"):
        assert "no such file" in refused(capsys, command, "no/such/run.h5")
    for command in ("info", "plot"):
        assert "no such file" in refused(capsys, command, "no/such/run.h5")


def test_interrupt_gives_130(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_run, "solve", interrupted)
    assert cli.main(["run", "aggregation"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pwgf {pwgf.__version__}\n"


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "pwgf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pwgf {pwgf.__version__}\n"


def test_help_gives_every_setting_with_default_and_unit(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for field in settings.Run.__dataclass_fields__:
        assert (f"--{field.replace('_', '-')} " in said) != (field in ("problem", "given"))
    for text in (
        "(None: 1e-6; 1e-7 in implicit steps of small maps, on a line 1e-9)",
        "(default: auto)",
        "in units of x (None: 1e-4 explicit or on a line, 3e-4 implicit)",
        "in units of t",
        "styblinski-tang",
    ):
        assert text in said
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    said = capsys.readouterr().out
    commands = ("run", "sweep", "table", "options", "info", "plot", "animate", "export", "pack", "doctor")
    assert all(word in said for word in (*commands, "--version"))


def test_misspelt_option_exits_2(capsys):
    said = refused(capsys, "run", "aggregation", "--tolerence", "1e-3")
    assert "has no option --tolerence. The problem has --sigma (number, default 1). Did you mean --tolerance?" in said
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plot", "a.h5", "--outt", "a.png"])
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "word"), [(1e-4, "excellent;"), (1e-3, "good;"), (1e-2, "fair, compare"), (0.1, "poor;")]
)
def test_the_verdict_goes_by_the_largest_estimated_error(share, word):
    class Rows(dict):
        t = np.array([0.0, 1.0, 2.0])
        names = ("error_estimate", "spread", "error_more_samples")
        description = schemes.Description("PWGF", cures={"error_more_samples": "more samples"})

    run = Rows(error_estimate=np.array([0.0, 2 * share, share]), spread=np.array([1.0, 2.0, 2.0]))
    run["error_more_samples"] = np.array([np.nan, share, np.nan])
    found = facts.verdict(run)
    rest = {"residual_max": 0.1, "residual_last": 0.1, "fold_fraction": None}
    said = "\n".join(report.quality_lines(found | rest))
    assert f"Verdict: {word}" in said
    assert f"off by some {100 * share:.2g} % of its spread at most, at t = 1 (W2, estimated" in said
    assert f"Tried there: {50 * share:.2g} % with more samples" in said
    assert "79 of 80" not in said
    run["error_95"], run.names = np.array([0.0, 12 * share, 14 * share]), (*run.names, "error_95")
    said = "\n".join(report.quality_lines(facts.verdict(run) | rest))
    assert f"With the errors of the steps it should be below {700 * share:.2g} %, as in 79 of 80 rows" in said
    run["error_estimate"] = np.full(3, np.nan)
    assert "Verdict" not in "\n".join(report.quality_lines(facts.verdict(run) | rest))
