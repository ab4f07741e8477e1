"""`run.plot_marginals` and the like: what they draw is checked against closed forms; what they refuse."""

import sys

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image
from scipy.integrate import trapezoid
from scipy.stats import norm

import pwgf
from pwgf import energies, maps, plots, problems
from pwgf.plots._density import levels, smoothed, smoothed_2d


@pytest.fixture(scope="module")
def run():
    """In d = 3, from a Gaussian to one with mean 3 and variance ¼; affine, so that it is right."""
    problem = problems.OrnsteinUhlenbeck(3)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(3), problem.reference, num_samples=200, num_eval=200)
    return pwgf.solve(scheme, np.linspace(0, 1, 5), problem=problem, progress=False)


@pytest.fixture(scope="module")
def plain():
    """In d = 1, without an exact law."""
    energy = energies.Potential(lambda x: 2 * (x - 3).square().sum(-1)) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=100, num_eval=100)
    return pwgf.solve(scheme, [0.0, 0.5, 1.0], progress=False)


def test_a_density_on_the_line_is_the_law_itself(plain):
    figure = plain.plot_marginals()
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["t = 0", "t = 0.5", "t = 1"]
    x, y = panel.lines[0].get_data()
    assert y == pytest.approx(norm.pdf(x), abs=1e-6)  # λ
    assert trapezoid(panel.lines[2].get_ydata(), x) == pytest.approx(1, abs=1e-3)


def test_marginals_of_samples_agree_with_the_exact_ones(run):
    (panel,) = run.plot_marginals([0.0, 1.0], 1).axes
    before, after, *exact = panel.lines
    assert len(exact) == 2
    mean, cov = (moment.numpy() for moment in (run.at(1.0).mean(), run.at(1.0).cov()))
    for line, law in ((before, norm(0, 1)), (after, norm(mean[1], cov[1, 1] ** 0.5))):
        x, y = line.get_data()
        assert trapezoid(np.abs(y - law.pdf(x)), x) < 0.06  # 10 000 samples
    assert panel.get_xlabel() == "x[1]"


def test_several_coordinates_show_all_pairs_on_shared_axes(run):
    figure = run.plot_marginals(times=[0.0, 1.0], dims=(2, 0, 1))
    grid = np.array(figure.axes).reshape(3, 3)
    assert [panel.get_xlabel() for panel in grid[-1]] == ["x[2]", "x[0]", "x[1]"]
    assert [panel.get_ylabel() for panel in grid[1:, 0]] == ["x[0]", "x[1]"]
    assert all(panel.lines or panel.collections for panel in grid.flat)  # none is empty
    assert len({panel.get_xlim() for panel in grid[:, 0]}) == 1
    assert grid[1, 0].get_ylim() == grid[1, 2].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["t = 0", "t = 1", "exact law"]


def test_axes_of_ones_own_are_drawn_into_and_returned(run, plain):
    figure = matplotlib.figure.Figure()
    axes = figure.subplots(1, 3)
    assert run.plot_energy(ax=axes[0]) is axes[0] and axes[0].lines
    assert plain.plot_marginals(ax=axes[1]) is axes[1] and axes[1].lines
    assert run.plot_density(0.5, (0, 2), ax=axes[2]) is axes[2] and axes[2].collections
    assert isinstance(run.plot_energy(), matplotlib.figure.Figure)


def test_the_overview_shows_the_coordinates_and_times_asked_for(run):
    figure = run.plot(dims=(0, 2), times=[0.25, 0.6], n=100)
    assert [axes.get_title(loc="left") for axes in figure.axes[3:]] == ["t = 0.25", "t = 0.6"]
    assert (figure.axes[3].get_xlabel(), figure.axes[3].get_ylabel()) == ("x[0]", "x[2]")


def test_a_joint_density_is_that_of_the_law():
    problem = problems.OrnsteinUhlenbeck(2)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, num_samples=50, num_eval=50)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    mesh = run.plot_density(0.0).axes[0].collections[0]
    x, y = np.moveaxis(mesh.get_coordinates(), -1, 0)
    assert np.asarray(mesh.get_array()).reshape(x.shape) == pytest.approx(norm.pdf(x) * norm.pdf(y), abs=1e-6)


def test_smoothing_finds_narrow_modes_and_regions():
    rng = np.random.default_rng(0)
    x = np.where(rng.random(20_000) < 0.5, -3, 3) + 0.2 * rng.normal(size=20_000)
    points, density = smoothed(x, np.array([-4.0, 4.0]))
    exact = 0.5 * (norm.pdf(points, -3, 0.2) + norm.pdf(points, 3, 0.2))
    assert trapezoid(np.abs(density - exact), points) < 0.06
    _, _, values = smoothed_2d(rng.normal(size=(20_000, 2)), np.array([[-4.0, 4.0], [-4.0, 4.0]]))
    # a Gaussian's region of mass 1 − exp(−r²/2) is the disc of radius r
    assert levels(values) == pytest.approx([0.05 / (2 * np.pi), 0.5 / (2 * np.pi)], rel=0.12)


