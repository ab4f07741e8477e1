"""SW-JKO: implicit Euler of the mean, the ring of an aggregation, resuming, and inner optimisations that diverge."""

import math

import numpy as np
import ot
import pytest
import torch

import pwgf
from pwgf import distances, energies, maps, plots, problems
from pwgf.errors import ConfigError, NonFiniteError, ResumeMismatchError, ShapeError, SolverError
from pwgf.schemes.swjko.descent import descend
from pwgf.schemes.swjko.scheme import frames
from pwgf.study.accuracy import errors
from tests.run.helpers import assert_same_rows

COV, MEAN = [[0.5, 0.2], [0.2, 1.0]], [1.0, -2.0]
PROBLEM = problems.OrnsteinUhlenbeck(2, cov=COV, mean=MEAN)
RING = energies.Interaction(energies.RadialPolynomial(-0.5, 0.25))


def scheme(map=None, energy=PROBLEM.energy, **settings):
    settings = {"tau": 0.1, "num_directions": 8, "num_samples": 60, "num_eval": 200, **settings}
    return pwgf.SWJKO(energy, maps.Affine(2) if map is None else map, pwgf.Gaussian(2), **settings)


def particles(energy=RING, **settings):
    settings = {"tau": 0.1, "num_directions": 8, "num_samples": 60, **settings}
    return pwgf.SWJKO(energy, None, pwgf.Gaussian(2), **settings)


# ---- what is known ---------------------------------------------------------------------------------------------------


def test_the_mean_moves_by_implicit_euler():
    """m ← (I + τΣ⁻¹)⁻¹(m + τΣ⁻¹b), also where the last step to a row is shortened."""
    run = pwgf.solve(scheme(num_samples=200), [0.0, 0.2, 0.45], progress=False)
    precision, target, mean = np.linalg.inv(COV), np.array(MEAN), np.zeros(2)
    expected = [mean]
    for steps in ([0.1, 0.1], [0.1, 0.1, 0.05]):
        for h in steps:
            mean = np.linalg.solve(np.eye(2) + h * precision, mean + h * precision @ target)
        expected.append(mean)
    assert run["num_steps"].tolist() == [0, 2, 5]
    assert run["theta"].reshape(3, 2, 3)[:, :, 2] == pytest.approx(np.array(expected), abs=0.01)


def test_it_ends_at_the_minimiser_and_the_energy_falls():
    """Stationarity does not depend on τ: the law is the target, whose free energy is −log ∫e^{−V}."""
    run = pwgf.solve(scheme(tau=1.0, num_samples=200), np.arange(0.0, 13.0, 2), progress=False)
    floor = -0.5 * math.log((2 * math.pi) ** 2 * np.linalg.det(COV))
    assert run["energy"][-1] == pytest.approx(floor, abs=1e-3)
    assert (np.diff(run["energy"]) < 1e-3).all()
    assert errors(run, PROBLEM, rows=[-1])["sym_kl"][0] < 2e-3
    assert run["fold_fraction"].max() == 0
    assert run["num_unsettled"][-1] == 0


def test_the_particles_of_an_aggregation_gather_on_the_ring():
    """W = |x|⁴/4 − |x|²/2 in two dimensions: radius 1/√3 and F = −1/12 in the limit.

    F here is over pairs i ≠ j; n/(n−1) of it, and of the radius equation, is left in the last per cent.
    """
    run = pwgf.solve(particles(tau=1.0, num_samples=200, learning_rate=0.05), np.linspace(0, 12, 5), progress=False)
    x = run["theta"][-1].reshape(-1, 2)
    radius = np.linalg.norm(x - x.mean(0), axis=1)
    assert radius == pytest.approx(1 / math.sqrt(3), abs=0.02)
    assert run["energy"][-1] == pytest.approx(-200 / 199 / 12, abs=2e-4)
    assert (np.diff(run["energy"]) < 1e-3).all()
    assert run["second_moment"][-1] == pytest.approx((x**2).sum(1).mean())


def test_sliced_distance_is_that_of_pot_along_frames():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 40))
    u = frames(10, 3, generator)
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=u.T.numpy()) ** 2
    assert float(distances.sliced_w2(x, y, directions=u)) == pytest.approx(theirs, abs=1e-10)


def test_a_frame_is_orthonormal_and_its_members_are_uniform():
    """Σ⟨u, a⟩² over a frame is |a|²; over many frames E⟨u, a⟩⁴ = 3/(d(d+2)) of a uniform unit vector."""
    u = frames(30_000, 3, torch.Generator().manual_seed(0))
    a = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    assert torch.allclose((u @ a).square().view(-1, 3).sum(1), torch.ones(10_000, dtype=torch.float64))
    assert float((u @ a).pow(4).mean()) == pytest.approx(3 / 15, abs=0.005)
    assert frames(4, 3, torch.Generator().manual_seed(0)).shape == (4, 3)


