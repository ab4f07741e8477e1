"""Values and velocities against closed forms, and energies that are the same written differently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pwgf import energies, maps
from pwgf.energies import interaction
from pwgf.measures import Barenblatt, Gaussian, PushedMeasure
from pwgf.measures.pushed import PushedLaw
from tests.energies.members import measure, mixed, quantiles, small, square

LOG_2PI_E = math.log(2 * math.pi * math.e)


def gaussian(mean: float, sd: float, n: int = 20_000) -> PushedMeasure:
    """N(mean, sd²) in one dimension on equally spaced quantiles."""
    theta = torch.tensor([sd, mean], dtype=torch.float64)
    return PushedMeasure(maps.Affine(1), Gaussian(1), theta, quantiles(n, 1))


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (energies.Potential(square), 0.3**2 + 0.7**2),
        (energies.Entropy(), -0.5 * LOG_2PI_E - math.log(0.7)),
        (energies.PorousMedium(2), 1 / (2 * 0.7 * math.sqrt(math.pi))),
        (energies.PorousMedium(3), 1 / (2 * 0.7**2 * 2 * math.pi * math.sqrt(3))),  # ½∫ρ³
        (energies.InternalEnergy(lambda r: r.square()), 1 / (2 * 0.7 * math.sqrt(math.pi))),
        # KL(N(m, s²) ‖ N(0, 1)) = ½(s² + m² − 1) − log s
        (energies.KL(lambda x: -0.5 * square(x) - 0.5 * math.log(2 * math.pi)), 0.5 * (0.58 - 1) - math.log(0.7)),
        (energies.Interaction(square), 0.7**2),  # ½E|x − y|² = var
        (energies.Functional(lambda rho: rho.x.mean() ** 2), 0.3**2),
    ],
)
def test_values_on_a_gaussian(energy, expected):
    rho = gaussian(0.3, 0.7, n=2000 if energy.pairwise else 20_000)
    assert float(energy(rho)) == pytest.approx(expected, rel=2e-3)


def test_velocities_on_a_gaussian():
    rho = gaussian(0.3, 0.7, n=50)
    x, score = rho.x, -(rho.x - 0.3) / 0.49
    torch.testing.assert_close(energies.Potential(square).velocity(rho), -2 * x)
    torch.testing.assert_close(energies.Entropy().velocity(rho), -score)
    torch.testing.assert_close(energies.KL(lambda x: -0.5 * square(x)).velocity(rho), -x - score)
    density = torch.exp(-0.5 * ((x - 0.3) / 0.7) ** 2) / (0.7 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(energies.PorousMedium(3).velocity(rho), -3 * density**2 * score)


@pytest.mark.parametrize("sigma", [1.0, 0.8])
def test_the_fisher_information_of_a_gaussian(sigma):
    """F = (σ⁴/8) tr C⁻¹ and v = (σ⁴/4) C⁻²(x − m)."""
    factor = torch.tensor([[1.5, 0.0], [-0.4, 0.6]], dtype=torch.float64)
    theta = torch.cat([factor, torch.tensor([[0.3], [-2.0]], dtype=torch.float64)], 1).reshape(-1)
    rho = PushedMeasure(maps.Affine(2), Gaussian(2), theta, Gaussian(2).matched_sample(100, 0))
    precision = torch.linalg.inv(factor @ factor.T)
    energy = energies.FisherInformation(sigma)
    assert float(energy(rho)) == pytest.approx(sigma**4 / 8 * float(precision.trace()))
    expected = sigma**4 / 4 * (rho.x - theta.view(2, 3)[:, 2]) @ precision @ precision
    torch.testing.assert_close(energy.velocity(rho), expected)


@pytest.mark.parametrize(
    "map",
    [maps.ResidualMLP(2, width=5), maps.ConvexRidge(2, width=4), maps.NeuralODE(2, width=4)],
    ids=lambda map: type(map).__name__,
)
def test_derivatives_of_the_score_are_those_of_the_score_of_the_law(map):
    """By central differences of the score at points x, which takes the map's inverse."""
    theta = map.initial(0)
    theta = theta + 0.15 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rho = PushedMeasure(map, Gaussian(2), theta, small(6).z)
    law, h = PushedLaw(map, Gaussian(2), theta), 1e-3
    steps = h * torch.eye(2, dtype=torch.float64)
    slope = torch.stack([(law.score(rho.x + s) - law.score(rho.x - s)) / (2 * h) for s in steps], 2)
    second = [law.score(rho.x + s) - 2 * rho.score + law.score(rho.x - s) for s in steps]  # ∇(∇·s) = Δs
    found, bend = rho.score_derivatives()
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bend, torch.stack(second).sum(0) / h**2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dim", "m", "t"), [(1, 2.0, 0.5), (3, 2.0, 1.0), (2, 3.0, 2.0)])
def test_the_barenblatt_solution_expands_self_similarly(dim, m, t):
    """x ∝ t^b along the flow, hence v = b x / t."""
    law = Barenblatt(dim, m, t)
    z = law.sample(50, torch.Generator().manual_seed(0))
    rho = PushedMeasure(maps.Affine(dim), law, maps.Affine(dim).initial(), z)
    torch.testing.assert_close(energies.PorousMedium(m).velocity(rho), law.b * z / t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("energy", [energies.PorousMedium(2), energies.PorousMedium(4)])
def test_porous_medium_stands_still_where_the_density_underflows(energy):
    rho = PushedMeasure(
        maps.Affine(1), Gaussian(1), maps.Affine(1).initial(), torch.tensor([[60.0], [0.5]], dtype=torch.float64)
    )
    v = energy.velocity(rho)
    assert float(v[0]) == 0.0
    assert float(v[1]) > 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (energies.Entropy(), energies.Local(lambda x, log_rho: log_rho)),
        (energies.Entropy(), energies.Functional(lambda rho: rho.log_density.mean())),
        (energies.Entropy(), energies.InternalEnergy(lambda r: r * r.log())),
        (energies.PorousMedium(3), energies.InternalEnergy(lambda r: r**3 / 2)),
        (energies.PorousMedium(2), energies.Local(lambda x, log_rho: log_rho.exp())),
        (energies.PorousMedium(2), energies.Functional(lambda rho: rho.log_density.exp().mean())),
        (energies.Potential(square), energies.Local(lambda x, log_rho: square(x))),
        (energies.Potential(square), energies.Functional(lambda rho: square(rho.x).mean())),
        (energies.Potential(square), -energies.KL(lambda x: square(x)) + energies.Entropy()),
        (energies.KL(lambda x: -square(x)), energies.Potential(square) + energies.Entropy()),
        (energies.Local(mixed), energies.Functional(lambda rho: mixed(rho.x, rho.log_density).mean())),
        (energies.Interaction(square), energies.Functional(lambda rho: rho.x.var(0).sum())),
        (energies.Interaction(square), energies.Interaction(lambda r: square(r) + 5 * r[..., 0] + r[..., 1] ** 3)),
    ],
)
def test_the_same_energy_written_differently(one, other):
    rho = small(30)
    torch.testing.assert_close(one(rho), other(rho), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.velocity(rho), other.velocity(rho), rtol=1e-9, atol=1e-10)


