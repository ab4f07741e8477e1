"""Driven problems: their laws against the matrix exponential, and flows of both schemes against them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec, simpson, solve_ivp
from scipy.linalg import expm

import pwgf
from pwgf import energies, maps, problems
from pwgf.errors import ConfigError, ShapeError
from pwgf.study.accuracy import errors


@pytest.mark.parametrize("t", [0.3, 4.0])
@pytest.mark.parametrize(
    "problem",
    [
        problems.LinearDrift(dim=2),
        problems.LinearDrift([[1.0, -2.0], [2.0, 0.5]], lambda t: [t, math.exp(-t)], [[1.0, 1.0], [1.0, 1.0]]),
        problems.KineticTrap(2, stiffness=3.0, friction=0.5, temperature=2.0),
    ],
)
def test_moments_are_those_of_the_matrix_exponential(problem, t):
    """m = e^{−At}m₀ + ∫e^{−A(t−s)}A b(s) ds, C = e^{−At}C₀e^{−Aᵀt} + 2∫e^{−As}De^{−Aᵀs} ds."""
    A, D = problem.A.numpy(), problem._diffusion_matrix().numpy()
    start = problem.reference
    pulled = quad_vec(lambda s: expm(-A * (t - s)) @ A @ problem.centre(s).numpy(), 0, t, epsabs=1e-12)[0]
    spread = quad_vec(lambda s: expm(-A * s) @ D @ expm(-A * s).T, 0, t, epsabs=1e-12)[0]
    decay, law = expm(-A * t), problem.exact(t)
    np.testing.assert_allclose(law.mean(), decay @ start.mean().numpy() + pulled, atol=1e-9)
    np.testing.assert_allclose(law.cov(), decay @ start.cov().numpy() @ decay.T + 2 * spread, atol=1e-9)


def test_the_trap_obeys_the_first_law():
    """dF/dt = power − τ · entropy production, and the power is the derivative of the work."""
    trap, t, h = problems.MovingTrap(dim=2, speed=0.7, stiffness=2.0, temperature=1.5), 0.6, 1e-5
    energy_rate = (trap.exact_energy(t + h) - trap.exact_energy(t - h)) / (2 * h)
    work_rate = (trap.work(t + h) - trap.work(t - h)) / (2 * h)
    assert work_rate == pytest.approx(trap.power(t), rel=1e-8)
    assert energy_rate == pytest.approx(trap.power(t) - 1.5 * trap.entropy_production(t), rel=1e-6)


@pytest.mark.parametrize(
    ("problem", "end"),
    [(problems.LinearDrift(dim=2), 1.0), (problems.KineticTrap(2), 2.0), (problems.MovingTrap(1), 1.0)],
)
def test_flows_have_the_exact_moments(problem, end):
    times = [0.0, end / 2, end]
    scheme = pwgf.PWGF(problem.energy, maps.Affine(problem.dim), problem.reference, num_samples=100, num_eval=200)
    run = pwgf.solve(scheme, times, progress=False)
    for t in times[1:]:
        law, exact = run.at(t), problem.exact(t)
        assert float((law.mean() - exact.mean()).abs().max()) < 1e-3
        assert float((law.cov() - exact.cov()).abs().max()) < 1e-3
    assert errors(run, problem)["bures_w2"][-1] < 2e-3


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: problems.LinearDrift(np.eye(2), [1.0]), ShapeError, r"here 2; got b\(t\) of \(1,\)"),
        (lambda: problems.LinearDrift(np.ones((2, 3))), ShapeError, r"here 2; got A of \(2, 3\)"),
        (lambda: problems.LinearDrift(np.eye(2), D=-1.0), ConfigError, r"positive semidefinite; got -1"),
        (lambda: problems.LinearDrift("A"), ConfigError, r"needs A \(d,d\).*not made of numbers"),
        (lambda: problems.KineticTrap(3), ConfigError, r"dim must be even; got 3"),
        (lambda: problems.KineticTrap(2, friction=0.0), ConfigError, r"KineticTrap\(friction=…\) must be positive"),
        (lambda: problems.MovingTrap(1, speed=-1.0), ConfigError, r"MovingTrap\(speed=…\) must be positive"),
    ],
)
def test_bad_arguments_are_refused(build, kind, message):
    with pytest.raises(kind, match=message):
        build()


def test_a_centre_that_is_a_function_is_named_in_the_config_and_must_be_given_again():
    problem = problems.LinearDrift(np.eye(2), lambda t: torch.tensor([t, 0.0]))
    assert "lambda" in problem.to_config()["b"]
    with pytest.raises(ConfigError, match="not made of numbers"):
        problems.from_config(problem.to_config())


def test_work_and_entropy_production_of_the_dragged_trap():
    """Columns of a run against the closed forms, the work as the integral of the power."""
    trap = problems.MovingTrap(dim=1, speed=2.0, stiffness=1.5, temperature=0.5)
    times = np.linspace(0, 2, 7)
    scheme = pwgf.PWGF(trap.energy, maps.Affine(1), trap.reference, num_samples=1000, num_eval=10_000)
    run = pwgf.solve(scheme, times, progress=False)
    power, produced = np.vectorize(trap.power)(times), np.vectorize(trap.entropy_production)(times)
    np.testing.assert_allclose(run["power"], power, rtol=0.01, atol=0.08)  # 4.6σ of 10 000 samples
    np.testing.assert_allclose(run["entropy_production"][1:], produced[1:], rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(run["heat"], 0.5 * run["entropy_production"], rtol=0.01, atol=0.08)  # τσ: C is constant
    assert simpson(run["power"], x=times) == pytest.approx(trap.work(2.0), rel=0.01)


def test_the_heat_of_a_trap_that_breathes_and_of_a_drift_that_turns():
    """V = ½k(t)x²: C′ = −2kC + 2τ and U′ = ½k′C − heat of U = ½kC; and b = −x − 2Rx in N(0, I): heat E|2Rx|²."""
    tau = 0.5
    energy = energies.Potential(lambda t, x: 0.5 * (2 + torch.sin(3 * t)) * x.square().sum(-1), time=True)
    scheme = pwgf.PWGF(energy + tau * energies.Entropy(), maps.Affine(1), pwgf.Gaussian(1), num_eval=20_000)
    run = pwgf.solve(scheme, np.linspace(0, 1.5, 4), progress=False)
    k = 2 + np.sin(3 * run.t)
    C = solve_ivp(
        lambda t, C: -2 * (2 + math.sin(3 * t)) * C + 2 * tau, (0, 1.5), [1.0], t_eval=run.t, rtol=1e-9, atol=1e-9
    ).y[0]
    heat = -0.5 * k * (-2 * k * C + 2 * tau)
    np.testing.assert_allclose(run["heat"], heat, rtol=0.03, atol=2e-3)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    turning = energies.Drift(lambda x: -x - 2 * x @ turn.to(x).T) + energies.Entropy()
    run = pwgf.solve(pwgf.PWGF(turning, maps.Affine(2), pwgf.Gaussian(2)), [0.0, 0.1], progress=False)
    assert run["heat"][-1] == pytest.approx(8.0, rel=0.05)
    assert "power" not in run.names


def test_particles_measure_the_power_too_and_other_flows_have_no_such_columns():
    trap = problems.MovingTrap(dim=1)
    run = pwgf.solve(
        pwgf.EulerMaruyama(trap.energy, trap.reference, num_samples=20_000, dt=0.02), [0, 1], progress=False
    )
    assert run["power"][-1] == pytest.approx(trap.power(1.0), abs=0.03)
    still = problems.OrnsteinUhlenbeck(1)
    row = pwgf.PWGF(still.energy, maps.Affine(1), still.reference, num_samples=40, num_eval=100)
    columns = row.measure(row.start())
    assert not {"power", "entropy_production", "heat"} & set(columns)


def test_a_linear_drift_of_no_dimension_is_in_the_plane():
    assert problems.LinearDrift().dim == 2
