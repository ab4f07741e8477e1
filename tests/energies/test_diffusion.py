"""Drifts and diffusions: velocities, divergences and second variations against closed forms, laws against oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pwgf
from pwgf import energies, maps
from pwgf.energies import Diffusion, Drift
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import Cloud, PushedMeasure
from pwgf.oracles.finite_volume import fokker_planck

TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def normal(n=12, dim=2):
    """Samples of N(0, I), whose score is −x."""
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return PushedMeasure(maps.Affine(dim), pwgf.Gaussian(dim), maps.Affine(dim).initial(), z)


def full(x):
    """D = [[1 + x², xy], [xy, 1 + y²]]/2 in d = 2, whose divergence is 3x/2."""
    return 0.5 * (torch.eye(2).to(x) + x.unsqueeze(2) * x.unsqueeze(1))


FIELDS = {  # D, D as matrices, ∇·D
    "factor": (lambda x: 1 + x.square().sum(-1), lambda x: 2 * x),
    "diagonal": (lambda x: torch.stack([1 + x[:, 0].square(), x[:, 0].exp()], 1), lambda x: x * torch.tensor([2.0, 0])),
    "matrix": (full, lambda x: 1.5 * x),
    "constant matrix": (lambda x: torch.eye(2).to(x).expand(len(x), 2, 2), torch.zeros_like),
}


def matrices(values):
    if values.ndim == 1:
        return values.view(-1, 1, 1) * torch.eye(2).to(values)
    return torch.diag_embed(values) if values.ndim == 2 else values


@pytest.mark.parametrize("kind", FIELDS)
def test_velocities_follow_the_two_forms(kind):
    D, divergence = FIELDS[kind]
    rho = normal()
    flux = (matrices(D(rho.x)) @ rho.x.unsqueeze(2)).squeeze(2)  # −D·score
    torch.testing.assert_close(Diffusion(D).velocity(rho), flux)
    torch.testing.assert_close(Diffusion(D, form="ito").velocity(rho), flux - divergence(rho.x))


@pytest.mark.parametrize("kind", FIELDS)
def test_the_second_variation_is_bounded_by_the_largest_eigenvalue(kind):
    D, _ = FIELDS[kind]
    rho = normal()
    torch.testing.assert_close(Diffusion(D).hessian(rho).slope, torch.linalg.eigvalsh(matrices(D(rho.x)))[:, -1])


@pytest.mark.parametrize("kind", FIELDS)
def test_particles_have_the_noise_and_the_drift_of_both_forms(kind):
    """√D √D = D, and the drift ∇·D in the divergence form alone."""
    D, divergence = FIELDS[kind]
    cloud = Cloud(normal().x)
    for form in ("divergence", "ito"):
        energy = Diffusion(D, form=form)
        (factor, source), *others = energy.noises()
        assert (factor, others) == (1.0, [])
        root = matrices(source.root(cloud))
        torch.testing.assert_close(root @ root, matrices(D(cloud.x)))
        drifts, temperature = energy.particle_form()
        total = sum((c * term.velocity(cloud) for c, term in drifts), torch.zeros_like(cloud.x))
        assert temperature == 0
        torch.testing.assert_close(total, divergence(cloud.x) if form == "divergence" else torch.zeros_like(cloud.x))


@pytest.mark.parametrize("D", [2.0, np.float32(2), [1.0, 3.0], np.array([[2.0, 1.0], [1.0, 2.0]]), [0.0, 1.0], 0])
def test_constants_of_every_kind(D):
    rho, energy = normal(), Diffusion(D)
    matrix = torch.as_tensor(np.asarray(D), dtype=torch.float64)
    matrix = matrix * torch.eye(2) if matrix.ndim == 0 else torch.diag(matrix) if matrix.ndim == 1 else matrix
    torch.testing.assert_close(energy.velocity(rho), rho.x @ matrix.double())
    assert Diffusion(D, form="ito").velocity(rho).equal(energy.velocity(rho))
    assert energy.to_config() == {"name": "Diffusion", "D": np.asarray(D, dtype=float).tolist(), "form": "divergence"}


def test_a_number_is_a_temperature():
    rho, energy, heat = normal(), Diffusion(0.5), 0.5 * energies.Entropy()
    assert energy.has_value and not Diffusion([0.5, 0.5]).has_value
    torch.testing.assert_close(energy(rho), heat(rho))
    torch.testing.assert_close(energy.velocity(rho), heat.velocity(rho))
    torch.testing.assert_close(energy.hessian(rho).slope, heat.hessian(rho).slope)
    assert energy.particle_form() == heat.particle_form() == ([], 0.5)
    assert energy.noises() == []


def test_a_drift_has_a_velocity_the_curvature_of_its_potential_part_and_no_value():
    rho = normal()
    energy = Drift(lambda x: x @ TURN.T - 2 * x)
    torch.testing.assert_close(energy.velocity(rho), rho.x @ TURN.T - 2 * rho.x)
    torch.testing.assert_close(energy.hessian(rho).point, (2 * torch.eye(2).double()).expand(12, 2, 2))
    assert float(energy(rho)) == 0 and not energy.has_value
    assert float((energy + energies.Entropy())(rho)) == float(energies.Entropy()(rho))
    assert not energy.velocity(rho).requires_grad


def test_a_drift_that_cannot_be_differentiated_is_explicit():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return -x

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no derivative")

    assert Drift(Once.apply).hessian(normal()).explicit == ("drift",)


# ---- laws -----------------------------------------------------------------------------------------------------------


def moments(A, D, mean, cov, t):
    """Mean and covariance of dX = −AX dt + √(2D) dW by the moment equations."""
    d = len(mean)

    def rate(_, y):
        m, C = y[:d], y[d:].reshape(d, d)
        return np.concatenate([-A @ m, (-A @ C - C @ A.T + 2 * D).ravel()])

    end = solve_ivp(rate, (0, t), np.concatenate([mean, cov.ravel()]), rtol=1e-10, atol=1e-12).y[:, -1]
    return torch.from_numpy(end[:d].copy()), torch.from_numpy(end[d:].reshape(d, d).copy())


LINEAR = {
    "rotating": (np.eye(2) + 3 * TURN.numpy(), np.eye(2)),
    "kinetic": (np.array([[0.0, -1.0], [1.0, 1.0]]), np.diag([0.0, 1.0])),
    "oblique": (np.array([[1.0, 0.5], [0.0, 2.0]]), np.array([[1.0, 0.6], [0.6, 0.5]])),
}


def linear(name):
    A, D = LINEAR[name]
    minus_a = -torch.from_numpy(A)
    reference = pwgf.Gaussian(2, mean=[1.0, 0.0], cov=np.diag([0.5, 1.0]))
    return Drift(lambda x: x @ minus_a.T) + Diffusion(D), reference, moments(A, D, [1.0, 0.0], np.diag([0.5, 1.0]), 1.0)


@pytest.mark.parametrize("integrator", ["implicit", "bosh3"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_flows_have_the_exact_moments(name, integrator):
    energy, reference, (mean, cov) = linear(name)
    scheme = pwgf.PWGF(energy, maps.Affine(2), reference, integrator=integrator, num_samples=100, num_eval=100)
    law = pwgf.solve(scheme, [0.0, 1.0], progress=False).at(1.0)
    assert float((law.mean() - mean).abs().max()) < 1e-3
    assert float((law.cov() - cov).abs().max()) < 1e-3


@pytest.mark.parametrize("name", LINEAR)
def test_particles_have_the_exact_moments(name):
    energy, reference, (mean, cov) = linear(name)
    scheme = pwgf.EulerMaruyama(energy, reference, num_samples=20_000, dt=0.01)
    x = pwgf.solve(scheme, [0.0, 1.0], progress=False).theta(1.0).view(-1, 2)
    assert float((x.mean(0) - mean).abs().max()) < 0.03  # 5σ/√n plus the O(dt) of the steps
    assert float((torch.cov(x.T) - cov).abs().max()) < 0.06


def on_a_line(form):
    """D = 1 + x²/2 with V = x², from N(0, 1) to t = .3: energy, and the density by finite volumes."""
    grid = np.linspace(-12, 12, 2401)
    middle = 0.5 * (grid[1:] + grid[:-1])
    potential = grid**2 + (1 + grid**2 / 2 if form == "ito" else 0)
    start = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    density = fokker_planck(grid, potential, start, 0.3, tau=1 + middle**2 / 2)
    energy = energies.Potential(lambda x: x.square().sum(-1))
    return energy + Diffusion(lambda x: 1 + 0.5 * x.square().sum(-1), form=form), grid, density


@pytest.mark.parametrize("form", ["divergence", "ito"])
def test_a_diffusion_that_varies_on_a_line(form):
    """L1 distance to finite volumes within one per cent."""
    energy, grid, density = on_a_line(form)
    scheme = pwgf.PWGF(energy, maps.ResidualMLP(1), pwgf.Gaussian(1), num_samples=200, num_eval=200)
    run = pwgf.solve(scheme, [0.0, 0.3], progress=False)
    inside = np.abs(grid) < 6
    found = run.log_density(0.3, torch.from_numpy(grid[inside])[:, None]).exp().numpy()
    assert np.abs(found - density[inside]).sum() * (grid[1] - grid[0]) < 0.01


@pytest.mark.parametrize("form", ["divergence", "ito"])
def test_particles_in_a_diffusion_that_varies(form):
    energy, grid, density = on_a_line(form)
    scheme = pwgf.EulerMaruyama(energy, pwgf.Gaussian(1), num_samples=20_000, dt=0.01)
    x = pwgf.solve(scheme, [0.0, 0.3], progress=False).theta(0.3)
    exact = float((grid**2 * density).sum() / density.sum())
    assert float(x.square().mean()) == pytest.approx(exact, rel=0.04)


# ---- refusals -------------------------------------------------------------------------------------------------------


def started(D, **settings):
    return pwgf.PWGF(Diffusion(D, **settings), maps.Affine(2), pwgf.Gaussian(2)).start()


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (
            lambda: Diffusion(-1.0),
            ConfigError,
            r"Diffusion\(D\) must be positive semidefinite; got -1.*eigenvalue -1\)",
        ),
        (lambda: Diffusion([[1.0, 2.0], [2.0, 1.0]]), ConfigError, r"positive semidefinite; got \[\[.*eigenvalue -1\)"),
        (
            lambda: Diffusion([[1.0, 0.5], [0.0, 1.0]]),
            ConfigError,
            r"must be symmetric.*of up to 0\.5.*Give \(D \+ Dᵀ\)/2",
        ),
        (lambda: Diffusion([1.0, math.nan]), ConfigError, r"Diffusion\(D\) must be finite"),
        (lambda: Diffusion("heat"), ConfigError, r"must be a number ≥ 0, a diagonal.*got 'heat'"),
        (lambda: Diffusion(np.ones((2, 3))), ShapeError, r"Diffusion\(D\) must be a number.*got shape \(2, 3\)"),
        (
            lambda: Diffusion(1.0, form="stratonovich"),
            ConfigError,
            r"must be 'divergence' or 'ito'; got 'stratonovich'",
        ),
        (lambda: Diffusion([1.0, 2.0], time=True), ConfigError, r"time=True\) needs a function D\(t, x\)"),
        (lambda: started([1.0, 2.0, 3.0]), ShapeError, r"has shape \(3,\).*got samples of dimension 2"),
        (lambda: started(lambda x: x[:, 0]), ConfigError, r"D\(x\) must be positive semidefinite.* at x = \(-"),
        (
            lambda: started(lambda x: full(x) + torch.triu(torch.ones(2, 2).to(x), 1)),
            ConfigError,
            r"Diffusion: D\(x\) must be symmetric; got .*at 64 of 64 samples, first at x = \(",
        ),
        (
            lambda: started(lambda x: x.new_ones(len(x), 3)),
            ShapeError,
            r"D\(x\) must return \(n,\), \(n,d\) or \(n,d,d\), here .*got \(64, 3\)",
        ),
        (lambda: started(lambda t, x: x.exp()), ConfigError, r"Diffusion\(D\) calls D\(x\).*Diffusion\(D, time=True\)"),
        (
            lambda: pwgf.PWGF(Drift(lambda x: x.sum(-1)), maps.Affine(2), pwgf.Gaussian(2)).start(),
            ShapeError,
            r"Drift: b\(x\) must return shape \(64, 2\).*one vector per sample",
        ),
        (
            lambda: pwgf.PWGF(-1.0 * Diffusion([1.0, 1.0]), maps.Affine(2), pwgf.Gaussian(2)),
            ConfigError,
            r"a Diffusion enters with coefficient -1 < 0.*backwards in time",
        ),
        (
            lambda: pwgf.EulerMaruyama(-1.0 * Diffusion([1.0, 1.0]), pwgf.Gaussian(2), dt=0.1),
            ConfigError,
            r"EulerMaruyama: a Diffusion enters with a negative factor",
        ),
        (
            lambda: pwgf.PWGF(Diffusion([1.0, 1.0]), maps.Affine(2), pwgf.UniformBall(2, 1.0)).start(),
            ConfigError,
            r"the energy needs the density of ρ, which jumps at the edge",
        ),
    ],
)
def test_bad_input_is_refused_with_its_cure(build, kind, message):
    with pytest.raises(kind, match=message):
        build()
