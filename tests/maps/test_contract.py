"""What every map promises, against automatic differentiation and dense linear algebra."""

from __future__ import annotations

import json

import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.maps.convex import ConvexGradient
from pwgf.schemes.jko.replay import stored_map
from pwgf.tangent import Tangent
from tests.maps.members import (
    MEMBERS,
    num_smooth,
    points,
    potential_for,
    random_theta,
    reference_for,
    starts_as_identity,
    starts_to_rounding,
)

pytestmark = pytest.mark.parametrize("name", MEMBERS)


def dense_by_theta(map, theta, z):
    """∂_θT, (n,d,p), by reverse mode through the plain call."""
    return torch.autograd.functional.jacobian(lambda q: map(q, z), theta)


def dense_by_z(map, theta, z):
    """∂_zT, (n,d,d), by reverse mode through the plain call, one sample at a time."""
    return torch.stack([torch.autograd.functional.jacobian(lambda q: map(theta, q[None])[0], zi) for zi in z])


def square(x):
    return x.square().sum(1)


def has_random_start(map):
    if isinstance(map, (maps.Layers, maps.Standardised, maps.InBox, maps.OnTorus)):
        return has_random_start(map.map)
    if isinstance(map, maps.Composed):
        return any(has_random_start(map.maps[k]) for k in map.moving)
    residual = isinstance(map, maps.ResidualMLP) and (map.depth > 1 or map.axis_share < 1)
    return residual or isinstance(map, (maps.NeuralODE, ConvexGradient))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shapes_for_any_number_of_samples(name, n):
    map = MEMBERS[name]()
    theta, z, d, p = random_theta(map), points(n, map.dim), map.dim, map.num_params
    linear = map.linearise(theta, z)
    assert map(theta, z).shape == (n, d)
    assert map.jacobian(theta, z).shape == (n, d, d)
    assert map.log_abs_det(theta, z).shape == (n,)
    assert linear.jv(torch.ones(p, dtype=torch.float64)).shape == (n, d)
    assert linear.jtu(torch.ones(n, d, dtype=torch.float64)).shape == (p,)


def test_start_is_the_identity_exactly(name):
    map = MEMBERS[name]()
    z = 3 * points(50, map.dim)
    if starts_to_rounding(map):
        torch.testing.assert_close(map(map.initial(), z), z, rtol=0, atol=1e-13)
        torch.testing.assert_close(map(map.initial(4).float(), z.float()), z.float(), rtol=0, atol=1e-4)
    elif starts_as_identity(map):
        assert torch.equal(map(map.initial(), z), z)
        assert torch.equal(map(map.initial(4).float(), z.float()), z.float())
    if starts_as_identity(map):
        identity = torch.eye(map.dim, dtype=torch.float64).expand(50, -1, -1)
        torch.testing.assert_close(map.jacobian(map.initial(), z), identity, rtol=0, atol=1e-13)
    else:
        torch.testing.assert_close(map(map.initial(), z), map._module(z))


def test_initial_is_float64_and_deterministic(name):
    map = MEMBERS[name]()
    theta = map.initial(3)
    assert theta.shape == (map.num_params,)
    assert theta.dtype == torch.float64
    assert theta.device.type == "cpu"
    assert torch.equal(theta, MEMBERS[name]().initial(3))
    torch.manual_seed(99)  # the global seed plays no part
    assert torch.equal(theta, map.initial(3))
    assert theta.data_ptr() != map.initial(3).data_ptr()
    random_start = has_random_start(map)
    assert torch.equal(theta, map.initial(4)) != random_start


def test_layout_covers_theta_exactly_once(name):
    map = MEMBERS[name]()
    covered = torch.zeros(map.num_params, dtype=torch.int64)
    names = [block.name for block in map.layout()]
    for block in map.layout():
        covered[block.offset : block.offset + torch.Size(block.shape).numel()] += 1
    assert bool((covered == 1).all())
    assert len(set(names)) == len(names)
    pieces = map.unpack(random_theta(map))
    assert [tuple(piece.shape) for piece in pieces] == [block.shape for block in map.layout()]
    assert torch.equal(torch.cat([piece.reshape(-1) for piece in pieces]), random_theta(map))


