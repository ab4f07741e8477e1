"""Errors against the exact law, held against closed forms for affine maps, where the pushed law is known exactly."""

import numpy as np
import pytest
import scipy.linalg

import pwgf
from pwgf import maps, problems
from pwgf.study import accuracy


def affine_run(dim, **settings):
    problem = problems.OrnsteinUhlenbeck(dim)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(dim), problem.reference, num_samples=50, num_eval=200, **settings)
    return problem, pwgf.solve(scheme, [0.0, 0.1, 0.2], problem=problem, progress=False)


def gaussian_of(run, t, dim):
    """Mean b and covariance AAᵀ of the law that an affine map gives N(0, I)."""
    block = run.theta(t).view(dim, dim + 1).numpy()
    return block[:, -1], block[:, :-1] @ block[:, :-1].T


def test_problem_is_rebuilt_from_the_config():
    problem, run = affine_run(1)
    assert accuracy.problem_of(run).to_config() == problem.to_config()
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=50, num_eval=200)
    assert accuracy.problem_of(pwgf.solve(scheme, [0.0, 0.1], progress=False)) is None


def test_moments_of_an_affine_map_carry_no_sampling_noise():
    _, run = affine_run(2)
    other = problems.OrnsteinUhlenbeck(
        2, cov=[[1.0, 0.3], [0.3, 0.5]], mean=[1.0, -1.0]
    )  # a law far away: large errors
    found = accuracy.errors(run, other, n=100)
    for k, t in enumerate(run.t):
        mean, cov = gaussian_of(run, t, 2)
        law = other.exact(t)
        root = scipy.linalg.sqrtm(cov)
        cross = scipy.linalg.sqrtm(root @ law.cov().numpy() @ root).real
        w2 = ((mean - law.mean().numpy()) ** 2).sum() + np.trace(cov + law.cov().numpy() - 2 * cross)
        assert found["bures_w2"][k] == pytest.approx(np.sqrt(max(w2, 0)), abs=1e-7)
        assert found["mean"][k] == pytest.approx(np.linalg.norm(mean - law.mean().numpy()), abs=1e-10)
        exact = law.cov().numpy()
        assert found["cov"][k] == pytest.approx(np.linalg.norm(cov - exact) / np.linalg.norm(exact), abs=1e-10)
    assert found["bures_w2"][-1] > 0.1
    assert found["bures_w2_floor"].max() < 1e-10


def test_symmetric_kl_is_that_of_the_gaussians():
    _, run = affine_run(1)
    other = problems.OrnsteinUhlenbeck(1, cov=[[0.5]], mean=[1.0])
    found = accuracy.errors(run, other, n=20_000, rows=[-1])
    (m0,), ((v0,),) = gaussian_of(run, 0.2, 1)
    m1, v1 = float(other.exact(0.2).mean()), float(other.exact(0.2).cov())
    exact = 0.5 * (v0 / v1 + v1 / v0 - 2 + (m0 - m1) ** 2 * (1 / v0 + 1 / v1))
    assert found["sym_kl"][0] == pytest.approx(exact, rel=0.1)
    assert list(found["t"]) == [0.2]


def test_moments_of_a_bent_map_agree_with_a_large_plain_sample():
    problem = problems.StyblinskiTang(1)
    scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(1, width=8), problem.reference, num_samples=200, num_eval=200)
    run = pwgf.solve(scheme, [0.0, 0.1], problem=problem, progress=False)
    found = accuracy.errors(run, problem, n=4000, rows=[1])
    x, law = run.sample(0.1, 400_000, seed=5), problem.exact(0.1)
    plain = abs(float(x.var()) / float(law.cov()) - 1)
    assert found["cov"][0] == pytest.approx(plain, abs=0.02)  # 4 standard errors of the plain variance are .01
    assert 0 < found["bures_w2_floor"][0] < 0.05


def test_energy_error_is_run_minus_exact():
    problem, run = affine_run(1)
    found = accuracy.errors(run, problem, n=100)
    assert found["energy"] == pytest.approx([run["energy"][k] - problem.exact_energy(t) for k, t in enumerate(run.t)])


def test_particles_have_neither_density_nor_energy():
    problem = problems.OrnsteinUhlenbeck(1)
    scheme = pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=500, dt=0.05)
    run = pwgf.solve(scheme, [0.0, 0.1], problem=problem, progress=False)
    found = accuracy.errors(run, problem)
    assert np.isnan(found["sym_kl"]).all() and np.isnan(found["energy"]).all()
    assert found["bures_w2"].max() < 0.3  # 500 particles: standard error .05 of the mean


def test_different_supports_give_no_kl():
    problem = problems.Aggregation(2)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, num_samples=50, num_eval=100)
    run = pwgf.solve(scheme, [0.0, 0.2], problem=problem, progress=False)  # an affine map keeps unbounded support
    found = accuracy.errors(run, problem, n=500, rows=[1])
    assert np.isnan(found["sym_kl"]).all() and np.isfinite(found["bures_w2"]).all()


def test_a_run_that_misses_nothing_has_no_error_to_estimate():
    _, run = affine_run(2)
    assert accuracy.estimated_error(run)[0] < 1e-6


def test_errors_refuse_another_problem_and_too_few_samples():
    problem, run = affine_run(1)
    with pytest.raises(pwgf.ConfigError, match="needs a run from the problem's own reference"):
        accuracy.errors(run, problems.BarenblattFlow(1))
    with pytest.raises(pwgf.ConfigError, match=r"errors\(n=…\) must be an integer ≥ 6; got 3"):
        accuracy.errors(run, problem, n=3)