def test_translated_particles_cost_what_the_distance_says():
    """d·SW₂²/(2h) of a translation by a is |a|²/(2h), for any full frames."""
    one = particles(energies.Potential(lambda x: 0 * x.sum(-1)))
    x = one.start(0).theta.view(-1, 2)
    shift = torch.tensor([0.3, -0.4], dtype=torch.float64)
    value = one._objective((x + shift).reshape(-1), x.reshape(-1), 0.1, torch.Generator().manual_seed(0))
    assert float(value) == pytest.approx(0.25 / 0.2)


@pytest.mark.parametrize("dim", [2, 5])
def test_the_sliced_distance_sees_changes_of_shape_too_cheaply(dim):
    """N(0, I) stretched by I + εS: d·SW₂²/W₂² = (2 tr S² + (tr S)²)/((d+2) tr S²), from E⟨u, Su⟩² on the sphere.

    With ε far above the spacing of the samples: below it they keep their order, and the distance is that of the pairs.
    """
    z = pwgf.Gaussian(dim).matched_sample(4000, torch.Generator().manual_seed(0))
    directions = frames(100 * dim, dim, torch.Generator().manual_seed(1))
    shape = torch.zeros(dim, dtype=torch.float64)
    shape[:2] = torch.tensor([1.0, -1.0])
    for stretch, ratio in ((torch.ones(dim, dtype=torch.float64), 1.0), (shape, 2 / (dim + 2))):
        moved = z * (1 + 0.1 * stretch)
        apart = dim * float(distances.sliced_w2(moved, z, directions=directions))
        assert apart / (1e-2 * float(stretch.square().sum())) == pytest.approx(ratio, rel=0.1)


def test_without_prox_each_step_descends_the_energy_alone():
    free = pwgf.solve(scheme(prox=None), [0.0, 0.1], progress=False)
    held = pwgf.solve(scheme(), [0.0, 0.1], progress=False)
    assert free["num_steps"][-1] == 1
    assert free["energy"][-1] < held["energy"][-1] - 0.1
    assert np.linalg.norm(free["theta"][-1].reshape(2, 3)[:, 2] - MEAN) < 0.1


# ---- Adam ------------------------------------------------------------------------------------------------------------


def test_descent_finds_a_noisy_minimum():
    """E½|θ − c − ξ|²: the averaged end is closer to c than one noisy gradient, 1."""
    generator, centre = torch.Generator().manual_seed(0), torch.tensor([1.0, -2.0], dtype=torch.float64)

    def objective(theta):
        return 0.5 * (theta - centre - torch.randn(2, generator=generator, dtype=torch.float64)).square().sum()

    found = descend(objective, torch.zeros(2, dtype=torch.float64), learning_rate=0.1, max_iterations=2000)
    assert found.settled and found.num_iterations < 2000
    assert float((found.theta - centre).abs().max()) < 0.4


@pytest.mark.parametrize("rate", [1.0, 0.6, 0.3])
def test_descent_takes_back_steps_over_the_edge(rate):
    """(x − 1/20)² on x > 0 from 1: the first steps jump over the edge; the minimiser is found all the same."""
    seen = []

    def walled(x):
        seen.append(float(x.detach()))
        return torch.where(x > 0, (x - 0.05).square(), math.inf).sum()

    found = descend(walled, torch.ones(1, dtype=torch.float64), learning_rate=rate, max_iterations=3000)
    assert min(seen) <= 0
    assert found.settled
    assert float(found.theta) == pytest.approx(0.05, rel=0.05)


def test_descent_that_never_gets_anywhere_is_told():
    wall = lambda x: torch.where(x < 1, -x, math.nan).sum()  # noqa: E731
    with pytest.raises(SolverError, match=r"the objective is nan at inner iteration \d+, learning rate 2\.44e-06"):
        descend(wall, torch.zeros(1, dtype=torch.float64), learning_rate=0.01, max_iterations=10**6)
    with pytest.raises(SolverError, match="the objective is nan at inner iteration 1, learning rate 0.01"):
        descend(wall, torch.full((1,), 2.0, dtype=torch.float64), learning_rate=0.01, max_iterations=10)


