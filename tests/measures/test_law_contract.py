"""What every law promises: references, exact answers of problems, and runs at a time, looped over all of them."""

import functools
import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps, problems
from pwgf.errors import ConfigError, NonFiniteError, ShapeError
from pwgf.measures import CosineSeries, Law, PushedLaw, Reference

COV = [[2.0, 0.6], [0.6, 1.0]]
SPRING = energies.Potential(lambda x: 0.5 * (x - 1).square().sum(-1)) + energies.Entropy()
N = 20_000


def unnormalised():
    """The standard logistic law by its functions."""

    def draw(n, generator):
        return torch.rand(n, 1, generator=generator, dtype=torch.float64).clamp_min(1e-300).logit()

    return pwgf.Unnormalised(lambda z: (-z - 2 * torch.nn.functional.softplus(-z)).sum(-1), draw, 1)


REFERENCES = {
    "Gaussian": lambda: pwgf.Gaussian(2, [1.0, -2.0], COV),
    "Gaussian on a line": lambda: pwgf.Gaussian(1, 0.5, 2.0),
    "Barenblatt": lambda: pwgf.Barenblatt(2, 2.0, 0.7),
    "Barenblatt on a line": lambda: pwgf.Barenblatt(1, 3.0, 1.0),
    "UniformBall": lambda: pwgf.UniformBall(3, 1.5),
    "UniformBall on a line": lambda: pwgf.UniformBall(1, 1.5),
    "UniformBox": lambda: pwgf.UniformBox([-1.0, 0.0, 2.0], [1.0, 0.5, 5.0]),
    "UniformBox on a line": lambda: pwgf.UniformBox(-1.0, 2.0),
    "CosineSeries": lambda: CosineSeries([0.0, -2.0], [1.0, 3.0], [0.4, -0.3, 0.1]),
    "CosineSeries on a line": lambda: CosineSeries(0.0, 1.0, [0.9]),
    "Unnormalised": unnormalised,
}
PROBLEMS = {  # the time at which the law is asked for
    "OrnsteinUhlenbeck": (lambda: problems.OrnsteinUhlenbeck(2, cov=COV), 0.4),
    "StyblinskiTang": (lambda: problems.StyblinskiTang(1), 0.5),
    "BarenblattFlow": (lambda: problems.BarenblattFlow(1), 1.7),
    "Aggregation": (lambda: problems.Aggregation(1), 0.5),
    "NewtonianAggregation": (lambda: problems.NewtonianAggregation(), 0.5),
    "ConfinedPorousMedium": (lambda: problems.ConfinedPorousMedium(1), 0.2),
    "HeatInBox": (lambda: problems.HeatInBox(2), 0.05),
    "Kuramoto": (lambda: problems.Kuramoto(), 1.0),
    "MovingTrap": (lambda: problems.MovingTrap(2), 0.7),
    "LinearDrift": (lambda: problems.LinearDrift(dim=2), 0.7),
    "KineticTrap": (lambda: problems.KineticTrap(2), 0.7),
    "HarmonicHamiltonian": (lambda: problems.HarmonicHamiltonian(2), 0.4),
    "IsothermalGas": (lambda: problems.IsothermalGas(2), 0.7),
    "GaussianMixture": (lambda: problems.GaussianMixture(2, num_particles=N, dt=0.1), 0.3),
    "Rosenbrock": (lambda: problems.Rosenbrock(2, num_particles=500), 0.02),
    "Funnel": (lambda: problems.Funnel(2, num_particles=500), 0.02),
    "DoubleBanana": (lambda: problems.DoubleBanana(noise=2.0, num_particles=500), 0.002),
}


def equilibrium(name):
    return PROBLEMS[name][0]().equilibrium


def solved(make, times=(0.0, 0.1)):
    return pwgf.solve(make(), list(times), seed=3, progress=False)


def by_pwgf(dim=2, map=None, **settings):
    map = maps.Affine(dim) if map is None else map
    return pwgf.PWGF(SPRING, map, pwgf.Gaussian(dim, 0.5), num_samples=64, num_eval=64, **settings)


def pushed():
    map = maps.ResidualMLP(2, width=8)
    theta = map.initial() + 0.05 * torch.randn(map.num_params, generator=seeded(), dtype=torch.float64)
    return PushedLaw(map, pwgf.Gaussian(2), theta)


