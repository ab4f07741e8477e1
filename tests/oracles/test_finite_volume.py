"""The one-dimensional oracle against Chebyshev collocation, equilibria, the Ornstein–Uhlenbeck flow and Barenblatt."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.polynomial import Chebyshev
from scipy.integrate import quad

from pwgf import problems
from pwgf.errors import ConfigError, ShapeError, SolverError
from pwgf.measures import Barenblatt
from pwgf.oracles import finite_volume


def chebyshev_law(c, t, degree=200, half_width=6.0):
    """Polynomial density at t by collocation and the matrix exponential: nothing in common with finite volumes."""
    k = np.arange(degree + 1)
    nodes = np.cos(np.pi * k / degree)
    scale = np.r_[2, np.ones(degree - 1), 2] * (-1.0) ** k
    difference = np.outer(scale, 1 / scale) / (nodes[:, None] - nodes[None] + np.eye(degree + 1))
    difference = (difference - np.diag(difference.sum(1))) / half_width
    x = nodes * half_width
    drift = np.diag(c * (4 * x**3 - 32 * x + 5))
    generator = (difference @ (difference + drift))[1:-1, 1:-1]  # the density vanishes at the ends
    density = np.zeros(degree + 1)
    density[1:-1] = scipy.linalg.expm(t * generator) @ (np.exp(-(x[1:-1] ** 2) / 2) / math.sqrt(2 * math.pi))
    return Chebyshev.fit(x, density, degree, domain=[-half_width, half_width])


@pytest.mark.parametrize(("c", "t"), [(0.06, 0.25), (0.06, 1.0), (0.2, 0.3)])
def test_styblinski_tang_matches_collocation(c, t):
    density = chebyshev_law(c, t)
    marginal = problems.StyblinskiTang(1, c).marginal(t)
    x = np.linspace(-4, 4, 41)
    assert np.exp(marginal.log_density(torch.from_numpy(x)).numpy()) == pytest.approx(density(x), abs=1e-7)
    grid = Chebyshev([0, 6], domain=[-6, 6])
    mean = (grid * density).integ(lbnd=-6)(6)
    second = (grid * grid * density).integ(lbnd=-6)(6)
    # Collocation cuts N(0, 1) off at ±6: 2e-9 of the mass.
    assert marginal.mean == pytest.approx(mean, abs=1e-7)
    assert marginal.var == pytest.approx(second - mean**2, abs=3e-7)
    assert marginal.probability_below(0.157) == pytest.approx(density.integ(lbnd=-6)(0.157), abs=1e-7)


@pytest.mark.parametrize(
    ("c", "t", "energy", "mean", "var"),
    [
        (0.06, 0.25, -3.31497, -0.08268, 2.24997),
        (0.06, 0.5, -4.04050, -0.16642, 3.53598),
        (0.06, 1.0, -4.69459, -0.29202, 5.40994),
        (0.06, 2.0, -4.93856, -0.40369, 6.80576),
        (0.5, 0.16, -29.47251, -0.38253, 6.07874),
        (0.5, 0.32, -32.61947, -0.42726, 7.62010),
        (0.5, 0.8, -32.84771, -0.42829, 7.79470),
    ],
)
def test_styblinski_tang_matches_figures_computed_independently_by_finite_volumes(c, t, energy, mean, var):
    marginal = problems.StyblinskiTang(1, c).marginal(t)
    assert (marginal.energy, marginal.mean, marginal.var) == pytest.approx((energy, mean, var), abs=1.5e-5)


def test_long_times_reach_the_gibbs_law():
    problem = problems.StyblinskiTang(dim=3, c=0.02)

    def boltzmann(x):
        return math.exp(-0.02 * (x**4 - 16 * x**2 + 5 * x))

    mass = quad(boltzmann, -8, 8)[0]
    mean = quad(lambda x: x * boltzmann(x), -8, 8)[0] / mass
    below = quad(boltzmann, -8, 0.3)[0] / mass
    assert problem.exact_energy(200.0) == pytest.approx(-3 * math.log(mass), rel=1e-8)
    assert problem.marginal(200.0).mean == pytest.approx(mean, rel=1e-7)
    assert problem.marginal(200.0).probability_below(0.3) == pytest.approx(below, abs=1e-8)
    far = torch.tensor(
        [[20.0, 0.0, 0.0], [19.0, 0.0, 0.0]], dtype=torch.float64
    )  # beyond the grid: still the Gibbs law
    change = problem.exact(200.0).log_density(far)
    potential = problem.potential(far)
    assert float(change[0] - change[1]) == pytest.approx(float(potential[1] - potential[0]), rel=1e-9)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_quadratic_potential_keeps_the_gaussian_of_closed_form(tau):
    """V = ½k(x − b)²: mean b(1 − e^{−kt}), variance τ/k + (1 − τ/k)e^{−2kt}; log density exact far into the tails."""
    k, b, t = 2.0, 1.0, 0.4
    marginal = finite_volume.fokker_planck_marginal(lambda x: 0.5 * k * (x - b).square().sum(-1), t, tau=tau)
    mean, var = b * (1 - math.exp(-k * t)), tau / k + (1 - tau / k) * math.exp(-2 * k * t)
    assert (marginal.mean, marginal.var) == pytest.approx((mean, var), rel=5e-8)
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True) * math.sqrt(var) + mean
    log_density = marginal.log_density(x)
    exact = -((x - mean) ** 2) / (2 * var) - 0.5 * math.log(2 * math.pi * var)
    assert torch.allclose(log_density, exact, atol=1e-5)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    assert torch.allclose(score, -(x - mean) / var, atol=1e-4)
    assert marginal.energy == pytest.approx(
        0.5 * k * ((mean - b) ** 2 + var) - tau * 0.5 * math.log(2 * math.pi * math.e * var), rel=1e-7
    )


def test_tridiagonal_solves_like_a_dense_matrix():
    rng = np.random.default_rng(0)
    for size in (2, 7, 8, 50):
        lower, upper, rhs = rng.normal(size=(3, size))
        diag = 4 + rng.random(size) + 1j
        dense = np.diag(diag) + np.diag(lower[1:], -1) + np.diag(upper[:-1], 1)
        solution = finite_volume.solve_tridiagonal(lower, diag, upper, rhs)
        assert np.allclose(solution, np.linalg.solve(dense, rhs), rtol=1e-12)


def test_step_of_fokker_planck_is_the_matrix_exponential():
    """On a coarse grid the time integration alone, against scipy's expm of the Scharfetter–Gummel generator."""
    grid = np.linspace(-5, 5, 61)
    values, rho0, h = 0.5 * grid**2, np.exp(-((grid - 1) ** 2)), grid[1] - grid[0]
    delta = np.diff(values)
    rates = [sign * delta / np.expm1(sign * delta) / h**2 for sign in (1, -1)]
    generator = np.diag(rates[0], -1) + np.diag(rates[1], 1)
    generator -= np.diag(generator.sum(0))
    truth = scipy.linalg.expm(0.7 * generator) @ rho0
    assert finite_volume.fokker_planck(grid, values, rho0, 0.7) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("m", [2.0, 3.0])