def test_products_agree_with_the_dense_tangent_and_are_adjoint(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map), points(6, map.dim)
    J, linear = dense_by_theta(map, theta, z), map.linearise(theta, z)
    eta, u = points(1, map.num_params, 1)[0], points(6, map.dim, 2)
    torch.testing.assert_close(linear.jv(eta), J @ eta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(linear.jtu(u), torch.einsum("nd,ndp->p", u, J), rtol=1e-10, atol=1e-12)
    left, right = (linear.jv(eta) * u).sum(), (eta * linear.jtu(u)).sum()
    assert abs(left - right) <= 1e-10 * (1 + abs(left))


def test_layers_give_the_tangent_exactly(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map), points(5, map.dim)
    linear = map.linearise(theta, z)
    if linear.layers is None:
        # a LayerNorm scales single coordinates, autoregressive flows mask their weights; a deep convex network is
        # differentiated plainly
        plain = (
            "FromModule2",
            "FromModule3-residual",
            "Composed2-icnn",
            "FromFlow2-autoregressive",
            "FromFlow2-spline",
        )
        assert name in plain or name.startswith("QuadraticICNN")
        return
    eta = points(1, map.num_params, 1)[0]
    moved = torch.stack([layer.push(eta) for layer in linear.layers()]).sum(0)
    torch.testing.assert_close(moved, linear.jv(eta), rtol=1e-10, atol=1e-12)
    J, filled = torch.zeros(5, map.dim, map.num_params, dtype=torch.float64), {}
    for layer in linear.layers():
        g = torch.eye(map.dim, dtype=torch.float64).expand(5, -1, -1) if layer.g is None else layer.g
        outputs_and_inputs = layer.shape[::-1] if layer.transposed else layer.shape
        assert (g.shape[2], layer.a.shape[1]) == outputs_and_inputs
        rule = "nki,no->nkoi" if layer.transposed else "nko,ni->nkoi"
        columns = torch.einsum(rule, g, layer.a).reshape(5, map.dim, -1)
        J[:, :, layer.offset : layer.offset + columns.shape[2]] += columns
        filled[layer.offset] = columns.shape[2]
    if isinstance(map, maps.Layers):
        assert sum(filled.values()) == map.begun(theta) * map.map.num_params
        assert linear.repeats  # so that what is not filled counts as zero
    else:
        assert sum(filled.values()) == map.num_params
        assert linear.repeats == (len(filled) < sum(not layer.transposed for layer in linear.layers()))
    torch.testing.assert_close(J, dense_by_theta(map, theta, z), rtol=1e-12, atol=1e-14)


def test_jacobian_agrees_with_automatic_differentiation(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map, 0.6), points(9, map.dim)
    torch.testing.assert_close(map.jacobian(theta, z), dense_by_z(map, theta, z), rtol=1e-11, atol=1e-12)


def test_log_abs_det_agrees_with_slogdet_of_the_dense_jacobian(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map, 0.6), points(9, map.dim)
    expected = torch.linalg.slogdet(dense_by_z(map, theta, z)).logabsdet
    torch.testing.assert_close(map.log_abs_det(theta, z), expected, rtol=1e-10, atol=1e-11)


def test_log_abs_det_is_differentiable_in_theta_and_z(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map).requires_grad_(True), points(3, map.dim).requires_grad_(True)
    by_theta, by_z = torch.autograd.grad(map.log_abs_det(theta, z).sum(), (theta, z), materialize_grads=True)
    h = 1e-6
    for leaf, slope, at in ((theta, by_theta, lambda q: (q, z)), (z, by_z, lambda q: (theta, q))):
        way = points(1, leaf.numel(), 8).view(leaf.shape)
        if leaf is theta:
            way[num_smooth(map) :] = 0
        with torch.no_grad():
            up, down = (map.log_abs_det(*at(leaf + e * way)).sum() for e in (h, -h))
        expected = (up - down) / (2 * h)
        assert abs((slope * way).sum() - expected) <= 1e-6 * (1 + abs(expected))


def test_the_score_agrees_with_finite_differences_of_the_log_density(name):
    """(∂_zT)ᵀ ∇log ρ(T(z)) = ∇_z[log λ(z) − log|det ∂_zT(z)|], for λ = N(0, I)."""
    map = MEMBERS[name]()
    theta, z, h = random_theta(map), points(4, map.dim), 1e-6
    pushed = map.push_score(theta, z, -z)
    steps = h * torch.eye(map.dim, dtype=torch.float64)
    by_z = torch.stack(
        [(map.log_abs_det(theta, z + e) - map.log_abs_det(theta, z - e)) / (2 * h) for e in steps], dim=1
    )
    jacobian = dense_by_z(map, theta, z)
    left = (jacobian.transpose(1, 2) @ pushed.score.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(left, -z - by_z, rtol=1e-6, atol=1e-6)
    sign, log_abs_det = torch.linalg.slogdet(jacobian)
    assert torch.equal(pushed.det_sign, sign)
    torch.testing.assert_close(pushed.log_abs_det, log_abs_det, rtol=1e-10, atol=1e-11)


def test_the_call_is_differentiable_in_theta_and_z(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map).requires_grad_(True), points(3, map.dim).requires_grad_(True)
    smooth, fixed = theta.detach().split([num_smooth(map), map.num_params - num_smooth(map)])
    assert torch.autograd.gradcheck(lambda q, z: map(torch.cat([q, fixed]), z), (smooth.requires_grad_(True), z))


def test_each_sample_is_mapped_by_itself(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map), points(6, map.dim)
    one_by_one = torch.cat([map(theta, zi[None]) for zi in z])
    torch.testing.assert_close(map(theta, z), one_by_one, rtol=1e-13, atol=1e-13)


def test_gram_matrices_trace_and_rows(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map), points(5, map.dim)
    J = dense_by_theta(map, theta, z)
    rows = J.reshape(5 * map.dim, -1)
    for chunk_size in (None, 2):
        tangent = Tangent(map, theta, z, chunk_size)
        torch.testing.assert_close(tangent.gram_dual(), rows @ rows.T, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(tangent.gram_primal(), rows.T @ rows / 5, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(tangent.diagonal(), rows.square().sum(0) / 5, rtol=1e-8, atol=1e-10)
        weights = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.25], dtype=torch.float64)
        weighted, own = tangent.weighted(weights), weights.sqrt().repeat_interleave(map.dim).unsqueeze(1) * rows
        torch.testing.assert_close(weighted.gram_dual(), own @ own.T, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(weighted.gram_primal(), own.T @ own / 5, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(weighted.diagonal(), own.square().sum(0) / 5, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(weighted.dense(), own, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(map.tangent_rows(theta, z), J, rtol=1e-8, atol=1e-10)


def test_volume_is_the_sign_and_the_logarithm_of_the_determinant(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map, 0.6), points(9, map.dim)
    sign, log_abs_det = torch.linalg.slogdet(dense_by_z(map, theta, z))
    torch.testing.assert_close(map.volume(theta, z), (sign, log_abs_det), rtol=1e-10, atol=1e-11)


def test_the_parameters_go_through_a_file(name, tmp_path):
    """A run is loaded with the same θ to the bit, and the map that is rebuilt from the file moves points alike."""
    map = MEMBERS[name]()
    few = {"num_samples": 8, "num_eval": 8, "tolerance": 0.1, "accuracy": 1.0}
    scheme = pwgf.PWGF(energies.Potential(potential_for(map)), map, reference_for(map), **few)
    run = pwgf.solve(scheme, [0.0, 0.1], out=tmp_path / "run.h5", progress=False)
    again = pwgf.load(tmp_path / "run.h5", **({"map": map} if isinstance(map, maps.FromModule) else {}))
    z = points(4, map.dim)
    assert torch.equal(again.theta(0.1), run.theta(0.1))
    assert torch.equal(again.push(0.1, z), map(run.theta(0.1), z))
    assert torch.equal(again.theta(0.0), map.initial(0))


def test_float32(name):
    map = MEMBERS[name]()
    theta, z = random_theta(map), points(6, map.dim)
    single, linear = map.linearise(theta.float(), z.float()), map.linearise(theta, z)
    eta, u = points(1, map.num_params, 1)[0], points(6, map.dim, 2)
    pairs = [
        (map(theta.float(), z.float()), map(theta, z)),
        (map.jacobian(theta.float(), z.float()), map.jacobian(theta, z)),
        (map.log_abs_det(theta.float(), z.float()), map.log_abs_det(theta, z)),
        (single.jv(eta.float()), linear.jv(eta)),
        (single.jtu(u.float()), linear.jtu(u)),
    ]
    for got, expected in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


def test_config_rebuilds_an_equal_map(name):
    map = MEMBERS[name]()
    stored = json.loads(json.dumps(map.to_config()))
    if isinstance(map, maps.FromModule):
        with pytest.raises(ConfigError, match=r"'From(Module|Flow)' cannot be rebuilt.*load\(path, map=…\)"):
            maps.from_config(stored)
        return
    again = stored_map(stored)
    theta, z = random_theta(map), points(4, map.dim)
    assert again == map
    assert torch.equal(again.initial(2), map.initial(2))
    assert torch.equal(again(theta, z), map(theta, z))
