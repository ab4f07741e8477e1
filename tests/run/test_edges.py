"""Points at infinity and laws that jump at an edge."""

import math

import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.schemes._arguments import refuse_jump

INF = math.inf


def ornstein_uhlenbeck():
    return energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()


def flow(map):
    return pwgf.PWGF(ornstein_uhlenbeck(), map, pwgf.Gaussian(2), num_samples=60, num_eval=60)


def chain():
    few = {"num_samples": 60, "num_eval": 60, "max_iterations": 3}
    return pwgf.JKOICNN(ornstein_uhlenbeck(), pwgf.Gaussian(2), h=0.1, width=4, **few)


FAMILIES = (maps.ResidualMLP, maps.ConvexRidge, maps.NeuralODE, maps.Affine)
SCHEMES = {family.__name__: flow(family(2)) for family in FAMILIES} | {"JKOICNN": chain()}
BOX = pwgf.UniformBox(-1.0, [1.0, 2.0])
LAWS = [pwgf.Gaussian(2, cov=[[2.0, 1.0], [1.0, 2.0]]), pwgf.Barenblatt(2, 2.0, 1.0), pwgf.UniformBall(2), BOX]
DIFFUSIONS = [
    energies.Entropy(),
    energies.PorousMedium(2),
    ornstein_uhlenbeck(),
    energies.KL(lambda x: -x.square().sum(-1)),
]


@pytest.mark.parametrize("name", SCHEMES)
def test_no_law_has_mass_at_infinity_or_a_value_where_there_is_no_number(name):
    run = pwgf.solve(SCHEMES[name], [0, 0.1], progress=False)
    x = torch.tensor([[INF, INF], [0.0, 0.0], [1.0, -INF]], dtype=torch.float64)
    found = run.log_density(0.1, x)
    assert found[[0, 2]].tolist() == [-INF, -INF]
    torch.testing.assert_close(found[1:2], run.log_density(0.1, x[1:2]))
    assert run.log_density(0.1, x[:1]).tolist() == [-INF]
    with pytest.raises(ConfigError, match=r"x must be finite; got .* in 2 of 3 rows, first in row 0: \[inf, inf\]"):
        run.score(0.1, x)
    with pytest.raises(ConfigError, match=r"x must be finite; got .* in 1 of 1 rows.*\[0\.0, nan\]"):
        run.log_density(0.1, torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ConfigError, match=r"push\(t, z\): z must be finite"):
        run.push(0.1, x)


@pytest.mark.parametrize("map", [maps.Affine(2), maps.ResidualMLP(2), maps.NeuralODE(2)])
def test_maps_have_no_inverse_at_infinity(map):
    with pytest.raises(ConfigError, match=r"inverse\(theta, x\): x must be finite"):
        map.inverse(map.initial(), torch.tensor([[0.0, INF]], dtype=torch.float64))


@pytest.mark.parametrize(
    "law", [pwgf.Gaussian(2, cov=[[2.0, 1.0], [1.0, 2.0]]), pwgf.Barenblatt(2, 2.0, 1.0), pwgf.UniformBall(2), BOX]
)
def test_densities_of_references_at_infinity_and_at_no_number(law):
    x = torch.tensor([[INF, 0.0], [-INF, INF], [math.nan, 0.0]], dtype=torch.float64)
    found = law.log_density(x)
    assert found[:2].tolist() == [-INF, -INF]
    assert math.isnan(float(found[2]))


def test_references_state_their_edge():
    assert [law.edge for law in LAWS] == ["none", "continuous", "jump", "jump"]


@pytest.mark.parametrize("energy", DIFFUSIONS)
def test_a_jump_under_a_diffusion_is_refused_at_the_door(energy):
    ball, few = pwgf.UniformBall(2), {"num_samples": 60}
    message = r"\(energy, reference=UniformBall\): the energy needs .* which jumps at the edge.*Gaussian\(dim"
    for scheme in (
        pwgf.PWGF(energy, maps.Affine(2), ball, **few),
        pwgf.SWJKO(energy, maps.Affine(2), ball, tau=0.1, **few),
        pwgf.JKOICNN(energy, ball, h=0.1, width=4, **few),
    ):
        with pytest.raises(ConfigError, match=type(scheme).__name__ + message):
            scheme.start(0)


