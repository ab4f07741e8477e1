"""Fitted maps against sample moments and known Gaussians; laws handed over from map to map."""

import math

import pytest
import torch

import pwgf
from pwgf import energies, fitting, maps, problems
from pwgf.errors import ConfigError, NonFiniteError, ShapeError, SolverError

COV = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
TARGET = pwgf.Gaussian(2, [1.0, -2.0], COV)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(map, theta):
    """Mean and covariance of an affine map's pushed N(0, I)."""
    (w,) = map.unpack(theta)
    return w[:, -1], w[:, :-1] @ w[:, :-1].T


# --- fit ------------------------------------------------------------------------------------------------------------


def test_maximum_likelihood_of_an_affine_map_is_sample_mean_and_covariance():
    x, map = TARGET.sample(500, seeded()), maps.Affine(2)
    found = fitting.fit(map, pwgf.Gaussian(2), x, held_out=0.0, progress=False)
    mean, cov = moments(map, found.theta)
    torch.testing.assert_close(mean, x.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(cov, torch.cov(x.T, correction=0), rtol=0, atol=1e-5)
    best = 0.5 * (2 * math.log(2 * math.pi) + float(torch.logdet(torch.cov(x.T, correction=0))) + 2)
    assert found.held_out == pytest.approx(best, abs=1e-8)
    assert found.converged


def test_the_gradient_of_the_likelihood_is_that_of_differences():
    map = maps.ResidualMLP(2, width=6)
    theta = map.initial() + 0.05 * torch.randn(map.num_params, generator=seeded(1), dtype=torch.float64)
    objective = fitting.fit_map._Likelihood(map, pwgf.Gaussian(2), TARGET.sample(20, seeded()), 20, 0.0, seeded())
    leaf = theta.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(objective.value(leaf, None), leaf)
    direction = torch.randn(map.num_params, generator=seeded(2), dtype=torch.float64)
    h = 1e-5
    up, down = (float(objective.value(theta + s * h * direction, None)) for s in (1, -1))
    assert float(slope @ direction) == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_reverse_kl_to_a_gaussian():
    """log π up to a constant: the value is KL less that constant."""
    map = maps.Affine(2)
    found = fitting.fit(map, pwgf.Gaussian(2), lambda x: TARGET.log_density(x) + 3.0, progress=False)
    mean, cov = moments(map, found.theta)
    torch.testing.assert_close(mean, TARGET.mean(), rtol=0, atol=1e-3)
    torch.testing.assert_close(cov, COV, rtol=0, atol=3e-3)
    assert found.held_out == pytest.approx(-3.0, abs=1e-3)


def test_a_fitted_start_goes_on_as_a_flow():
    """ρ₀ a mixture of two lobes, known by samples; held-out likelihood near its entropy, and solve takes θ."""
    side = (torch.rand(2000, 1, generator=seeded(3), dtype=torch.float64) < 0.5).double() * 3 - 1.5
    x = side + torch.randn(2000, 1, generator=seeded(4), dtype=torch.float64)

    def density(y):
        return (0.5 * (torch.exp(-0.5 * (y - 1.5) ** 2) + torch.exp(-0.5 * (y + 1.5) ** 2))) / math.sqrt(2 * math.pi)

    map = maps.ResidualMLP(1, width=16, axis_units=0)
    found = fitting.fit(map, pwgf.Gaussian(1), x, max_iterations=400, polish=30, progress=False)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = density(grid)
    entropy = -float(torch.trapezoid(p * p.log(), grid))
    assert abs(found.held_out - entropy) < 0.1  # 400 held-out samples: standard error .03
    energy = energies.Potential(lambda x: 0.5 * x.square().sum(-1)) + energies.Entropy()
    scheme = pwgf.PWGF(energy, map, pwgf.Gaussian(1), theta0=found.theta, num_samples=300, num_eval=1000)
    run = pwgf.solve(scheme, [0.5, 0.6], progress=False)
    assert run.t[0] == 0.5
    assert float(run.sample(0.5, 20_000).var()) == pytest.approx(float(x.var()), rel=0.1)
    assert float((run.log_density(0.5, grid[1000:3000, None]).exp() - density(grid[1000:3000])).abs().max()) < 0.03


class Explodes(maps.Affine):
    """A map whose inverse fails away from the start."""

    def inverse(self, theta, x):
        if not torch.equal(theta.detach(), self.initial()):
            raise SolverError("Explodes.inverse: no inverse")
        return super().inverse(theta, x)


def test_a_fit_that_fails_again_and_again_says_where():
    match = r"fit stopped at iteration \d+, learning rate 7\.8e-05: .*no inverse.*best held-out value was .*ConvexRidge"
    with pytest.raises(SolverError, match=match):
        fitting.fit(Explodes(2), pwgf.Gaussian(2), TARGET.sample(50, seeded()), progress=False)


def fitted(target=None, map=None, reference=None, **settings):
    target = TARGET.sample(20, seeded()) if target is None else target
    return fitting.fit(map or maps.Affine(2), reference or pwgf.Gaussian(2), target, progress=False, **settings)


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda: fitted(3), ConfigError, r"fit\(target=…\) must be samples \(n, 2\) or a function log π\(x\); got int"),
        (lambda: fitted(torch.ones(5)), ShapeError, r"samples must have shape \(n, 2\) with n ≥ 2; got \(5,\)"),
        (lambda: fitted(torch.full((5, 2), math.nan)), ConfigError, r"5 of 5 samples are NaN or infinite"),
        (lambda: fitted(lambda x: x), ShapeError, r"log π\(x\) must return .* shape \(1000,\) .*got \(1000, 2\)"),
        (lambda: fitted(lambda x: x.detach().sum(-1)), ConfigError, r"log π\(x\) has no gradient in x"),
        (lambda: fitted(lambda x: x[:, 0].log()), NonFiniteError, r"fit: the value at the start is nan.*map\.initial"),
        (lambda: fitted(map=3), ConfigError, r"fit\(map=…\) must be a map from pwgf\.maps; got int"),
        (lambda: fitted(reference=pwgf.Gaussian(3)), ConfigError, r"fit\(reference=…\).*dimension 2; got dimension 3"),
        (lambda: fitted(reference=3), ConfigError, r"fit\(reference=…\) .*dimension 2; got int"),
        (lambda: fitted(theta0=torch.ones(2)), ShapeError, r"fit\(theta0=…\) must have shape \(6,\)"),
        (lambda: fitted(learning_rate=0), ConfigError, r"fit\(learning_rate=…\) must be a number in \(0, inf\); got 0"),
        (lambda: fitted(held_out=1), ConfigError, r"fit\(held_out=…\) must be a number in \[0, 0\.9\]; got 1"),
        (lambda: fitted(batch_size=0), ConfigError, r"fit\(batch_size=…\) must be an integer ≥ 1; got 0"),
        (lambda: fitted(patience=0), ConfigError, r"fit\(patience=…\) must be an integer ≥ 1; got 0"),
        (lambda: fitted(max_iterations=-1), ConfigError, r"fit\(max_iterations=…\) must be an integer ≥ 0; got -1"),
        (lambda: fitted(polish=-1), ConfigError, r"fit\(polish=…\) must be an integer ≥ 0; got -1"),
    ],
)
def test_arguments_of_fit_are_checked(do, error, message):
    with pytest.raises(error, match=message):
        do()


