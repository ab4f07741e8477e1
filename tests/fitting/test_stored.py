"""A fit in a file: what was returned comes back in another process, and it is a run for all that reads runs."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import pwgf
from pwgf import fitting, maps
from pwgf.cli import main
from pwgf.errors import ConfigError, PathError, ResumeMismatchError, SchemaError

X = np.random.default_rng(0).standard_normal((200, 2)) @ np.array([[1.0, 0.4], [0.0, 0.5]]) + 5
SETTINGS = {"max_iterations": 20, "polish": 5, "progress": False}


def fitted(x=X, **to):
    return fitting.from_samples(x, maps.ResidualMLP(2, width=4), **SETTINGS, **to)


def to_density(log_density, **to):
    return fitting.fit(maps.Affine(2), pwgf.Gaussian(2), log_density, **SETTINGS, **to)


def bell(x):
    return -(x - 1).square().sum(-1) / 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The path and what was returned."""
    path = str(tmp_path_factory.mktemp("fit") / "start.h5")
    return path, fitted(out=path)


def same(a, b):
    numbers = [(start.error, start.floor, *start.fit[1:]) for start in (a, b)]
    return torch.equal(a.law.theta, b.law.theta) and numbers[0] == numbers[1]


def test_a_file_changes_nothing_and_gives_back_what_was_returned(made):
    path, start = made
    assert same(start, fitted()) and same(start, fitting.load(path))
    x = start.law.sample(50)
    assert torch.equal(fitting.load(path).law.log_density(x), start.law.log_density(x))


def test_another_process_starts_a_flow_at_it(made):
    path, start = made
    lines = (
        "import pwgf; from pwgf import energies, fitting",
        f"start = fitting.load({path!r})",
        "scheme = pwgf.PWGF(energies.Entropy(), **start.settings, num_samples=60, num_eval=60)",
        "print(float(scheme.start().theta.sum()), start.error)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    theta, error = map(float, done.stdout.split())
    assert theta == pytest.approx(float(start.law.theta.sum()), rel=1e-12) and error == start.error


def test_it_is_a_run_with_the_law_of_the_fit(made, tmp_path, capsys):
    path, start = made
    run = pwgf.load(path)
    x = run.sample(0.0, 1000)
    assert len(run) == 1 and torch.equal(x, start.law.sample(1000).to(x))
    with h5py.File(path) as file:  # for programs without pwgf
        np.testing.assert_array_equal(file["samples"][0], x)
        assert file["result/error"][()] == start.error and file["result/error"].attrs["units"] == b"units of x"
    titles = [axes.get_title(loc="left") for axes in run.plot().axes]
    assert "t = 0" in titles
    assert main(["info", path]) == 0
    assert (
        f"Result, fitting.fit: converged {start.fit.converged:.4g}, error {start.error:.4g}" in capsys.readouterr().out
    )
    assert main(["export", path, "--out", str(tmp_path / "x.csv"), "--samples", "5"]) == 0


def test_a_finished_fit_is_not_made_again(made, monkeypatch):
    path, start = made
    monkeypatch.setattr(fitting.stored._Fitting, "start", lambda *_, **__: pytest.fail("fitted again"))
    assert same(fitted(out=path, resume=True), start)
    with pytest.raises(PathError, match="overwrite=True"):
        fitted(out=path)


def test_a_call_killed_before_the_figures_are_stored_is_made_up_for(tmp_path, monkeypatch):
    path = str(tmp_path / "start.h5")
    with monkeypatch.context() as patch:
        patch.setattr(fitting.stored, "store_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fitted(out=path)
    with pytest.raises(ConfigError, match="resume=True"):
        fitting.load(path)
    assert same(fitted(out=path, resume=True), fitting.load(path)) and same(fitting.load(path), fitted())


def test_other_data_and_another_density_are_not_taken_for_the_stored_ones(made, tmp_path):
    with pytest.raises(ResumeMismatchError, match="data"):
        fitted(X + 1, out=made[0], resume=True)
    path = str(tmp_path / "density.h5")
    found = to_density(bell, out=path)
    assert torch.equal(to_density(bell, out=path, resume=True).theta, found.theta)
    with pytest.raises(ResumeMismatchError, match="functions"):
        to_density(lambda x: 2 * bell(x), out=path, resume=True)
    start = fitting.load(path)
    assert np.isnan([start.error, start.floor]).all() and start.fit[1:] == found[1:]
    assert "bell" in str(pwgf.storage.open_record(path).provenance["sources"])


def test_what_holds_no_fit_is_refused(made, tmp_path):
    path = str(tmp_path / "run.h5")
    problem = pwgf.problems.OrnsteinUhlenbeck(1)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=50, num_eval=50)
    pwgf.solve(scheme, [0.0], out=path, progress=False)
    with pytest.raises(ConfigError, match=r"expected the file of fitting\.fit"):
        fitting.load(path)
    pwgf.storage.set_result(path, {"about": '{"kind": "fitting.fit"}', "error": 0.1})
    with pytest.raises(SchemaError, match="its fit is damaged"):
        fitting.load(path)
    with pytest.raises(ConfigError, match="needs the file to resume"):
        fitted(resume=True)