def users_own(log_density, sampler):
    return pwgf.Unnormalised(log_density, lambda n, g: sampler(torch.randn(n, 2, generator=g, dtype=torch.float64)), 2)


def test_a_jump_of_a_users_own_density_is_seen():
    """Its score is 0 at all samples, so that nothing would move."""
    flat = users_own(
        lambda z: torch.where((z.abs() < 1).all(-1), 0 * z.sum(-1), -INF), lambda z: 2 * torch.special.ndtr(z) - 1
    )
    with pytest.raises(ConfigError, match=r"PWGF\(energy, reference=Unnormalised\): the energy needs .* which jumps"):
        pwgf.PWGF(energies.Entropy(), maps.Affine(2), flat, num_samples=60).start(0)
    pwgf.PWGF(energies.Potential(lambda x: x.square().sum(-1)), maps.Affine(2), flat, num_samples=60).start(0)


def test_the_walls_of_a_map_are_no_edges():
    """e^cos on a circle, whose reference has no box, and samplers that take a generator alone."""

    class VonMises(pwgf.measures.Reference):
        dim = 1

        def sample(self, n, generator):
            return torch.rand(n, 1, generator=generator, dtype=torch.float64) * 2 - 1

        def log_density(self, z):
            return torch.where((z.abs() < math.pi).all(-1), z.cos().sum(-1), -INF)

    refuse_jump(VonMises(), "PWGF", maps.OnTorus(1, 2 * math.pi, -math.pi))
    with pytest.raises(ConfigError, match="which jumps at the edge"):
        refuse_jump(VonMises(), "PWGF", maps.Affine(1))


def test_a_reference_may_draw_its_samples_by_a_static_method():
    class Normal(pwgf.measures.Reference):
        dim = 2

        @staticmethod
        def sample(n, generator):
            return torch.randn(n, 2, generator=generator, dtype=torch.float64)

        def log_density(self, z):
            return -z.square().sum(-1) / 2

    assert Normal().sample(3, torch.Generator()).shape == (3, 2)
    refuse_jump(Normal(), "PWGF")


def test_a_density_that_has_no_value_far_out_is_taken():
    def log_density(z):
        assert z.abs().max() < 100
        return -z.square().sum(-1) / 2

    refuse_jump(users_own(log_density, lambda z: z), "PWGF")


@pytest.mark.parametrize("log_density", [
    lambda z: -z.square().sum(-1) / 2,
    lambda z: -z.abs().exp().sum(-1),
    lambda z: -(1 + z.square().sum(-1)).log() * 2,
    lambda z: torch.where((z.abs() < 9).all(-1), -z.square().sum(-1) / 2, -INF),
    lambda z: 2 * torch.log((1 - (z / 9).square()).clamp(min=0)).sum(-1),
    lambda z: 0.1 * torch.log((1 - (z / 9).square()).clamp(min=0)).sum(-1),
])  # fmt: skip
def test_densities_that_come_to_an_end_smoothly_or_where_they_are_small_are_taken(log_density):
    refuse_jump(users_own(log_density, lambda z: z), "PWGF")


def test_particles_and_energies_without_density_start_from_a_jump():
    ball = pwgf.UniformBall(2)
    run = pwgf.solve(pwgf.EulerMaruyama(energies.Entropy(), ball, num_samples=20_000, dt=0.05), [0, 1], progress=False)
    assert float(run["second_moment"][-1]) == pytest.approx(ball.second_moment + 4, rel=0.03)  # E|x|² grows by 2dt
    pwgf.PWGF(energies.Interaction(energies.RadialPolynomial(0.5)), maps.Affine(2), ball, num_samples=60).start(0)