# --- reparametrise --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian_run():
    problem = problems.OrnsteinUhlenbeck(2)
    scheme = pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, num_samples=100, num_eval=200)
    return pwgf.solve(scheme, [0.0, 0.2, 0.4], progress=False)


def wells(map, theta0=None):
    problem = problems.StyblinskiTang(2)
    return pwgf.PWGF(problem.energy, map, problem.reference, theta0=theta0, num_samples=400, num_eval=4000)


def test_an_affine_law_goes_over_to_a_network_to_rounding(gaussian_run):
    new = maps.ResidualMLP(2)
    found = fitting.reparametrise(gaussian_run, 0.3, new)  # between rows too
    assert found.error < 1e-20
    z = pwgf.Gaussian(2).sample(100, seeded(8))
    torch.testing.assert_close(new(found.theta, z), gaussian_run.push(0.3, z), rtol=1e-9, atol=1e-9)


def test_a_flow_goes_on_with_a_bigger_map():
    """Double wells: a narrow network to t = .25, a wide one from there; the energy ends nearer to the exact one."""
    problem = problems.StyblinskiTang(2)
    narrow = pwgf.solve(wells(maps.ResidualMLP(2, width=2, axis_units=0)), [0.0, 0.25, 0.4], progress=False)
    wide = maps.ResidualMLP(2, width=48, axis_units=0)
    found = fitting.reparametrise(narrow, 0.25, wide)
    assert found.error < 1e-5
    z = pwgf.Gaussian(2).sample(5000, seeded(7))
    old = narrow.push(0.25, z)
    error = (wide(found.theta, z) - old).square().sum(1).mean() / (old - old.mean(0)).square().sum(1).mean()
    assert float(error) < 1e-5  # heavy-tailed: most of it comes from few samples in the tails
    run = pwgf.solve(wells(wide, found.theta), [0.25, 0.4], progress=False)
    assert run.t.tolist() == [0.25, 0.4]
    assert run["energy"][0] == pytest.approx(narrow["energy"][1], abs=5 * run["energy_stderr"][0])
    assert run["projection_residual"][-1] < narrow["projection_residual"][-1]
    exact = problem.exact_energy(0.4)
    assert abs(run["energy"][-1] - exact) < abs(narrow["energy"][-1] - exact) + 3 * run["energy_stderr"][-1]