RUNS = {
    "PWGF": lambda: solved(by_pwgf).at(0.1),
    "PWGF between rows": lambda: solved(by_pwgf).at(0.03),
    "PWGF on a line": lambda: solved(lambda: by_pwgf(1, maps.ResidualMLP(1, width=8))).at(0.1),
    "PWGF in float32": lambda: solved(lambda: by_pwgf(dtype=torch.float32)).at(0.1),
    "EulerMaruyama": lambda: solved(
        lambda: pwgf.EulerMaruyama(SPRING, pwgf.Gaussian(2), num_samples=N, dt=0.05)
    ).at(0.1),
    "FittedParticles": lambda: solved(lambda: pwgf.FittedParticles(SPRING, pwgf.Gaussian(2), num_samples=N)).at(0.1),
    "FittedParticles between rows": lambda: solved(
        lambda: pwgf.FittedParticles(SPRING, pwgf.Gaussian(2), num_samples=N)
    ).at(0.03),
    "SWJKO": lambda: solved(
        lambda: pwgf.SWJKO(SPRING, maps.Affine(2), pwgf.Gaussian(2), tau=0.1, num_samples=64, max_iterations=5)
    ).at(0.1),
    "SWJKO by particles": lambda: solved(
        lambda: pwgf.SWJKO(
            energies.Potential(lambda x: x.square().sum(-1)), None, pwgf.Gaussian(2), tau=0.1, num_samples=500,
            max_iterations=5,
        )
    ).at(0.1),
    "JKOICNN": lambda: solved(
        lambda: pwgf.JKOICNN(SPRING, pwgf.Gaussian(2), h=0.1, width=4, num_samples=64, max_iterations=10)
    ).at(0.05),
    "PushedLaw": pushed,
    "PWGF from a ball": lambda: solved(
        lambda: pwgf.PWGF(
            energies.Potential(lambda x: x.square().sum(-1)), maps.Affine(2), pwgf.UniformBall(2), num_samples=64,
            num_eval=64,
        )
    ).at(0.1),
}  # fmt: skip
LAWS = {
    **REFERENCES,
    **{f"exact {name}": lambda name=name: PROBLEMS[name][0]().exact(PROBLEMS[name][1]) for name in PROBLEMS},
    **{f"start of {name}": lambda name=name: at_start(name) for name in ("StyblinskiTang", "Funnel")},
    **{f"limit of {name}": lambda name=name: equilibrium(name) for name in list(PROBLEMS)[13:]},
    **{f"run by {name}": make for name, make in RUNS.items()},
}


def at_start(name):
    problem = PROBLEMS[name][0]()
    return problem.exact(float(problem.times[0]))


@functools.cache
def built(name) -> Law:
    return LAWS[name]()


DENSE = [name for name in LAWS if name not in ("run by EulerMaruyama", "run by SWJKO by particles")]
DENSE = [name for name in DENSE if not name.startswith("exact") or name in [f"exact {p}" for p in list(PROBLEMS)[:13]]]
ON_A_LINE = {  # with ends of the support, or of what counts
    "Gaussian on a line": 12.0,
    "Barenblatt on a line": 4.0,
    "UniformBall on a line": 2.0,
    "UniformBox on a line": 2.5,
    "Unnormalised": 60.0,
    "exact StyblinskiTang": 8.0,
    "exact BarenblattFlow": 4.0,
    "exact Aggregation": 4.0,
    "exact ConfinedPorousMedium": 4.0,
    "exact Kuramoto": math.pi,
    "CosineSeries on a line": 1.5,
    "start of StyblinskiTang": 12.0,
    "run by PWGF on a line": 7.0,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dtype_of(law):
    return torch.float32 if law is built("run by PWGF in float32") else torch.float64


@pytest.fixture(params=LAWS)
def law(request):
    return built(request.param)


@pytest.fixture(params=DENSE)
def dense(request):
    return built(request.param)


def test_every_problem_is_here():
    assert sorted(PROBLEMS) == sorted(problems.names())


def test_the_laws_without_a_density_say_so(law):
    assert law.has_density == (law in [built(name) for name in DENSE])


def test_samples_follow_the_seed(law):
    x = law.sample(7, 5)
    assert isinstance(law, Law)
    assert x.shape == (7, law.dim)
    assert x.dtype == dtype_of(law)
    assert not x.requires_grad
    assert torch.equal(law.sample(7, seed=5), x)
    assert torch.equal(law.sample(7, np.int64(5)), x)
    assert torch.equal(law.sample(7, seeded(5)), x)
    assert torch.equal(law.sample(7), law.sample(7, 0))
    assert not torch.equal(law.sample(7, 6), x)
    generator = seeded(5)
    law.sample(7, generator)
    assert not torch.equal(law.sample(7, generator), x)  # it is moved on


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True])
def test_other_seeds_are_refused(law, seed):
    with pytest.raises(ConfigError, match=r"sample\(seed=…\) must be an integer in \[0, 2⁶³\) or a torch\.Generator"):
        law.sample(3, seed)


