"""The estimated error of the law, where the exact one is known: a map that can only translate, and flows in d ≤ 3."""

from __future__ import annotations

import math

import pytest
import torch

import pwgf
from pwgf import energies, maps, measures
from pwgf.schemes.pwgf.estimate import MAX_DIM, error_estimate
from pwgf.schemes.pwgf.setup import Setup


def estimated(energy, d, elapsed=1.0, n=4000):
    """That of N(0, I) at rest, θ̇ = 0: the map misses all of v."""
    map = maps.Affine(d)
    setup = Setup(energy, map, pwgf.Gaussian(d), pwgf.linalg.get_solver("auto"), "velocity", None)
    z = pwgf.Gaussian(d).matched_sample(n, 0)
    theta = map.initial()
    return error_estimate(setup, theta, torch.zeros_like(theta), z, elapsed)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("k", [0.2, 20.0])
def test_a_translation_lags_by_its_velocity_over_its_rate(k, d):
    """V = ½k|x − b|² at temperature k: v = k b for all samples alike, Q(c) = k|c|², so u = k b/(k + 1/T)."""
    centre = torch.arange(1.0, d + 1).double()
    energy = energies.Potential(lambda x: 0.5 * k * (x - centre.to(x)).square().sum(-1)) + k * energies.Entropy()
    found = estimated(energy, d, elapsed=2.0)
    assert found.error == pytest.approx(k * float(centre.norm()) / (k + 0.5), rel=0.02)
    assert found.spread == pytest.approx(math.sqrt(d), rel=0.03)


def test_rough_velocities_count_less_than_smooth_ones():
    """v = cos(q x): beside V = ½x² and the entropy its rate is about 1 + q², so that u falls at least as 5/37."""
    found = {
        q: estimated(energies.Potential(lambda x, q=q: -(q * x[:, 0]).sin() / q) + energies.KL(normal), 1, 50.0).error
        for q in (2.0, 6.0)
    }
    assert found[6.0] < 5 / 37 * found[2.0]


def normal(x):
    return -0.5 * x.square().sum(-1)


def test_velocities_that_are_no_gradients_move_no_law():
    """A rotation of N(0, I) leaves it as it is."""

    class Turning(energies.Energy):
        label = "turning"

        def __call__(self, rho):
            return rho.x[:, 0].mean() * 0

        def velocity(self, rho):
            return torch.stack([-rho.x[:, 1], rho.x[:, 0]], 1)

    assert estimated(Turning(), 2).error < 0.1  # sampling error; a radial velocity of that size would give √2


def test_before_any_time_has_passed_nothing_lags_and_high_dimension_has_no_estimate():
    energy = energies.Potential(lambda x: x.square().sum(-1))
    assert estimated(energy, 2, elapsed=0.0).error == 0
    assert math.isnan(estimated(energy, MAX_DIM + 1, n=500).error)


def test_pairwise_energies_have_an_estimate():
    """W = ½|r|² moves x to its mean: v = −(x − x̄), Q(c(x − x̄)) = c²·1·d, so c = 1/(1 + 1/T)."""
    found = estimated(energies.Interaction(lambda r: 0.5 * r.square().sum(-1)), 2, elapsed=1.0, n=1000)
    assert found.error == pytest.approx(math.sqrt(2) / 2, rel=0.05)


def test_the_fields_lie_where_the_law_is():
    """The estimate does not depend on the unit of x: here that of a law and a V ten times as wide."""
    found = []
    for scale in (1.0, 10.0):
        energy = energies.Potential(lambda x, s=scale: s**2 * (x / s).square().square().sum(-1) / 4)
        map, reference = maps.Affine(2), measures.Gaussian(2, cov=scale**2)
        setup = Setup(energy, map, reference, pwgf.linalg.get_solver("auto"), "velocity", None)
        z = reference.matched_sample(2000, 0)
        theta = map.initial()
        found.append(error_estimate(setup, theta, torch.zeros_like(theta), z, 1.0))
    assert found[1].error == pytest.approx(10 * found[0].error, rel=1e-6)
