"""Maps of a box and of a torus onto themselves: what stays inside, what they refuse, and diffusion between walls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, ShapeError
from pwgf.oracles.finite_volume import fokker_planck
from tests.maps.members import random_theta

LOWER, UPPER = [0.0, -1.0], [1.0, 3.0]
BOX = maps.InBox(maps.ResidualMLP(2, width=8), LOWER, UPPER)
TORUS = maps.OnTorus(2, [2.0, 6.0], [-1.0, 0.0], maps.ResidualMLP(4, width=8))


def corner(values):
    return torch.tensor(values, dtype=torch.float64)


def uniform(n, lower, upper, seed=0):
    return pwgf.UniformBox(lower, upper).sample(n, seed)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_sample_leaves_the_box_whatever_the_parameters(size, dtype):
    z = uniform(2000, LOWER, UPPER).to(dtype)
    z[:4] = torch.tensor([LOWER, UPPER, [0.0, 3.0], [1e-9, 2.9999999]]).to(dtype)
    x = BOX(random_theta(BOX, size).to(dtype), z)
    assert bool(((x >= corner(LOWER)) & (x <= corner(UPPER))).all())


def test_walls_are_mapped_onto_themselves_and_nothing_crosses_them():
    """T_i = z_i at a wall i; ∂T_i/∂z_j = 0 along it; a motion of θ has no normal part there."""
    theta, z = random_theta(BOX), uniform(50, LOWER, UPPER)
    for k in range(2):
        for wall in (LOWER, UPPER):
            at = z.clone()
            at[:, k] = wall[k]
            assert torch.allclose(BOX(theta, at)[:, k], at[:, k], rtol=0, atol=1e-14)
            assert float(BOX.jacobian(theta, at)[:, k, 1 - k].abs().max()) < 1e-14
            moved = BOX.linearise(theta, at).jv(torch.ones(BOX.num_params, dtype=torch.float64))
            assert float(moved[:, k].abs().max()) < 1e-13


def test_maps_of_a_box_go_on_beyond_its_walls_by_reflection():
    theta, z = random_theta(BOX), uniform(50, LOWER, UPPER)
    for k in range(2):
        for wall in (LOWER, UPPER):
            mirror = z.clone()
            mirror[:, k] = 2 * wall[k] - z[:, k]
            x, reflected = BOX(theta, z), BOX(theta, mirror)
            x[:, k] = 2 * wall[k] - x[:, k]
            assert torch.allclose(reflected, x, rtol=0, atol=1e-11)
            assert torch.allclose(BOX.log_abs_det(theta, mirror), BOX.log_abs_det(theta, z), rtol=0, atol=1e-10)


def test_a_constant_displacement_multiplies_the_odds_of_a_place():
    """artanh s is half the logarithm of (z − lower)/(upper − z), here times 1.7."""
    map = maps.InBox(maps.Affine(1), 2.0, 5.0)
    theta = corner([1.0, math.log(1.7)])  # M(s) = s + log 1.7
    z = torch.linspace(2.1, 4.9, 7, dtype=torch.float64)[:, None]
    x = map(theta, z)
    assert torch.allclose((x - 2) / (5 - x), 1.7 * (z - 2) / (5 - z), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_drift_into_the_walls_piles_the_mass_up_there(dim):
    """Fokker–Planck from the uniform law, a product, against finite volumes; without flux ∂ₓ log ρ = −V′ at a wall."""
    potentials = [lambda x: -4 * x, lambda x: 3 * x + torch.cos(2 * math.pi * x) / 2][:dim]
    drift = energies.Potential(lambda x: sum(V(x[:, k]) for k, V in enumerate(potentials)))
    law = pwgf.UniformBox([0.0] * dim, [1.0] * dim)
    map = maps.InBox(maps.ResidualMLP(dim, width=16), 0.0, 1.0)
    scheme = pwgf.PWGF(drift + energies.Entropy(), map, law, num_samples=300 * dim, num_eval=300, tolerance=2e-4)
    run = pwgf.solve(scheme, [0.0, 0.02, 0.3], progress=False)
    nodes = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    for t in (0.02, 0.3):
        exact = torch.ones(1, dtype=torch.float64)
        for V in potentials:
            one = fokker_planck(nodes.numpy(), V(nodes).numpy(), np.ones(100), t)
            exact = torch.outer(exact, torch.from_numpy(one / one.mean())).flatten()
        assert float((run.log_density(t, grid).exp() - exact).abs().mean()) < 0.01
        x = run.sample(t, 5000)
        assert bool(((x >= 0) & (x <= 1)).all())
        crowded = torch.full((1, dim), 0.5, dtype=torch.float64)
        crowded[0, 0] = 1 - 1e-6
        assert float(run.score(t, crowded)[0, 0]) == pytest.approx(4, abs=0.6)


def test_a_map_on_a_torus_commutes_with_the_periods():
    theta, z = random_theta(TORUS), uniform(50, [-1.0, 0.0], [1.0, 6.0])
    for k, period in enumerate([2.0, 6.0]):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[k] = period
        assert torch.allclose(TORUS(theta, z + shift), TORUS(theta, z) + shift, rtol=0, atol=1e-11)
        law = pwgf.measures.PushedLaw(TORUS, pwgf.UniformBox([-1.0, 0.0], [1.0, 6.0]), 0.1 * theta + TORUS.initial())
        assert torch.allclose(law.log_density(z + 3 * shift), law.log_density(z), rtol=0, atol=1e-8)


def test_rotations_of_a_torus_are_exact():
    """M(f) = f + a·(−sin, cos) turns every point by the angle a."""
    map = maps.OnTorus(1, 4.0, map=maps.Affine(2))
    theta = map.initial() + corner([0.0, -0.5, 0.0, 0.5, 0.0, 0.0])
    z = torch.linspace(0, 4, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(map(theta, z), z + 0.5 * 4 / (2 * math.pi), rtol=0, atol=1e-14)


def test_the_density_on_a_torus_has_mass_one_over_any_period():
    map = maps.OnTorus(1, 2.0, -1.0)
    law = pwgf.measures.PushedLaw(map, pwgf.UniformBox(-1.0, 1.0), random_theta(map, 0.1))
    x = torch.linspace(0.3, 2.3, 4001, dtype=torch.float64)
    assert float(torch.trapezoid(law.log_density(x[:, None]).exp(), x)) == pytest.approx(1.0, abs=1e-6)


def few(energy, map, reference):
    return pwgf.PWGF(energy, map, reference, num_samples=50, num_eval=50)


def test_an_edge_at_the_walls_of_the_map_is_none():
    law = pwgf.UniformBox(LOWER, UPPER)
    few(energies.Entropy(), BOX, law).start(0)
    few(energies.Entropy(), TORUS, pwgf.UniformBox([-1.0, 0.0], [1.0, 6.0])).start(0)
    pwgf.SWJKO(energies.Entropy(), BOX, law, tau=0.1, num_samples=50).start(0)
    inner = pwgf.UniformBox([0.2, 0.0], UPPER)
    for scheme in (
        few(energies.Entropy(), maps.Affine(2), law),
        few(energies.Entropy(), BOX, inner),
        few(energies.Entropy(), TORUS, pwgf.UniformBox([-1.0, 0.0], [1.0, 5.0])),
        pwgf.SWJKO(energies.Entropy(), BOX, inner, tau=0.1, num_samples=50),
    ):
        with pytest.raises(ConfigError, match=r"jumps at the edge.*Walls that reflect are maps\.InBox\(map, lower, up"):
            scheme.start(0)
    few(energies.Potential(lambda x: x.square().sum(-1)), BOX, inner).start(0)


@pytest.mark.parametrize(
    ("energy", "name"),
    [
        (energies.Potential(lambda x: x.square().sum(-1)), "potential"),
        (energies.Interaction(lambda r: r.square().sum(-1)), "interaction"),
        (energies.Drift(lambda x: -x), "drift"),
    ],
)
def test_an_energy_without_the_periods_of_the_torus_is_refused(energy, name):
    reference = pwgf.UniformBox([-1.0, 0.0], [1.0, 6.0])
    with pytest.raises(ConfigError, match=rf"energy term '{name}' has not the periods of maps\.OnTorus: .* one point"):
        few(energy + energies.Entropy(), TORUS, reference).start(0)


def test_energies_with_the_periods_of_the_torus_are_taken():
    angle = 2 * math.pi / torch.tensor([2.0, 6.0], dtype=torch.float64)
    waves = [
        energies.Potential(lambda x: torch.cos(angle * x).sum(-1)),
        energies.Potential(lambda x: x.sum(-1)),  # a constant force turns the circle
        energies.Potential(lambda t, x: torch.sin(angle * x - t).sum(-1), time=True),
        energies.Interaction(lambda r: -torch.cos(angle * r).sum(-1)),
        energies.KL(lambda x: torch.cos(angle * x).sum(-1)),
        energies.Drift(lambda x: torch.sin(angle * x)),
    ]
    few(sum(waves) + energies.Entropy(), TORUS, pwgf.UniformBox([-1.0, 0.0], [1.0, 6.0])).start(0)


@pytest.mark.parametrize(
    ("map", "message"),
    [
        (BOX, r"map=InBox\(…\)\) needs a reference whose samples lie in the box; \d+ of 50 do not, first z = \[-?\d.*"
              r"whose coordinate [01] is outside \[-?\d.*Mass would flow into it through the walls.*UniformBox"),
        (TORUS, r"map=OnTorus\(…\)\) needs a reference .* lie in one cell of the torus.*counted in two cells"),
        (maps.Composed([BOX, maps.Affine(2)]), r"map=InBox\(…\)\) needs a reference"),
        (maps.Standardised(BOX, [0.5, 0.5], 2.0), r"map=InBox\(…\)\) needs a reference"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["PWGF", "SWJKO"])
def test_a_reference_that_violates_the_walls_is_named_with_a_sample(scheme, map, message):
    energy, law = energies.Potential(lambda x: x.square().sum(-1)), pwgf.Gaussian(2)
    wrong = few(energy, map, law) if scheme == "PWGF" else pwgf.SWJKO(energy, map, law, tau=0.1, num_samples=50)
    with pytest.raises(ConfigError, match=scheme + r"\(" + message):
        wrong.start(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: maps.InBox(maps.Affine(2), 1.0, 1.0),
            ConfigError,
            r"InBox\(lower, upper\) needs .*lower < upper.*got",
        ),
        (
            lambda: maps.InBox(maps.Affine(2), [0, 0, 0], 1),
            ShapeError,
            r"InBox\(lower, upper\) needs 2 numbers in both",
        ),
        (
            lambda: maps.InBox(torch.nn.Linear(2, 2), 0, 1),
            ConfigError,
            r"InBox\(.*map must be one from pwgf\.maps; got L",
        ),
        (
            lambda: maps.OnTorus(2, [1.0, 0.0]),
            ConfigError,
            r"OnTorus\(periods=…\) must be positive and finite; got \[1",
        ),
        (lambda: maps.OnTorus(2, -1), ConfigError, r"OnTorus\(periods=…\) must be positive and finite; got -1"),
        (lambda: maps.OnTorus(2, math.nan), ConfigError, r"OnTorus\(periods=…\) must be positive and finite; got nan"),
        (
            lambda: maps.OnTorus(2, [1.0] * 3),
            ShapeError,
            r"periods=…\) must be a number or 2 of them; got shape \(3,\)",
        ),
        (lambda: maps.OnTorus(2, "x"), ConfigError, r"periods=…\) must be a number or 2 of them; got 'x'"),
        (lambda: maps.OnTorus(2, 1.0, [0.0]), ShapeError, r"lower=…\) must be a number or 2 of them; got shape \(1,\)"),
        (lambda: maps.OnTorus(2, 1.0, math.inf), ConfigError, r"OnTorus\(lower, upper\) needs finite numbers"),
        (lambda: maps.OnTorus(0, 1.0), ConfigError, r"OnTorus\(dim, periods\): dim must be an integer ≥ 1; got 0"),
        (lambda: maps.OnTorus(2, 1.0, map=maps.Affine(2)), ConfigError, r"a cosine and a sine .*dim = 4; got 2\. Make"),
        (
            lambda: few(energies.Entropy(), BOX, pwgf.UniformBox(0.0, 1.0)),
            ConfigError,
            r"map\.dim = 2 and reference\.dim",
        ),
    ],
)
def test_wrong_walls_and_periods_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_a_box_of_any_size_gives_the_same_flow(size):
    """Heat from the uniform law stays uniform; a drift towards a wall piles it up as e^{−V}, here at every scale.

    The noise of 100 samples is .003 to .008, by the seed.
    """
    energy = energies.Potential(lambda x: x.sum(-1) / size) + energies.Entropy()
    scheme = pwgf.PWGF(
        energy, maps.InBox(maps.ResidualMLP(1, width=8), 0.0, size), pwgf.UniformBox(0.0, size), num_samples=100,
        num_eval=100,
    )  # fmt: skip
    run = pwgf.solve(scheme, [0.0, 2 * size**2], progress=False)
    x = size * torch.linspace(0.02, 0.98, 9, dtype=torch.float64)[:, None]
    expected = -x[:, 0] / size - math.log(size * (1 - math.exp(-1)))
    assert torch.allclose(run.log_density(2 * size**2, x), expected, rtol=0, atol=0.01)
