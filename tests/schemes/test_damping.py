"""Damping by trial: against the residuals that dense algebra gives, and switched off."""

import pytest
import torch

import pwgf
from pwgf import energies, maps, problems
from pwgf.linalg import get_solver
from pwgf.schemes.damping import is_due, tried_damping
from pwgf.schemes.right_side import Problem


def field(x, noise=0.0):
    """A smooth potential and, if asked, a part that no map follows and that differs from sample to sample."""
    return (x.square().sum(-1) - 1).square() / 4 + x[..., 0] + noise * torch.sin(300 * x).sum(-1) / 300


def setting(noise, num_samples, width=12):
    map, reference = maps.ResidualMLP(2, width=width, axis_share=0.5, gain=1.0, axis_units=0), pwgf.Gaussian(2)
    energy = energies.Potential(lambda x: field(x, noise))
    problem = Problem(energy, map, reference, get_solver("primal"), "velocity", None, None)
    generator = torch.Generator().manual_seed(3)
    theta = map.initial() + 0.2 * torch.randn(map.num_params, generator=generator, dtype=torch.float64)
    return problem, theta, reference.sample(num_samples, generator), reference.sample(4000, generator)


def left_over(problem, theta, z, fresh, damping):
    """E|Jη − v|²/E|v|² on fresh samples for the dense damped fit on z."""
    J, K = (problem.tangent(theta, samples).dense() for samples in (z, fresh))
    v, w = (problem.energy.velocity(problem.pushed(theta, samples)).reshape(-1) for samples in (z, fresh))
    G = J.T @ J / len(z)
    eta = torch.linalg.solve(G + damping * G.trace() * torch.eye(len(G), dtype=G.dtype), J.T @ v / len(z))
    return float((K @ eta - w).square().sum() / w.square().sum())


@pytest.mark.parametrize(
    ("noise", "num_samples", "damping", "better"),
    [
        (0.0, 400, 1e-3, "smaller"),  # all is smooth: a larger damping only misses
        (20.0, 30, 1e-8, "larger"),  # 60 equations for 63 unknowns, most of it noise
    ],
)
def test_a_trial_goes_where_less_is_left_over(noise, num_samples, damping, better):
    problem, theta, z, fresh = setting(noise, num_samples)
    prior = torch.zeros_like(theta)
    found = tried_damping(problem, theta, prior, z, fresh, 0.0, damping=damping, high=1e-2)
    assert (found < damping) == (better == "smaller") and found != damping
    before, after = (left_over(problem, theta, z, fresh, value) for value in (damping, found))
    assert after < 0.97 * before


def test_little_left_over_is_not_worth_a_smaller_damping():
    problem, theta, z, fresh = setting(0.0, 400, width=80)
    damping = 1e-6
    assert left_over(problem, theta, z, fresh, damping) < 0.01
    prior = torch.zeros_like(theta)
    assert tried_damping(problem, theta, prior, z, fresh, 0.0, damping=damping, high=1e-3) == damping


def test_a_trial_stays_within_its_bounds():
    problem, theta, z, fresh = setting(20.0, 30)
    prior = torch.zeros_like(theta)
    assert tried_damping(problem, theta, prior, z, fresh, 0.0, damping=1e-6, high=2e-6) == 1e-6


def test_trials_come_now_and_then_and_sooner_where_much_is_missed():
    assert [k for k in range(60) if is_due(k, 0.1)] == [5, 25, 45]
    assert [k for k in range(1, 20) if is_due(k, 0.5)] == [5, 10, 15]
    assert not is_due(1, float("nan"))


def flow(**settings):
    problem = problems.StyblinskiTang(3)
    scheme = pwgf.PWGF(
        problem.energy,
        maps.ResidualMLP(3, width=72, axis_share=0.5, axis_units=0),
        problem.reference,
        num_samples=400,
        num_eval=20_000,
        **settings,
    )
    run = pwgf.solve(scheme, [0.0, 0.15, 0.3], progress=False)
    return run, abs(run["energy"][-1] - problem.exact_energy(0.3))


def test_a_damping_that_misses_is_lowered_in_a_run_and_stored_by_row():
    tuned, error = flow(damping=9e-4)
    fixed, larger_error = flow(damping=9e-4, tune_damping=False)
    assert tuned["damping"][0] == pytest.approx(9e-4) and tuned["damping"][-1] < 1e-4
    assert (fixed["damping"] >= 9e-4).all()
    assert error < 0.5 * larger_error


def test_a_damping_with_no_room_stays():
    run, _ = flow(damping=9e-4, max_damping=9e-4)
    assert (run["damping"] == 9e-4).all()
