"""Whole runs against exact laws: Ornstein–Uhlenbeck, Barenblatt, aggregation, and Styblinski–Tang by finite volumes."""

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import trapezoid

import pwgf
from pwgf import distances, energies, maps, problems
from pwgf.oracles import finite_volume


def sym_kl(run, problem, t, n=4000):
    generator = torch.Generator().manual_seed(11)
    return float(distances.sym_kl(run.at(t), problem.exact(t), n, generator))


def solved(problem, map, times, **settings):
    settings = {"num_samples": 200, "num_eval": 1000, **settings}
    return pwgf.solve(pwgf.PWGF(problem.energy, map, problem.reference, **settings), times, seed=1, progress=False)


def tilted(dim):
    """An Ornstein–Uhlenbeck flow with correlations and unequal scales."""
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    return problems.OrnsteinUhlenbeck(dim, cov=a @ a.T / dim + 0.3 * torch.eye(dim), mean=torch.linspace(-1, 2, dim))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "family", [maps.Affine, lambda dim: maps.ResidualMLP(dim, width=16)], ids=["affine", "residual"]
)
def test_ornstein_uhlenbeck(dim, family):
    problem = tilted(dim)
    run = solved(problem, family(dim), [0.0, 0.3, 1.0])
    for t in (0.3, 1.0):
        assert sym_kl(run, problem, t) < 1e-5
        k = int(np.flatnonzero(run.t == t)[0])
        assert abs(run["energy"][k] - problem.exact_energy(t)) < 4 * run["energy_stderr"][k] + 1e-4


def test_ornstein_uhlenbeck_by_the_affine_map_in_closed_form():
    """Mean and covariance of the affine map are those of θ = [A b]; no samples are needed to compare."""
    problem = tilted(3)
    run = solved(problem, maps.Affine(3), [0.0, 0.5], tolerance=1e-5)
    w = run.theta(0.5).view(3, 4)
    law = problem.exact(0.5)
    assert float(distances.gaussian_sym_kl(w[:, 3], w[:, :3] @ w[:, :3].T, law.mean(), law.cov())) < 1e-6
    assert float(distances.bures_w2(w[:, 3], w[:, :3] @ w[:, :3].T, law.mean(), law.cov())) < 1e-4


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "family", [maps.Affine, lambda dim: maps.ResidualMLP(dim, width=16)], ids=["affine", "residual"]
)
def test_barenblatt(dim, family):
    """The exact map is x ↦ (t/t₀)^b x, so on the same z the second moment grows by (t/t₀)^{2b}."""
    problem = problems.BarenblattFlow(dim, m=2)
    # Implicit steps, with which a run starts, are made to 1e-3 by default and leave 1.3e-4 here; 3e-5 leaves 3e-5.
    run = solved(problem, family(dim), [1.0, 1.5, 2.0], num_samples=300, tolerance=3e-5)
    z = problem.reference.sample(10_000, torch.Generator().manual_seed(1))
    for t in (1.5, 2.0):
        growth = float(run.push(t, z).square().sum() / z.square().sum())
        assert growth == pytest.approx(t ** (2 / (dim + 2)), rel=1e-4)


@pytest.mark.parametrize("family", [maps.ResidualMLP, maps.ConvexRidge])
def test_porous_medium_from_a_gaussian(family):
    """Not self-similar; ∫|ρ − ρ*| dx against finite volumes."""
    grid = np.linspace(-7, 7, 1401)
    moving = pwgf.PWGF(energies.PorousMedium(2), family(1), pwgf.Gaussian(1), num_samples=500, num_eval=1000)
    run = pwgf.solve(moving, [0.0, 0.5], seed=1, progress=False)
    exact = finite_volume.porous_medium(grid, np.zeros_like(grid), scipy.stats.norm.pdf(grid), 0.5, steps=100)
    ours = run.log_density(0.5, torch.from_numpy(grid).unsqueeze(1)).exp().numpy()
    assert trapezoid(np.abs(ours - exact), grid) < 2e-3


def test_the_gradient_flow_of_the_fisher_information_spreads_a_gaussian():
    """F = E|∇ log ρ|² (8·FisherInformation()) has v = 2C⁻²x on N(0, C): the fourth power of the spread is 1 + 8t."""
    moving = pwgf.PWGF(8 * energies.FisherInformation(), maps.Affine(1), pwgf.Gaussian(1), num_samples=50, num_eval=50)
    run = pwgf.solve(moving, [0.0, 0.2, 1.0], progress=False)
    assert np.allclose([float(run.at(t).cov()) ** 2 for t in run.t], 1 + 8 * run.t, rtol=1e-3)


