"""`pwgf run` and `pwgf compare` of a problem in the user's own code: what they solve, and what they say of mistakes."""

import sys

import pytest

import pwgf
from pwgf import cli
from pwgf.cli import _options
from tests.cli.test_cli import refused

CODE = '''
import numpy as np

import pwgf
from pwgf import energies, problems


class Heat(problems.Problem):
    """Heat of a temperature T in N(0, I): covariance (1 + 2Tt)·I."""

    def __init__(self, dim, temperature: float = 1.0, end=0.1):
        self.dim, self.T, self.end = dim, temperature, end

    reference = property(lambda self: pwgf.Gaussian(self.dim))
    energy = property(lambda self: self.T * energies.Entropy())
    times = property(lambda self: np.linspace(0, self.end, 2))

    def exact(self, t):
        return pwgf.Gaussian(self.dim, cov=1 + 2 * self.T * t)

    def _arguments(self):
        return {"dim": self.dim, "temperature": self.T, "end": self.end}


class Lacking(problems.Problem):
    dim = 1

    def exact(self, t):
        return pwgf.Gaussian(1)


class Plain:
    """No exact law, and derived from nothing."""

    dim, times, energy, reference = 1, [0, 0.1], energies.Entropy(), pwgf.Gaussian(1)


class Wrong(Plain):
    energy = 3


class Fails:
    def __init__(self, dim=1):
        raise RuntimeError("boom")


instance, energy, number = Heat(1, 0.5), energies.Entropy(), 3


def cold(temperature=0.25):
    return Heat(1, temperature)


def V(x):
    return x.square().sum(-1)
'''
SMALL = ["--map", "affine", "--num-samples", "50", "--num-eval", "100", "--threads", "1", "--out", "a.h5"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with heat.py, which is the current one; what is imported from it is forgotten afterwards."""
    (tmp_path / "heat.py").write_text(CODE)
    (tmp_path / "bad.py").write_text("import math\n\nx = math.nothing\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("heat", "bad", "needs", "syntax"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("words", "dim", "temperature"),
    [
        ("heat.py:Heat --dim 1 --temperature 0.5", 1, 0.5),
        ("heat:Heat --temperature=2", 2, 2.0),
        ("./heat.py:instance", 1, 0.5),
        ("heat.py:cold", 1, 0.25),
        ("heat.py:cold --problem.temperature 3", 1, 3.0),
    ],
)
def test_run_of_a_problem_of_the_users_own(here, capsys, words, dim, temperature):
    assert cli.main(["run", *words.split(), *SMALL]) == 0
    run = pwgf.load("a.h5")
    assert run.config["problem"] == {"name": "Heat", "dim": dim, "temperature": temperature, "end": 0.1}
    assert run.config["metadata"] == {"problem": words.split()[0]}
    said = capsys.readouterr().out
    assert f"Heat, d = {dim} · PWGF with Affine" in said and "Error against the exact law at t = 0.1: Bures-W2" in said
    cov = run.at(0.1).cov().diagonal()
    assert cov.tolist() == pytest.approx([1 + 0.2 * temperature] * dim, abs=1e-3)


def test_a_problem_need_not_derive_from_anything(here, capsys):
    assert cli.main(["run", "heat.py:Plain", *SMALL]) == 0
    assert "Error: not known" in capsys.readouterr().out
    assert pwgf.load("a.h5").config["problem"] is None


def test_a_bare_energy_starts_from_a_gaussian(here):
    words = "heat.py:energy --dim 2 --times 0,0.05,0.1 --reference.mean 1,2 --reference.cov 0.5"
    assert cli.main(["run", *words.split(), *SMALL]) == 0
    run = pwgf.load("a.h5")
    assert run.t.tolist() == [0, 0.05, 0.1]
    assert run.reference.mean().tolist() == [1, 2] and run.reference.cov().diagonal().tolist() == [0.5, 0.5]


def test_the_default_file_is_named_after_the_problem(here):
    (here / "results").mkdir()
    assert cli.main(["run", "heat.py:Heat", "--dim", "1", *SMALL[:-2]]) == 0
    assert (here / "results" / "heat-d1.h5").is_file()


def test_compare_takes_a_problem_of_the_users_own(here, capsys):
    words = "heat.py:Heat --temperature 0.5 --dims 1 --methods particles --times 0,0.01 --num-samples 200 --out c.h5"
    assert cli.main(["compare", *words.split()]) == 0
    assert "| particles | 1 | 0.01 |" in capsys.readouterr().out
    assert "needs a problem whose exact law is known" in refused(capsys, "compare", "heat.py:Plain", "--out", "d.h5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("heat:Heet", "heat has no 'Heet'; it defines Heat, Lacking, Plain, Wrong, Fails, instance, energy, cold, V."),
        ("haet:Heat", "found no module 'haet', neither in"),
        ("haet:Heat", "Did you mean 'heat'?"),
        ("haet.py:Heat", "haet.py. Did you mean 'heat.py'?"),
        ("no/such.py:Heat", "no/such.py."),
        ("no/such.py:Heat", "pwgf run found no file /"),
        ("./notes.txt:Heat", "notes.txt is no Python file. Give path/script.py:NAME."),
        ("heat.py", "needs FILE.py:NAME or MODULE:NAME; got 'heat.py'. Give e.g. heat.py:MyProblem."),
        ("heat.py:Lacking", "the class lacks _arguments, energy, reference, times, which a problem has"),
        ("heat.py:number", "is no problem and no energy, but int: it lacks dim, energy, reference, times. A problem"),
        ("heat.py:Wrong", "its energy must be one of pwgf's, pwgf.energies.base.Energy; got 3."),
        ("heat.py:V", "needs --x, an argument without a default. If it is a potential V(x), write energy ="),
        ("heat.py:instance --temperature 1", "has no option --temperature: heat.py:instance is no class"),
        ("heat.py:instance --dim 3", "is of dimension 1, always; got --dim 3. Leave --dim out."),
        ("heat.py:instance --reference.mean 1", "has no option --reference.mean: the problem has its own reference"),
        ("heat.py:energy --times 0,1", "is an energy, which has no dimension of its own. Give --dim, and --times."),
        ("heat.py:energy --dim 2", "is an energy, which has no times. Give e.g. --times 0,0.5,1."),
        ("heat.py:Heat --times 0,x", "--times needs numbers with commas between them; got '0,x'"),
        ("heat.py:Heat --times 0,1 --num-rows 3", "takes --times or --num-rows, not both"),
        ("heat.py:Heat --temperature hot", "--temperature got 'hot'; expected: number."),
        ("heat.py:Heat --temprature 1", "The problem has --temperature (number, default 1), --end (any value, default"),
        ("heat.py:Heat --problem.temperature hot", "--problem.temperature got 'hot'; expected: number."),
        ("heat.py:Heat --temperature 1 --problem.temperature 1", "--temperature or --problem.temperature, which"),
        ("heat.py:Heat --dim 0", "error: --dim must be an integer ≥ 1; got 0."),
        ("heat.py:Heat --temprature 1", "Did you mean --temperature?"),
        ("heat.py:Heat --temperature 1 --temperature 2", "--temperature is there twice. Leave one out."),
    ],
)  # fmt: skip
def test_mistakes_are_told(here, capsys, words, message):
    assert message in refused(capsys, "run", *words.split())
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        ("bad.py:X", 'bad.py", line 3, in <module>', "AttributeError: module 'math' has no attribute 'nothing'"),
        ("bad:X", 'bad.py", line 3, in <module>', "AttributeError: module 'math' has no attribute 'nothing'"),
        ("needs:X", 'needs.py", line 1, in <module>', "ModuleNotFoundError: No module named 'no_such_package'"),
        ("syntax.py:X", 'syntax.py", line 1', "SyntaxError: invalid syntax"),
        ("heat.py:Fails", 'heat.py", line 44, in __init__', "RuntimeError: boom"),
    ],
)
def test_an_error_in_the_users_code_is_passed_on_with_its_line(here, capsys, words, where, what):
    assert cli.main(["run", words]) == 2
    said = capsys.readouterr().err
    assert where in said and said.rstrip().endswith(what)
    assert "importlib" not in said and "pwgf/cli" not in said


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "3", 3),
        (float | None, "none", None),
        (float | None, "1e-3", 1e-3),
        (bool, "False", False),
        (str | int, "3", 3),
        (list[float], "1,2.5", [1.0, 2.5]),
        (tuple[int, ...], "1,2", (1, 2)),
        (_options.Any, "[[1, 0], [0, 2]]", [[1, 0], [0, 2]]),
        (_options.Any, "1,2", [1, 2]),
        (_options.Any, "rk4", "rk4"),
        (_options.Literal["a", 2], "2", 2),
    ],
)
def test_texts_are_read_by_the_types_of_the_signature(annotation, text, value):
    def make(x):
        return x

    make.__annotations__["x"] = annotation
    found = _options.arguments(make, {"x": text}, "", "call")["x"]
    assert found == value and type(found) is type(value)
