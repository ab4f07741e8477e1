"""Maps, integrators, schemes and solvers by name with their settings: every member of the tables."""

import dataclasses
import inspect

import pytest

from pwgf import cli, integrate, linalg, maps, problems, schemes
from pwgf.cli import _options, members, run, settings
from pwgf.errors import ConfigError
from tests.cli.test_cli import refused


def planned(*words):
    """The scheme that `pwgf run ornstein-uhlenbeck` would take with these options."""
    kept, given = _options.split(words, run.OWN)
    names = [name.removeprefix("--").replace("-", "_") for name in kept[::2]]
    chosen = settings.Run("ornstein-uhlenbeck", **dict(zip(names, kept[1::2], strict=True)), given=given)
    return run.planned(chosen, run.problem_of(chosen))[0]


@pytest.mark.parametrize("name", maps.short_names())
def test_every_map_can_be_named_or_says_why_not(name):
    kind = maps.find(name, "test")
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty and p.name != "dim"]
    if needed:
        with pytest.raises(ConfigError, match=f"--map {name} needs "):
            planned("--map", name)
        return
    assert isinstance(planned("--map", name).map, kind)


def test_a_map_that_is_not_named_is_in_layers_where_these_can_grow():
    assert planned().map == maps.Layers(maps.ResidualMLP(2))
    assert planned("--map.width", "9").map == maps.ResidualMLP(2, width=9)


@pytest.mark.parametrize("name", integrate.INTEGRATORS)
def test_every_integrator_can_be_named(name):
    fixed = name in integrate.FIXED
    found = planned("--integrator", name, *(["--integrator.dt", "0.1"] if fixed else [])).integrator
    assert found.resolved(None) == (
        integrate.FixedStep(name, 0.1) if fixed else integrate.get_integrator(name).resolved(None)
    )


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_every_scheme_can_be_named(name):
    found = planned("--scheme", name, "--scheme.num-samples", "78")
    assert isinstance(found, schemes.SCHEMES[name]) and found.num_samples == 78


@pytest.mark.parametrize("name", linalg.SOLVERS)
def test_every_solver_can_be_named(name):
    assert planned("--solver", name)._setup.solver.name == name


def test_settings_reach_the_members():
    found = planned(
        "--map", "convex-ridge", "--map.width", "20", "--integrator", "implicit", "--integrator.tolerance", "1e-3",
        "--solver", "cg", "--solver.rtol", "1e-6", "--solver.mixed", "true", "--scheme.chunk-size", "100",
    )  # fmt: skip
    assert (type(found.map), found.map.width) == (maps.ConvexRidge, 20)
    assert found.integrator == integrate.Implicit(tolerance=1e-3)
    assert found._setup.solver == linalg.CG(rtol=1e-6, mixed=True)
    assert found.chunk_size == 100


def test_settings_of_the_sides_of_an_integrator():
    found = planned("--integrator.implicit.order", "2", "--integrator.explicit.method", "dopri5").integrator
    assert (found.implicit.order, found.explicit.method) == (2, "dopri5")


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fields.py").write_text(
        "def turned(x):\n    return x.flip(1)\n\n\ndef M(x):\n    return 1 + x[:, 0].square()\n"
    )


def test_functions_are_named_by_file(functions, capsys):
    """velocity0 of PWHF and a mobility; then the problem's exact law is no longer that of the run."""
    assert planned("--scheme.mobility", "covariance")._setup.mobility.covariance
    assert planned("--scheme.mobility", "2,0.5").to_config()["mobility"] == [2.0, 0.5]
    assert planned("--scheme.mobility", "fields.py:M").to_config()["mobility"] == "fields.M"
    short = ["--end-time", "0.1", "--num-rows", "2", "--num-eval", "50", "--num-samples", "50", "--dt", "0.05"]
    swing = ["run", "harmonic-hamiltonian", "--map", "affine", "--scheme.velocity0", "fields.py:turned", *short]
    assert cli.main(swing) == 0
    said = capsys.readouterr().out
    assert "With --scheme.velocity0 this is another flow than that of harmonic-hamiltonian: no exact law." in said
    assert "Error: not known" in said
    assert cli.main(["options", "scheme"]) == 0
    assert "--scheme.velocity0  FILE.py:NAME of a function or none, default None" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("harmonic-hamiltonian --scheme.velocity0 fields.py:turnd", "it defines turned, M. Did you mean"),
        ("harmonic-hamiltonian --scheme.velocity0 turned", "got 'turned'; expected: FILE.py:NAME of a function"),
        ("ornstein-uhlenbeck --scheme.mobility covar", "--scheme.mobility got 'covar'; expected: number or covariance"),
        ("ornstein-uhlenbeck --scheme.mobility 0", "must be positive definite; got"),
    ],
)  # fmt: skip
def test_functions_that_are_not_there_are_reported(functions, words, message, capsys):
    assert message in refused(capsys, "run", *words.split())