def particles():
    problem = problems.OrnsteinUhlenbeck(2)
    return pwgf.solve(
        pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=9, dt=0.1), [0, 0.1], progress=False
    )


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda run: fitting.reparametrise(3, 0.1, maps.Affine(2)), r"needs a Trajectory, from solve or load; got int"),
        (lambda run: fitting.reparametrise(particles(), 0.1, maps.Affine(2)), r"holds particles .*fitting\.fit\(map"),
        (lambda run: fitting.reparametrise(run, 0.1, 3), r"reparametrise\(new_map=…\) must be a map .*; got int"),
        (lambda run: fitting.reparametrise(run, 0.1, maps.Affine(3)), r"must have the dimension of the run, 2; got 3"),
        (lambda run: fitting.reparametrise(run, 0.9, maps.Affine(2)), r"t = 0\.9 lies outside the run"),
        (
            lambda run: fitting.reparametrise(run, 0.1, maps.Affine(2), num_samples=0),
            r"reparametrise\(num_samples=…\) must be an integer ≥ 1; got 0",
        ),
        (
            lambda run: fitting.reparametrise(run, 0.1, maps.Affine(2), num_eval=1),
            r"reparametrise\(num_eval=…\) must be an integer ≥ 2; got 1",
        ),
        (
            lambda run: fitting.reparametrise(run, 0.1, maps.Affine(2), max_iterations=0),
            r"reparametrise\(max_iterations=…\) must be an integer ≥ 1; got 0",
        ),
    ],
)
def test_arguments_of_reparametrise_are_checked(gaussian_run, do, message):
    with pytest.raises(ConfigError, match=message):
        do(gaussian_run)


def test_a_new_map_that_is_not_finite_is_told(gaussian_run):
    class Broken(maps.Affine):
        def __call__(self, theta, z):
            return super().__call__(theta, z) * math.nan

    with pytest.raises(NonFiniteError, match=r"the new map gives NaN or infinite samples at its start"):
        fitting.reparametrise(gaussian_run, 0.1, Broken(2))


def test_a_start_of_another_map_is_refused(gaussian_run):
    with pytest.raises(ShapeError, match=r"reparametrise\(theta0=…\) must have shape \(6,\) for this map; got \(2,\)"):
        fitting.reparametrise(gaussian_run, 0.1, maps.Affine(2), theta0=torch.ones(2))


