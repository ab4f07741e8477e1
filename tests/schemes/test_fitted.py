"""Particles with a fitted density: moments against exact laws, the two sources of figures, refusals."""

import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import cli, energies, problems
from pwgf.errors import ConfigError
from pwgf.study.accuracy import errors

ENTROPY = energies.Entropy()


def solved(problem, times, **settings):
    scheme = pwgf.FittedParticles(problem.energy, problem.reference, **settings)
    return pwgf.solve(scheme, times, problem=problem, progress=False)


def test_moments_of_a_linear_flow_have_no_sampling_error():
    """At 400 particles the covariance of independent ones is off by 10 %."""
    problem = problems.OrnsteinUhlenbeck(3, cov=torch.diag(torch.tensor([0.5, 1.0, 3.0])), mean=torch.ones(3))
    run = solved(problem, [0.0, 0.7], num_samples=400)
    law, exact = run.at(0.7), problem.exact(0.7)
    assert torch.allclose(law.mean(), exact.mean(), atol=1e-3)
    assert torch.allclose(law.cov(), exact.cov(), atol=0.02)


def test_heun_steps_are_of_second_order():
    problem = problems.OrnsteinUhlenbeck(1, cov=torch.tensor([[0.25]]))
    exact = float(problem.exact(0.4).cov())
    off = [abs(float(solved(problem, [0.0, 0.4], dt=dt, num_samples=2000).at(0.4).cov()) - exact) for dt in (0.1, 0.05)]
    assert 3 < off[0] / off[1] < 6.5


def test_wells_moments_density_and_energy_against_finite_volumes():
    problem, t = problems.StyblinskiTang(10, c=0.5), 0.16
    run = solved(problem, [0.0, t], num_samples=4000)
    law, exact, at = run.at(t), problem.exact(t), problem.marginal(t)
    assert float(law.cov().diagonal().mean()) / at.var == pytest.approx(1, abs=0.01)
    assert abs(float(law.mean().mean()) - at.mean) < 0.01 * at.var**0.5
    x = exact.sample(4000, 9)
    assert 0 < float((exact.log_density(x) - law.log_density(x)).mean()) < 0.15
    assert abs(run["energy"][-1] - problem.exact_energy(t)) < 4 * run["energy_stderr"][-1] + 0.02 * abs(
        problem.exact_energy(t)
    )


def test_moments_come_from_particles_and_samples_from_the_fitted_law(tmp_path, capsys):
    problem = problems.StyblinskiTang(2)
    scheme = pwgf.FittedParticles(problem.energy, problem.reference, num_samples=1000)
    out = str(tmp_path / "run.h5")
    run = pwgf.solve(scheme, [0.0, 0.1], out=out, problem=problem, progress=False)
    x = torch.from_numpy(run["theta"][-1]).view(-1, 2)
    assert torch.allclose(run.at(0.1).mean(), x.mean(0)) and torch.allclose(run.at(0.1).cov(), torch.cov(x.T))
    drawn = run.sample(0.1, 500)
    assert float(torch.cdist(drawn, x).min(1).values.max()) > 1e-3  # none of the particles themselves
    assert cli.main(["info", out]) == 0
    said = capsys.readouterr().out
    assert "Mean, covariance: of the particles themselves" in said
    assert "Density, score, samples, entropy: of a law fitted to the particles of the row" in said


def test_between_rows_the_law_is_the_mixture_of_both():
    run = solved(problems.StyblinskiTang(1), [0.0, 0.2], num_samples=500)
    x = run.sample(0.1, 30)
    ends = torch.stack([run.log_density(t, x).exp() for t in (0.0, 0.2)])
    assert torch.allclose(run.log_density(0.1, x).exp(), ends.mean(0))
    first, second = (run.moments(t) for t in (0.0, 0.2))
    assert torch.allclose(run.moments(0.1)[0], 0.5 * (first[0] + second[0]))


def test_particles_of_a_plain_run_count_once_each():
    problem = problems.OrnsteinUhlenbeck(2)
    run = pwgf.solve(
        pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=300, dt=0.1), [0.0, 0.2], progress=False
    )
    x = torch.from_numpy(run["theta"][-1]).view(-1, 2)
    assert torch.allclose(run.at(0.2).mean(), x.mean(0)) and torch.allclose(run.at(0.2).cov(), torch.cov(x.T))
    many = run.sample(0.2, 900)
    assert torch.allclose(many.sort(0).values, x.repeat(3, 1).sort(0).values)


def test_errors_take_the_moments_of_the_particles():
    problem = problems.OrnsteinUhlenbeck(2)
    found = errors(solved(problem, [0.0, 0.3], num_samples=2000), problem, rows=[-1])
    assert float(found["mean"][0]) < 1e-3 and float(found["sym_kl"][0]) < 0.05


def test_without_a_temperature_the_energy_is_that_of_the_particles():
    energy = energies.Potential(lambda x: x.square().sum(-1) / 2)
    scheme = pwgf.FittedParticles(energy, pwgf.Gaussian(2), num_samples=100, dt=0.01)
    run = pwgf.solve(scheme, [0.0, 1.0], progress=False)
    assert "energy_entropy" not in run.names
    assert np.allclose(run["energy"], [1.0, math.exp(-2.0)], rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_samples": 51}, r"num_samples=…\) needs an even number of at least 50 particles; got 51"),
        ({"num_samples": 20}, "got 20"),
        ({"dt": -1.0}, r"FittedParticles\(dt=…\) must be"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        pwgf.FittedParticles(ENTROPY, pwgf.Gaussian(2), **settings)


def test_noise_that_depends_on_x_is_refused():
    energy = energies.Diffusion(lambda x: (1 + x.square().sum(-1))[:, None, None] * torch.eye(2).to(x))
    with pytest.raises(ConfigError, match="FittedParticles: a Diffusion term has noise that depends on x"):
        pwgf.FittedParticles(energy, pwgf.Gaussian(2))
