"""What every problem promises, looped over all of them."""

import json
import math

import numpy as np
import pytest
import torch

from pwgf import problems
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import Cloud

CASES = {
    "ou default": (lambda: problems.OrnsteinUhlenbeck(dim=2), 0.3),
    "ou correlated": (
        lambda: problems.OrnsteinUhlenbeck(dim=3, cov=[[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.3]], mean=[1, -1, 0.5]),
        0.7,
    ),
    "double wells": (lambda: problems.StyblinskiTang(dim=2), 0.5),
    "steep double wells": (lambda: problems.StyblinskiTang(dim=1, c=0.5), 0.16),
    "porous medium": (lambda: problems.BarenblattFlow(dim=2), 1.7),
    "cubic porous medium": (lambda: problems.BarenblattFlow(dim=1, m=3, t0=0.5, t1=1), 0.8),
    "aggregation": (lambda: problems.Aggregation(dim=2), 0.5),
    "narrow aggregation": (lambda: problems.Aggregation(dim=2, sigma=0.25), 1.5),
    "aggregation in 5-D": (lambda: problems.Aggregation(dim=5), 1.0),
    "newtonian aggregation": (lambda: problems.NewtonianAggregation(sigma=1.3), 0.4),
    "annulus": (lambda: problems.NewtonianAggregation(annulus=True), 0.3),
    "confined porous medium": (lambda: problems.ConfinedPorousMedium(dim=2), 0.2),
    "confined cubic porous medium": (lambda: problems.ConfinedPorousMedium(dim=1, m=3, ratio=1.5), 0.1),
    "heat in a box": (lambda: problems.HeatInBox(dim=2, amplitude=-0.8, temperature=2.0), 0.02),
    "heat on an interval": (lambda: problems.HeatInBox(dim=1), 0.05),
    "oscillators": (lambda: problems.Kuramoto(), 1.5),
    "oscillators below the onset": (lambda: problems.Kuramoto(K=1.0, temperature=2.0), 0.2),
    "harmonic oscillator": (lambda: problems.HarmonicHamiltonian(dim=2, omega=1.5), 0.5),
    "isothermal gas": (lambda: problems.IsothermalGas(dim=2), 0.7),
}
DRIVEN = {  # whose energy need not fall, or that have none
    "moving trap": (lambda: problems.MovingTrap(dim=2, speed=0.5, stiffness=2.0), 0.8),
    "linear drift": (lambda: problems.LinearDrift(dim=2), 0.7),
    "spiral": (lambda: problems.LinearDrift([[1.0, -2, 0], [2, 1, 0], [0, 1, 2]], [1.0, 0, 0], [1.0, 2, 0]), 0.4),
    "kinetic trap": (lambda: problems.KineticTrap(dim=4), 1.3),
}
BY_PARTICLES = {  # laws known by samples; few of them here
    "mixture": (lambda: problems.GaussianMixture(dim=2, num_particles=2000, dt=0.1), 1.0),
    "mixture of given centres": (
        lambda: problems.GaussianMixture(dim=2, num_particles=2000, dt=0.1, centres=[[0, 3], [1.5, -2]]),
        0.4,
    ),
    "mixture in 1-D": (lambda: problems.GaussianMixture(dim=1, components=2, num_particles=2000, dt=0.1), 0.73),
    "rosenbrock": (lambda: problems.Rosenbrock(dim=3, num_particles=2000), 0.1),
    "funnel": (lambda: problems.Funnel(dim=3, num_particles=2000), 0.1),
    "double banana": (lambda: problems.DoubleBanana(noise=2.0, num_particles=100), 0.007),
}


@pytest.fixture(params=CASES, scope="module")
def falling(request):
    build, t = CASES[request.param]
    return build(), t


@pytest.fixture(params=[*CASES, *DRIVEN], scope="module")
def case(request):
    build, t = {**CASES, **DRIVEN}[request.param]
    return build(), t


@pytest.fixture(params=[*CASES, *DRIVEN, *BY_PARTICLES], scope="module")
def any_case(request):
    build, t = {**CASES, **DRIVEN, **BY_PARTICLES}[request.param]
    return build(), t