def test_regress_ends_at_its_tolerance_and_keeps_near_its_start_by_its_damping():
    map = maps.ResidualMLP(1, width=16)
    z = torch.linspace(-3, 3, 400, dtype=torch.float64)[:, None]
    x = z + 0.3 * torch.sin(2 * z)
    start = map.initial(0)
    loose, few = fitting.regress(map, start, z, x, tolerance=1e-3)
    tight, many = fitting.regress(map, start, z, x, tolerance=1e-7)
    misfits = [float((map(theta, z) - x).square().mean() / x.var()) for theta in (loose, tight)]
    assert few < many and 1e-7 < misfits[0] < 1e-3 and misfits[1] < 1e-7
    held, _ = fitting.regress(map, start, z, x, least_damping=1e-2)
    assert float((held - start).norm()) < float((tight - start).norm())


def test_active_directions_of_a_mixture_span_the_differences_of_its_centres():
    problem = problems.GaussianMixture(8, components=4)
    rows = fitting.active_directions(problem.energy, problem.reference)
    assert rows.shape == (8, 8)
    assert rows.norm(dim=1).tolist() == sorted(rows.norm(dim=1).tolist(), reverse=True)
    assert int((rows.norm(dim=1) > 0).sum()) == 3
    spread = problem.centres - problem.centres.mean(0)
    plane = torch.linalg.qr(spread[:3].T).Q
    torch.testing.assert_close(rows[:3] @ plane @ plane.T, rows[:3], atol=1e-6, rtol=0)


def test_a_gaussian_flow_has_no_active_directions_and_then_none_is_preferred():
    problem = problems.OrnsteinUhlenbeck(3)
    rows = fitting.active_directions(problem.energy, problem.reference)
    assert float(rows.abs().max()) == 0  # rounding is no direction
    map = maps.ConvexMax(3, groups=2)
    assert torch.equal(map.initial(4, rows), map.initial(4))


def test_convex_max_looks_along_directions_and_still_starts_as_the_identity():
    map, z = maps.ConvexMax(5, groups=3, size=4), torch.randn(20, 5, dtype=torch.float64)
    theta = map.initial(2, torch.eye(5)[:2])
    units = map.unpack(theta)[1][5:]
    assert float(units[::2, 2:].abs().max()) == 0  # every second one, along the first two coordinates
    assert bool((units[1::2, 2:].norm(dim=1) > 0).all())
    torch.testing.assert_close(map(theta, z), z, atol=1e-12, rtol=0)


def test_convex_ridge_looks_along_directions_and_still_starts_as_the_identity():
    map, z = maps.ConvexRidge(4, width=8, scale=2.0), torch.randn(20, 4, dtype=torch.float64)
    theta = map.initial(2, 3 * torch.eye(4)[[0, 0, 2]] * torch.tensor([[1.0], [0.0], [1.0]]))  # the second is zero
    _, units, centres, *_ = map.unpack(theta)
    expected = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 2, 2, 2]]
    torch.testing.assert_close(units[4:10], expected)
    torch.testing.assert_close(centres[:3], centres[3:6])
    assert len(set(centres[:3, 0].tolist())) == 3
    torch.testing.assert_close(units[10:], map.unpack(map.initial(2))[1][10:])
    torch.testing.assert_close(map(theta, z), z, atol=1e-12, rtol=0)
    assert map.initial(0, torch.eye(4)).isfinite().all()  # more directions than units


@pytest.mark.parametrize("family", [maps.ConvexMax, maps.ConvexRidge])
@pytest.mark.parametrize("rows", [torch.zeros(5), torch.zeros(2, 4), torch.full((1, 5), torch.nan)])
def test_directions_of_another_shape_are_refused(rows, family):
    with pytest.raises(ShapeError, match=r"directions=…\) needs finite rows of shape \(k, 5\)"):
        family(5).initial(0, rows)


def test_active_directions_need_samples_and_a_finite_velocity():
    problem = problems.OrnsteinUhlenbeck(3)
    with pytest.raises(ConfigError, match=r"active_directions.*num_samples"):
        fitting.active_directions(problem.energy, problem.reference, num_samples=3)
    steep = pwgf.energies.Potential(lambda x: x.sum(-1) / 0)
    with pytest.raises(ConfigError, match="velocity of potential is not finite at 4000 of 4000"):
        fitting.active_directions(steep, problem.reference)
