"""Mobilities: tangents and fits against dense algebra, flows against closed forms, finite volumes and moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps, problems
from pwgf.errors import ConfigError, ShapeError, SolverError
from pwgf.measures import Cloud
from pwgf.oracles.finite_volume import fokker_planck
from pwgf.tangent import Curvature, Rescaled, SlopeTangent, Tangent

ROOT = torch.tensor([[1.0, 0.0], [-3.0, 0.2]], dtype=torch.float64)  # M = R Rᵀ, of condition 2700
MATRIX = ROOT @ ROOT.T


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def well(precision):
    """V = ½(x − 1)·P(x − 1), at temperature 1."""
    P = torch.as_tensor(precision, dtype=torch.float64)
    return energies.Potential(lambda x: 0.5 * ((x - 1) @ P.to(x) * (x - 1)).sum(-1)) + energies.Entropy()


def wavy(x):
    """A matrix for each x, with eigenvalues from .8 to 2.4."""
    angle = x.sum(1)
    axis = torch.stack([angle.cos(), angle.sin()], 1)
    return 0.8 * torch.eye(2).to(x) + 1.6 * torch.sigmoid(x[:, 0]).view(-1, 1, 1) * axis.unsqueeze(2) * axis.unsqueeze(
        1
    )


MODULE = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
MAPS = {
    "affine": maps.Affine(2),
    "residual": maps.ResidualMLP(2, width=6, axis_units=3),
    "ridge": maps.ConvexRidge(2, width=5),
    "module": maps.FromModule(MODULE, 2, residual=True),
    "two": maps.Composed([maps.ResidualMLP(2, width=4), maps.Affine(2)]),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_rescaled_tangent_is_the_plain_one_between_two_matrices(name):
    """R⁻¹JP, with P from `rates`: products, rows, Grams, diagonal; and the same of slopes."""
    map, z = MAPS[name], normals(7, 2)
    theta = map.initial() + 0.1 * normals(map.num_params, seed=1)
    rescaled = Rescaled(map, ROOT)
    P = rescaled.rates(torch.eye(map.num_params, dtype=torch.float64)).T
    torch.testing.assert_close(rescaled.coordinates(P.T).T, torch.eye(len(P), dtype=torch.float64))
    xi = normals(7, 2, 2, seed=2)
    for plain, found in (
        (Tangent(map, theta, z), Tangent(rescaled, theta, z, 3)),
        (SlopeTangent(map, theta, z, xi), SlopeTangent(rescaled, theta, z, xi, 3)),
    ):
        J = torch.linalg.solve(ROOT, plain.dense().view(-1, 2, len(P))).reshape(-1, len(P)) @ P
        u = normals(7, J.shape[0] // 7, seed=3)
        torch.testing.assert_close(found.dense(), J)
        torch.testing.assert_close(torch.cat(list(found.rows())), J)
        torch.testing.assert_close(found.jv(theta).flatten(), J @ theta)
        torch.testing.assert_close(found.jtu(u), J.T @ u.flatten())
        torch.testing.assert_close(found.gram_primal(), J.T @ J / 7)
        torch.testing.assert_close(found.gram_dual(), J @ J.T)


def side_of(scheme, n=300):
    state = scheme.start()
    generator = torch.Generator().manual_seed(1)
    z = scheme._draws.samples(n, generator, even=True)
    theta = state.theta + 0.05 * normals(len(state.theta), seed=4)
    return scheme._side(scheme._setup, z, state.theta_dot, state.t, generator, None, None), theta, z


IDENTITY = torch.eye(2, dtype=torch.float64)
MOBILITIES = {  # as given, and as matrices at x
    "number": (2.0, lambda x: 2 * IDENTITY),
    "diagonal": ([0.5, 3.0], lambda x: torch.diag(torch.tensor([0.5, 3.0], dtype=torch.float64))),
    "matrix": (MATRIX, lambda x: MATRIX),
    "factor of x": (lambda x: 1 + x[:, 0].square(), lambda x: (1 + x[:, 0].square()).view(-1, 1, 1) * IDENTITY),
    "matrix of x": (wavy, wavy),
    "covariance": ("covariance", lambda x: torch.cov(x.T, correction=0)),
}


@pytest.mark.parametrize("kind", MOBILITIES)
def test_rates_are_the_weighted_fit_of_the_velocity(kind):
    """E (Jη − Mf)·M⁻¹(Jη − Mf) is least, by dense algebra; explicit, and with hη·Hη of V = ½|x|² beside it."""
    energy = energies.Potential(lambda x: 0.5 * x.square().sum(-1) + x[:, 0].sin())
    mobility, exact = MOBILITIES[kind]
    scheme = pwgf.PWGF(
        energy, MAPS["residual"], pwgf.Gaussian(2), mobility=mobility, num_samples=300, damping=1e-13, momentum=0.0
    )
    side, theta, z = side_of(scheme)
    x = scheme.map(theta, z)
    M = exact(x).expand(300, 2, 2)
    J = Tangent(scheme.map, theta, z).dense().view(300, 2, -1)
    v = (M @ energy.velocity(scheme._setup.pushed(theta, z, 0.0)).unsqueeze(2)).squeeze(2)
    weighted = torch.linalg.solve(M, J).reshape(600, -1)
    for h in (0.0, 0.3):
        A = J.view(600, -1).T @ weighted + h * torch.einsum("nap,nab,nbq->pq", J, _hessian(x), J)
        b = weighted.T @ v.flatten()
        eta = torch.linalg.lstsq(A, b.unsqueeze(1), driver="gelsd", rcond=1e-12).solution.squeeze(1)
        found = side.linearise(theta).velocity(h) if h else side(theta)
        torch.testing.assert_close(J @ found, J @ eta, rtol=1e-3, atol=1e-3)


def _hessian(x):
    K = torch.eye(2, dtype=torch.float64).repeat(len(x), 1, 1)
    K[:, 0, 0] = (1 - x[:, 0].sin()).clamp(min=0)
    return K


def kalman_wasserstein(cov, t):
    """(mean, covariance) at t from N(0, I), with V = ½(x−1)·Σ⁻¹(x−1): C⁻¹ = Σ⁻¹ + e^{−2t}(I − Σ⁻¹)."""
    identity, precision = torch.eye(len(cov), dtype=torch.float64), torch.linalg.inv(cov)
    return torch.linalg.inv(precision + math.exp(-2 * t) * (identity - precision))


def rotated(low, high, dim, seed=1):
    Q = torch.linalg.qr(normals(dim, dim, seed=seed))[0]
    return Q @ torch.diag(torch.logspace(math.log10(low), math.log10(high), dim, dtype=torch.float64)) @ Q.T


def whitened(found, exact):
    """The largest deviation of exact^{−1/2} found exact^{−1/2} from I."""
    root = torch.linalg.cholesky(torch.linalg.inv(exact))
    return float((root.T @ found @ root - torch.eye(len(exact), dtype=torch.float64)).abs().max())


def covariance_of(run, t):
    """A Aᵀ of a map that is affine, from N(0, I)."""
    dim = run.reference.dim
    ends = run.push(t, torch.cat([torch.zeros(1, dim), torch.eye(dim)]).double())
    A = (ends[1:] - ends[0]).T
    return A @ A.T


@pytest.mark.parametrize(
    ("dim", "map"), [(2, maps.Affine), (4, maps.Affine), pytest.param(2, maps.ResidualMLP, marks=pytest.mark.slow)]
)
def test_a_condition_of_a_million_takes_no_more_right_sides(dim, map):
    stages = {}
    for low, high in ((1e-3, 1e-3), (1e-3, 1e3)):
        cov = rotated(low, high, dim)
        scheme = pwgf.PWGF(
            well(torch.linalg.inv(cov)), map(dim), pwgf.Gaussian(dim), mobility="covariance", num_eval=500
        )
        run = pwgf.solve(scheme, [0.0, 1.0], progress=False)
        assert whitened(covariance_of(run, 1.0), kalman_wasserstein(cov, 1.0)) < 2e-3
        assert run["projection_residual"].max() < 1e-5
        assert (run["error_estimate"] < 1e-4 * run["spread"]).all()
        stages[high] = run["num_stages"][-1]
    assert stages[1e3] < 2 * stages[1e-3]


@pytest.mark.parametrize("integrator", ["explicit", "implicit", pwgf.Implicit(dt=0.005, newton=1)])
def test_every_integrator_follows_the_covariance(integrator):
    cov = rotated(0.1, 10.0, 2)
    scheme = pwgf.PWGF(
        well(torch.linalg.inv(cov)), maps.Affine(2), pwgf.Gaussian(2), mobility="covariance", integrator=integrator,
        num_samples=200, num_eval=500,
    )  # fmt: skip
    run = pwgf.solve(scheme, [0.0, 0.3], progress=False)
    assert whitened(covariance_of(run, 0.3), kalman_wasserstein(cov, 0.3)) < (
        5e-2 if isinstance(integrator, pwgf.Implicit) else 1e-3
    )


def test_a_matrix_is_the_linear_flow_with_drift_and_noise_times_it():
    """dX = −MP(X − 1) dt + √(2M) dW, also by particles; F falls by E f·Mf."""
    P, times = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), [0.0, 0.2, 0.5]
    M = torch.tensor([[1.0, -0.4], [-0.4, 0.5]], dtype=torch.float64)
    exact = problems.LinearDrift((M @ P).tolist(), [1.0, 1.0], M.tolist(), mean=[0.0, 0.0], cov=np.eye(2).tolist())
    run = pwgf.solve(pwgf.PWGF(well(P), maps.Affine(2), pwgf.Gaussian(2), mobility=M), times, progress=False)
    cloud = pwgf.EulerMaruyama(well(P), pwgf.Gaussian(2), num_samples=40_000, dt=0.005, mobility=M)
    particles = pwgf.solve(cloud, times, progress=False)
    for t in times[1:]:
        law, x = exact.exact(t), particles.sample(t, 40_000)
        z = pwgf.Gaussian(2).matched_sample(1000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(run.push(t, z).mean(0), law.mean(), atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cov(run.push(t, z).T, correction=0), law.cov(), atol=1e-3, rtol=0)
        torch.testing.assert_close(x.mean(0), law.mean(), atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(x.T), law.cov(), atol=0.03, rtol=0)
    law = exact.exact(0.5)
    force = -P + torch.linalg.inv(law.cov())  # f = this (x − m) − P(m − 1)
    shift = -P @ (law.mean() - 1)
    falling = float(torch.trace(force @ law.cov() @ force.T @ M) + shift @ M @ shift)
    speed2 = float(torch.trace(M @ force @ law.cov() @ force.T @ M.T) + (M @ shift) @ (M @ shift))
    assert run["dissipation"][-1] == pytest.approx(falling, rel=0.05)
    assert run["velocity_rms"][-1] ** 2 == pytest.approx(speed2, rel=0.05)


def test_an_m_of_x_on_a_line_agrees_with_finite_volumes():
    """∂ₜρ = ∂ₓ(M∂ₓρ + ρMV′), V = x², from N(.5, 1) to t = .5; by particles, too."""
    grid = np.linspace(-7, 7, 2801)

    def M(x):
        return 1 + 0.8 * torch.sin(2 * x[:, 0])

    middle = torch.as_tensor((grid[1:] + grid[:-1]) / 2).unsqueeze(1)
    tau = M(middle).numpy()
    drift = np.concatenate([[0.0], np.cumsum(tau * 2 * middle[:, 0].numpy() * (grid[1] - grid[0]))])
    start = np.exp(-((grid - 0.5) ** 2) / 2) / math.sqrt(2 * math.pi)
    exact = fokker_planck(grid, drift, start, 0.5, tau=tau)
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.Entropy()
    reference = pwgf.Gaussian(1, mean=[0.5])
    run = pwgf.solve(pwgf.PWGF(energy, maps.ResidualMLP(1), reference, mobility=M), [0.0, 0.5], progress=False)
    density = run.log_density(0.5, torch.as_tensor(grid[::10]).unsqueeze(1)).exp().numpy()
    assert np.abs(density - exact[::10]).sum() * 10 * (grid[1] - grid[0]) < 0.01
    cloud = pwgf.EulerMaruyama(energy, reference, num_samples=20_000, dt=0.005, mobility=M)
    x = pwgf.solve(cloud, [0.0, 0.5], progress=False).sample(0.5, 20_000)[:, 0].numpy()
    step = grid[1] - grid[0]
    mean = (grid * exact).sum() * step
    assert x.mean() == pytest.approx(mean, abs=0.02)
    assert x.var() == pytest.approx(((grid - mean) ** 2 * exact).sum() * step, rel=0.05)


def test_few_particles_have_the_right_law_in_the_long_run():
    """Ten particles in d = 2: the drift (d + 1)(X − E X)/n keeps each of them at N(1, Σ); without it Σ is too small."""
    cov = rotated(0.1, 10.0, 2)
    scheme = pwgf.EulerMaruyama(well(torch.linalg.inv(cov)), pwgf.Gaussian(2), num_samples=10, dt=0.05,
                                mobility="covariance")  # fmt: skip
    run = pwgf.solve(scheme, np.linspace(0, 150, 151), progress=False)
    x = torch.as_tensor(run["theta"][20:]).view(-1, 2)
    root = torch.linalg.cholesky(torch.linalg.inv(cov))
    y = (x - 1) @ root
    assert (y.mean(0).abs() < 0.15).all()
    assert (y.square().mean(0) > 0.85).all()
    assert (y.square().mean(0) < 1.15).all()


def test_a_run_with_a_mobility_is_stored_and_continued(tmp_path):
    def scheme():
        return pwgf.PWGF(well(np.eye(2)), maps.Affine(2), pwgf.Gaussian(2), mobility="covariance", num_samples=60)

    whole = pwgf.solve(scheme(), [0.0, 0.2, 0.4], progress=False)
    pwgf.solve(scheme(), [0.0, 0.2, 0.4], progress=False, out=tmp_path / "run.h5", max_steps=2)
    run = pwgf.solve(scheme(), [0.0, 0.2, 0.4], progress=False, out=tmp_path / "run.h5", resume=True)
    assert np.array_equal(run["theta"], whole["theta"])
    assert pwgf.load(tmp_path / "run.h5").config["scheme"]["mobility"] == "covariance"
    assert "mobility" not in pwgf.PWGF(well(np.eye(2)), maps.Affine(2), pwgf.Gaussian(2)).to_config()


def test_a_problem_whose_flow_is_altered_has_no_exact_law():
    """A mobility, or a velocity at the start, makes it another flow."""
    assert pwgf.schemes.ask(pwgf.PWGF(well(np.eye(2)), maps.Affine(2), pwgf.Gaussian(2)), "altered_by")() == ""
    for scheme in (
        pwgf.PWGF(well(np.eye(2)), maps.Affine(2), pwgf.Gaussian(2), mobility="covariance"),
        pwgf.EulerMaruyama(well(np.eye(2)), pwgf.Gaussian(2), dt=0.1, mobility=2.0),
    ):
        assert scheme.altered_by() == "mobility"


def started(mobility, energy=None, make=pwgf.PWGF, **settings):
    energy = well(np.eye(2)) if energy is None else energy
    if make is pwgf.PWGF:
        return make(energy, maps.Affine(2), pwgf.Gaussian(2), mobility=mobility, **settings).start()
    return make(energy, pwgf.Gaussian(2), dt=0.1, mobility=mobility, **settings).start()


def of_density(x, log_density):
    return log_density.exp()


@pytest.mark.parametrize("make", [pwgf.PWGF, pwgf.EulerMaruyama])
@pytest.mark.parametrize(
    ("mobility", "error", "message"),
    [
        ("covarance", ConfigError, r"must be 'covariance', a number, a matrix.*Did you mean 'covariance'"),
        (0.0, ConfigError, r"mobility\) must be positive definite; got .*Its inverse is the norm"),
        ([1.0, 0.0], ConfigError, r"must be positive definite"),
        ([[1.0, 2.0], [2.0, 1.0]], ConfigError, r"must be positive definite.*smallest eigenvalue -1\)"),
        ([[1.0, 0.5], [0.0, 1.0]], ConfigError, r"must be symmetric"),
        ([1.0, 1.0, 1.0], ShapeError, r"has shape \(3,\).*got samples of dimension 2"),
        (lambda x: x[:, 0], ConfigError, r"mobility\(x\) must be positive definite.* samples, first at x = "),
        (lambda x: x.new_ones(3), ShapeError, r"mobility\(x\) must return \(n,\), \(n,d\) or \(n,d,d\)"),
        (of_density, ConfigError, r"must be a function of x \(n,d\) alone.*only its covariance is covered"),
    ],
)  # fmt: skip
def test_what_is_no_mobility_is_refused(make, mobility, error, message):
    with pytest.raises(error, match=message):
        started(mobility, make=make)


@pytest.mark.parametrize("make", [pwgf.PWGF, pwgf.EulerMaruyama])
def test_velocities_without_a_value_and_few_samples_are_refused(make):
    for term in (energies.Drift(lambda x: -x), energies.Diffusion([1.0, 2.0])):
        with pytest.raises(ConfigError, match=r"multiplies −∇δF/δρ, and the term '.*Drift\(M·b\), Diffusion\(M·D\)"):
            started("covariance", energies.Potential(lambda x: x.square().sum(-1)) + term, make)
    with pytest.raises(ConfigError, match=r"singular for 2 of them in dimension 2\. Give num_samples of 20"):
        started("covariance", make=make, num_samples=2)


def test_the_published_form_and_a_law_on_a_line_are_refused():
    with pytest.raises(ConfigError, match=r"the published form has no mobility"):
        started(2.0, form="gradient", integrator="explicit")
    with pytest.raises(SolverError, match=r"covariance of the samples is singular.*collapsed to a plane"):
        pwgf.schemes._mobility.covariance_root(torch.ones(5, 2), Cloud(torch.ones(5, 2)))


def test_the_tangent_of_implicit_steps_sees_the_slopes_in_the_same_coordinates():
    """Q(u) = E|R⁻¹∇u R|² for one R, with ∇u = ∂_z(Jη)(∂_zT)⁻¹."""
    map, z = MAPS["residual"], normals(9, 2)
    theta = map.initial() + 0.1 * normals(map.num_params, seed=1)
    mobility = pwgf.PWGF(well(np.eye(2)), map, pwgf.Gaussian(2), mobility=MATRIX)._setup.mobility
    rho = pwgf.measures.PushedMeasure(map, pwgf.Gaussian(2), theta, z)
    frame, inverse = mobility.frame(rho), rho.inverse_jacobian_at_samples
    plain = Tangent(map, theta, z)
    probes = torch.eye(2, dtype=torch.float64).expand(9, 2, 2)
    form = energies.Hessian(slope=torch.ones(9, dtype=torch.float64))
    curvature = Curvature(frame.tangent(plain), form, frame.slopes(inverse), probes, True)
    eta = normals(map.num_params, seed=5)
    turned = SlopeTangent(map, theta, z, probes).jv(eta).view(9, 2, 2).mT  # ∂_z(Jη)
    slopes = torch.linalg.solve(ROOT, turned @ inverse @ ROOT)
    found = curvature.quadratic(frame.coordinates(eta))
    assert float(found) == pytest.approx(float(slopes.square().sum((1, 2)).mean()), rel=1e-9)