def test_a_narrow_target_does_not_turn_the_map_inside_out():
    """From standard deviation 1 to .05 Adam's momentum would carry A through det A = 0, to −.058."""
    narrow, t = problems.OrnsteinUhlenbeck(1, cov=[[0.0025]], mean=[0.0]), 0.2
    one = pwgf.SWJKO(narrow.energy, maps.Affine(1), narrow.reference, tau=t, num_samples=100, learning_rate=0.1)
    run = pwgf.solve(one, [0.0, t], progress=False)
    assert run["fold_fraction"][-1] == 0
    # W₂ and SW₂ agree in one dimension: (a − 1)/τ + a/.05² = 1/a
    q = 1 / t + 1 / 0.0025
    exact = (1 / t + math.sqrt(1 / t**2 + 4 * q)) / (2 * q)
    assert run["theta"][-1][0] == pytest.approx(exact, rel=0.05)


def test_a_map_may_fold_where_nothing_reads_its_density():
    """F = E x²/2 takes a map with det < 0 as any other; with an entropy the same start is refused."""
    mirror, law = torch.tensor([-1.0, 0.0], dtype=torch.float64), pwgf.Gaussian(1)
    settings = {"tau": 0.5, "theta0": mirror, "num_samples": 100, "max_iterations": 50}
    square = energies.Potential(lambda x: x.square().sum(-1) / 2)
    run = pwgf.solve(pwgf.SWJKO(square, maps.Affine(1), law, **settings), [0.0, 0.5], progress=False)
    assert abs(run["theta"][-1][0]) < 0.9
    with pytest.raises(SolverError, match="objective is inf at inner iteration 1"):
        pwgf.solve(pwgf.SWJKO(square + energies.Entropy(), maps.Affine(1), law, **settings), [0.0, 0.5], progress=False)


def test_descent_says_when_it_was_cut_short():
    found = descend(lambda theta: theta.square().sum(), torch.full((1,), 9.0), learning_rate=1e-3, max_iterations=25)
    assert not found.settled and found.num_iterations == 25
    assert math.isfinite(found.value)


# ---- a scheme like the others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [scheme, particles], ids=["map", "particles"])
def test_resumed_is_equal_to_the_bit(make, tmp_path):
    whole = pwgf.solve(make(), [0.0, 0.2, 0.35, 0.5], seed=2, progress=False)
    first = pwgf.solve(make(), [0.0, 0.2], seed=2, out=tmp_path / "run.h5", progress=False)
    assert len(first) == 2
    again = pwgf.solve(make(), [0.0, 0.2, 0.35, 0.5], seed=2, out=tmp_path / "run.h5", resume=True, progress=False)
    assert_same_rows(again, whole)
    read = pwgf.load(tmp_path / "run.h5")
    assert torch.equal(read.sample(0.35, 20), whole.sample(0.35, 20))
    other = make(energies.Potential(lambda x: x.square().sum(-1))) if make is particles else make(tau=0.2)
    with pytest.raises(ResumeMismatchError):
        pwgf.solve(other, [0.0, 0.2, 0.35, 0.5], seed=2, out=tmp_path / "run.h5", resume=True, progress=False)


@pytest.mark.parametrize("make", [scheme, particles], ids=["map", "particles"])
def test_a_step_changes_nothing_and_repeats(make):
    one = make()
    state = one.start(2)
    theta, rng = state.theta.clone(), state.rng.clone()
    first, second = one.step(state, 1.0)[0], one.step(state, 1.0)[0]
    assert torch.equal(first.theta, second.theta)
    assert torch.equal(state.theta, theta) and torch.equal(state.rng, rng)
    assert torch.allclose(first.theta_dot, (first.theta - theta) / 0.1)
    assert first.t == pytest.approx(0.1) and one.step(state, 0.03)[0].t == 0.03


def test_a_map_has_a_density_and_particles_have_none():
    run = pwgf.solve(scheme(), [0.0, 0.1], progress=False)
    x = torch.tensor([[0.3, -0.2], [1.0, 1.0]], dtype=torch.float64)
    w = run.theta(0.1).view(2, 3)
    law = torch.distributions.MultivariateNormal(w[:, 2], w[:, :2] @ w[:, :2].T)
    assert torch.allclose(run.log_density(0.1, x), law.log_prob(x))
    assert torch.allclose(run.score(0.1, x), -torch.linalg.solve(law.covariance_matrix, (x - w[:, 2]).T).T)
    with pytest.raises(ConfigError, match="particles, which have no density"):
        pwgf.solve(particles(), [0.0, 0.1], progress=False).log_density(0.1, x)


def test_rows_far_apart_are_told(caplog):
    run = pwgf.solve(scheme(tau=0.3), [0.0, 0.9, 1.8], progress=False)
    run.sample(0.4, 10)
    assert "store rows more densely" in caplog.text


