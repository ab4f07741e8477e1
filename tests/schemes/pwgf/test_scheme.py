"""PWGF as a scheme: pure steps, exact ends, options, redraws, and the figures of a row."""

import dataclasses
import json
import math

import pytest
import torch

import pwgf
from pwgf import energies, linalg, maps
from pwgf.errors import ConfigError, NonFiniteError, SchemaError, ShapeError, SolverError
from pwgf.measures import Reference
from pwgf.problems import OrnsteinUhlenbeck
from tests.storage.forging import forge_config

OU = OrnsteinUhlenbeck(2, cov=[[0.8, 0.3], [0.3, 0.5]], mean=[1.0, -2.0])


def ou_scheme(map=None, **settings):
    settings = {"num_samples": 60, "num_eval": 500, "tolerance": None, **settings}
    return pwgf.PWGF(OU.energy, map or maps.Affine(2), OU.reference, **settings)


def advanced(scheme, steps=3, t1=1.0, seed=0):
    """A state some way into the flow, with a θ̇ to remember."""
    state = scheme.start(seed)
    for _ in range(steps):
        state, _ = scheme.step(state, t1)
    return state


def same(one, other):
    """Whether two states agree to the bit."""
    tensors = all(torch.equal(getattr(one, k), getattr(other, k)) for k in ("theta", "theta_dot", "rng"))
    return tensors and (one.t, one.dt, one.counters) == (other.t, other.dt, other.counters)


def copied(state):
    return dataclasses.replace(
        state,
        theta=state.theta.clone(),
        theta_dot=state.theta_dot.clone(),
        rng=state.rng.clone(),
        counters=dict(state.counters),
    )


@pytest.mark.parametrize(
    "settings", [{}, {"integrator": pwgf.FixedStep("rk4", 0.02)}, {"form": "gradient"}, {"chunk_size": 17}]
)
def test_step_and_measure_change_nothing(settings):
    scheme = ou_scheme(maps.ResidualMLP(2, width=6, axis_share=0.5, axis_units=0), **settings)
    state = advanced(scheme)
    before = copied(state)
    first, _ = scheme.step(state, 1.0)
    row = scheme.measure(state)
    second, _ = scheme.step(state, 1.0)
    assert same(state, before)
    assert same(first, second)
    again = scheme.measure(state)
    for name, value in row.items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(again[name]), rtol=0, atol=0, equal_nan=True)


def test_measuring_does_not_disturb_the_future():
    scheme, other = ou_scheme(), ou_scheme()
    state = scheme.start(3)
    scheme.measure(state)
    assert same(scheme.step(state, 1.0)[0], other.step(other.start(3), 1.0)[0])


@pytest.mark.parametrize(
    "settings", [{"integrator": pwgf.FixedStep("rk4", 0.03)}, {"tolerance": 1e-3}, {"integrator": pwgf.Euler(5.0)}]
)
def test_a_step_never_passes_t1_and_the_last_one_hits_it(settings):
    scheme, t1 = ou_scheme(**settings), 0.1
    state, times = scheme.start(t=-0.2), []
    while state.t < t1:
        before = state.t
        state, info = scheme.step(state, t1)
        assert before < state.t <= t1
        assert (info.t0, info.t1) == (before, state.t)
        times.append(state.t)
    assert times[-1] == t1  # exactly
    if settings.get("integrator") == pwgf.FixedStep("rk4", 0.03):
        assert len(times) == 10


def test_counters_add_up():
    scheme = ou_scheme(integrator=pwgf.FixedStep("rk4", 0.1))
    state, stages = scheme.start(), 0
    for k in range(3):
        state, info = scheme.step(state, 1.0)
        stages += info.num_stages
        assert (state.counters["num_steps"], state.counters["num_stages"]) == (k + 1, stages)
    assert stages == 12