def test_moments_are_those_of_the_samples(law):
    """Within five standard errors of as many samples; heavier tails than a Gaussian's are seen in the fourth moment."""
    mean, cov, x = law.mean(), law.cov(), law.sample(N, 1).double()
    assert (mean.shape, cov.shape) == ((law.dim,), (law.dim, law.dim))
    assert mean.dtype == cov.dtype == torch.float64
    off = x - x.mean(0)
    assert float(((x.mean(0) - mean) / (off.std(0) / math.sqrt(N))).abs().max()) < 6
    products = off.unsqueeze(2) * off.unsqueeze(1)
    error = products.reshape(N, -1).std(0).view_as(cov) / math.sqrt(N)
    assert float(((products.mean(0) - cov) / error).abs().max()) < 6


def test_densities_have_their_shapes_and_take_arrays(dense):
    x = dense.sample(6, 2)
    log_density, score = dense.log_density(x), dense.score(x)
    assert (log_density.shape, score.shape) == ((6,), (6, dense.dim))
    assert log_density.dtype == score.dtype == dtype_of(dense)
    assert torch.isfinite(log_density).all()
    assert not score.requires_grad
    torch.testing.assert_close(dense.log_density(x.numpy()), log_density)
    torch.testing.assert_close(dense.score(x.numpy()), score)
    torch.testing.assert_close(dense.log_density(x.float()).double(), log_density.double(), rtol=1e-3, atol=1e-3)
    whole = np.zeros((2, dense.dim), dtype=np.int64) + x.round().long().numpy()[:1]
    torch.testing.assert_close(dense.log_density(whole), dense.log_density(torch.from_numpy(whole).to(x)))


def test_points_of_another_shape_are_refused(dense):
    for wrong in (torch.zeros(3, dense.dim + 1), torch.zeros(dense.dim), np.zeros((2, 3, dense.dim))):
        for ask in (dense.log_density, dense.score):
            with pytest.raises(ShapeError, match=rf"x|z must have shape \(n, {dense.dim}\)"):
                ask(wrong)


def test_the_score_is_the_slope_of_the_log_density(dense):
    """By central differences at samples; in float32 with a longer step."""
    x, single = dense.sample(5, 4), dtype_of(dense) == torch.float32
    h = 1e-2 if single else 1e-5
    slopes = []
    for k in range(dense.dim):
        e = torch.zeros(dense.dim, dtype=x.dtype)
        e[k] = h
        slopes.append((dense.log_density(x + e) - dense.log_density(x - e)) / (2 * h))
    torch.testing.assert_close(dense.score(x), torch.stack(slopes, 1), rtol=2e-2 if single else 1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_A_LINE)
def test_the_density_has_mass_one(name):
    x = torch.linspace(-ON_A_LINE[name], ON_A_LINE[name], 200_001, dtype=torch.float64)
    if name.startswith("run"):
        x = x[::100]
    mass = torch.trapezoid(built(name).log_density(x[:, None]).exp(), x)
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


def test_every_dense_law_on_a_line_is_here():
    assert sorted(ON_A_LINE) == sorted(name for name in DENSE if built(name).dim == 1)


def test_nothing_is_at_infinity(dense):
    """log ρ = −∞ in any direction, beside rows that are finite; a score does not exist there."""
    x = dense.sample(4, 3)
    x[0], x[1], x[2, 0] = math.inf, -math.inf, math.inf
    log_density = dense.log_density(x)
    assert log_density[:3].tolist() == [-math.inf] * 3
    torch.testing.assert_close(log_density[3:], dense.log_density(x[3:]))
    with pytest.raises(
        (NonFiniteError, ConfigError), match=r"log ρ has no gradient at \d of|must be finite; got NaN or inf"
    ):
        dense.score(x)
    with pytest.raises((NonFiniteError, ConfigError), match=r"in row 0|at row 0|no gradient at 1 of 1"):
        dense.score(torch.full((1, dense.dim), math.nan, dtype=x.dtype))


