"""The exact laws by a second route: scipy's ODE solvers, the differential equation itself, particles."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.special import iv

from pwgf import problems


@pytest.mark.parametrize("dim", [1, 3])
def test_ou_moments_solve_their_equations(dim):
    """m' = −P(m − b), C' = 2I − PC − CP."""
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    cov, mean = root @ root.T + 0.2 * torch.eye(dim), torch.randn(dim, generator=generator, dtype=torch.float64)
    precision = np.linalg.inv(cov.numpy())

    def rate(_, y):
        m, c = y[:dim], y[dim:].reshape(dim, dim)
        return np.r_[-precision @ (m - mean.numpy()), (2 * np.eye(dim) - precision @ c - c @ precision).ravel()]

    start = np.r_[np.zeros(dim), np.eye(dim).ravel()]
    y = solve_ivp(rate, (0, 0.8), start, rtol=1e-10, atol=1e-12).y[:, -1]
    law = problems.OrnsteinUhlenbeck(dim, cov, mean).exact(0.8)
    assert np.allclose(law.mean().numpy(), y[:dim], atol=1e-8)
    assert np.allclose(law.cov().numpy(), y[dim:].reshape(dim, dim), atol=1e-8)


def test_ou_default_is_the_known_flow():
    """V = 2|x − 3|²: mean 3(1 − e^{−4t}), variance ¼ + ¾e^{−8t}; K = 4."""
    problem = problems.OrnsteinUhlenbeck(dim=2)
    law = problem.exact(0.3)
    assert torch.allclose(law.mean(), torch.full((2,), 3 * (1 - math.exp(-1.2)), dtype=torch.float64))
    assert torch.allclose(law.cov(), (0.25 + 0.75 * math.exp(-2.4)) * torch.eye(2, dtype=torch.float64))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(problem.potential(x), 2 * (x - 3).square().sum(-1))
    assert problem.convexity == pytest.approx(4.0)
    assert problem.exact_energy(50.0) == pytest.approx(-math.log(2 * math.pi / 4), abs=1e-10)  # −log Z of exp(−V)


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (2, 2.0), (2, 3.0), (5, 2.0)])
def test_barenblatt_solves_the_porous_medium_equation(dim, m):
    """∂ₜρ = ρ^m'' + (d−1)/r ρ^m' at radii inside the support, by central differences."""
    problem = problems.BarenblattFlow(dim, m)
    radius = torch.linspace(0.2, 0.8, 7, dtype=torch.float64) * problem.reference.radius

    def density(t, r):
        x = torch.zeros(len(r), dim, dtype=torch.float64)
        x[:, 0] = r
        return problem.exact(t).log_density(x).exp()

    t, h = 1.3, 1e-3
    in_time = (density(t + h, radius) - density(t - h, radius)) / (2 * h)
    low, mid, high = (density(t, radius + s) ** m for s in (-h, 0, h))
    in_space = (high - 2 * mid + low) / h**2 + (dim - 1) / radius * (high - low) / (2 * h)
    assert torch.allclose(in_time, in_space, atol=1e-5 * float(in_time.abs().max()) + 1e-8)


@pytest.mark.parametrize("t", [1.0, 1.6])
def test_barenblatt_energy_and_moment_by_quadrature(t):
    problem = problems.BarenblattFlow(dim=2, m=3)
    law = problem.exact(t)
    radius = law.radius

    def at(r):
        return math.exp(float(law.log_density(torch.tensor([[r, 0.0]], dtype=torch.float64)))) if r < radius else 0.0

    energy = quad(lambda r: 2 * math.pi * r * at(r) ** 3 / 2, 0, radius)[0]
    moment = quad(lambda r: 2 * math.pi * r**3 * at(r), 0, radius)[0]
    assert problem.exact_energy(t) == pytest.approx(energy, rel=1e-8)
    assert float(law.cov().trace()) == pytest.approx(moment, rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_aggregation_moves_like_particles(dim):
    """Each particle obeys x' = −∇W*ρ; with ρ the particles themselves, moment-matched, by scipy's solver."""
    n, t = 4000, 0.6
    z = torch.randn(n // 2, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([z, -z])
    whiten = torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n))
    z = (z @ whiten.T).numpy()

    def rate(_, flat):
        x = flat.reshape(n, dim)
        squared, second = (x**2).sum(1, keepdims=True), x.T @ x / n
        # E_y[(|x−y|² − 1)(x − y)] with E y = 0 and no third moments
        return -(squared * x + np.trace(second) * x + 2 * x @ second - x).ravel()

    x = solve_ivp(rate, (0, t), z.ravel(), rtol=1e-8, atol=1e-10).y[:, -1].reshape(n, dim)
    law = problems.Aggregation(dim).exact(t)
    exact = z / np.sqrt(law.map.q + 2 * law.map.beta * (z**2).sum(1, keepdims=True))
    assert np.abs(x - exact).max() < 0.03
    assert (x**2).sum(1).mean() == pytest.approx(law.map.second_moment, rel=0.02)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_aggregation_moments_by_quadrature_and_the_moment_equation(dim):
    """E|x|^k over the density by quad, and dM₂/dt = −2E⟨x, ∇W*ρ⟩ = 2(αM₂ − M₄) by differences in time."""
    problem, t, h = problems.Aggregation(dim), 0.4, 1e-4
    law = problem.exact(t)
    sphere = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    edge = 1 / math.sqrt(2 * law.map.beta)

    def moment(k):
        def integrand(r):
            x = torch.zeros(1, dim, dtype=torch.float64)
            x[0, 0] = r
            return sphere * r ** (dim - 1 + k) * math.exp(float(law.log_density(x)))

        return quad(integrand, 0, edge, epsabs=1e-10, limit=200)[0]

    second, fourth = law.map.second_moment, law.map.fourth_moment
    assert (moment(0), moment(2), moment(4)) == pytest.approx((1, second, fourth), rel=1e-7)
    alpha = 1 - (dim + 2) * second / dim
    slope = (problem.map(t + h).second_moment - problem.map(t - h).second_moment) / (2 * h)
    assert slope == pytest.approx(2 * (alpha * second - fourth), rel=1e-6)


