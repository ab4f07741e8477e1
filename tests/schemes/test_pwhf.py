"""Second-order flows against closed forms, scipy and single particles; energy, reversal, friction; refusals."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import norm

import pwgf
from pwgf import energies, linalg, maps, problems
from pwgf.errors import ConfigError, NonFiniteError, ShapeError, SolverError
from pwgf.schemes.pwhf import PWHFWatch

SPRING = energies.Potential(lambda x: x.square().sum(-1) / 2)
WAVY = energies.Potential(lambda x: (x.square() / 2 + 0.5 * torch.sin(2 * x)).sum(-1))


def scheme(energy=SPRING, map=None, reference=None, **settings):
    settings = {"dt": 0.05, "num_samples": 100, "num_eval": 200, **settings}
    return pwgf.PWHF(energy, map or maps.Affine(1), reference or pwgf.Gaussian(1), **settings)


def solve(moving, times, **arguments):
    return pwgf.solve(moving, times, progress=False, **arguments)


def spread(run, t):
    """Of ρ_t, from evenly spread samples of N(0, I)."""
    z = pwgf.Gaussian(run.reference.dim).matched_sample(4096, 1)
    return float(run.push(t, z).var(0, unbiased=False).mean().sqrt())


# ---- closed forms ---------------------------------------------------------------------------------------------------


def swing(periods, dt, dim=2, rows=18):
    """A run of `HarmonicHamiltonian`, with its largest rms error of a sample T_t(z) = cos(t)·z at the rows."""
    problem = problems.HarmonicHamiltonian(dim)
    times = 2 * math.pi * np.arange(rows * periods + 1) / rows
    moving = scheme(problem.energy, maps.Affine(dim), problem.reference, dt=dt, num_eval=40, num_samples=40)
    run = solve(moving, times, problem=problem)
    z = problem.reference.sample(200, 1)
    errors = [float((run.push(t, z) - math.cos(t) * z).square().sum(1).mean().sqrt()) for t in times]
    return run, max(errors)


def test_the_harmonic_oscillator_passes_its_focus_to_second_order():
    """The phase is off by h²/24 of itself, an error of up to 2π/24·h²·√E|x|² after a period."""
    h = 2 * math.pi / 72
    run, error = swing(1, h)
    assert error < 2 * math.pi / 24 * h**2 * 2.1
    assert swing(1, h / 2)[1] == pytest.approx(error / 4, rel=0.02)
    assert np.ptp(run["total_energy"]) < h**2 / 4 * run["total_energy"][0] * 1.05
    assert run["projection_residual"].max() < 1e-12
    assert (run["fold_fraction"] == 0).all()


@pytest.mark.slow
def test_the_harmonic_oscillator_over_ten_periods():
    """Within 1e-3 of √E|x|²; the scheme conserves a modified energy, so that h² bounds the change of this one."""
    run, error = swing(10, 0.018, dim=1, rows=3)
    assert error < 1e-3 * math.sqrt(2)
    energy = run["total_energy"] / run["total_energy"][0] - 1
    assert np.abs(energy).max() < 0.018**2 / 4 * 1.05
    assert np.abs(energy[-4:]).max() < 1.01 * np.abs(energy[:4]).max()  # no more in the last period than in the first


@pytest.mark.parametrize("map", [maps.Affine(1), maps.ResidualMLP(1, width=6)])
def test_the_isothermal_gas_expands_as_its_equation(map):
    problem = problems.IsothermalGas(1, temperature=0.5)
    times = np.linspace(0, 2, 3)
    run = solve(scheme(problem.energy, map, problem.reference), times, problem=problem)
    exact = solve_ivp(lambda t, y: [y[1], 0.5 / y[0]], (0, 2), [1.0, 0.0], rtol=1e-10, t_eval=times).y[0]
    assert np.allclose([spread(run, t) for t in times], exact, rtol=1e-3)
    assert np.ptp(run["total_energy"]) < 1e-3


def test_with_friction_a_gaussian_relaxes_to_the_gibbs_law():
    """m̈ = −m − γṁ in closed form, σ̈ = −σ + τ/σ − γσ̇ by scipy; in the end N(0, τ)."""
    friction, heat, times = 1.0, 0.3, np.linspace(0, 12, 5)
    energy = SPRING + heat * energies.Entropy()
    run = solve(scheme(energy, reference=pwgf.Gaussian(1, mean=2.0), friction=friction), times)
    omega = math.sqrt(1 - friction**2 / 4)
    decay = 2 * np.exp(-friction * times / 2)
    mean = decay * (np.cos(omega * times) + friction / (2 * omega) * np.sin(omega * times))

    def rate(t, y):
        return [y[1], -y[0] + heat / y[0] - friction * y[1]]

    sigma = solve_ivp(rate, (0, 12), [1.0, 0.0], rtol=1e-10, t_eval=times).y[0]
    laws = [run.at(t) for t in times]
    assert np.allclose([float(law.mean()) for law in laws], mean, atol=1e-3)
    assert np.allclose([float(law.cov()) ** 0.5 for law in laws], sigma, rtol=1e-3)
    assert float(laws[-1].cov()) == pytest.approx(heat, rel=0.01)
    assert float(laws[-1].mean()) == pytest.approx(0, abs=0.01)
    assert (np.diff(run["total_energy"]) < 0).all()


def test_a_squeezed_state_of_the_quantum_oscillator_breathes():
    """iψ̇ = −½ψ'' + ½x²ψ from |ψ|² = N(0, 1): variance cos²t + ¼ sin²t, through the focus of the classical motion."""
    times = np.linspace(0, 3, 4)
    run = solve(scheme(SPRING + energies.FisherInformation(), num_samples=50), times)
    exact = np.cos(times) ** 2 + 0.25 * np.sin(times) ** 2
    assert np.allclose([spread(run, t) ** 2 for t in times], exact, rtol=4e-3)
    assert np.ptp(run["total_energy"]) < 2e-3 * run["total_energy"][0]


def test_a_free_gas_keeps_the_velocity_it_starts_with():
    """F = 0: T_t(z) = z + t·u(z), which J follows exactly where u lies in the tangent, here (1 − ½x, …)."""
    still = energies.Potential(lambda x: 0.0 * x.sum(-1))
    run = solve(scheme(still, velocity0=lambda x: 1 - 0.5 * x, damping=1e-9), [0.0, 1.5])
    z = pwgf.Gaussian(1).sample(50, 2)
    assert torch.allclose(run.push(1.5, z), z + 1.5 * (1 - 0.5 * z), atol=1e-6)
    assert run["kinetic_energy"][-1] == pytest.approx(run["kinetic_energy"][0], rel=1e-6)


# ---- curved paths: a map whose tangent turns ------------------------------------------------------------------------


def test_samples_follow_newtons_law_each_by_itself():
    run = solve(scheme(WAVY, maps.ResidualMLP(1), num_samples=300, num_eval=500), [0.0, 0.75, 1.5])
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def rate(t, y):
        return np.r_[y[9:], -y[:9] - np.cos(2 * y[:9])]

    exact = solve_ivp(rate, (0, 1.5), np.r_[z[:, 0].numpy(), np.zeros(9)], rtol=1e-9).y[:9, -1]
    assert np.allclose(run.push(1.5, z)[:, 0].numpy(), exact, atol=0.01)
    assert run["projection_residual"].max() < 2e-3
    assert np.ptp(run["total_energy"]) < 2e-3


@pytest.mark.parametrize("energy", [WAVY, WAVY + 0.5 * energies.Entropy()], ids=["potential", "with entropy"])
def test_a_run_that_is_turned_round_returns_to_its_start(energy):
    moving = scheme(energy, maps.ResidualMLP(1, width=8), num_samples=200, velocity0=lambda x: torch.sin(x))
    start = moving.start(1)
    z = pwgf.Gaussian(1).sample(200, 3)

    def moved(state):
        while state.t < 1.0:
            state, _ = moving.step(state, 1.0)
        return state

    there = moved(start)
    assert float((moving.map(there.theta, z) - z).square().mean()) > 0.1
    back = moved(dataclasses.replace(there, t=0.0, theta_dot=-there.theta_dot))
    assert float((moving.map(back.theta, z) - z).abs().max()) < 1e-6
    rate = moving._place(start.theta, z, 0.0).tangent.jv(back.theta_dot + start.theta_dot)
    assert float(rate.abs().max()) < 1e-6


def test_all_of_it_in_single_precision():
    run = solve(scheme(dtype=torch.float32, damping=1e-6), [0.0, 1.0])
    assert run.theta(1.0).dtype == torch.float32
    assert spread(run, 1.0) == pytest.approx(math.cos(1.0), abs=1e-3)


def test_the_samples_of_a_run_stay_and_its_steps_are_equal():
    moving = scheme(dt=0.03)
    state = moving.start(4)
    after, info = moving.step(state, 0.1)
    assert torch.equal(after.rng, state.rng)
    assert (info.dt, info.num_stages, after.t) == (pytest.approx(0.025), 4, 0.1)
    assert moving.suited(SPRING, pwgf.Gaussian(2), np.array([0.0, 10.0])).dt == pytest.approx(0.05)


# ---- what it says and refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"friction": -0.1}, r"PWHF\(friction=…\) must be a number in \[0, inf\); got -0\.1"),
        ({"dt": 0.0}, r"PWHF\(dt=…\) must be a number in \(0, inf\); got 0\.0"),
        ({"damping": -1.0}, r"PWHF\(damping=…\) must be a number in \[0, inf\); got -1\.0"),
        ({"num_samples": 0}, r"PWHF\(num_samples=…\) must be an integer ≥ 1; got 0"),
        ({"velocity0": 1.0}, r"PWHF\(velocity0=…\) needs a function of a tensor; got float 1\.0"),
        ({"dtype": torch.int64}, r"PWHF\(dtype=…\) must be torch\.float64 or torch\.float32"),
        ({"map": maps.Affine(2)}, "PWHF: map and reference must have the same dimension; got map.dim = 2"),
        ({"energy": torch.sin}, r"PWHF\(energy=…\) must be an energy from pwgf.energies; got .*Potential\(V\)"),
        (
            {"energy": SPRING + energies.Diffusion(1.0)},
            r"PWHF\(energy=…\) has a Diffusion, which is noise of positions",
        ),
        ({"energy": -1.0 * energies.FisherInformation()}, r"FisherInformation enters with coefficient -1 < 0"),
    ],
)
def test_arguments_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        scheme(**settings)


@pytest.mark.parametrize(
    ("velocity0", "error", "message"),
    [
        (lambda x: x[:, 0], ShapeError, r"PWHF: velocity0\(x\) must return shape \(100, 1\) for .*; got \(100,\)"),
        (lambda x: 1.0, ShapeError, r"PWHF: velocity0\(x\) must return a torch tensor of shape \(100, 1\).*got float"),
        (lambda x: x.log(), NonFiniteError, r"PWHF: velocity0\(x\) is NaN or infinite at 5. of 100 samples"),
        (lambda x: x @ torch.eye(3), ConfigError, r"PWHF: velocity0\(x\) failed on .*RuntimeError"),
        (torch.randn_like, ConfigError, r"PWHF: velocity0\(x\) gives other values when it is called again"),
        (lambda x: x - x.mean(0), ConfigError, r"PWHF: velocity0\(x\) gives a sample other values when other samples"),
    ],
)
def test_a_wrong_first_velocity_is_refused(velocity0, error, message):
    with pytest.raises(error, match=message):
        scheme(velocity0=velocity0).start()


def test_laws_with_an_edge_are_refused_where_a_density_is_needed():
    with pytest.raises(ConfigError, match=r"PWHF\(energy, reference=UniformBall\): the energy needs the density of ρ"):
        scheme(energies.Entropy(), reference=pwgf.UniformBall(1)).start()
    with pytest.raises(ConfigError, match=r"FisherInformation\(\) of a law pushed from UniformBall, which has an edge"):
        scheme(energies.FisherInformation(), reference=pwgf.UniformBall(1)).start()
    assert len(solve(scheme(reference=pwgf.UniformBall(1)), [0.0, 0.1])) == 2  # a potential needs none


def test_steps_that_rounding_swallows_are_refused():
    with pytest.raises(ConfigError, match=r"PWHF\(dt=…\): steps of 1e-17 are lost in rounding beside the 1"):
        solve(scheme(dt=1e-17), [0.0, 1.0])


def test_a_linear_solve_that_does_not_converge_is_named():
    moving = scheme(map=maps.ResidualMLP(1, width=6), velocity0=torch.sin)
    moving._solver = linalg.CG(rtol=1e-12, max_iterations=1)
    with pytest.raises(SolverError, match=r"PWHF: the linear solve stopped at relative residual .* a larger damping"):
        moving.start()


def test_a_shock_of_a_gas_ends_the_run_with_causes():
    """Two streams of a cold gas that run into each other from t = 0: no smooth flow goes on past t = 1 by far."""
    cold = scheme(
        1e-4 * energies.Entropy(), maps.ResidualMLP(1, width=8), velocity0=lambda x: -2 * torch.sin(3 * x), dt=0.1
    )
    with pytest.raises((SolverError, NonFiniteError), match=r"(forms a shock, as a gas does|NaN or infinite)"):
        solve(cold, [0.0, 5.0])


def test_a_changing_total_energy_and_a_rising_one_are_named(caplog):
    caplog.set_level(logging.WARNING, "pwgf")
    solve(scheme(dt=1.0, reference=pwgf.Gaussian(1, mean=1.0)), np.linspace(0, 9, 10))
    assert "the total energy has changed by" in caplog.text
    assert "it should stay. Cure: a smaller dt" in caplog.text
    rising, row = (
        PWHFWatch((0.0, 1.0), friction=1.0),
        {"total_energy": 1.0, "kinetic_energy": 1.0, "energy": 0.5, "energy_stderr": math.nan}
        | {"path_error": math.nan, "spread": 1.0},
    )
    assert list(rising.of_row(row, 0.0)) == list(rising.of_row({**row, "total_energy": 0.5}, 0.1)) == []
    ((kind, message),) = rising.of_row({**row, "total_energy": 1.5}, 0.2)
    assert kind == "energy"
    assert "has changed by 0.5 up to t = 0.2, which is 50 % of the largest kinetic energy; it should fall" in message


def test_samples_off_their_paths_are_measured_and_named(caplog):
    """A pendulum with friction from rest at N(0, 1), whose outer samples an affine map must miss; truth by scipy."""
    caplog.set_level(logging.WARNING, "pwgf")
    pendulum = energies.Potential(lambda x: -x[:, 0].cos())
    settings = {"dt": 0.02, "friction": 0.3, "num_samples": 200, "num_eval": 4000}
    run = solve(scheme(pendulum, **settings), [0.0, 0.25, 2.0])
    z = torch.from_numpy(norm.ppf((np.arange(400) + 0.5) / 400))

    def rate(t, y):
        return np.r_[y[400:], -np.sin(y[:400]) - 0.3 * y[400:]]

    exact = solve_ivp(rate, (0, 2), np.r_[z.numpy(), np.zeros(400)], rtol=1e-8, t_eval=run.t).y[:400]
    for k, t in enumerate(run.t):
        off = run.push(float(t), z[:, None])[:, 0].numpy() - exact[:, k]
        assert run["path_error"][k] == pytest.approx(math.sqrt((off**2).mean()), rel=0.1, abs=1e-12)
    assert run["spread"][0] == pytest.approx(1, rel=0.01)
    assert caplog.text.count("off the paths of Newton's law by") == 1
    assert "at t = 2, " in caplog.text


def test_paths_of_an_exact_map_are_its_own():
    """Each sample at cos t·z where all pull each other; a second set of samples has its own mean and spread."""
    run = solve(scheme(energies.Interaction(lambda u: u.square().sum(-1) / 2)), [0.0, 1.0])
    assert run["path_error"][0] == 0 and run["path_error"][1] < 0.003


def test_there_are_no_free_paths_with_a_density():
    assert np.isnan(solve(scheme(SPRING + energies.Entropy()), [0.0, 0.2])["path_error"]).all()


@pytest.mark.parametrize("altered", ["theta", "theta_dot", "num_eval"])
def test_paths_of_another_flow_are_left(altered):
    """A state that was given another θ or θ̇, or goes on with other numbers of samples, has none."""
    start, own = scheme(SPRING).start(), scheme(SPRING)
    if altered != "num_eval":
        start = dataclasses.replace(start, **{altered: getattr(start, altered) + 0.1})
    else:
        own = scheme(SPRING, num_eval=own.num_eval + 1)
    assert np.isnan(pwgf.solve(own, [0.0, 0.1], start=start, progress=False)["path_error"]).all()


def test_it_has_no_bound_of_gradient_flows():
    run = solve(scheme(), [0.0, 0.1])
    with pytest.raises(ConfigError, match=r"error_bound\(convexity\).*it follows an acceleration"):
        run.error_bound(1.0)


@pytest.mark.parametrize(
    ("moving", "problem", "message"),
    [
        (
            scheme(),
            problems.Aggregation(1),
            r"PWHF follows the Hamiltonian flow .* Aggregation is that of the gradient",
        ),
        (
            pwgf.EulerMaruyama(SPRING, pwgf.Gaussian(1), num_samples=9, dt=0.1),
            problems.HarmonicHamiltonian(1),
            r"EulerMaruyama follows the gradient flow .* HarmonicHamiltonian is that of .*Use scheme pwhf, or leave",
        ),
    ],
    ids=["PWHF", "particles"],
)
def test_a_problem_says_for_which_flow_it_is(moving, problem, message):
    with pytest.raises(ConfigError, match=message):
        solve(moving, [0.0, 0.1], problem=problem)
