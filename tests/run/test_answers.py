"""How a run answers: to Ctrl-C, in a notebook, at Python's prompt."""

import os
import signal
import sys

import pytest
import torch

import pwgf
from pwgf import energies, fitting, maps, problems, sampling
from pwgf.run import progress
from pwgf.run.signals import Signals
from pwgf.shown import as_call

PROBLEM = problems.OrnsteinUhlenbeck(2)


def scheme():
    return pwgf.PWGF(PROBLEM.energy, maps.Affine(2), PROBLEM.reference, num_samples=50, num_eval=50)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_the_step_completed(number, capsys):
    said = []

    def signalled(state, info):
        os.kill(os.getpid(), number)
        said.append(capsys.readouterr().err)  # before the step is stored

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pwgf.solve(scheme(), [0.0, 1.0], callbacks=[signalled], progress=False)
    assert said == ["pwgf: stopping after this step; again stops now\n"]


@pytest.mark.parametrize("error", [RuntimeError("reentrant call"), ValueError("closed"), OSError("full")])
def test_the_answer_finds_its_way_amid_another_write(error, monkeypatch, capfd):
    class Busy:
        def write(self, text):
            raise error

    with pytest.raises(KeyboardInterrupt), Signals():
        monkeypatch.setattr(sys, "stderr", Busy())
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "pwgf: stopping after this step; again stops now\n"


def test_a_notebook_gets_a_widget(monkeypatch):
    made = []

    class tqdm_notebook(progress.tqdm):
        def __init__(self, **settings):
            made.append(settings)
            super().__init__(**{**settings, "disable": True})

    monkeypatch.setattr(progress, "tqdm", tqdm_notebook)
    bar = progress.Progress(0.0, 1.0, True)
    bar.update(0.5, energy=1.0)
    bar.close()
    (settings,) = made
    assert settings["file"] is None and settings["total"] == 1.0


def test_where_there_is_neither_terminal_nor_notebook_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(progress, "tqdm", lambda **settings: pytest.fail("a bar was made"))
    monkeypatch.setattr(progress, "_in_notebook", lambda: False)
    progress.Progress(0.0, 1.0, True).update(0.5)


def test_objects_say_what_makes_them():
    energy = energies.Potential(torch.sum) + 0.5 * energies.Entropy()
    assert repr(energy) == "Potential(V=sum) + 0.5·Entropy()"
    assert repr(pwgf.Gaussian(20)) == "Gaussian(dim=20, mean=[20 numbers], cov=[20 × 20 numbers])"
    assert repr(problems.StyblinskiTang(2)) == "StyblinskiTang(dim=2, c=0.06, end_time=2)"
    said = repr(pwgf.PWGF(energy, maps.Affine(20), pwgf.Gaussian(20), num_samples=50))
    assert said.startswith(f"PWGF(energy={energy!r}, map=Affine(dim=20), reference={pwgf.Gaussian(20)!r}, ")
    assert "num_samples=50" in said and len(said) < 700
    assert as_call({"name": "a.B", "x": 0.1, "y": None, "z": [1, 2]}) == "B(x=0.1, z=[1, 2])"


def test_all_shelves_say_more_than_an_address():
    names = [name for name in problems.short_names() if name != "kuramoto"]
    posed = [problems.Kuramoto(), *(problems.find(name, "test", dim=2) for name in names)]
    members = [
        *(kind.suited(PROBLEM.energy, PROBLEM.reference, [0.0, 1.0]) for kind in pwgf.schemes.SCHEMES.values()),
        *(thing for one in posed for thing in (one, one.energy, one.reference)),
        maps.ResidualMLP(2), maps.ConvexRidge(2), maps.ConvexMax(2), maps.NeuralODE(2),
    ]  # fmt: skip
    assert [repr(member) for member in members if " object at 0x" in repr(member) or "\n" in repr(member)] == []


def test_notebooks_show_tables():
    energy = energies.Potential(torch.sum) + 0.5 * energies.Entropy()
    assert energy._repr_html_().endswith(
        "<td>Potential(V=sum)</td></tr><tr><th></th><td>0.5·Entropy()</td></tr></table>"
    )
    shown = scheme()._repr_html_()
    assert "<th>map</th><td>Affine(dim=2)</td>" in shown and "<th>num_samples</th><td>50</td>" in shown
    found = fitting.fit(maps.Affine(1), pwgf.Gaussian(1), torch.randn(9, 1), max_iterations=1, polish=0, progress=False)
    assert "<th>Fit</th>" in found._repr_html_() and "<th>theta</th><td>[2 numbers]</td>" in found._repr_html_()
    sampled = sampling.sample(lambda x: -x.square().sum(-1) / 2, 1, 100, names=["a<b"], progress=False)
    assert "effective 100%" in sampled._repr_html_() and "<th>a&lt;b</th>" in sampled._repr_html_()


def test_a_notebook_shows_a_table_of_the_run():
    run = pwgf.solve(scheme(), [0.0, 0.1], progress=False, problem=PROBLEM)
    said = run._repr_html_()
    assert said.startswith("<table>") and "PWGF with Affine" in said and "OrnsteinUhlenbeck" in said
    assert repr(run) == "Trajectory(2 rows, t = 0 … 0.1)"
    run.path = "<b>.h5"
    assert "&lt;b&gt;.h5" in run._repr_html_()
