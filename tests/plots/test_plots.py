"""The figure of a run: what is drawn, in every dimension and for every kind of run, and what is refused."""

import sys

import matplotlib
import numpy as np
import pytest
from scipy.integrate import trapezoid

import pwgf
from pwgf import energies, maps, plots, problems

PNG = b"\x89PNG\r\n\x1a\n"


def solved(problem, map=None, times=(0.0, 0.05, 0.1), known=True, **settings):
    map = maps.Affine(problem.dim) if map is None else map
    scheme = pwgf.PWGF(problem.energy, map, problem.reference, num_samples=60, num_eval=200, **settings)
    times = problem.times[0] + np.array(times)
    return pwgf.solve(scheme, times, problem=problem if known else None, progress=False)


def panels(figure):
    return [panel for panel in figure.axes if panel.axison]


def said(figure):
    """The lines of text outside the panels."""
    return " ".join(text.get_text() for text in figure.texts)


def test_the_curves_are_the_stored_columns():
    run = solved(problems.OrnsteinUhlenbeck(1))
    energy, residual, error, *laws = panels(plots.draw(run, n=100))
    assert np.array_equal(energy.lines[0].get_ydata(), run["energy"])
    exact = [problems.OrnsteinUhlenbeck(1).exact_energy(t) for t in run.t]
    assert energy.lines[1].get_ydata() == pytest.approx(exact)
    drawn = residual.lines[0].get_ydata()
    assert np.array_equal(drawn[~np.isnan(drawn)], run["projection_residual"][run["projection_residual"] > 1e-14])
    assert residual.get_yscale() == error.get_yscale() == "log"
    assert [law.get_title(loc="left") for law in laws] == ["t = 0", "t = 0.05", "t = 0.1"]
    density = laws[2].lines[0]
    x = np.asarray(density.get_xdata())
    assert trapezoid(density.get_ydata(), x) == pytest.approx(1, abs=0.02)  # the axes hold 99.4 % and some room


@pytest.mark.parametrize(
    "problem",
    [problems.OrnsteinUhlenbeck(2), problems.BarenblattFlow(2), problems.Aggregation(2), problems.OrnsteinUhlenbeck(3)],
    ids=lambda problem: f"{problem.name}-{problem.dim}",
)
def test_every_kind_shows_run_and_exact_law(problem):
    figure = plots.draw(solved(problem), n=100)
    assert len(panels(figure)) == 6  # three over time, and the law at the three rows
    (legend,) = figure.legends
    words = " ".join(text.get_text() for text in legend.get_texts())
    assert "run" in words and "exact" in words


def test_files_are_what_their_endings_say(tmp_path):
    run = solved(problems.OrnsteinUhlenbeck(1))
    for name, start in (("a.png", PNG), ("a.pdf", b"%PDF-")):
        assert plots.save(run, tmp_path / name, n=100) == str(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_particles_are_drawn_without_energy_and_residual():
    problem = problems.OrnsteinUhlenbeck(1)
    scheme = pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=100, dt=0.05)
    figure = plots.draw(pwgf.solve(scheme, [0.0, 0.1], problem=problem, progress=False), n=100)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["Error against the exact law", "Rms velocity", "Second moment", "t = 0", "t = 0.1"]
    assert "energy not known: particles have no density" in said(figure)
    assert "no projection residual: particles follow the velocity itself" in said(figure)


def test_without_a_problem_no_error_is_claimed():
    figure = plots.draw(solved(problems.OrnsteinUhlenbeck(2), known=False), n=100)
    assert figure.axes[2].get_title(loc="left") == "Estimated error of the law"
    assert "error not known: the file names no problem" in said(figure)


def test_a_users_own_map_leaves_the_law_out(tmp_path):
    class Mine(maps.Affine):
        def to_config(self):
            return {"name": "Mine"}

    problem, path = problems.OrnsteinUhlenbeck(1), tmp_path / "a.h5"
    scheme = pwgf.PWGF(problem.energy, Mine(1), problem.reference, num_samples=60, num_eval=200)
    pwgf.solve(scheme, [0.0, 0.1], out=path, progress=False)
    figure = plots.draw(pwgf.load(path), n=100)
    assert len(figure.axes) == 3 and "pass it to pwgf.load" in said(figure)
    assert panels(plots.draw(pwgf.load(path, map=Mine(1)), n=100))[3].lines


def test_a_shrunken_law_is_zoomed():
    problem = problems.OrnsteinUhlenbeck(
        2, cov=[[0.01, 0.0], [0.0, 0.01]], mean=[0.0, 0.0]
    )  # standard deviation 1 → .1
    first, last = panels(plots.draw(solved(problem, times=(0.0, 0.1)), n=100))[3:]
    assert "zoomed" not in first.get_title(loc="left") and "zoomed" in last.get_title(loc="left")
    assert np.diff(last.get_xlim()) < 0.25 * np.diff(first.get_xlim())


def test_global_style_is_left_alone():
    before = dict(matplotlib.rcParams)
    plots.draw(solved(problems.OrnsteinUhlenbeck(1)), n=100)
    assert dict(matplotlib.rcParams) == before


def test_title_names_problem_dimension_and_map():
    assert plots.title(solved(problems.StyblinskiTang(1), maps.ResidualMLP(1, width=8))) == (
        "Styblinski–Tang flow, d = 1, c = 0.06 · PWGF with ResidualMLP (74 parameters)"
    )
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=50, num_eval=100)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    assert plots.title(run) == "Wasserstein gradient flow, d = 2 · PWGF with Affine (6 parameters)"


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(pwgf.ConfigError, match=r"needs matplotlib.*pip install 'pwgf\[plot\]'"):
        plots.draw(solved(problems.OrnsteinUhlenbeck(1)))


def test_refuses_unknown_ending_and_missing_folder(tmp_path):
    run = solved(problems.OrnsteinUhlenbeck(1))
    with pytest.raises(pwgf.ConfigError, match=r"must end in one of .*png.*Try \.png"):
        plots.save(run, tmp_path / "a.doc", n=100)
    with pytest.raises(pwgf.ConfigError, match=r"cannot write there \(No such file or directory\)\. Make the folder"):
        plots.save(run, tmp_path / "no" / "a.png", n=100)
