"""Sums, multiples and names of energies, and how particles follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pwgf import energies
from pwgf.errors import ConfigError
from tests.energies.members import small, square

V, W, E = energies.Potential(square), energies.Interaction(square), energies.Entropy()


class SlicedW2(energies.Energy):
    """An energy whose name ends in a digit."""

    def __call__(self, rho):
        return rho.x.sum() * 0

    def velocity(self, rho):
        return torch.zeros_like(rho.x)


@pytest.mark.parametrize(
    ("energy", "coefficients"),
    [
        (V + E, (1, 0, 1)),
        (V + 0.5 * E, (1, 0, 0.5)),
        (E * 2 + V, (1, 0, 2)),
        (V - E, (1, 0, -1)),
        (-V, (-1, 0, 0)),
        (2 * (V + 3 * (W - E)) - V, (1, 6, -6)),
        (np.float64(0.5) * V, (0.5, 0, 0)),
        (V * np.float64(0.5), (0.5, 0, 0)),
        (0 * V + 3 * W, (0, 3, 0)),
    ],
)
def test_sums_and_multiples(energy, coefficients):
    rho, (a, b, c) = small(), coefficients
    torch.testing.assert_close(energy(rho), a * V(rho) + b * W(rho) + c * E(rho))
    torch.testing.assert_close(energy.velocity(rho), a * V.velocity(rho) + b * W.velocity(rho) + c * E.velocity(rho))
    assert energy.pairwise == any(term.energy is W for term in energy.terms())


def test_a_sum_leaves_its_parts_as_they_were():
    first = V + E
    second = 2 * first + W
    assert [(t.name, t.coefficient) for t in first.terms()] == [("potential", 1.0), ("entropy", 1.0)]
    assert [t.coefficient for t in second.terms()] == [2.0, 2.0, 1.0]
    second.terms().clear()
    assert len(second.terms()) == 3


def test_names_of_terms_are_unique():
    assert [t.name for t in (V + V + E + V).terms()] == ["potential", "potential_2", "entropy", "potential_3"]
    assert [t.name for t in ((V + V) + (V + E)).terms()] == ["potential", "potential_2", "potential_3", "entropy"]
    assert [t.name for t in (SlicedW2() + SlicedW2() + V).terms()] == ["slicedw2", "slicedw2_2", "potential"]


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_must_be_finite(factor):
    with pytest.raises(ConfigError, match=r"the factor of an energy must be finite; got -?(nan|inf)"):
        factor * V


@pytest.mark.parametrize("other", [3, "a", None, square])
def test_only_energies_can_be_added(other):
    with pytest.raises(TypeError, match="unsupported operand"):
        V + other


@pytest.mark.parametrize("other", [V, "a", None])
def test_only_numbers_multiply(other):
    with pytest.raises(TypeError):
        V * other


def test_particle_form_of_a_sum():
    drifts, temperature = (2 * V + 0.5 * E + 3 * energies.KL(lambda x: -square(x)) - W).particle_form()
    assert temperature == 3.5
    assert [c for c, _ in drifts] == [2.0, 3.0, -1.0]
    rho = small()
    assert drifts[0][1] is V
    torch.testing.assert_close(drifts[1][1].velocity(rho), -2 * rho.x)  # ∇log π
    assert drifts[2][1] is W


@pytest.mark.parametrize(
    "energy",
    [
        energies.PorousMedium(2),
        energies.InternalEnergy(square),
        energies.Local(lambda x, log_rho: log_rho),
        energies.Functional(lambda rho: rho.x.mean()),
    ],
)
def test_energies_that_particles_cannot_follow_say_so(energy):
    message = rf"particles have no density, which {type(energy).__name__} needs; .*Use scheme PWGF"
    with pytest.raises(ConfigError, match=message):
        energy.particle_form()
    with pytest.raises(ConfigError, match=message):
        (V + energy).particle_form()


def test_configs_name_the_functions():
    config = (energies.Potential(square) + 0.5 * energies.PorousMedium(2)).to_config()
    assert config["name"] == "Combination"
    assert config["terms"][0] == {"coefficient": 1.0, "name": "Potential", "V": "tests.energies.members.square"}
    assert config["terms"][1]["coefficient"] == 0.5
    assert config["terms"][1]["m"] == 2.0
