"""Gradients of convex functions: they never fold, start with a rich tangent, and say so when rounding ends it."""

from __future__ import annotations

import pytest
import torch

import pwgf
from pwgf import maps, problems
from pwgf.errors import ConfigError, NonFiniteError, SolverError
from pwgf.maps.convex import cholesky
from pwgf.schemes.jko import QuadraticICNN
from tests.maps.members import points, random_theta

CONVEX = {
    "ridge": lambda: maps.ConvexRidge(3, width=12),
    "ridge-scale": lambda: maps.ConvexRidge(2, width=6, scale=3.0, gain=0.2, floor=0.1),
    "max": lambda: maps.ConvexMax(3, groups=3, size=4),
    "max-scale": lambda: maps.ConvexMax(2, groups=2, size=3, scale=3.0, gain=0.2, floor=0.1),
    "quadratic": lambda: QuadraticICNN(3, width=6, rank=2),
}


def dense_by_z(map, theta, z):
    return torch.stack([torch.autograd.functional.jacobian(lambda q: map(theta, q[None])[0], zi) for zi in z])


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", CONVEX)
def test_the_jacobian_is_symmetric_and_above_the_floor_for_every_theta(name, size):
    map = CONVEX[name]()
    for seed in range(5):
        jacobian = dense_by_z(map, random_theta(map, size, seed), 3 * points(20, map.dim, seed))
        torch.testing.assert_close(jacobian, jacobian.transpose(1, 2), rtol=1e-9, atol=1e-9)
        smallest = torch.linalg.eigvalsh(jacobian)
        assert bool((smallest[:, 0] >= map.floor - 1e-12 * smallest[:, -1]).all())


@pytest.mark.parametrize(
    ("make", "misfit"),
    [
        (lambda: maps.ConvexRidge(1), 2e-2),
        (lambda: maps.ConvexMax(1), 4e-2),
    ],
)
def test_at_the_start_the_tangent_already_bends_both_ways(make, misfit):
    """Velocities that widen and that split a normal law lie in range(J) at θ₀ up to 2 or 4 %, damping 1e-6."""
    map, z = make(), points(400, 1)
    tangent = pwgf.tangent.Tangent(map, map.initial(), z)
    for v in (torch.tanh(2 * z), -torch.tanh(2 * z), torch.sin(2 * z)):
        found = pwgf.linalg.get_solver("primal")(tangent, v, damping=1e-6)
        assert found.fit < misfit


@pytest.mark.parametrize(
    "make",
    [
        lambda: maps.ConvexRidge(2, width=40),
        lambda: maps.ConvexMax(2, groups=12, size=3),
        lambda: maps.Composed([maps.ConvexRidge(2, width=20), maps.Affine(2)]),
    ],
)
def test_an_ornstein_uhlenbeck_flow(make, tmp_path):
    """Symmetric KL against the closed form, after a way through HDF5."""
    map = make()
    problem = problems.OrnsteinUhlenbeck(2, cov=[[1.5, 0.4], [0.4, 0.5]], mean=[1.0, -0.5])
    scheme = pwgf.PWGF(problem.energy, map, problem.reference, num_samples=300, num_eval=300, tolerance=1e-3)
    pwgf.solve(scheme, [0.0, 0.3], out=tmp_path / "ou.h5", progress=False)
    z = points(5, 2)
    run, law = pwgf.load(tmp_path / "ou.h5"), problem.exact(0.3)
    assert torch.equal(run.push(0.3, z), map(run.theta(0.3), z))
    x, y = run.sample(0.3, 4000), law.sample(4000, torch.Generator().manual_seed(1))
    gap = lambda at: run.log_density(0.3, at) - law.log_density(at)  # noqa: E731
    assert float(gap(x).mean() - gap(y).mean()) < 1e-3
    assert run["fold_fraction"].max() == 0