def test_porous_medium_spreads_like_barenblatt(m):
    grid = np.linspace(-4, 4, 801)
    h = grid[1] - grid[0]

    def profile(t):
        return Barenblatt(1, m, t).log_density(torch.from_numpy(grid)[:, None]).exp().numpy()

    rho = finite_volume.porous_medium(grid, 0 * grid, profile(1.0), 1.0, m=m, steps=50)
    assert np.abs(rho - profile(2.0)).sum() * h < 2e-3 * (m - 1)
    assert rho.min() >= 0
    assert rho.sum() == pytest.approx(profile(1.0).sum(), rel=1e-10)
    assert (grid**2 * rho).sum() * h == pytest.approx(Barenblatt(1, m, 2.0).second_moment, rel=2e-3)


def test_porous_medium_with_confinement_tends_to_its_equilibrium():
    """ρ^m'' + (xρ)' = 0 is the Barenblatt profile at the time b at which it spreads at unit rate."""
    grid = np.linspace(-6, 6, 801)
    h, m = grid[1] - grid[0], 2.0
    rho = finite_volume.porous_medium(grid, 0.5 * grid**2, np.exp(-(grid**2) / 2), 8.0, m=m, steps=60)
    rho = rho / (rho.sum() * h)
    equilibrium = Barenblatt(1, m, Barenblatt(1, m, 1.0).b)
    # The mass √(2π) of the start scales lengths by mass^{1/3}: compare shapes through dimensionless moments.
    second, fourth = (grid**2 * rho).sum() * h, (grid**4 * rho).sum() * h
    assert fourth / second**2 == pytest.approx(15 / 7, rel=2e-3)  # of the parabola: E x⁴ / (E x²)²
    assert second == pytest.approx(equilibrium.second_moment * (2 * math.pi) ** (1 / 3), rel=2e-3)


def test_porous_medium_from_a_gaussian_obeys_its_moment_equation():
    """From N(0, 1): d/dt E x² = 2∫ρ^m, here integrated over the oracle's own densities; and m = 1 is the heat flow."""
    grid = np.linspace(-8, 8, 801)
    h = grid[1] - grid[0]
    rho0 = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    middle = finite_volume.porous_medium(grid, 0 * grid, rho0, 0.1, steps=20)
    end = finite_volume.porous_medium(grid, 0 * grid, middle, 0.1, steps=20)
    rates = [2 * (rho**2).sum() * h for rho in (rho0, middle, end)]
    growth = (grid**2 * (end - rho0)).sum() * h
    assert growth == pytest.approx(0.2 / 6 * (rates[0] + 4 * rates[1] + rates[2]), rel=1e-4)  # Simpson in time
    heat = finite_volume.porous_medium(grid, 0 * grid, rho0, 0.5, m=1.0, steps=20)
    assert heat == pytest.approx(np.exp(-(grid**2) / 4) / math.sqrt(4 * math.pi), abs=1e-4)


def test_oracle_checks_its_arguments():
    grid = np.linspace(-1, 1, 11)
    with pytest.raises(
        ShapeError, match=r"fokker_planck\(rho0=…\) needs one value per node, shape \(11,\); got \(5,\)"
    ):
        finite_volume.fokker_planck(grid, grid, grid[:5], 1.0)
    with pytest.raises(ShapeError, match=r"porous_medium\(grid=…\) needs at least 3 increasing, equally spaced nodes"):
        finite_volume.porous_medium(grid**3, grid, grid, 1.0)
    with pytest.raises(ConfigError, match=r"fokker_planck_marginal\(potential=…\) needs a potential that confines"):
        finite_volume.fokker_planck_marginal(lambda x: 0 * x.sum(-1), 1.0)
    with pytest.raises(
        SolverError, match=r"porous_medium: a stage did not converge in 200 iterations.*Give more steps"
    ):
        finite_volume.porous_medium(grid, 0 * grid, np.exp(-(grid**2)), 1.0, steps=1, tolerance=0.0)