@pytest.mark.parametrize("dim", [2, 10])
def test_aggregation_tends_to_the_sphere(dim):
    """Radius² d/(2(d+1)), energy −d/(8(d+1)) (Carrillo and Huang 2017)."""
    problem = problems.Aggregation(dim)
    assert problem.exact_energy(30.0) == pytest.approx(-dim / (8 * (dim + 1)), rel=1e-6)
    assert problem.map(30.0).second_moment == pytest.approx(dim / (2 * (dim + 1)), rel=1e-6)


def test_heat_between_walls_solves_its_equation():
    """The amplitude obeys a' = −π²τa; the energy follows from the density by quadrature."""
    problem, h = problems.HeatInBox(1, amplitude=0.8, temperature=0.7), 1e-5
    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)[:, None]

    def density(t, x):
        return problem.exact(t).log_density(x).exp()

    in_time = (density(0.03 + h, x) - density(0.03 - h, x)) / (2 * h)
    e = 1e-4
    in_space = 0.7 * (density(0.03, x + e) - 2 * density(0.03, x) + density(0.03, x - e)) / e**2
    assert torch.allclose(in_time, in_space, atol=1e-5)
    energy = quad(lambda u: float((p := density(0.03, torch.tensor([[u]]))) * p.log()), 0, 1)[0]
    assert problem.exact_energy(0.03) == pytest.approx(0.7 * energy, abs=1e-8)
    assert problem.exact_energy(0.03) == pytest.approx(0.7 * problem.exact(0.03).mean_log_density(), abs=1e-12)


def test_oscillators_tend_to_the_stationary_order():
    """r = I₁(Kr/τ)/I₀(Kr/τ) above K = 2τ by scipy's Bessel functions, 0 below; the law is e^{Kr cos x/τ}."""
    problem = problems.Kuramoto(K=3.0, temperature=1.2)
    r = problem.order_parameter(60.0)
    assert r == pytest.approx(iv(1, 2.5 * r) / iv(0, 2.5 * r), abs=1e-8)
    assert r == pytest.approx(problem.stationary_order, abs=1e-8)
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = 2.5 * r * torch.cos(x) - math.log(2 * math.pi * iv(0, 2.5 * r))
    assert torch.allclose(problem.exact(60.0).log_density(x[:, None]), expected, atol=1e-6)
    below = problems.Kuramoto(K=1.0, temperature=1.0)
    assert below.stationary_order == 0
    assert abs(below.order_parameter(40.0)) < 1e-8


@pytest.mark.parametrize("K", [0.5, 4.0])
def test_oscillators_by_finite_differences_on_a_grid(K):
    """∂ₜρ = ∂ₓ(Kr sin x ρ) + τ∂ₓ²ρ on a circle of 200 points, by scipy's solver."""
    tau, count = 1.0, 200
    x = -math.pi + 2 * math.pi * np.arange(count) / count
    h = 2 * math.pi / count

    def rate(_, rho):
        r = h * (rho * np.cos(x)).sum()
        flux = K * r * np.sin(x) * rho
        spread = (np.roll(rho, 1) - 2 * rho + np.roll(rho, -1)) / h**2
        return (np.roll(flux, -1) - np.roll(flux, 1)) / (2 * h) + tau * spread

    rho = solve_ivp(rate, (0, 1.0), (1 + 0.5 * np.cos(x)) / (2 * math.pi), method="BDF", rtol=1e-7, atol=1e-9).y[:, -1]
    problem = problems.Kuramoto(K=K)
    assert np.allclose(problem.exact(1.0).log_density(torch.from_numpy(x)[:, None]).exp(), rho, atol=1e-3)
    assert problem.order_parameter(1.0) == pytest.approx(h * (rho * np.cos(x)).sum(), abs=1e-3)


