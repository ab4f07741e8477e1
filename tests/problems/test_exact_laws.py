"""The exact laws by a second route: scipy's ODE solvers, the differential equation itself, particles."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

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
