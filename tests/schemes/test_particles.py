"""Euler–Maruyama particles: discrete moments, coupling of samples, and what particles cannot do."""

import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import distances, energies
from pwgf.errors import ConfigError, NonFiniteError

N, DT, END = 20_000, 0.1, 1.0


def spring(x):
    return 2 * (x - 3).square().sum(-1)


def scheme(num_samples=N, dt=DT, temperature=0.5, **settings):
    energy = energies.Potential(spring) + temperature * energies.Entropy()
    return pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), num_samples=num_samples, dt=dt, **settings)


@pytest.fixture(scope="module")
def run():
    return pwgf.solve(scheme(), [0.0, 0.25, END], seed=1, progress=False)


def discrete_law(steps):
    """Mean and variance of X ← X − 4h(X − 3) + √(2τh)ξ from N(0,1), exactly."""
    mean, var = 0.0, 1.0
    for h in steps:
        mean, var = mean - 4 * h * (mean - 3), (1 - 4 * h) ** 2 * var + 2 * 0.5 * h
    return mean, var


@pytest.mark.parametrize(("row", "steps"), [(0, []), (1, [0.1, 0.1, 0.05]), (2, [0.1, 0.1, 0.05] + [0.1] * 7 + [0.05])])
def test_moments_are_those_of_the_discrete_recursion(run, row, steps):
    mean, var = discrete_law(steps)
    x = run["theta"][row].reshape(N, 2)
    assert np.abs((x.mean(0) - mean) / math.sqrt(var / N)).max() < 4
    assert np.abs((x.var(0) - var) / (var * math.sqrt(2 / N))).max() < 4
    assert run["second_moment"][row] == pytest.approx((x**2).sum(1).mean())


def test_the_step_tends_to_the_flow():
    """Weak error O(dt): the discrete mean and variance against mean 3(1−e^{−4t}), var ⅛ + ⅞e^{−8t}."""
    for h, close in ((0.01, 0.03), (0.001, 0.003)):
        mean, var = discrete_law([h] * round(0.5 / h))
        assert mean == pytest.approx(3 * (1 - math.exp(-2)), rel=close)
        assert var == pytest.approx(1 / 8 + 7 / 8 * math.exp(-4), rel=3 * close)


def test_rows_are_hit_exactly_and_steps_are_cut(run):
    assert run["t"].tolist() == [0.0, 0.25, 1.0]
    assert run["num_steps"].tolist() == [0, 3, 11]


def test_a_step_changes_nothing_and_repeats():
    one = scheme(50)
    state = one.start(2)
    theta, rng = state.theta.clone(), state.rng.clone()
    first, second = one.step(state, 1.0)[0], one.step(state, 1.0)[0]
    assert torch.equal(first.theta, second.theta)
    assert torch.equal(state.theta, theta)
    assert torch.equal(state.rng, rng)


def test_equal_seeds_choose_equal_particles_at_all_times(run):
    """Row k of sample is the same particle at every stored time."""
    particles = {tuple(x): k for k, x in enumerate(run["theta"][0].reshape(N, 2))}
    chosen = [particles[tuple(x)] for x in run.sample(0.0, 100, seed=3).numpy()]
    later = run["theta"][2].reshape(N, 2)[chosen]
    assert np.array_equal(run.sample(END, 100, seed=3).numpy(), later)
    assert len(set(chosen)) == 100  # without replacement
    assert not torch.equal(run.sample(END, 100, seed=3), run.sample(END, 100, seed=4))


def test_equal_seeds_couple_runs():
    """Two runs with equal seeds share initial particles and noise: their samples differ by the change of τ only."""
    close = pwgf.solve(scheme(500), [0.0, END], seed=1, progress=False)
    warmer = pwgf.solve(scheme(500, temperature=0.5001), [0.0, END], seed=1, progress=False)
    assert float((close.sample(END, 100) - warmer.sample(END, 100)).abs().max()) < 1e-3
    other = pwgf.solve(scheme(500), [0.0, END], seed=2, progress=False)
    assert float((close.sample(END, 100) - other.sample(END, 100)).abs().max()) > 0.1


def test_more_samples_than_particles_are_drawn_with_replacement():
    few = pwgf.solve(scheme(10), [0.0, 0.1], progress=False)
    known = {tuple(x) for x in few["theta"][1].reshape(10, 2)}
    assert {tuple(x) for x in few.sample(0.1, 50).numpy()} <= known


def test_between_rows_the_law_is_interpolated(run):
    """At the middle of a gap half of the particles come from each side: means are averaged."""
    middle = run.sample((0.25 + END) / 2, 10_000).mean(0)
    ends = (run["theta"][1].reshape(N, 2).mean(0) + run["theta"][2].reshape(N, 2).mean(0)) / 2
    assert np.abs(middle.numpy() - ends).max() < 0.03