def test_particles_are_smoothed_without_their_repeats():
    problem = problems.OrnsteinUhlenbeck(2)
    scheme = pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=500, dt=0.05)
    run = pwgf.solve(scheme, [0.0, 0.1], problem=problem, progress=False)
    x, y = run.plot_marginals(0.0, 0).axes[0].lines[0].get_data()
    assert trapezoid(np.abs(y - norm.pdf(x)), x) < 0.25  # a kernel as narrow as the repeats would give about 1


def test_ones_own_problem_is_drawn_and_left_out_of_its_file(tmp_path):
    class Shift(problems.OrnsteinUhlenbeck):
        pass

    problem, path = Shift(1), tmp_path / "a.h5"
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=50, num_eval=50)
    pwgf.solve(scheme, [0.0, 0.1], out=path, problem=problem, progress=False)
    run = pwgf.load(path)
    assert len(run.plot_marginals().axes[0].lines) == 2  # of the run alone
    assert len(run.plot_marginals(problem=problem).axes[0].lines) == 4
    assert run.plot(n=50) and run.plot_energy()


@pytest.mark.parametrize("dims", [None, 1])
def test_a_film_has_its_frames(run, tmp_path, dims):
    path = tmp_path / "a.gif"
    run.animate(path, dims, num_frames=3, fps=10)
    with Image.open(path) as film:
        assert (film.n_frames, film.info["duration"]) == (3, 100)


def test_a_film_without_ffmpeg_or_another_ending_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", classmethod(lambda cls: False))
    with pytest.raises(pwgf.ConfigError, match=r"needs the program ffmpeg for an mp4.*or write a \.gif"):
        run.animate(tmp_path / "a.mp4")
    with pytest.raises(pwgf.ConfigError, match=r"must end in \.gif or \.mp4"):
        run.animate(tmp_path / "a.avi")
    with pytest.raises(pwgf.errors.PathError, match="there is no such folder. Make it first"):
        run.animate(tmp_path / "no" / "a.gif")
    with pytest.raises(pwgf.ConfigError, match="num_frames=…. must be an integer ≥ 2"):
        run.animate(tmp_path / "a.gif", num_frames=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.plot_marginals(dims=3), r"coordinates 0 to 2 of a law in d = 3; got 3\. They"),
        (lambda run: run.plot_marginals(dims=[0, -1]), "got -1"),
        (lambda run: run.plot_marginals(dims=[0.5]), "got 0.5"),
        (lambda run: run.plot_marginals(dims="ab"), "got 'ab'"),
        (lambda run: run.plot_marginals(dims=[1, 1]), r"none twice; got \[1, 1\]"),
        (lambda run: run.plot_marginals(dims=[]), "at least one coordinate"),
        (lambda run: run.plot_marginals(times=2.0), "times of the run, from 0 to 1; got 2.0"),
        (lambda run: run.plot_marginals(times=[0, float("nan")]), "got nan"),
        (lambda run: run.plot_marginals(times=[]), "shows 1 to 12 times; got 0"),
        (lambda run: run.plot_marginals(ax=3), "needs one axes of matplotlib; got int"),
        (lambda run: run.plot_marginals(dims=[0, 1], ax=matplotlib.figure.Figure().subplots()), "or leave ax out"),
        (lambda run: run.plot(dims=[0, 1, 2]), "shows at most 2 coordinates; got 3"),
        (lambda run: run.plot(times=np.linspace(0, 1, 9)), "shows 1 to 8 times; got 9"),
        (lambda run: run.plot_density(dims=0), "needs two coordinates"),
        (lambda run: run.plot_density([0.0, 1.0]), "shows one time; got 2"),
    ],
)  # fmt: skip
def test_what_the_run_has_not_is_refused(run, call, message):
    with pytest.raises(pwgf.ConfigError, match=message):
        call(run)


def test_without_an_energy_its_figure_is_refused():
    problem = problems.OrnsteinUhlenbeck(1)
    scheme = pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=50, dt=0.05)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    with pytest.raises(pwgf.ConfigError, match="energy not known: particles have no density.*The columns of this run"):
        run.plot_energy()


def test_without_matplotlib_each_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (
        run.plot,
        run.plot_energy,
        run.plot_marginals,
        run.plot_density,
        lambda: run.animate(tmp_path / "a.gif"),
    ):
        with pytest.raises(pwgf.ConfigError, match=r"needs matplotlib.*pip install 'pwgf\[plot\]'"):
            call()


def test_the_functions_of_plots_are_the_methods(run):
    assert [axes.get_title() for axes in plots.draw(run, n=50).axes] == [
        axes.get_title() for axes in run.plot(n=50).axes
    ]
