"""The tutorials run as the scripts that they are, and their pictures are those of the pages."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import pwgf

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.fixture
def names(request, tmp_path, monkeypatch):
    """What the script of that name has defined when it is done; its warnings are errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWGF_PROGRESS", "0")
    return runpy.run_path(str(ROOT / "docs" / "tutorials" / f"{request.param}.py"), run_name="__main__")


def tutorial(name):
    return pytest.mark.parametrize("names", [name], indirect=True, ids=[name])


def off(law, exact):
    """The largest error of a mean or covariance, in standard deviations of the exact law."""
    scale = exact.cov().diagonal().sqrt()
    mean = ((law.mean() - exact.mean()) / scale).abs().max()
    return float(max(mean, ((law.cov() - exact.cov()) / scale / scale[:, None]).abs().max()))


@tutorial("fokker_planck")
def test_fokker_planck(names):
    assert float(pwgf.distances.sym_kl(names["run"].at(1.0), names["exact"].exact(1.0), n=2000)) < 2e-3
    assert_picture("tutorial-fokker-planck.png")


@tutorial("posterior")
def test_posterior(names):
    found, chains = names["found"], names["chains"].samples
    assert found.ess > 0.9
    deviations = chains.std(0)
    assert float(((found.mean() - chains.mean(0)) / deviations).abs().max()) < 0.15  # a few hundred effective samples
    assert_picture("tutorial-posterior.png")


@tutorial("filtering")
def test_filtering(names):
    exact, x = names["exact"], names["x"]
    density = names["found"].law.log_density(x).exp().numpy()
    by_volumes = np.interp(x[:, 0], exact.grid, exact.density)
    assert abs(density - by_volumes).max() < 0.03 * by_volumes.max()
    assert_picture("tutorial-filtering.png")


@tutorial("aggregation")
def test_aggregation(names):
    assert names["run"]["energy"][-1] == pytest.approx(names["exact"].exact_energy(3.0), abs=2e-3)
    assert_picture("tutorial-aggregation.png")


@tutorial("own_map")
def test_own_map(names):
    assert all(run["projection_residual"][-1] < 1e-2 for run in names["runs"].values())
    assert_picture("tutorial-own-map.png")


@tutorial("own_energy")
def test_own_energy(names):
    run = names["run"]
    assert (run["energy"][1:] < run["energy"][:-1]).all()
    assert float(names["pulled"].at(1.0).mean()[0]) > float(run.at(1.0).mean()[0]) + 0.5
    assert_picture("tutorial-own-energy.png")


@tutorial("driven")
def test_driven(names):
    assert off(names["run"].at(4.0), names["exact"].exact(4.0)) < 1e-2
    rotated = pwgf.problems.LinearDrift(
        [[1.0, 2.0], [-2.0, 1.0]], [0.0, 0.0], 0.5, mean=[2.0, 0.0], cov=[[0.25, 0], [0, 0.25]]
    )
    assert off(names["spiral"].at(2.0), rotated.exact(2.0)) < 1e-2
    assert_picture("tutorial-driven.png")


def assert_picture(name):
    """It was drawn here, and there is one of that name in docs/images."""
    assert Path(name).stat().st_size > 5000
    assert (ROOT / "docs" / "images" / name).is_file()


def test_each_tutorial_is_tested_and_begins_with_a_title():
    tested = re.findall(r'^@tutorial\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(tested) == [script.stem for script in SCRIPTS]
    for script in SCRIPTS:
        assert script.read_text(encoding="utf-8").startswith("# %% [markdown]\n# # ")