def test_particles_have_no_density(run):
    for call in (run.log_density, run.score):
        with pytest.raises(ConfigError, match=r"holds particles, which have no .*pwgf\.PWGF"):
            call(END, torch.zeros(3, 2))


def test_the_free_energy_is_unknown_and_its_parts_are_known(run):
    assert np.isnan(run["energy"]).all()
    x = torch.from_numpy(run["theta"][2].reshape(N, 2))
    assert run["energy_potential"][2] == pytest.approx(float(spring(x).mean()))
    cold = pwgf.solve(scheme(50, temperature=0.0), [0.0, 0.1], progress=False)
    assert np.array_equal(cold["energy"], cold["energy_potential"])


def test_interacting_particles_contract_about_their_mean():
    """W = ½k|x|²: dX_i = −k(X_i − mean of the others), so deviations shrink by 1 − hk n/(n−1) a step."""
    energy = energies.Interaction(lambda r: 3 * r.square().sum(-1) / 2)
    run = pwgf.solve(pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), num_samples=50, dt=0.1), [0.0, 0.2], progress=False)
    before, after = (run["theta"][k].reshape(50, 2) for k in (0, 1))
    factor = (1 - 0.1 * 3 * 50 / 49) ** 2
    assert np.allclose(after - after.mean(0), factor * (before - before.mean(0)))
    assert np.allclose(after.mean(0), before.mean(0))


def test_potential_interaction_and_entropy_together():
    """V = ½|x−1|², W = k|x|²/2, temperature ½: mean by (1−h), deviations by 1 − h(1 + k n/(n−1)) and noise 2τh."""
    n, k, h, steps = 20_000, 3.0, 0.05, 10
    energy = energies.Potential(lambda x: 0.5 * (x - 1).square().sum(-1)) + 0.5 * energies.Entropy()
    energy = energy + energies.Interaction(energies.RadialPolynomial(quadratic=k / 2))
    run = pwgf.solve(pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), num_samples=n, dt=h), [0.0, 0.5], progress=False)
    mean, var, factor = 0.0, 1.0, 1 - h * (1 + k * n / (n - 1))
    for _ in range(steps):
        mean, var = mean - h * (mean - 1), factor**2 * var + h
    x = run["theta"][1].reshape(n, 2)
    assert np.abs(x.mean(0) - mean).max() < 4 * math.sqrt(max(var, 1.0) / n)  # the mean keeps the start's deviation
    assert np.abs(x.var(0) / var - 1).max() < 4 * math.sqrt(2 / n)
    law = pwgf.Gaussian(2, mean, var)
    floor = distances.floor(distances.energy_distance, law.sample, 1000)
    exact = law.sample(1000, torch.Generator().manual_seed(5))
    assert float(distances.energy_distance(run.sample(0.5, 1000), exact)) < 3 * floor
    assert np.isnan(run["energy"][1]) and np.isfinite(run["energy_interaction"][1])


def test_float32_particles():
    run = pwgf.solve(scheme(50, dtype=torch.float32), [0.0, 0.1], progress=False)
    assert run.sample(0.1, 5).dtype == torch.float32
    assert run.state().theta.dtype == torch.float32


def test_energies_that_need_a_density_are_refused():
    with pytest.raises(ConfigError, match="PorousMedium needs.*Use scheme PWGF"):
        pwgf.EulerMaruyama(energies.PorousMedium(2), pwgf.Gaussian(2), num_samples=10, dt=0.1)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ConfigError, match="coefficient must be ≥ 0; got -1"):
        pwgf.EulerMaruyama(-1 * energies.Entropy(), pwgf.Gaussian(2), num_samples=10, dt=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dt": 0.0}, r"EulerMaruyama\(dt=…\) must be a number in \(0, inf\); got 0\.0"),
        ({"num_samples": 0}, r"EulerMaruyama\(num_samples=…\) must be an integer ≥ 1; got 0"),
        ({"device": "gpu"}, r"EulerMaruyama\(device=…\) must be 'cpu' or 'cuda'; got 'gpu'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        pwgf.EulerMaruyama(energies.Entropy(), pwgf.Gaussian(2), **{"num_samples": 10, "dt": 0.1, **settings})


def test_an_unstable_step_is_told():
    energy = energies.Potential(lambda x: (x**4).sum(-1))
    wild = pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), num_samples=100, dt=1.0)
    with pytest.raises(NonFiniteError, match=r"drift is NaN or infinite at \d+ of 100 particles.*smaller dt"):
        pwgf.solve(wild, [0.0, 20.0], progress=False)