@pytest.mark.parametrize("annulus", [False, True])
def test_newtonian_aggregation_moves_like_shells(annulus):
    """Each sample obeys r' = −r + (M + c)/r with the mass M within it, here counted; and pushes its density along."""
    problem, n, t = problems.NewtonianAggregation(sigma=0.8, annulus=annulus), 20_000, 0.7
    mass = (np.arange(n) + 0.5) / n
    start = 0.8 * np.sqrt(-2 * np.log1p(-mass))
    c = 0.25 if annulus else 0.0
    r = solve_ivp(lambda _, r: -r + (mass + c) / r, (0, t), start, rtol=1e-8, atol=1e-10).y[:, -1]
    law = problem.exact(t)
    z = torch.from_numpy(np.stack([start, np.zeros(n)], 1))
    assert np.abs(law.moved(z)[:, 0].numpy() - r).max() < 1e-6
    assert law.second_moment == pytest.approx((r**2).mean(), rel=1e-3)
    squared = torch.from_numpy((r[1:] ** 2 - r[:-1] ** 2) * math.pi * n)  # one over the density between two shells
    middle = torch.from_numpy(np.stack([(r[1:] + r[:-1]) / 2, np.zeros(n - 1)], 1))
    assert torch.allclose(law.log_density(middle)[100:-1000], -squared.log()[100:-1000], atol=2e-3)


def test_newtonian_aggregation_tends_to_the_disc_and_the_annulus():
    disc, ring = (problems.NewtonianAggregation(annulus=annulus).exact(20.0) for annulus in (False, True))
    x = torch.tensor([[0.1, 0.2], [0.5, 0.6], [1.05, 0.0], [1.2, 0.0]], dtype=torch.float64)
    assert torch.allclose(disc.log_density(x[:2]).exp(), torch.full((2,), 1 / math.pi, dtype=torch.float64), atol=1e-9)
    assert float(disc.log_density(x[3:])) < -100
    assert float(ring.log_density(x[:1])) == -math.inf
    assert torch.allclose(ring.log_density(x[1:3]).exp(), torch.full((2,), 1 / math.pi, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("dim", "m", "ratio"), [(1, 2.0, 0.5), (3, 1.5, 2.0)])
def test_confined_porous_medium_keeps_its_shape(dim, m, ratio):
    """R' = −R + R'_free: the free profile spreads at the rate b/s of its time s; R∞³ = 3 for d = 1, m = 2."""
    problem, h = problems.ConfinedPorousMedium(dim, m, ratio), 1e-5
    law = problem.exact(0.2)
    slope = (problem.exact(0.2 + h).radius - problem.exact(0.2 - h).radius) / (2 * h)
    assert slope == pytest.approx(-law.radius + law.radius * law.b / law.t, rel=1e-6)
    assert problem.reference.radius / problem.exact(50.0).radius == pytest.approx(ratio)
    assert problems.ConfinedPorousMedium(1).exact(50.0).radius ** 3 == pytest.approx(3)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_spread_of_the_isothermal_gas_solves_its_equation(temperature):
    """σ̈ = τ/σ from rest."""
    times = np.array([0.0, 0.01, 0.5, 3.0, 20.0])
    accurate = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-12}
    found = solve_ivp(lambda t, y: [y[1], temperature / y[0]], (0, 20), [1.0, 0.0], t_eval=times, **accurate).y[0]
    problem = problems.IsothermalGas(2, temperature)
    assert np.allclose([problem.spread(float(t)) for t in times], found, rtol=1e-7)


def test_the_harmonic_law_is_that_of_samples_that_swing():
    """x(t) = cos(ωt)·x₀ for ẍ = −ω²x from rest."""
    problem = problems.HarmonicHamiltonian(2, omega=2.0)
    z = problem.reference.sample(100, 0)
    law, scale = problem.exact(0.3), math.cos(0.6)
    change_of_volume = 2 * math.log(abs(scale))
    assert torch.allclose(law.log_density(scale * z), problem.reference.log_density(z) - change_of_volume)
    assert all(abs(math.cos(2.0 * t)) > 0.1 for t in problem.times)
    assert all(abs(math.cos(2.0 * t)) > 0.1 for t in np.linspace(problem.times[0], problem.times[-1], 5))