def test_a_map_that_is_registered_appears_by_itself(monkeypatch, capsys):
    @dataclasses.dataclass(frozen=True)
    class Wobbly(maps.Affine):
        amount: float = 0.5

    monkeypatch.setitem(maps._SHELF, "Wobbly", Wobbly)
    assert planned("--map", "wobbly", "--map.amount", "2").map == Wobbly(2, 2.0)
    assert cli.main(["options", "map"]) == 0
    assert "--map wobbly\n    --map.amount  number, default 0.5\n" in capsys.readouterr().out


def test_options_lists_every_member_and_its_settings(capsys):
    assert cli.main(["options"]) == 0
    said = capsys.readouterr().out
    for kind, names in {
        "--map": maps.short_names(),
        "--integrator": integrate.INTEGRATORS,
        "--scheme": schemes.SCHEMES,
        "--solver": linalg.SOLVERS,
        "PROBLEM": problems.short_names(),
    }.items():
        assert all(f"{kind} {name}\n" in said or f"{kind} {name}  (in Python only" in said for name in names)
    assert "--c  number, default 0.06\n    --problem.end-time  number or none" in said
    assert (
        "--map composed  (in Python only: needs maps)" in said
        and "--integrator.implicit.…  as --integrator implicit" in said
    )
    assert list(members.scheme_settings(schemes.SWJKO)) == [
        "num_directions", "num_samples", "num_eval", "prox", "learning_rate", "max_iterations",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--map convex-rigde", "--map needs a map out of affine, composed, convex-max, convex-ridge"),
        ("--map convex-rigde", "Did you mean 'convex-ridge'?"),
        ("--map convex-ridge --map.widht 3", "--map convex-ridge has no option --map.widht. It has --map.width ("),
        ("--map convex-ridge --map.widht 3", "Did you mean --map.width?"),
        ("--map.width 3.5", "--map residual: --map.width got '3.5'; expected: integer or none."),
        ("--map.width 0", "--map.width must be an integer ≥ 1; got 0"),
        ("--width 8 --map.width 9", "takes --width or --map.width, which are one"),
        ("--map composed", "--map composed needs maps, which no option can give. Solve it in Python"),
        ("--map affine --scheme particles", "--map belongs to --scheme pwgf or jko-icnn or sw-jko"),
        ("--map.width 9 --scheme particles", "--map.width belongs to --scheme pwgf or jko-icnn or sw-jko"),
        ("--mapp.width 3", "has no option --mapp.width; with a dot there are --problem.…, --map.…"),
        ("--integrator rk4", "--integrator rk4 needs --integrator.dt (number, required)."),
        ("--integrator rk4 --dt 0.1 --integrator.dt 0.1", "takes --dt or --integrator.dt, which are one"),
        ("--integrator dopri5 --dt 0.1", "--dt needs an integrator of fixed steps, --integrator implicit, euler"),
        ("--integrator implicit --integrator.order 4", "--integrator.order must be 2 or 3; got 4."),
        ("--solver cg --solver.tol 1", "--solver cg has no option --solver.tol. It has --solver.rtol (number, default"),
        ("--scheme sw-jko --scheme.tau 1", "has no option --scheme.tau. It has --scheme.num-directions"),
        ("--num-samples 9 --scheme.num-samples 9", "takes --num-samples or --scheme.num-samples, which are one"),
        ("--damping -1", "error: --damping must be a number in [0, inf); got -1"),
    ],
)  # fmt: skip
def test_mistakes_are_told(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "run", "ornstein-uhlenbeck", *words.split())
    assert not list(tmp_path.iterdir())