@pytest.mark.parametrize(
    ("name", "values"), [("began", torch.zeros(2)), ("tiny", torch.zeros(0)), ("integrator", torch.tensor([math.nan]))]
)
def test_a_state_with_what_no_step_leaves_is_refused(name, values):
    made = ou_scheme()
    state = made.start()
    spoilt = dataclasses.replace(state, extra={**state.extra, name: values.double()})
    for action in (made.measure, lambda state: made.step(state, 0.1)):
        with pytest.raises(ConfigError, match=r"keeps numbers of earlier steps.*start\(t=state\.t\), theta="):
            action(spoilt)
    made.step(dataclasses.replace(made.start(t=state.t), theta=state.theta), 0.1)


def test_samples_are_redrawn_between_steps_and_frozen_within():
    seen = []

    class Told(pwgf.Gaussian):
        def wide_sample(self, n, seed=0):
            seen.append(super().wide_sample(n, seed))
            return seen[-1]

    scheme = pwgf.PWGF(OU.energy, maps.Affine(2), Told(2), integrator=pwgf.FixedStep("rk4", 0.1), num_samples=60)
    state, _ = scheme.step(scheme.start(), 1.0)
    scheme.step(state, 1.0)
    _, (one, _), (other, _) = seen  # the first to see whether the energy has a value there
    assert not torch.equal(one, other)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_fixes_everything(seed):
    one, other = (advanced(ou_scheme(maps.ResidualMLP(2, width=6)), seed=seed) for _ in range(2))
    assert same(one, other)
    assert not torch.equal(one.theta, advanced(ou_scheme(maps.ResidualMLP(2, width=6)), seed=seed + 1).theta)


@pytest.mark.parametrize("solver", ["auto", "primal", "dual", "cg", "pcg", "lsmr", linalg.CG(rtol=1e-8)])
def test_every_solver_takes_the_same_step(solver):
    map = maps.ResidualMLP(2, width=6, axis_share=0.5, axis_units=0)
    theta0 = map.initial() + 0.1 * torch.randn(map.num_params, generator=torch.Generator().manual_seed(0))
    common = {"theta0": theta0, "integrator": pwgf.Euler(0.01), "damping": 1e-3}
    exact, _ = ou_scheme(map, solver="primal", **common).step(ou_scheme(map, **common).start(), 1.0)
    scheme = ou_scheme(map, solver=solver, **common)
    found, _ = scheme.step(scheme.start(), 1.0)
    z = OU.reference.sample(1000, torch.Generator().manual_seed(1))
    step, error = (map(theta, z) - map(exact.theta, z) for theta in (theta0, found.theta))  # what the solvers promise
    assert float(error.norm()) < 5e-3 * float(step.norm())


def test_heavy_damping_keeps_momentum_times_the_last_theta_dot():
    scheme = ou_scheme(integrator=pwgf.Euler(0.1), damping=1e12, momentum=0.5)
    eta = 0.1 * ou_scheme().step(ou_scheme().start(), 1.0)[0].theta_dot  # along the flow, and slower than it
    for share, theta_dot in ((0.5, eta), (0.0, -eta)):  # a last rate that the flow opposes is no help
        state = dataclasses.replace(scheme.start(), theta_dot=theta_dot)
        after, _ = scheme.step(state, 1.0)
        assert torch.allclose(after.theta, state.theta + 0.1 * share * theta_dot, rtol=0, atol=1e-9)


