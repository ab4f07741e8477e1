"""How the slopes of every map move with its parameters, against reverse mode through `jacobian`."""

from __future__ import annotations

import pytest
import torch

from pwgf.tangent import SlopeTangent
from tests.maps.members import MEMBERS, points, random_theta


def case(name: str, n: int = 4):
    """A map off its start, points, directions, and ∂_θ(∂_zT·ξ), (n,d,p)."""
    map = MEMBERS[name]()
    theta, z, xi = random_theta(map), points(n, map.dim), points(n, map.dim, seed=12)
    dense = torch.autograd.functional.jacobian(lambda q: (map.jacobian(q, z) @ xi.unsqueeze(2)).squeeze(2), theta)
    return map, theta, z, xi, dense


def assert_near(found: torch.Tensor, expected: torch.Tensor, rel: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= rel * (float(expected.norm()) + 1e-12)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_slopes_tangent_is_the_derivative_of_the_jacobian(name):
    map, theta, z, xi, dense = case(name)
    linear = map.linearise_slope(theta, z, xi)
    eta, u = points(1, map.num_params, seed=13)[0], points(len(z), map.dim, seed=14)
    assert_near(linear.jv(eta), dense @ eta)
    assert_near(linear.jtu(u), torch.einsum("ndp,nd->p", dense, u))
    assert_near(map.slope_rows(theta, z, xi), dense)
    if linear.layers is not None:
        rows = SlopeTangent(map, theta, z, xi.unsqueeze(1))
        assert rows.layered
        assert_near(torch.cat(list(rows.rows())), dense.reshape(-1, map.num_params))


@pytest.mark.parametrize("name", MEMBERS)
def test_the_slopes_tangent_is_a_constant_in_the_dtype_of_theta(name):
    map, theta, z, xi, dense = case(name, n=3)
    linear = map.linearise_slope(theta.float().requires_grad_(True), z.float(), xi.float())
    moved = linear.jv(torch.ones(map.num_params))
    assert moved.dtype == torch.float32
    assert not moved.requires_grad
    assert_near(moved.double(), dense.sum(2), rel=1e-3)
