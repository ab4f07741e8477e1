"""A map in layers against the composition that it is."""

from __future__ import annotations

import pytest
import torch

from pwgf import maps
from pwgf.errors import ConfigError, ShapeError
from tests.maps.members import points, random_theta


def grown_by(map, theta, z, times, size=0.3):
    """θ after so many layers, each moved at random once it has begun."""
    for k in range(times):
        theta = map.grown(theta, z)
        inner, where = map.moving_at(theta)
        noise = torch.randn(inner.num_params, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        theta[where] += size * noise
    return theta


def small(count=4):
    return maps.Layers(maps.ResidualMLP(2, width=5, axis_units=3), count)


def test_a_new_layer_leaves_the_map_as_it_is():
    map, z = small(), points(50, 2)
    theta = map.initial(3)
    for begun in (1, 2, 3):
        assert map.begun(theta) == begun
        further = map.grown(theta, z)
        torch.testing.assert_close(map(further, z), map(theta, z), rtol=0, atol=1e-13)
        torch.testing.assert_close(map.log_abs_det(further, z), map.log_abs_det(theta, z), rtol=0, atol=1e-12)
        theta = grown_by(map, theta, z, 1)
    assert map.begun(theta) == 4
    assert map.grown(theta, z) is None


def test_it_begins_where_the_law_then_lies():
    map, z = maps.Layers(maps.Affine(2), count=2), points(1000, 2)
    theta = map.initial()
    theta[:6] = torch.tensor([[3.0, 0.0, 5.0], [0.0, 3.0, -7.0]]).view(-1)
    x = map(theta, z)
    *_, centre, spread, _ = map.unpack(map.grown(theta, z))
    torch.testing.assert_close(centre[1], x.mean(0))
    torch.testing.assert_close(spread[1], (x - x.mean(0)).square().mean().sqrt())


def test_the_last_two_layers_move_and_the_others_do_not():
    map, z = small(), points(20, 2)
    p = map.map.num_params
    first, where = map.moving_at(map.initial())
    assert (first, where) == (map.map, slice(0, p))
    theta = grown_by(map, map.initial(), z, 3)
    inner, where = map.moving_at(theta)
    assert where == slice(2 * p, 4 * p)
    torch.testing.assert_close(inner(theta[where], z), map(theta, z))
    eta = torch.randn(map.num_params, dtype=torch.float64)
    eta[: where.start], eta[where.stop :] = 0, 0
    moved = map.linearise(theta, z).jv(eta)
    torch.testing.assert_close(inner.linearise(theta[where], z).jv(eta[where]), moved)
    xi = points(20, 2, 4)
    slope = map.linearise_slope(theta, z, xi).jv(eta)
    torch.testing.assert_close(inner.linearise_slope(theta[where], z, xi).jv(eta[where]), slope)
    torch.testing.assert_close(inner.slope_rows(theta[where], z, xi) @ eta[where], slope)


def test_in_other_coordinates_it_grows_there():
    z = 40 + 8 * points(200, 2)
    map = maps.Standardised(small(), [40.0, 40.0], 8.0)
    theta = grown_by(map, map.initial(), z, 2)
    inner, where = map.moving_at(theta)
    torch.testing.assert_close(inner(theta[where], z), map(theta, z))
    assert isinstance(inner, maps.Standardised)


def test_layers_of_a_box_stay_in_it():
    map, z = maps.Layers(maps.InBox(maps.ResidualMLP(1, width=4), 0.0, 2.0), 3), 2 * torch.rand(500, 1).double()
    theta = grown_by(map, map.initial(), z, 2, size=2.0)
    x = map(theta, z)
    assert bool(((x >= 0) & (x <= 2)).all())
    assert float(x.std()) != pytest.approx(float(z.std()), rel=1e-3)


def test_other_maps_move_as_a_whole_and_do_not_grow():
    map = maps.ResidualMLP(2, width=4)
    theta = random_theta(map)
    assert map.moving_at(theta) == (map, slice(0, map.num_params))
    assert map.grown(theta, points(9, 2)) is None


def test_parameters_of_a_map_in_layers_are_not_taken_for_those_of_one():
    """They are more, and the first of them would be a law of another time."""
    words = r"ResidualMLP\(theta, z\): theta must hold its 49 parameters; got shape \(209,\).*scheme\.map"
    with pytest.raises(ShapeError, match=words):
        small().map(small().initial(), points(3, 2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: maps.Layers(torch.nn.Tanh()), r"Layers\(map\): map must be one from pwgf\.maps; got Tanh"),
        (lambda: maps.Layers(maps.Affine(1), 0), r"Layers\(count=…\) must be an integer ≥ 1; got 0"),
        (
            lambda: maps.Layers(maps.Composed([maps.Affine(1)], thetas=[[2.0, 0.0]])),
            r"Layers\(map=Composed\): map\.initial\(\) must be the identity.*maps\.ResidualMLP\(dim\)",
        ),
    ],
)
def test_what_cannot_be_a_layer_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