def test_heavy_damping_keeps_of_the_last_theta_dot_what_fits_the_velocity():
    """A last θ̇ ten times too fast is taken up to the multiple that fits, J·last·v/|J·last|²."""
    scheme = ou_scheme(integrator=pwgf.Euler(0.1), damping=1e12, momentum=0.5)
    state = scheme.start()
    z = scheme._draws.samples(60, state.generator(), even=True)
    rho = scheme._setup.pushed(state.theta, z, state.t)
    tangent, v = scheme._setup.tangent(state.theta, z).dense(), OU.energy.velocity(rho).reshape(-1)
    eta = 10 * torch.linalg.lstsq(tangent, v[:, None]).solution[:, 0]
    fit = float((tangent @ eta) @ v / (tangent @ eta).square().sum())
    assert 0 < fit < 0.5
    after, _ = scheme.step(dataclasses.replace(state, theta_dot=eta), 1.0)
    assert torch.allclose(after.theta, state.theta + 0.1 * fit * eta, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("map", "integrator", "damping"),
    [
        (maps.ResidualMLP(1, width=4, axis_units=2), "auto", 1e-10),
        (maps.ResidualMLP(1, width=4, axis_units=2), "implicit", 1e-10),
        (maps.ResidualMLP(1, width=4, axis_units=2), "explicit", 1e-6),
        (maps.OnTorus(1, 6.0, map=maps.ResidualMLP(2, width=4)), "auto", 1e-6),
        (maps.Layers(maps.OnTorus(1, 6.0, map=maps.ResidualMLP(2, width=4))), "auto", 1e-6),
        (maps.ResidualMLP(2, width=4), "auto", 1e-6),
        (maps.Affine(2), "auto", 1e-9),
        (maps.Affine(150), "auto", 1e-6),  # whose parameters 200 samples do not determine well
        (maps.Standardised(maps.Affine(2), [5.0, 5.0], 0.1), "explicit", 1e-9),
    ],
)
def test_damping_of_explicit_solves_is_small_on_a_line_and_for_affine_maps(map, integrator, damping):
    bowl = energies.Potential(lambda x: 0.5 * x.square().sum(-1))
    energy = energies.Entropy() if map.periodic else bowl + energies.Entropy()
    reference = pwgf.UniformBox(0.0, 6.0) if map.periodic else pwgf.Gaussian(map.dim)
    scheme = pwgf.PWGF(energy, map, reference, integrator=integrator, num_samples=200)
    assert scheme.measure(scheme.start(0))["damping"] == damping


def test_damping_biases_and_vanishing_damping_does_not():
    """Exactly representable flow: E|Jθ̇ − v|² is 0 without damping and grows with it."""
    fits = [
        ou_scheme(integrator=pwgf.Euler(0.1), damping=damping).step(ou_scheme().start(), 1.0)[1].values["fit"]
        for damping in (0.0, 1e-4, 1e-1)
    ]
    assert fits[0] < 1e-20 < fits[1] < fits[2]


def test_chunks_change_rounding_only():
    map = maps.ResidualMLP(2, width=6)
    one, other = (
        ou_scheme(map, integrator=pwgf.FixedStep("rk4", 0.05)),
        ou_scheme(map, integrator=pwgf.FixedStep("rk4", 0.05), chunk_size=7),
    )
    a, b = advanced(one), advanced(other)
    assert torch.allclose(a.theta, b.theta, rtol=0, atol=1e-9)


def test_float32_runs_in_float32_and_agrees():
    single, double = (
        advanced(ou_scheme(dtype=torch.float32, integrator=pwgf.FixedStep("rk4", 0.1))),
        advanced(ou_scheme(integrator=pwgf.FixedStep("rk4", 0.1))),
    )
    assert single.theta.dtype == single.theta_dot.dtype == torch.float32
    assert torch.allclose(single.theta.double(), double.theta, atol=1e-3)


def test_the_energy_falls_as_predicted():
    """On one sample −ΔF = h E|v|² + O(h²): the flow is the gradient flow of that very energy."""
    scheme = ou_scheme(integrator=pwgf.Euler(1e-4), num_samples=2000, damping=0.0)
    _, info = scheme.step(scheme.start(), 1.0)
    change = info.values["energy_change"]
    assert change == pytest.approx(-1e-4 * info.values["velocity_rms"] ** 2, rel=0.05)
    assert info.values["predicted_change"] == pytest.approx(-1e-4 * info.values["velocity_rms"] ** 2, rel=1e-9)


class Flaky:
    """A linear solver whose first `failures` calls raise; remembers what it was given."""

    name = "flaky"

    def __init__(self, failures):
        self.failures, self.samples, self.priors = failures, [], []

    def __call__(self, tangent, v, *, damping, prior=None, rhs=None):
        self.samples.append(tangent.z)
        self.priors.append(prior)
        if len(self.samples) <= self.failures:
            raise SolverError("flaky")
        return linalg.Primal()(tangent, v, damping=damping, prior=prior, rhs=rhs)