def test_interaction_against_a_double_loop():
    rho = small(9)
    x = rho.x.numpy()

    def kernel(r):
        return r[..., 0] ** 4 + r[..., 1] ** 2 * r[..., 0]

    def slope_of_even_part(r):  # W even: the odd second term drops out
        return np.array([4 * r[0] ** 3, 0.0])

    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    value = sum(kernel(x[i] - x[j]) for i, j in pairs) / (2 * 9 * 8)
    v = np.zeros_like(x)
    for i, j in pairs:
        v[i] -= slope_of_even_part(x[i] - x[j]) / 8
    energy = energies.Interaction(kernel)
    assert float(energy(rho)) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(energy.velocity(rho), v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 24, 100])
def test_interaction_in_blocks_gives_the_same(block, monkeypatch):
    energy = energies.Interaction(lambda r: -torch.log(torch.linalg.vector_norm(r, dim=-1)))
    rho = small(13)
    whole = (energy(rho), energy.velocity(rho))
    monkeypatch.setattr(interaction, "_BLOCK", block)
    torch.testing.assert_close((energy(rho), energy.velocity(rho)), whole, rtol=1e-12, atol=1e-13)


def test_interaction_of_one_sample_is_nothing():
    energy = energies.Interaction(lambda r: torch.linalg.vector_norm(r, dim=-1))
    assert float(energy(small(1))) == 0.0
    assert energy.velocity(small(1)).tolist() == [[0.0, 0.0]]


def test_interaction_repels_in_the_logarithmic_gas():
    """W = −log|r| in the plane: v of two points at distance r is 1/r, away from each other."""
    z = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    rho = PushedMeasure(maps.Affine(2), Gaussian(2), maps.Affine(2).initial(), z)
    energy = energies.Interaction(lambda r: -torch.log(torch.linalg.vector_norm(r, dim=-1)))
    torch.testing.assert_close(energy.velocity(rho), 0.5 * z)


def test_a_functional_without_density_never_computes_it():
    rho = small()
    energies.Functional(lambda rho: square(rho.x).mean()).velocity(rho)
    energies.Potential(square).velocity(rho)
    energies.Interaction(square).velocity(rho)
    assert "_density_and_score" not in vars(rho)


@pytest.mark.parametrize(
    "energy",
    [
        energies.Potential(lambda x: torch.zeros(len(x), dtype=torch.float64)),
        energies.Potential(lambda x: torch.ones(len(x), dtype=torch.float64) * 3),
        energies.Potential(lambda x: torch.zeros_like(x[..., 0])),
        energies.Local(lambda x, log_rho: torch.ones_like(log_rho)),
        energies.Interaction(lambda r: torch.ones_like(r[..., 0])),
        energies.Functional(lambda rho: torch.tensor(2.0, dtype=torch.float64)),
        energies.Functional(lambda rho: torch.ones_like(rho.log_density).sum()),
        energies.InternalEnergy(lambda r: 2 * r),  # ∫U(ρ) = 2 for every ρ
    ],
)
def test_constants_are_legal_and_pull_nowhere(energy):
    torch.testing.assert_close(energy.velocity(small()), torch.zeros(12, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(torch.isfinite(energy(measure(2))))