@pytest.fixture(params=BY_PARTICLES, scope="module")
def particle_case(request):
    build, t = BY_PARTICLES[request.param]
    return build(), t


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_describes_itself(any_case):
    problem, _ = any_case
    assert problem.name in problems.names()
    assert problem.times.dtype == np.float64
    assert problem.times.ndim == 1
    assert (np.diff(problem.times) > 0).all()
    assert problem.temperature >= 0
    assert problem.convexity is None or math.isfinite(problem.convexity)
    assert problem.reference.dim == problem.dim


def test_samples_have_the_moments_of_the_law(case, generator):
    problem, t = case
    law = problem.exact(t)
    n = 40_000
    x = law.sample(n, generator)
    assert x.shape == (n, problem.dim)
    assert x.dtype == torch.float64
    scale = law.cov().diagonal().sqrt()
    assert float(((x.mean(0) - law.mean()) / scale).abs().max()) < 5 / math.sqrt(n)
    correlation_error = (torch.atleast_2d(torch.cov(x.T)) - law.cov()) / torch.outer(scale, scale)
    assert float(correlation_error.abs().max()) < 12 / math.sqrt(n)
    assert law.log_density(x).shape == (n,)
    assert torch.isfinite(law.log_density(x)).all()


def test_density_has_mass_one(case, generator):
    """∫ρ by importance sampling from a wider Gaussian: no part of the law's own code is used on the other side."""
    problem, t = case
    law = problem.exact(t)
    wide = torch.distributions.MultivariateNormal(law.mean(), 3 * law.cov())
    x = law.mean() + torch.randn(100_000, problem.dim, generator=generator).double() @ wide.scale_tril.T
    ratio = (law.log_density(x) - wide.log_prob(x)).exp()
    if problem.reference.box is not None:  # on a torus the density goes on
        lower, upper = problem.reference.box
        ratio = ratio * ((x >= lower) & (x <= upper)).all(1)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=5 * float(ratio.std()) / math.sqrt(len(x)))


def test_starts_at_the_reference(any_case, generator):
    problem, _ = any_case
    law = problem.exact(float(problem.times[0]))
    z = problem.reference.sample(500, generator)
    assert torch.allclose(law.log_density(z), problem.reference.log_density(z), rtol=1e-10, atol=1e-10)


def test_energy_value_is_that_of_the_energy_on_samples(case, generator):
    """F of the law from the package's energy on exact samples, against the closed form or quadrature."""
    problem, t = case
    law = problem.exact(t)

    class Samples(Cloud):
        @property
        def log_density(self):
            return law.log_density(self.x)

    if not problem.energy.has_value:
        assert problem.exact_energy(t) is None
        return
    values = torch.stack([problem.energy(Samples(law.sample(1000, generator), t)) for _ in range(8)])
    error = float(values.std()) / math.sqrt(len(values))
    assert float(values.mean()) == pytest.approx(problem.exact_energy(t), abs=5 * error + 1e-9)