def test_a_failed_interval_is_drawn_anew_with_a_quarter_of_the_step_and_no_momentum():
    flaky = Flaky(2)
    scheme = ou_scheme(solver=flaky, integrator=pwgf.Explicit(first_step=0.16), tolerance=1.0)
    along = ou_scheme().step(ou_scheme().start(), 1.0)[0].theta_dot
    state = dataclasses.replace(scheme.start(), theta_dot=along)
    after, _ = scheme.step(state, 1.0)
    assert after.counters["num_redraws"] == 2
    assert after.t == pytest.approx(0.16 / 16)
    assert not torch.equal(flaky.samples[0], flaky.samples[1])
    assert not torch.equal(flaky.samples[1], flaky.samples[2])
    assert bool(flaky.priors[0].any())
    assert not bool(flaky.priors[2].any())


def test_after_four_redraws_the_step_gives_up():
    scheme = ou_scheme(solver=Flaky(100), integrator="explicit")
    with pytest.raises(
        SolverError, match=r"no step from t = 0 succeeded .*4 redraws.*: flaky.*is good.*larger damping"
    ):
        scheme.step(scheme.start(), 1.0)
    assert len(scheme._setup.solver.function.samples) == 5


def test_fixed_steps_give_up_at_once():
    scheme = ou_scheme(solver=Flaky(1), integrator=pwgf.FixedStep("rk4", 0.1))
    with pytest.raises(
        SolverError, match=r"no step from t = 0 succeeded .*0 redraws.*fixed ones too long: integrator='auto'"
    ):
        scheme.step(scheme.start(), 1.0)


def test_a_solver_that_does_not_converge_fails_the_interval():
    scheme = ou_scheme(maps.ResidualMLP(2), solver=linalg.CG(rtol=1e-12, max_iterations=1))
    with pytest.raises(SolverError, match="linear solve stopped at relative residual"):
        scheme.step(scheme.start(), 1.0)


def test_a_solver_of_ones_own_that_gives_nan_fails_the_interval():
    def broken(tangent, v, *, damping, prior=None, rhs=None):
        return linalg.Solution(torch.full((tangent.p,), torch.nan, dtype=v.dtype), 0.0, 0.0, 0, True)

    scheme = ou_scheme(solver=broken, integrator=pwgf.FixedStep("rk4", 0.1))
    with pytest.raises(NonFiniteError, match="the linear solve gave NaN or infinite θ̇ at t = 0"):
        scheme.step(scheme.start(), 1.0)


def test_an_energy_that_blows_up_is_named_with_its_term():
    def wall(x):
        return -10 * x[:, 0] + (6 - x[:, 0]).sqrt()  # the samples run to the right, past the last x where V exists

    energy = energies.Potential(wall) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=50, integrator=pwgf.Euler(0.6))
    state, _ = scheme.step(scheme.start(), 2.0)
    with pytest.raises(
        NonFiniteError, match=r"energy term 'potential' is NaN or infinite at \d+ of 50 samples at t = 0\.6"
    ):
        scheme.step(state, 2.0)


def test_start_takes_theta0_and_time():
    map = maps.Affine(2)
    theta0 = map.initial() + 0.5
    state = ou_scheme(map, theta0=theta0).start(seed=1, t=-3.0)
    assert torch.equal(state.theta, theta0)
    assert state.t == -3.0
    assert not bool(state.theta_dot.any())


def test_a_reference_of_the_wrong_shape_is_told():
    class Odd(Reference):
        dim = 2

        def sample(self, n, generator):
            return torch.randn(n, 3, generator=generator, dtype=torch.float64)

        def log_density(self, z):
            return -z.square().sum(1)

    with pytest.raises(
        ShapeError, match=r"reference.sample\(n=60, generator\) must return .* \(60, 2\); got \(60, 3\)"
    ):
        pwgf.PWGF(OU.energy, maps.Affine(2), Odd(), num_samples=60).start()


