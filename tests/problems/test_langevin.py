"""Laws by Langevin particles and the targets behind them: closed forms, quadrature, and π left as it is."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad

from pwgf import distances, problems
from pwgf.errors import NonFiniteError, ShapeError
from pwgf.measures import Unnormalised
from pwgf.oracles import finite_volume


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def as_reference(law):
    return Unnormalised(law.log_density, law.sample, law.dim)


def test_a_single_component_is_an_ornstein_uhlenbeck_flow():
    """π = N(m, I) from N(0, 16 I): mean m(1 − e^{−t}), variance 1 + 15 e^{−2t}; Heun's error is far below the noise."""
    n, t = 20_000, 0.75
    problem = problems.GaussianMixture(dim=3, components=1, num_particles=n, dt=0.05)
    law, var = problem.exact(t), 1 + 15 * math.exp(-2 * t)
    exact = problem.centres[0] * (1 - math.exp(-t))
    assert float((law.mean() - exact).abs().max()) < 4.5 * math.sqrt(var / n)
    assert float((law.cov() / var - torch.eye(3)).abs().max()) < 4.5 * math.sqrt(2 / n)
    assert problem.convexity == pytest.approx(1.0)


def test_a_mixture_in_1_d_moves_like_finite_volumes():
    problem = problems.GaussianMixture(dim=1, components=2, span=4, seed=3, num_particles=20_000, dt=0.05)
    grid = np.linspace(-25, 25, 4001)
    values = -problem.log_target(torch.from_numpy(grid)[:, None]).numpy()
    start = np.exp(-(grid**2) / 32)
    rho = finite_volume.fokker_planck(grid, values, start / start.sum(), 1.2)
    below = np.cumsum(rho) / rho.sum()
    particles = problem.exact(1.2).particles[:, 0]
    assert scipy.stats.kstest(particles, lambda x: np.interp(x, grid, below)).pvalue > 1e-4


@pytest.mark.parametrize(
    "problem",
    [
        problems.Rosenbrock(3, num_particles=4000),
        problems.Funnel(3, scale=1.5, num_particles=4000),
        problems.DoubleBanana(noise=0.5, num_particles=4000),
    ],
    ids=lambda problem: problem.name,
)
def test_the_target_is_left_as_it_is(problem, monkeypatch):
    """Particles that start from exact samples of π still have its law: the stiff steps are fine enough."""
    target = problem.equilibrium
    monkeypatch.setattr(type(problem), "reference", property(lambda self: as_reference(target)))
    moved = problem.exact(0.03).particles
    fresh = target.sample(4000, seeded(5))
    assert float((moved - target.sample(4000, seeded(problem.particle_seed))).norm()) > 1
    for of in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1], target.log_density):
        assert scipy.stats.ks_2samp(of(moved).numpy(), of(fresh).numpy()).pvalue > 1e-4


TARGETS = [
    problems.GaussianMixture(2), problems.GaussianMixture(32), problems.Rosenbrock(3), problems.Funnel(3, scale=1.0),
    problems.DoubleBanana(),
]  # fmt: skip


@pytest.mark.parametrize("problem", TARGETS, ids=lambda problem: f"{problem.name}-{problem.dim}")
def test_equilibria_have_the_stated_moments_and_mass_one(problem):
    law, n = problem.equilibrium, 100_000
    x = law.sample(n, seeded(1))
    unit = (x - law.mean()) / law.cov().diagonal().sqrt()
    assert float(unit.mean(0).abs().max()) < 5 / math.sqrt(n)
    kurtosis = unit.pow(4).mean(0).sqrt()
    assert float(
        ((torch.cov(x.T) - law.cov()).diagonal() / law.cov().diagonal() / kurtosis).abs().max()
    ) < 5 / math.sqrt(n)
    # E_x ∫k(x,y) π(y)/π(x) dy = ∫π = 1 for a symmetric kernel k and x ~ π: the density is that of the samples
    y = x + 0.05 * torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    ratio = (law.log_density(y) - law.log_density(x)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(n))


def test_targets_are_normalised_by_quadrature():
    mixture, funnel, rosenbrock = problems.GaussianMixture(1), problems.Funnel(2), problems.Rosenbrock(2)

    def density(problem, *x):
        return math.exp(float(problem.log_target(torch.tensor([x], dtype=torch.float64))))

    assert quad(lambda x: density(mixture, x), -20, 20, limit=200)[0] == pytest.approx(1, rel=1e-8)
    # given x₁ the other coordinate is normal: its integral leaves the marginal of x₁
    neck = quad(lambda x: density(funnel, -2.0, x), -5, 5)[0]
    assert neck == pytest.approx(scipy.stats.norm(0, 3).pdf(-2.0), rel=1e-8)
    valley = quad(lambda x: density(rosenbrock, 1.5, x), -1, 6)[0]
    assert valley == pytest.approx(scipy.stats.norm(1, math.sqrt(10)).pdf(1.5), rel=1e-8)
    banana = problems.DoubleBanana()
    grid = torch.linspace(-4, 4, 1500, dtype=torch.float64)
    mass = banana.equilibrium.log_density(torch.cartesian_prod(grid, grid)).exp().sum() * (8 / 1499) ** 2
    assert float(mass) == pytest.approx(1, rel=1e-4)  # N(0, I) leaves 1e-4 beyond ±4


@pytest.mark.parametrize("problem", TARGETS[2:], ids=lambda problem: problem.name)
def test_curvature_bounds_the_second_derivative(problem):
    x = torch.randn(50, problem.dim, generator=seeded(4), dtype=torch.float64)
    hessian = torch.func.vmap(torch.func.hessian(lambda z: problem.log_target(z[None])[0]))(x)
    largest = torch.linalg.eigvalsh(hessian).abs().max(1).values
    assert bool((problem.curvature(x) >= largest).all())


def test_masses_of_components():
    problem = problems.GaussianMixture(dim=2, components=4, span=30, seed=1)
    x = problem.centres[torch.tensor([0, 0, 3, 1])] + 0.1
    assert problem.assign(x).tolist() == [0, 0, 3, 1]
    assert problem.masses(x).tolist() == [0.5, 0.25, 0, 0.25]
    assert torch.equal(problem.assign(x), torch.cdist(x, problem.centres).argmin(1))
    with pytest.raises(ShapeError, match=r"GaussianMixture\.assign\(x\): x must have shape \(n, 2\)"):
        problem.masses(torch.zeros(3, 1))


def test_the_study_s_spans():
    assert [problems.GaussianMixture(d).span for d in (2, 12, 32)] == [5.0, 5.0, 3.0]
    assert float(problems.GaussianMixture(32, components=50).centres.abs().max()) <= 3


def test_a_long_flow_reaches_the_target():
    problem = problems.GaussianMixture(dim=2, components=2, span=1, num_particles=4000, dt=0.1)
    fresh = problem.equilibrium.sample(4000, seeded(9))
    floor = distances.floor(distances.energy_distance, problem.equilibrium.sample, 4000, repeats=3)
    assert float(distances.energy_distance(problem.exact(10.0).particles, fresh)) < 4 * floor


def test_an_unstable_step_is_told(monkeypatch):
    problem = problems.Rosenbrock(dim=2, num_particles=10, dt=1.0)
    monkeypatch.setattr(problem, "curvature", lambda x: x.new_zeros(len(x)))  # steps are not split
    with pytest.raises(NonFiniteError, match=r"of 10 Langevin particles are NaN .*Rosenbrock\(…, dt=0\.25\)"):
        problem.exact(20.0)