@pytest.mark.parametrize(
    "name", ["Barenblatt", "UniformBall", "UniformBox", "CosineSeries", "exact Aggregation", "run by PWGF from a ball"]
)
def test_a_score_outside_the_support_is_refused(name):
    outside = torch.full((1, built(name).dim), 9.0)
    assert built(name).log_density(outside).tolist() == [-math.inf]
    with pytest.raises(NonFiniteError, match=r"ρ vanishes there\. Keep the rows where log_density\(x\) is finite"):
        built(name).score(outside)


@pytest.mark.parametrize("name", [name for name in LAWS if name not in DENSE])
def test_particles_refuse_a_density(name):
    x = torch.zeros(2, built(name).dim, dtype=torch.float64)
    for ask in (built(name).log_density, built(name).score):
        with pytest.raises(ConfigError, match=r"particles, which have no (density|score); .*|compare samples"):
            ask(x)


@pytest.mark.parametrize("name", REFERENCES)
def test_references_have_matched_samples(name):
    law = built(name)
    assert isinstance(law, Reference)
    z = law.matched_sample(50, 1)
    assert z.shape == (50, law.dim)
    assert torch.equal(law.matched_sample(50, seeded(1)), z)


def test_a_run_gives_the_same_law_from_its_file(tmp_path):
    run = pwgf.solve(by_pwgf(), [0.0, 0.1], out=tmp_path / "run.h5", progress=False)
    ours, stored = run.at(0.05), pwgf.load(tmp_path / "run.h5").at(0.05)
    x = ours.sample(5)
    assert torch.equal(x, run.sample(0.05, 5))
    for ask in ("sample", "log_density", "score"):
        argument = 5 if ask == "sample" else x
        assert torch.equal(getattr(stored, ask)(argument), getattr(ours, ask)(argument))
    assert torch.equal(stored.log_density(x), run.log_density(0.05, x))
    assert torch.equal(stored.cov(), ours.cov())
    assert float(pwgf.distances.sym_kl(ours, stored, n=100)) == 0.0


def test_an_affine_run_has_exact_moments():
    """Mean A m + b and covariance A Aᵀ, with A and b read off from the map itself."""
    law = built("run by PWGF")
    corners = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    pushed = solved(by_pwgf).push(0.1, corners)
    A, b = (pushed[1:] - pushed[0]).T, pushed[0]
    torch.testing.assert_close(law.mean(), A @ torch.full((2,), 0.5, dtype=torch.float64) + b, rtol=0, atol=1e-10)
    torch.testing.assert_close(law.cov(), A @ A.T, rtol=2e-5, atol=0)


def test_a_time_outside_the_run_is_refused_at_once():
    run = solved(by_pwgf)
    with pytest.raises(ConfigError, match=r"lies outside the run, which goes from 0 to 0\.1"):
        run.at(0.2)
    with pytest.raises(ConfigError, match=r"need a number for t; got 'soon'"):
        run.at("soon")


def test_a_reference_of_ones_own_needs_three_things():
    class Laplace(Reference):
        dim = 1

        def sample(self, n, seed=0):
            generator = seed if isinstance(seed, torch.Generator) else seeded(seed)
            u = torch.rand(n, 1, generator=generator, dtype=torch.float64) - 0.5
            return -u.sign() * torch.log1p(-2 * u.abs())

        def log_density(self, z):
            return -z.abs().sum(-1) - math.log(2)

    law = Laplace()
    x = law.sample(4)
    assert torch.equal(law.score(x), -x.sign())
    assert float(law.cov()) == pytest.approx(2.0, rel=5 * math.sqrt(5 / 100_000))  # Var x² = 20 = 5·(Var x)²
    assert float(law.mean()) == pytest.approx(0.0, abs=5 * math.sqrt(2 / 100_000))
    assert torch.equal(law.matched_sample(4), x)
    scheme = pwgf.PWGF(SPRING, maps.Affine(1), law, num_samples=20, num_eval=20)
    assert pwgf.solve(scheme, [0.0, 0.05], progress=False).at(0.05).sample(3).shape == (3, 1)