def test_errors_and_figures_read_both_kinds(tmp_path):
    known = pwgf.solve(scheme(), [0.0, 0.1], problem=PROBLEM, progress=False)
    assert plots.title(known) == "Ornstein–Uhlenbeck flow, d = 2 · SWJKO with Affine (6 parameters)"
    assert plots.save(known, tmp_path / "a.png", n=100)
    ring = problems.Aggregation(2)
    cloud = pwgf.solve(particles(), [0.0, 0.1], problem=ring, progress=False)
    assert "SWJKO with 60 particles" in plots.title(cloud)
    found = errors(cloud, ring)
    assert np.isnan(found["sym_kl"]).all() and np.isfinite(found["bures_w2"]).all()


def test_float32_and_other_maps():
    run = pwgf.solve(scheme(maps.ResidualMLP(2, width=8), dtype=torch.float32), [0.0, 0.1], progress=False)
    assert run.sample(0.1, 5).dtype == torch.float32
    assert run["energy"][1] < run["energy"][0]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.0}, r"SWJKO\(tau=…\) must be a number in \(0, inf\); got 0\.0"),
        ({"tau": -1}, r"SWJKO\(tau=…\) must be a number in \(0, inf\); got -1"),
        ({"num_directions": 0}, r"SWJKO\(num_directions=…\) must be an integer ≥ 1; got 0"),
        ({"max_iterations": 0}, r"SWJKO\(max_iterations=…\) must be an integer ≥ 1; got 0"),
        ({"learning_rate": 0}, r"SWJKO\(learning_rate=…\) must be a number in \(0, inf\); got 0"),
        ({"prox": "slice"}, r"SWJKO\(prox='slice'\) must be 'sliced' or None\. Did you mean 'sliced'\?"),
        ({"dtype": torch.float16}, r"SWJKO\(dtype=…\) must be torch\.float64 or torch\.float32"),
        ({"device": "gpu"}, r"SWJKO\(device=…\) must be 'cpu' or 'cuda'"),
        ({"energy": lambda x: x}, r"SWJKO\(energy=…\) must be an energy from pwgf\.energies; got function"),
        ({"map": torch.nn.Linear(2, 2)}, r"SWJKO\(map=…\) must be a map.*got Linear\. Wrap a module"),
        ({"map": maps.Affine(3)}, r"SWJKO: map and reference must have the same dimension; got map\.dim = 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        scheme(**settings)


def test_a_theta0_of_another_map_is_refused():
    with pytest.raises(ShapeError, match=r"SWJKO\(theta0=…\) must have shape \(6,\)"):
        scheme(theta0=torch.zeros(3))
    with pytest.raises(ConfigError, match=r"SWJKO\(theta0=…\) belongs to a map"):
        particles(theta0=torch.zeros(3))


def test_particles_refuse_what_needs_a_density():
    with pytest.raises(ConfigError, match="particles, which have no density; this energy has an entropy.*Give a map"):
        particles(PROBLEM.energy)
    with pytest.raises(ConfigError, match="PorousMedium needs"):
        particles(energies.PorousMedium(2))


class Flat(maps.PushForward):
    """Squeezes the plane onto a line, so that the law has no density."""

    dim = 2

    def layout(self):
        return maps.base.blocks([("shift", (2,))])

    def initial(self, seed=0):
        return torch.zeros(2, dtype=torch.float64)

    def __call__(self, theta, z):
        return z * torch.tensor([1.0, 0.0]).to(z) + theta


def test_a_map_without_a_density_is_told_at_the_start():
    with pytest.raises(NonFiniteError, match=r"the energy is inf at the start.*the map is singular there"):
        pwgf.solve(scheme(Flat()), [0.0, 1.0], progress=False)


def test_a_nan_in_the_inner_optimisation_is_told_and_not_stored(tmp_path):
    """V is NaN beyond x = 5, where a later step takes the first samples: the rows before it stay."""
    wall = energies.Potential(lambda x: torch.where(x < 5, (x - 9).square(), math.nan).sum(-1) / 2)
    wild = scheme(energy=wall)
    with pytest.raises(
        SolverError,
        match=r"(?s)diverged in the step from t = .*objective is nan at inner iteration \d+, learning rate \d.*last "
        r"good step is number \d+, at t = .*smaller learning_rate",
    ):
        pwgf.solve(wild, np.linspace(0, 4, 41), out=tmp_path / "run.h5", progress=False)
    kept = pwgf.load(tmp_path / "run.h5")
    assert len(kept) >= 2
    assert np.isfinite(kept["theta"]).all() and kept.t[-1] == pytest.approx(0.1 * kept["num_steps"][-1])


def test_a_learning_rate_that_throws_the_samples_away_is_told():
    quartic = energies.Potential(lambda x: x.pow(4).sum(-1))
    with pytest.raises(
        SolverError, match=r"energy rose from .* to .*at learning rate 100.*nothing of this one is kept"
    ):
        pwgf.solve(scheme(energy=quartic, learning_rate=100.0, max_iterations=15), [0.0, 1.0], progress=False)