def aggregation_error(t, **settings):
    problem = problems.Aggregation(2)
    run = solved(problem, maps.ResidualMLP(2, width=settings.pop("width")), [0.0, t], **settings)
    z = problem.reference.matched_sample(20_000, torch.Generator().manual_seed(1))
    return float(run.push(t, z).square().sum(1).mean()) / 2 - problem.map(t).second_moment / 2


def test_aggregation():
    """The pairwise average over n samples is off by about 1/n."""
    assert abs(aggregation_error(0.1, width=16, num_samples=400)) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.1, 0.5])
def test_aggregation_towards_the_ring(t):
    assert abs(aggregation_error(t, width=32, num_samples=1000)) < 1e-3


def test_styblinski_tang_in_one_dimension():
    problem = problems.StyblinskiTang(1, c=0.06)
    run = solved(problem, maps.ResidualMLP(1), [0.0, 0.5], num_samples=1000)
    z = torch.from_numpy(scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000))[
        :, None
    ]  # quantiles: no sampling noise
    x, marginal = run.push(0.5, z)[:, 0], problem.marginal(0.5)
    assert float(x.mean()) == pytest.approx(marginal.mean, abs=0.03)
    assert float(x.var()) == pytest.approx(marginal.var, rel=0.01)
    assert float((x < 0.157).double().mean()) == pytest.approx(marginal.probability_below(0.157), abs=0.01)
    assert sym_kl(run, problem, 0.5) < 1e-3
    assert run["fold_fraction"].max() == 0


@pytest.mark.slow
def test_styblinski_tang_in_two_dimensions():
    problem = problems.StyblinskiTang(2, c=0.06)
    run = solved(problem, maps.ResidualMLP(2), [0.0, 0.5], num_samples=1000, num_eval=20_000)
    assert sym_kl(run, problem, 0.5) < 1e-2
    assert abs(run["energy"][1] - problem.exact_energy(0.5)) < 4 * run["energy_stderr"][1] + 0.01
    assert run["fold_fraction"].max() == 0


@pytest.mark.parametrize("dim", [1, 2])
def test_heat_in_a_box(dim):
    problem = problems.HeatInBox(dim)
    map = maps.InBox(maps.ResidualMLP(dim, width=16), 0.0, 1.0)
    run = solved(problem, map, [0.0, 0.05, 0.1])
    for t in (0.05, 0.1):
        assert sym_kl(run, problem, t) < 1e-5
        x = run.sample(t, 5000)
        assert bool(((x >= 0) & (x <= 1)).all())


@pytest.mark.slow
def test_heat_in_a_box_in_five_dimensions():
    problem = problems.HeatInBox(5)
    run = solved(problem, problem.needed_map, [0.0, 0.1], num_samples=400)
    assert sym_kl(run, problem, 0.1) < 1e-4


@pytest.mark.parametrize(("K", "t"), [(4.0, 0.5), (1.0, 1.0)])
def test_the_order_parameter_of_oscillators_above_and_below_the_onset(K, t):
    problem = problems.Kuramoto(K=K)
    run = solved(problem, problem.needed_map, [0.0, t], num_samples=500)
    z = problem.reference.matched_sample(2**14)
    assert float(run.push(t, z).cos().mean()) == pytest.approx(problem.order_parameter(t), rel=0.01)
    assert sym_kl(run, problem, t) < 1e-3


def test_newtonian_aggregation_sample_by_sample():
    """Each sample against its exact image, within 2 % (rms)."""
    problem = problems.NewtonianAggregation()
    run = solved(problem, maps.ResidualMLP(2), [0.0, 0.5], num_samples=300)
    z = problem.reference.sample(5000, 3)
    exact = problem.exact(0.5).moved(z)
    assert float((run.push(0.5, z) - exact).norm() / exact.norm()) < 0.02


def test_confined_porous_medium():
    problem = problems.ConfinedPorousMedium(1)
    run = solved(problem, maps.Affine(1), [0.0, 0.5])
    z = problem.reference.sample(5000, 3)
    exact = z * problem.exact(0.5).radius / problem.reference.radius
    assert float((run.push(0.5, z) - exact).norm() / exact.norm()) < 1e-3