def test_energy_decreases(falling):
    problem, _ = falling
    if problem.flow != "gradient":
        return  # it turns into kinetic energy and back
    values = [problem.exact_energy(float(t)) for t in problem.times[:: max(1, len(problem.times) // 3)]]
    assert (np.diff(values) < 0).all()


def test_survives_a_round_trip_through_json(any_case, generator):
    problem, t = any_case
    twin = problems.from_config(json.loads(json.dumps(problem.to_config())))
    assert type(twin) is type(problem)
    assert twin.to_config() == problem.to_config()
    law, same = problem.exact(t), twin.exact(t)
    x = law.sample(10, generator)
    assert law.has_density == same.has_density
    if law.has_density:
        assert torch.equal(law.log_density(x), same.log_density(x))
    else:
        assert torch.equal(x, same.sample(10, torch.Generator().manual_seed(0)))


def test_refuses_times_before_the_start_and_wrong_shapes(any_case):
    problem, t = any_case
    for wrong in (float(problem.times[0]) - 0.1, math.nan):
        with pytest.raises(ConfigError, match=rf"{problem.name}\.exact\(t=…\) needs a finite time t ≥"):
            problem.exact(wrong)
    law = problem.exact(t) if problem.exact(t).has_density else problem.equilibrium
    with pytest.raises(ShapeError, match=rf"log_density\((x|z)\): \1 must have shape \(n, {problem.dim}\)"):
        law.log_density(torch.zeros(3, problem.dim + 1))


def test_laws_known_by_particles_have_their_moments_and_no_density(particle_case, generator):
    problem, t = particle_case
    law = problem.exact(t)
    n = problem.num_particles
    x = law.sample(n, generator)
    assert not torch.equal(x, law.particles)
    torch.testing.assert_close(x.mean(0), law.mean())
    torch.testing.assert_close(torch.atleast_2d(torch.cov(x.T)), law.cov())
    assert law.sample(n + 1, generator).shape == (n + 1, problem.dim)
    assert problem.exact_energy(t) is None
    with pytest.raises(ConfigError, match=r"known by Langevin particles, which have no density; .*energy_distance"):
        law.log_density(x)


def test_a_law_known_by_particles_does_not_depend_on_what_was_asked_before(particle_case):
    problem, t = particle_case
    twin = problems.from_config(problem.to_config())
    twin.exact(1.5 * t), twin.exact(0.4 * t)
    assert torch.equal(twin.exact(t).particles, problem.exact(t).particles)
    assert problem.exact(t) is problem.exact(t)


@pytest.mark.parametrize("name", problems.names())
def test_constructors_check_dim_and_entries(name):
    with pytest.raises(ConfigError, match=r"dim must be an integer ≥ 1"):
        problems.from_config({"name": name, "dim": 0})
    with pytest.raises(ConfigError, match=rf"{name}\.from_config: unknown entry 'dims'; it takes .*dim.*Did you mean"):
        problems.from_config({"name": name, "dims": 2})


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ConfigError, match=r"problems\.from_config needs one of the names .*got 'Agregation'.*'Aggregation'"
    ):
        problems.from_config({"name": "Agregation", "dim": 2})


def test_a_missing_entry_is_named():
    with pytest.raises(ConfigError, match=r"StyblinskiTang\.from_config needs the entry 'dim'; got c\. Add it"):
        problems.from_config({"name": "StyblinskiTang", "c": 0.5})


def test_numbers_beyond_all_types_are_refused():
    with pytest.raises(ConfigError, match=r"StyblinskiTang\(c=…\) must be positive and finite; got 1000"):
        problems.from_config({"name": "StyblinskiTang", "dim": 2, "c": 10**400})
    with pytest.raises(ConfigError, match=r"OrnsteinUhlenbeck.* needs shapes .*; got 1000.*not made of numbers"):
        problems.from_config({"name": "OrnsteinUhlenbeck", "dim": 2, "cov": 10**400})
    with pytest.raises(ConfigError, match=r"GaussianMixture\.from_config: no problem has such entries \(.*to_config"):
        problems.from_config({"name": "GaussianMixture", "dim": 2, "components": 10**400})


def test_arguments_of_single_problems_are_checked():
    with pytest.raises(ShapeError, match=r"OrnsteinUhlenbeck\(dim=2, cov, mean\) needs shapes \(2, 2\) and \(2,\)"):
        problems.OrnsteinUhlenbeck(dim=2, cov=torch.eye(3))
    with pytest.raises(ConfigError, match=r"OrnsteinUhlenbeck\(dim=2, cov=…\).*positive definite"):
        problems.OrnsteinUhlenbeck(dim=2, cov=-torch.eye(2))
    with pytest.raises(ConfigError, match=r"OrnsteinUhlenbeck.* needs shapes .*; got \[\[1, 0\], 0\.5\], which is not"):
        problems.OrnsteinUhlenbeck(dim=2, cov=[[1, 0], 0.5])
    with pytest.raises(ConfigError, match=r"StyblinskiTang\(c=…\) must be positive and finite; got -1"):
        problems.StyblinskiTang(dim=1, c=-1)
    with pytest.raises(ConfigError, match=r"BarenblattFlow\(m=…\) needs m > 1; got 1"):
        problems.BarenblattFlow(dim=1, m=1)
    with pytest.raises(ConfigError, match=r"BarenblattFlow\(t0, t1\) needs t1 > t0; got t0=2, t1=1"):
        problems.BarenblattFlow(dim=1, t0=2, t1=1)
    with pytest.raises(ConfigError, match=r"HarmonicHamiltonian\(omega=…\) must be positive and finite; got 0"):
        problems.HarmonicHamiltonian(dim=1, omega=0)
    with pytest.raises(ConfigError, match=r"exact\(t=0\.785398\): at ωt = π/2 \+ kπ the law is a point"):
        problems.HarmonicHamiltonian(dim=1, omega=2).exact(math.pi / 4)
    with pytest.raises(ConfigError, match=r"IsothermalGas\(temperature=…\) must be positive and finite; got -1"):
        problems.IsothermalGas(dim=1, temperature=-1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: problems.NewtonianAggregation(3),
            r"NewtonianAggregation\(dim=…\) must be 2, where −log\|x\| is Newtonian; got 3",
        ),
        (lambda: problems.Aggregation(2, sigma=0), r"Aggregation\(sigma=…\) must be positive and finite; got 0"),
        (
            lambda: problems.GaussianMixture(2, centres=[[1.0, math.nan]]),
            r"GaussianMixture\(centres=…\) must be finite; got NaN or infinite entries in 1 of 1 rows",
        ),
        (lambda: problems.NewtonianAggregation(sigma=0), r"NewtonianAggregation\(sigma=…\) must be positive"),
        (lambda: problems.ConfinedPorousMedium(1, m=1), r"ConfinedPorousMedium\(m=…\) needs m > 1; got 1"),
        (lambda: problems.ConfinedPorousMedium(1, ratio=1), r"ratio=1\) starts at the equilibrium; give another"),
        (lambda: problems.HeatInBox(1, amplitude=1), r"HeatInBox\(amplitude=…\) must lie in \(−1, 1\), .*; got 1"),
        (lambda: problems.HeatInBox(1, temperature=0), r"HeatInBox\(temperature=…\) must be positive"),
        (lambda: problems.Kuramoto(dim=2), r"Kuramoto\(dim=…\): dim must be 1, an angle; got 2\. Leave it out"),
        (lambda: problems.Kuramoto(K=500), r"Kuramoto\(K=…\) must lie between 0 and 200 times the temp.*got 500 and 1"),
        (lambda: problems.Kuramoto(K=-1), r"Kuramoto\(K=…\) must lie between 0 and 200 times"),
        (lambda: problems.Kuramoto(amplitude=0), r"Kuramoto\(amplitude=…\) must lie in \(−1, 1\), and not be 0; got 0"),
        (
            lambda: problems.GaussianMixture(2, components=0),
            r"GaussianMixture\(components=…\) must be an integer ≥ 1; got 0",
        ),
        (
            lambda: problems.GaussianMixture(2, span=-1),
            r"GaussianMixture\(span=…\) must be positive and finite; got -1",
        ),
        (
            lambda: problems.GaussianMixture(2, centres=[[0.0, math.nan]]),
            r"GaussianMixture\(centres=…\) must be finite; got NaN or infinite entries in 1 of 1 rows",
        ),
        (lambda: problems.Aggregation(2, sigma=0), r"Aggregation\(sigma=…\) must be positive and finite; got 0"),
        (lambda: problems.GaussianMixture(2, seed=1.5), r"GaussianMixture\(seed=…\) must be an integer ≥ 0; got 1\.5"),
        (lambda: problems.GaussianMixture(2, dt=0), r"GaussianMixture\(dt=…\) must be positive and finite; got 0"),
        (lambda: problems.Funnel(2, num_particles=1), r"Funnel\(num_particles=…\) must be an integer ≥ 2; got 1"),
        (lambda: problems.Funnel(2, particle_seed=-1), r"Funnel\(particle_seed=…\) must be an integer ≥ 0; got -1"),
        (lambda: problems.Funnel(1), r"Funnel\(dim=…\) needs d ≥ 2, a scale and a coordinate that has it; got 1"),
        (lambda: problems.Rosenbrock(1), r"Rosenbrock\(dim=…\) needs d ≥ 2, a coordinate that bends.*; got 1"),
        (lambda: problems.Rosenbrock(2, mu=math.inf), r"Rosenbrock\(mu=…\) needs a finite number; got inf"),
        (lambda: problems.Rosenbrock(2, b=0), r"Rosenbrock\(b=…\) must be positive and finite; got 0"),
        (lambda: problems.DoubleBanana(3), r"DoubleBanana\(dim=…\) must be 2; got 3"),
        (
            lambda: problems.DoubleBanana(observation="a"),
            r"DoubleBanana\(observation=…\) needs a finite number; got 'a'",
        ),
    ],
)
def test_arguments_of_problems_with_particles_are_checked(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