def test_the_settings_are_json_and_resolved():
    config = json.loads(json.dumps(ou_scheme(theta0=maps.Affine(2).initial(), solver=linalg.CG(rtol=1e-6)).to_config()))
    assert config["tolerance"] == 1e-4
    assert config["solver"]["name"] == "cg"
    assert config["solver"]["rtol"] == 1e-6
    assert config["theta0"]["shape"] == [6]
    assert config["dtype"] == "float64"
    assert ou_scheme(integrator=pwgf.FixedStep("rk4", 0.1)).to_config()["tolerance"] is None


def test_the_fingerprint_tells_energies_apart():
    scheme = ou_scheme()
    state = scheme.start()
    other = pwgf.PWGF(
        OU.energy + 1e-6 * energies.Potential(lambda x: x[:, 0]), maps.Affine(2), OU.reference, num_samples=60
    )
    assert abs(scheme.fingerprint(state) - ou_scheme(num_samples=99).fingerprint(state)).max() == 0
    assert abs(scheme.fingerprint(state) - other.fingerprint(state)).max() > 1e-7


def exact_speed2(t):
    """E|v|² of the exact flow at t, with v = −Σ⁻¹(x−b) + C⁻¹(x−m) at N(m, C): equals −dF/dt."""
    law = OU.exact(t)
    difference = torch.linalg.inv(law.cov()) - OU.precision
    return float(
        (OU.precision @ (law.mean() - OU.mean)).square().sum() + torch.trace(law.cov() @ difference @ difference)
    )


def test_the_row_of_an_exactly_represented_flow():
    scheme = ou_scheme(num_samples=500, num_eval=20_000, tolerance=1e-6)
    run = pwgf.solve(scheme, [0.0, 0.3], progress=False)
    assert run["projection_residual"].max() < 1e-8
    assert run["fold_fraction"].tolist() == [0.0, 0.0]
    for k, t in enumerate((0.0, 0.3)):
        assert run["dissipation"][k] == pytest.approx(exact_speed2(t), rel=0.05)
        assert run["velocity_rms"][k] ** 2 == pytest.approx(exact_speed2(t), rel=0.05)
        assert abs(run["energy"][k] - OU.exact_energy(t)) < 4 * run["energy_stderr"][k] + 1e-6
        assert run["energy"][k] == pytest.approx(run["energy_potential"][k] + run["energy_entropy"][k])
    slope = (OU.exact_energy(1e-4) - OU.exact_energy(0.0)) / 1e-4
    assert -slope == pytest.approx(exact_speed2(0.0), rel=1e-3)  # the oracle itself: dissipation is −dF/dt


