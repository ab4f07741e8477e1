"""Inverses: round trips near the start, far from it and for staircases; and plain failure where there is none."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import ortho_group

from pwgf import maps
from pwgf.errors import ConfigError, ShapeError, SolverError
from pwgf.maps.base import newton_inverse
from tests.maps.members import MEMBERS, in_domain, module, points, random_theta

INVERTIBLE = [name for name in MEMBERS if name != "FromModule2"]  # a bare module with LayerNorm is no diffeomorphism


def contraction(map: maps.PushForward, lipschitz: float) -> torch.Tensor:
    """θ at which T = z + f with Lip(f) = `lipschitz` at most (product of spectral norms): a diffeomorphism if < 1."""
    if isinstance(map, maps.InBox):  # its Jacobian is I + ½(1 − s²)∂f, scaled from both sides
        return contraction(map.map, lipschitz)
    theta = random_theta(map, 1.0)
    if not isinstance(map, maps.ResidualMLP):
        return theta
    parts = map.unpack(theta)
    if map.axis_units:
        w, _, o = parts.pop().unbind(1)
        lipschitz = lipschitz / 2
        o *= lipschitz / (map.axis_gain * (w * o).abs().sum(1).max())
    affine, *hidden, out = parts
    affine[:, :-1] = torch.eye(map.dim, dtype=torch.float64)
    bound = map.gain * torch.linalg.matrix_norm(out, 2)
    for w in hidden:
        bound = bound * torch.linalg.matrix_norm(w[:, :-1], 2)
    out *= lipschitz / bound
    return theta


def staircase(
    dim: int, steps: int = 4, steepness: float = 20.0, floor: float = 0.05
) -> tuple[maps.ResidualMLP, torch.Tensor]:
    """T(z) = Rᵀ S(R z), S a staircase on every coordinate with slopes from `floor` to about `steepness`.

    T is the gradient of a convex function for every rotation R, so it is a diffeomorphism; it splits a normal law into
    `steps`+1 heaps along each axis of R.
    """
    map = maps.ResidualMLP(dim, width=dim * steps, axis_units=0)
    rotation = torch.eye(1, dtype=torch.float64)
    if dim > 1:
        rotation = torch.from_numpy(ortho_group.rvs(dim, random_state=1))
    theta = torch.zeros(map.num_params, dtype=torch.float64)
    affine, first, out = map.unpack(theta)
    affine[:, :-1] = floor * torch.eye(dim, dtype=torch.float64)
    centres = torch.linspace(-1.5, 1.5, steps, dtype=torch.float64)
    for axis in range(dim):
        mine = slice(axis * steps, (axis + 1) * steps)
        first[mine, :-1] = steepness * rotation[axis]
        first[mine, -1] = -steepness * centres
        out[:, mine] = rotation[axis].unsqueeze(1) / map.gain
    return map, theta


def check_round_trip(map, theta, z, accuracy=1e-8):
    x = map(theta, z)
    back = map.inverse(theta, x)
    torch.testing.assert_close(map(theta, back), x, rtol=accuracy, atol=accuracy)
    torch.testing.assert_close(back, z, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_round_trip_at_and_near_the_start(name):
    map = MEMBERS[name]()
    z = in_domain(map, 2 * points(200, map.dim))
    check_round_trip(map, map.initial(), z)
    check_round_trip(map, random_theta(map, 0.01), z)


MAY_FOLD = ("FromModule", "Composed", "Layers", "OnTorus", "InBox2-convex")


@pytest.mark.parametrize("name", [name for name in INVERTIBLE if not name.startswith(MAY_FOLD)])
def test_round_trip_far_from_the_start(name):
    map = MEMBERS[name]()
    check_round_trip(map, contraction(map, 0.95), 3 * points(200, map.dim), 1e-8)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_round_trip_of_a_strongly_nonlinear_diffeomorphism(dim):
    map, theta = staircase(dim)
    z = points(300, dim)
    x = map(theta, z)
    slopes = torch.linalg.svdvals(map.jacobian(theta, z))
    assert float(slopes.max() / slopes.min()) > 100
    torch.testing.assert_close(map(theta, map.inverse(theta, x)), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(map.inverse(theta, x), z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["Affine3", "ResidualMLP2-default", "FromModule3-residual"])
def test_round_trip_in_float32(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map, 0.01).float(), points(100, map.dim).float()
    back = map.inverse(theta, map(theta, z))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, z, rtol=1e-3, atol=1e-3)


def test_newton_agrees_with_the_closed_form_of_the_affine_map():
    map = maps.Affine(3)
    theta, x = random_theta(map), 5 * points(20, 3)
    affine = theta.view(3, 4)
    expected = torch.linalg.inv(affine[:, :3]) @ (x - affine[:, 3]).T
    torch.testing.assert_close(map.inverse(theta, x), expected.T)
    torch.testing.assert_close(newton_inverse(map, theta, x), expected.T)


def test_inverse_leaves_its_arguments_alone():
    map, theta = staircase(2)
    x = map(theta, points(30, 2)).requires_grad_(True)
    before = x.detach().clone()
    z = map.inverse(theta.clone().requires_grad_(True), x)
    assert torch.equal(x, before)
    assert not z.requires_grad


def test_a_point_outside_the_range_is_a_solver_error():
    map = maps.ResidualMLP(1, width=4)
    theta = map.initial()
    map.unpack(theta)[0].zero_()  # T is bounded: |T| ≤ gain · Σ|W_out|
    map.unpack(theta)[2].fill_(0.25)
    x = torch.tensor([[0.0], [50.0 * map.gain]], dtype=torch.float64)
    with pytest.raises(
        SolverError, match=r"ResidualMLP\.inverse: Newton failed at 1 of 2.*\(a\) the map folds.*\(b\) x lies"
    ):
        map.inverse(theta, x)


def test_points_that_are_not_finite_are_refused():
    map = maps.ResidualMLP(2, width=4)
    x = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]], dtype=torch.float64)
    with pytest.raises(
        ConfigError, match=r"x must be finite; got NaN or infinite entries in 1 of 2 rows, first in row 1"
    ):
        map.inverse(map.initial(), x)


def test_a_singular_affine_map_is_a_solver_error():
    with pytest.raises(SolverError, match=r"Affine\.inverse: the matrix A in θ is singular.*smaller tolerance"):
        maps.Affine(2).inverse(torch.zeros(6, dtype=torch.float64), points(3, 2))


@pytest.mark.parametrize("shape", [(2,), (4, 3), (2, 2, 2)])
@pytest.mark.parametrize("map", [maps.Affine(2), maps.ResidualMLP(2), maps.FromModule(module(2), dim=2, residual=True)])
def test_points_of_a_wrong_shape(map, shape):
    with pytest.raises(ShapeError, match=r"inverse\(theta, x\): x must have shape \(n, 2\), .*; got .*view\(-1, 2\)"):
        map.inverse(map.initial(), torch.zeros(shape, dtype=torch.float64))