def test_a_jacobian_that_is_not_finite_names_its_sample():
    for name, map in ((type(make()).__name__, make()) for make in CONVEX.values()):
        theta, z = map.initial(), points(4, map.dim)
        z[2, 0] = torch.nan
        for call in (lambda: map.log_abs_det(theta, z), lambda: map.push_score(theta, z, -z)):  # noqa: B023
            with pytest.raises(
                NonFiniteError, match=rf"{name}: ∂_zT is NaN or infinite at 1 of 4 samples.*z\[2\] = \(nan"
            ):
                call()


def test_a_jacobian_that_rounding_made_indefinite_names_its_sample_and_spectrum():
    jacobian = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, -1e-9]))]).double()
    message = (
        r"Map: the Cholesky .* failed at 1 of 2 samples, first at z\[1\] = .*from -1\.0e-09 to 1\.0e\+00.*larger floor"
    )
    with pytest.raises(SolverError, match=message):
        cholesky(jacobian, points(2, 2), "Map")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"\(width=…\) must be an integer ≥ 1; got 0"),
        ({"width": True}, r"\(width=…\) must be an integer ≥ 1; got True"),
        ({"axis_share": -0.1}, r"\(axis_share=…\) must lie in \[0, 1\]; got -0\.1"),
        ({"gain": 0.0}, r"\(gain=…\) must be positive and finite; got 0\.0"),
        ({"floor": 0.0}, r"\(floor=…\) must lie in \(0, 0\.5\]; got 0\.0"),
        ({"floor": 0.7}, r"\(floor=…\) must lie in \(0, 0\.5\]; got 0\.7"),
    ],
)
@pytest.mark.parametrize("make", [maps.ConvexRidge])
def test_settings(make, settings, message):
    with pytest.raises(ConfigError, match=make.__name__ + message):
        make(2, **settings)


def test_settings_of_one_family():
    with pytest.raises(ConfigError, match=r"ConvexRidge\(scale=…\) must be positive and finite; got nan"):
        maps.ConvexRidge(2, scale=float("nan"))
    with pytest.raises(ConfigError, match=r"ConvexMax\(size=…\) must be an integer ≥ 2; got 1"):
        maps.ConvexMax(2, size=1)
    with pytest.raises(ConfigError, match=r"ConvexMax\(groups=…\) must be an integer ≥ 1; got 0"):
        maps.ConvexMax(2, groups=0)
    with pytest.raises(ConfigError, match=r"ConvexMax\(scale=…\) must be positive and finite; got -1"):
        maps.ConvexMax(2, scale=-1)
    with pytest.raises(ConfigError, match=r"ConvexMax\(sharpness=…\) must be positive and finite; got inf"):
        maps.ConvexMax(2, sharpness=float("inf"))
    with pytest.raises(ConfigError, match=r"ConvexMax\(gain=…\) must be positive and finite; got 0"):
        maps.ConvexMax(2, gain=0)
    with pytest.raises(ConfigError, match=r"ConvexMax\(floor=…\) must lie in \(0, 0\.5\]; got 0\.6"):
        maps.ConvexMax(2, floor=0.6)
    with pytest.raises(ConfigError, match=r"QuadraticICNN\(rank=…\) must be an integer ≥ 1; got 2\.5"):
        QuadraticICNN(2, rank=2.5)
    with pytest.raises(ConfigError, match=r"QuadraticICNN\(gain=…\) must be positive and finite; got 0"):
        QuadraticICNN(2, gain=0)
    with pytest.raises(ConfigError, match=r"QuadraticICNN\(floor=…\) must lie in \(0, 0\.5\]; got 0"):
        QuadraticICNN(2, floor=0)


def test_projected_parameters_give_the_same_map_and_every_weight_a_gradient():
    map, z = QuadraticICNN(2, width=9, rank=1), points(30, 2)
    theta = random_theta(map)
    projected = theta.clone()
    map.project(projected)
    assert float(map.unpack(theta)[-1].min()) < 0 <= float(map.unpack(projected)[-1].min())
    assert torch.equal(map(projected, z), map(theta, z))
    slope = torch.autograd.grad(map(projected.requires_grad_(True), z).square().sum(), projected)[0]
    assert bool((map.unpack(slope)[-1] != 0).all())
