"""The pushed measure with slopes kept above a floor: itself where the map is sound, finite where it is not."""

from __future__ import annotations

import pytest
import torch

from pwgf import maps
from pwgf.measures import FlooredMeasure, Gaussian, PushedMeasure
from pwgf.measures.floored import FLOOR


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Folding(maps.PushForward):
    """T(z) = (a z₁ + ½ z₁², b z₂): the slope along the first axis is a + z₁, so it turns over where z₁ < −a."""

    dim = 2

    def layout(self):
        return [maps.Block("slopes", (2,), 0)]

    def initial(self, seed=0):
        return torch.tensor([1.0, 1.0], dtype=torch.float64)

    def __call__(self, theta, z):
        return torch.stack([theta[0] * z[:, 0] + z[:, 0] ** 2 / 2, theta[1] * z[:, 1]], 1)


FIRST = [0.5, 0.0, 1.0, -0.5, -0.999, -1.0, -1.5]  # sound but for the last three: nearly folded, singular, turned over


def folding(**settings):
    z = torch.stack([torch.tensor(FIRST, dtype=torch.float64), random(len(FIRST), seed=1)], 1)
    map = Folding()
    arguments = (map, Gaussian(2), map.initial(), z)
    return FlooredMeasure(*arguments, **settings), PushedMeasure(*arguments)


@pytest.mark.parametrize(
    "map", [maps.ResidualMLP(2, width=5), maps.ConvexRidge(3, width=4), maps.NeuralODE(2, width=4)], ids=str
)
def test_a_sound_map_is_left_as_it_is(map):
    theta, z = map.initial() + 0.1 * random(map.num_params, seed=2), random(30, map.dim, seed=3)
    arguments = (map, Gaussian(map.dim), theta, z)
    floored, plain = FlooredMeasure(*arguments), PushedMeasure(*arguments)
    assert not bool(floored.unsound.any())
    for name in ("x", "score", "log_density", "det_sign"):
        assert torch.equal(getattr(floored, name), getattr(plain, name)), name
    inverse = torch.linalg.inv(map.jacobian(theta, z))
    torch.testing.assert_close(floored.inverse_jacobian, inverse.detach(), rtol=1e-10, atol=1e-12)


def test_unsound_samples_are_those_below_the_floor():
    floored, plain = folding()
    assert floored.unsound.tolist() == [False] * 4 + [True] * 3
    assert floored.det_sign.tolist() == plain.det_sign.tolist() == [1, 1, 1, 1, 1, 0, -1]
    slopes = (1 + floored.z[:, 0]).abs()
    size = (1 + slopes**-2).sqrt()  # |(∂_zT)⁻¹| in the Frobenius norm
    assert floored.floor == pytest.approx(FLOOR * float((1 / size).median()))
    assert folding(floor=0.6)[0].unsound.tolist() == [False, False, False, True, True, True, True]


def test_what_the_repair_gives_is_that_of_the_floored_slopes():
    """By hand: the first slope becomes the floor, whatever it was; the score carries λ's over without the bend."""
    floored, _ = folding(floor=0.1)
    at, z = floored.unsound, floored.z[floored.unsound]
    assert at.tolist() == [False] * 4 + [True] * 3
    floor, one = torch.full((3,), 0.1, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    by_hand = torch.diag_embed(torch.stack([1 / floor, one], 1))
    found = floored.inverse_jacobian[at]
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(floored.score[at], -z / torch.stack([floor, one], 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        floored.log_density[at], Gaussian(2).log_density(z) - floor.log(), rtol=1e-12, atol=1e-12
    )


def test_sound_samples_beside_unsound_ones_are_untouched():
    floored, plain = folding()
    sound = ~floored.unsound
    for name in ("score", "log_density"):
        assert torch.equal(getattr(floored, name)[sound], getattr(plain, name)[sound]), name
        assert bool(torch.isfinite(getattr(floored, name)).all()), name
    assert bool(torch.isfinite(floored.inverse_jacobian).all())
    assert not bool(torch.isfinite(plain.score).all())


@pytest.mark.parametrize("slopes", [(2.0, 0.0), (2.0, -1.0), (0.0, 0.0), (2.0, 1e-9)])
def test_an_affine_map_that_turns_space_over_or_squeezes_it(slopes):
    """All samples alike: values are finite, and no slope of the repaired map is below the floor."""
    map = maps.Affine(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    matrix = turn @ torch.diag(torch.tensor(slopes, dtype=torch.float64)) @ turn.T
    theta = torch.cat([matrix, torch.zeros(2, 1, dtype=torch.float64)], 1).reshape(-1)
    z = random(5, 2, seed=4)
    rho = FlooredMeasure(map, Gaussian(2), theta, z, floor=0.1)
    assert bool(rho.unsound.all())
    sign = float(torch.tensor(slopes).prod().sign())
    assert sign == 0 or rho.det_sign.tolist() == [sign] * 5
    for values in (rho.score, rho.log_density, rho.inverse_jacobian):
        assert bool(torch.isfinite(values).all())
    assert float(torch.linalg.matrix_norm(rho.inverse_jacobian, 2).max()) == pytest.approx(10, rel=1e-9)
    assert bool((torch.linalg.det(rho.inverse_jacobian) > 0).all())