class Cubic(torch.nn.Module):
    """T(z) = a(z³/3 − z) folds where |z| < 1."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(1))

    def forward(self, z):
        return self.a * (z**3 / 3 - z)


def test_fold_fraction_counts_the_folded_samples():
    energy = energies.Potential(lambda x: x.square().sum(-1))
    scheme = pwgf.PWGF(energy, maps.FromModule(Cubic(), 1), pwgf.Gaussian(1), num_samples=2000, num_eval=20_000)
    fraction = scheme.measure(scheme.start())["fold_fraction"]
    expected = math.erf(1 / math.sqrt(2))
    assert abs(fraction - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_projection_residual_of_a_flow_the_map_cannot_follow():
    """The affine map fits −x³ by its regression −3x on N(0,1): E|−3x + x³|²/E x⁶ = (9 − 18 + 15)/15."""
    energy = energies.Potential(lambda x: (x**4).sum(-1) / 4)
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=50_000, num_eval=100_000)
    assert scheme.measure(scheme.start())["projection_residual"] == pytest.approx(6 / 15, rel=0.1)


def ornstein_uhlenbeck(spread=1.0, mean=0.0, target=0.0):
    """V = |x − target|²/2, temperature spread²/4, from N(mean, spread²): the same flow in any unit."""
    potential = energies.Potential(lambda x: (x - target).square().sum(-1) / 2)
    return potential + spread**2 / 4 * energies.Entropy(), pwgf.Gaussian(1, mean, spread**2)


@pytest.mark.parametrize("map", [maps.Affine(1), maps.ResidualMLP(1, width=8), maps.ConvexRidge(1, width=6)])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1e-6), (0.0, 1e6), (100.0, 1.0), (1e6, 1e-3)])
@pytest.mark.parametrize("integrator", ["implicit", "explicit"])
def test_results_do_not_depend_on_origin_and_unit(map, mean, spread, integrator):
    """Closed form: mean e^{−t}, variance ¼ + ¾e^{−2t}, in units of the spread from the mean of the target."""
    target = mean + spread
    energy, reference = ornstein_uhlenbeck(spread, mean, target)
    scheme = pwgf.PWGF(energy, map, reference, integrator=integrator, num_samples=100, num_eval=100)
    law = pwgf.solve(scheme, [0.0, 0.2], progress=False).at(0.2)
    assert abs(float(law.mean()) - target + spread * math.exp(-0.2)) < 1e-3 * spread
    assert float(law.cov()) == pytest.approx(spread**2 * (0.25 + 0.75 * math.exp(-0.4)), rel=2e-3)


@pytest.mark.parametrize("solver", ["primal", "dual", "block-pcg", "pcg", "cg", "lsmr"])
def test_each_solver_meets_standard_coordinates(solver):
    """As above, for a λ as tight as 1e-5."""
    energy, reference = ornstein_uhlenbeck(1e-5, 3.0, 3.0)
    scheme = pwgf.PWGF(energy, maps.ResidualMLP(1, width=8), reference, solver=solver, num_samples=100, num_eval=100)
    law = pwgf.solve(scheme, [0.0, 0.2], progress=False).at(0.2)
    assert float(law.cov()) == pytest.approx(1e-10 * (0.25 + 0.75 * math.exp(-0.4)), rel=2e-3)


@pytest.mark.parametrize(("dim", "cov"), [(1, 1e-12), (2, 1e-6)])
def test_a_tight_start_spreads_as_it_should(dim, cov):
    """The flow to temperature 1 from a variance of almost 0: it is 1 − e^{−2t}, and the mean stays 0."""
    energy = energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(dim), pwgf.Gaussian(dim, cov=cov), num_samples=64, num_eval=100)
    law = pwgf.solve(scheme, [0.0, 1.0], progress=False).at(1.0)
    assert float(law.mean().abs().max()) < 1e-6
    torch.testing.assert_close(law.cov(), (1 - math.exp(-2)) * torch.eye(dim, dtype=torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("mean", "cov", "moved"), [(0.0, 1.0, False), (0.9, 0.2, False), (4.0, 1.0, True)])
def test_a_map_sees_other_coordinates_only_far_from_standard_ones(mean, cov, moved):
    energy, map = energies.Potential(lambda x: x.square().sum(-1) / 2), maps.Affine(2)
    scheme = pwgf.PWGF(energy, map, pwgf.Gaussian(2, mean, cov))
    assert isinstance(scheme.map, maps.Standardised) == moved
    assert moved or scheme.map is map
    assert pwgf.PWGF(energy, map, pwgf.Gaussian(2, mean, cov), theta0=map.initial()).map is map


def test_a_given_start_far_from_standard_coordinates_is_refused():
    """With these coordinates the variance was measured as .68 instead of 1."""
    energy, map, reference = energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2, mean=100.0)
    with pytest.raises(ConfigError, match=r"coordinate . of the reference has mean 9.* maps.Standardised"):
        pwgf.PWGF(energy, map, reference, theta0=map.initial()).start(0)
    standardised = maps.Standardised(map, [100.0, 100.0], 1.0)
    pwgf.PWGF(energy, standardised, reference, theta0=standardised.initial()).start(0)


def test_coordinates_of_too_different_spread_are_refused():
    reference = pwgf.Gaussian(2, cov=torch.tensor([[1.0, 0.0], [0.0, 1e-8]]))
    energy = energies.Potential(lambda x: x.square().sum(-1) / 2)
    with pytest.raises(ConfigError, match=r"spread .*e-05, so far below the rms .* Give a smaller damping"):
        pwgf.PWGF(energy, maps.Affine(2), reference).start(0)
    pwgf.PWGF(energy, maps.Affine(2), reference, damping=1e-12).start(0)


@pytest.mark.parametrize(("mean", "cov", "dtype"), [(1e6, 1.0, torch.float32), (1e9, 1e-8, torch.float64)])
def test_a_spread_below_the_rounding_of_its_mean_is_refused(mean, cov, dtype):
    scheme = pwgf.PWGF(energies.Entropy(), maps.Affine(1), pwgf.Gaussian(1, mean, cov), dtype=dtype)
    with pytest.raises(ConfigError, match=r"coordinate 0 .* numbers, .* do not resolve\. Solve for x - mean"):
        scheme.start(0)


def test_a_users_own_map_is_read_in_the_coordinates_of_its_run(tmp_path):
    """The file holds origin and unit; the user hands over the module alone."""
    map = maps.FromModule(Cubic(), 1, residual=True)
    reference = pwgf.Gaussian(1, mean=50.0, cov=1e-4)
    scheme = pwgf.PWGF(
        energies.Potential(lambda x: x.square().sum(-1) / 2), map, reference, num_samples=50, num_eval=50
    )
    run = pwgf.solve(scheme, [0.0, 0.01], out=tmp_path / "run.h5", progress=False)
    again = pwgf.load(tmp_path / "run.h5", map=maps.FromModule(Cubic(), 1, residual=True))
    assert torch.equal(again.sample(0.01, 5), run.sample(0.01, 5))
    forge_config(str(tmp_path / "run.h5"), lambda config: config["scheme"]["map"].update(spread="wide"))
    with pytest.raises(SchemaError, match="its map has no coordinates"):
        pwgf.load(tmp_path / "run.h5", map=map)


def test_a_motion_over_many_spreads_is_named(caplog):
    """The mean goes to 1e5(1 − e^{−2}), with an error of 1e-6 of that; the spread stays 1."""
    energy = energies.Potential(lambda x: (x - 1e5).square().sum(-1) / 2) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=60, num_eval=60, tolerance=10.0)
    run = pwgf.solve(scheme, [0.0, 2.0], progress=False)
    assert "the law has moved by" in caplog.text and "times its spread" in caplog.text
    assert float(run.at(2.0).mean()) == pytest.approx(1e5 * (1 - math.exp(-2)), rel=1e-2)


def unbounded(x):
    return -x.square().sum(-1)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_an_energy_that_falls_without_bound_is_named(temperature, caplog):
    """V = −|x|² spreads the law by e^{2t}, at temperature τ to the variance e^{4t}(1 + τ/2) − τ/2."""
    energy = energies.Potential(unbounded)
    energy = energy + temperature * energies.Entropy() if temperature else energy
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=60, num_eval=100, tolerance=1e-2)
    run = pwgf.solve(scheme, [0.0, 2.0, 4.0], progress=False)
    assert "F falls ever faster" in caplog.text and "the flow no equilibrium" in caplog.text
    assert torch.isfinite(run.theta(4.0)).all()
    exact = math.exp(16) * (1 + temperature / 2) - temperature / 2
    assert float(run.at(4.0).cov()) == pytest.approx(exact, rel=2e-2)


def test_a_fall_to_an_equilibrium_is_not_taken_for_one_without_bound(caplog):
    """Out of a narrow law on a hilltop, and far away: F falls faster for a while."""
    wells = energies.Potential(lambda x: (x.square() - 4).square().sum(-1) / 4)
    far = energies.Potential(lambda x: (x - 1e3).square().sum(-1) / 2)
    for energy, reference in ((wells, pwgf.Gaussian(1, cov=0.04)), (far, pwgf.Gaussian(1))):
        scheme = pwgf.PWGF(energy, maps.Affine(1), reference, num_samples=60, num_eval=100)
        pwgf.solve(scheme, [0.0, 3.0], progress=False)
    assert "F falls ever faster" not in caplog.text
