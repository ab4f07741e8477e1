"""Compositions against their parts, and what is refused."""

from __future__ import annotations

import pytest
import torch

import pwgf
from pwgf import maps, problems
from pwgf.errors import ConfigError, ShapeError
from tests.maps.members import module, points, random_theta


def parts():
    return [maps.Affine(2), maps.ConvexRidge(2, width=5), maps.ResidualMLP(2, width=4)]


def test_it_is_its_parts_one_after_another():
    inside = parts()
    thetas, z = [random_theta(map) for map in inside], points(7, 2)
    map = maps.Composed(inside)
    x = z
    for part, theta in zip(inside, thetas, strict=True):
        x = part(theta, x)
    torch.testing.assert_close(map(torch.cat(thetas), z), x)


def test_maps_that_stay_keep_their_parameters_and_moving_ones_start_at_theirs():
    inside = parts()
    thetas, z = [random_theta(map) for map in inside], points(7, 2)
    whole, some = maps.Composed(inside, thetas=thetas), maps.Composed(inside, moving=[2, 0], thetas=thetas)
    assert torch.equal(whole.initial(), torch.cat(thetas))
    assert torch.equal(some.initial(), torch.cat([thetas[0], thetas[2]]))
    torch.testing.assert_close(some(some.initial(), z), whole(whole.initial(), z))
    assert [block.name for block in some.layout()] == ["0.affine", "2.affine", "2.hidden1", "2.out", "2.axis"]
    eta = random_theta(some)
    padded = torch.cat([eta[:6], torch.zeros(inside[1].num_params, dtype=torch.float64), eta[6:]])
    moved = whole.linearise(whole.initial(), z).jv(padded)
    torch.testing.assert_close(some.linearise(some.initial(), z).jv(eta), moved)


def test_configurations_hold_the_parameters_that_stay():
    inside = parts()
    map = maps.Composed(inside, moving=[1], thetas=[random_theta(inside[0]), None, None])
    again = maps.from_config(map.to_config())
    assert again == map
    assert again != maps.Composed(inside, moving=[1])
    with pytest.raises(ConfigError, match=r"'FromModule' cannot be rebuilt"):
        maps.from_config(maps.Composed([maps.FromModule(module(2), 2)]).to_config())


def test_a_file_holds_all_parts(tmp_path):
    """A frozen map with more numbers than an HDF5 attribute holds, then one that moves."""
    still = maps.ResidualMLP(2, width=1000)
    map = maps.Composed([still, maps.ConvexRidge(2, width=6)], moving=[1], thetas=[random_theta(still, 0.05), None])
    problem = problems.OrnsteinUhlenbeck(2)
    scheme = pwgf.PWGF(problem.energy, map, problem.reference, num_samples=60, num_eval=60, tolerance=1e-2)
    run = pwgf.solve(scheme, [0.0, 0.02], out=tmp_path / "run.h5", progress=False)
    z = points(5, 2)
    again = pwgf.load(tmp_path / "run.h5").push(0.02, z)
    torch.testing.assert_close(again, map(run.theta(0.02), z), rtol=0, atol=0)
    assert not torch.equal(again, map(map.initial(), z))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: maps.Composed([]), ConfigError, r"Composed\(maps\) needs at least one map; got \[\]"),
        (lambda: maps.Composed([module(2)]), ConfigError, r"needs at least one map; got \['Sequential'\].*FromModule"),
        (
            lambda: maps.Composed([maps.Affine(2), maps.Affine(3)]),
            ConfigError,
            r"all maps must have the same dim; got \[2, 3\]",
        ),
        (
            lambda: maps.Composed(parts(), moving=[]),
            ConfigError,
            r"moving=…\) needs at least one of the numbers 0 … 2, each once; got \[\].*Leave it out",
        ),
        (lambda: maps.Composed(parts(), moving=[3]), ConfigError, r"each once; got \[3\]"),
        (lambda: maps.Composed(parts(), moving=[0, 0]), ConfigError, r"each once; got \[0, 0\]"),
        (lambda: maps.Composed(parts(), thetas=[None]), ShapeError, r"thetas=…\) needs one entry per map, 3; got 1"),
        (
            lambda: maps.Composed(parts(), thetas=[torch.zeros(5), None, None]),
            ShapeError,
            r"entry 0 must hold the 6 finite parameters of Affine; got shape \(5,\)",
        ),
        (lambda: maps.Composed([maps.Affine(1)], thetas=[[float("nan"), 0.0]]), ShapeError, r"2 finite parameters"),
    ],
)
def test_misuse(make, error, message):
    with pytest.raises(error, match=message):
        make()
