"""Natural-gradient steps: their rows and solution against closed forms, and what they reach where a flow is slow."""

import logging
import math

import pytest
import torch

from pwgf import Gaussian, maps
from pwgf.measures import PushedLaw
from pwgf.sampling import natural, sample
from pwgf.sampling.gaussian import closest_gaussian
from pwgf.sampling.natural import NaturalDescent


def wells(x):  # the energy of Styblinski and Tang, scaled: minima of unequal depth at −2.9 and 2.7 along each axis
    return -0.06 * (x**4 - 16 * x**2 + 5 * x).sum(-1)


def constant_of_wells():
    x = torch.linspace(-8, 8, 100_001).double()
    return math.log(torch.trapezoid(torch.exp(-0.06 * (x**4 - 16 * x**2 + 5 * x)), x))


def descent(map, target, reference=None):
    return NaturalDescent(map, reference or Gaussian(map.dim), target, "cpu", 0)


def test_rows_are_derivatives_of_the_density_at_a_point():
    """Finite differences of log ρ_θ(x), whose inverse map is that of the family."""
    map, reference, h = maps.ConvexRidge(2, width=3), Gaussian(2), 1e-5
    theta = map.initial(0) + 0.1 * torch.randn(map.num_params, generator=torch.Generator().manual_seed(1)).double()
    z = reference.sample(40, 2)
    law = PushedLaw(map, reference, theta)
    x = law.push(z)
    rows = descent(map, wells).rows(theta, z, law.score(x))
    for k in range(0, map.num_params, 3):
        there = [PushedLaw(map, reference, theta + s * h * torch.eye(len(theta))[k]).log_density(x) for s in (1, -1)]
        slope = (there[0] - there[1]) / (2 * h)
        torch.testing.assert_close(rows[:, k], -(slope - slope.mean()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 7), (20, 50)])
def test_the_step_solves_its_equation(shape):
    g = torch.Generator().manual_seed(0)
    rows, slope = torch.randn(shape, generator=g).double(), torch.randn(shape[1], generator=g).double()
    gram = rows.T @ rows / len(rows)
    dense = gram + 0.01 * gram.trace() / shape[1] * torch.eye(shape[1]).double()
    found = natural.solved(rows, slope, 0.01)
    torch.testing.assert_close(dense @ found, slope, rtol=1e-8, atol=1e-8)


def test_a_gaussian_of_condition_a_million():
    """An affine map reaches it exactly from N(0, I), in five dimensions, by steps alone."""
    q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    cov = q @ torch.logspace(0, -6, 5).double().diag() @ q.T
    law = torch.distributions.MultivariateNormal(torch.ones(5).double(), cov)
    map = maps.Affine(5)
    found = descent(map, law.log_prob).run(map.initial(0), 1e-8)
    assert found.kl[-1] < 1e-8
    reached = PushedLaw(map, Gaussian(5), found.theta)
    torch.testing.assert_close(reached.cov(), cov, rtol=1e-3, atol=1e-9)


def test_mass_moves_between_wells():
    """A flow needs exp(barrier) for it: at t = 64 its KL is still .03."""
    found = sample(wells, 2, progress=False)
    exact = 2 * constant_of_wells()
    assert found.converged and found.ess > 0.97 and found.t < 1
    assert abs(found.log_z - exact) < 5 * found.log_z_stderr
    assert exact - found.log_z_bound < 0.01


def test_far_modes_have_their_weights():
    centres = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]]).double()
    share = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    found = sample(lambda x: torch.logsumexp(share.log() - torch.cdist(x, centres).square() / 2, 1), 2, progress=False)
    mode = torch.cdist(found.x, centres).argmin(1)
    weights = torch.softmax(found.log_weights, 0)
    torch.testing.assert_close(weights.new_zeros(4).index_add(0, mode, weights), share, rtol=0, atol=0.01)


@pytest.mark.parametrize("condition", [120, 1e6])
def test_a_gaussian_in_its_own_coordinates(condition):
    q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).double())[0]
    cov = q @ torch.logspace(0, -math.log10(condition), 12).double().diag() @ q.T
    law = torch.distributions.MultivariateNormal(torch.ones(12).double(), cov)
    found = sample(law.log_prob, 12, n=2000, progress=False)
    assert found.converged and found.t == 0.125 and abs(found.log_z) < 1e-3
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), found.scale, upper=False)
    torch.testing.assert_close(torch.linalg.svdvals(factor), torch.ones(12).double(), rtol=0, atol=0.015)


def test_the_coordinates_hold_modes_that_lie_far_apart():
    """The closest Gaussian of two far modes is that of one; ascents from wide starts find the other.

    A mixture of equal parts N((0, 0), I) and N((8, 0), I) has the mean (4, 0) and the covariance diag(17, 1).
    """
    centres = torch.tensor([[0.0, 0.0], [8.0, 0.0]]).double()

    def two(x):
        return torch.logsumexp(-torch.cdist(x, centres).square() / 2, 1)

    m, scale, modes = closest_gaussian(two, 2, "cpu", 0)
    torch.testing.assert_close(modes[modes[:, 0].argsort()], centres, rtol=0, atol=0.01)
    torch.testing.assert_close(m, centres.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(scale @ scale.T, torch.tensor([17.0, 1.0]).double().diag(), rtol=1e-3, atol=1e-3)
    m, scale, modes = closest_gaussian(lambda x: -x.square().sum(1) / 8, 2, "cpu", 0)
    assert len(modes) == 0
    torch.testing.assert_close(m, torch.zeros(2).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(scale @ scale.T, 4 * torch.eye(2).double(), rtol=0.05, atol=0.05)
    assert closest_gaussian(lambda x: x[:, 0], 2, "cpu", 0) is None
    assert closest_gaussian(lambda x: -x.square().sum(1), 32, "cpu", 0) is None


@pytest.mark.parametrize(
    ("mean", "deviation"),
    [((1000.0, 1000.0), (1.0, 1.0)), ((1000.0, -500.0), (0.01, 3.0)), ((100.0, 100.0), (0.01, 0.01))],
)
def test_a_gaussian_far_from_the_start_is_reached_from_its_mode(mean, deviation):
    """Sixty natural-gradient steps from N(0, I) do not get there."""
    mean, deviation = torch.tensor(mean).double(), torch.tensor(deviation).double()
    found = sample(lambda x: -((x - mean) / deviation).square().sum(1) / 2, 2, n=2000, progress=False)
    assert found.converged
    assert abs(found.log_z - math.log(2 * math.pi * float(deviation.prod()))) < 1e-3
    torch.testing.assert_close((found.mean() - mean) / deviation, torch.zeros(2).double(), rtol=0, atol=0.1)


def test_a_mode_that_the_law_misses_is_named(caplog):
    """Of .97 N((0, 0), I) and .03 N((8, 0), I) an affine map holds the first."""
    centres, share = torch.tensor([[0.0, 0.0], [8.0, 0.0]]).double(), torch.tensor([0.97, 0.03]).double()

    def two(x):
        return torch.logsumexp(share.log() - torch.cdist(x, centres).square() / 2, 1)

    with caplog.at_level(logging.WARNING, "pwgf"):
        found = sample(two, 2, n=500, map=maps.Affine(2), progress=False)
    assert not found.converged
    assert "a search found 2 modes, and the law misses the one near x = [8.0, " in caplog.text


@pytest.mark.slow
def test_a_flow_that_is_too_stiff_gives_way(caplog):
    """Modes of deviations .05, 1 and 2 apart by 25: steps of the flow are of 1e-6, and KL stays above the tolerance."""

    def three(x):
        heights = [-200 * x.square(), -0.5 * (x - 6).square() - 1, -0.125 * (x + 25).square() - 2]
        return torch.logsumexp(torch.cat(heights, 1), 1)

    with caplog.at_level(logging.WARNING, "pwgf"):
        found = sample(three, 1, n=2000, progress=False)
    assert found.t < 0.125 and not found.converged and "KL(ρ|π) is still about" in caplog.text
    exact = math.log(math.sqrt(2 * math.pi) * (0.05 + math.exp(-1) + 2 * math.exp(-2)))
    assert abs(found.log_z - exact) < 0.1


def test_theta_is_that_of_the_samples():
    """But where the map may have folded, at half a per cent of them: a point there has three densities."""
    found = sample(wells, 1, n=500, progress=False)
    law = PushedLaw(maps.ResidualMLP(1), found.run.reference, found.theta)
    log_density = law.log_density(torch.linalg.solve(found.scale, (found.x - found.centre).T).T)
    expected = found.log_density + found.scale.logdet()
    assert ((log_density - expected).abs() < 1e-6).double().mean() >= 0.995


def test_a_map_whose_derivatives_cannot_be_batched_is_left_to_the_flow():
    class Checking(maps.Affine):
        def jacobian(self, theta, z):
            assert bool(z.isfinite().all())
            return super().jacobian(theta, z)

    assert not descent(Checking(1), wells).works
    found = sample(
        lambda x: -x.square().sum(1) / 4,
        1,
        n=100,
        map=Checking(1),
        whiten=None,
        max_time=0.25,
        tolerance=1e-9,
        progress=False,
    )
    assert found.t == 0.25


def test_where_no_step_can_be_taken_theta_stays():
    map = maps.Affine(1)
    found = descent(map, lambda x: torch.full((len(x),), math.nan).double() * x.sum(1)).run(map.initial(0), 1e-3)
    torch.testing.assert_close(found.theta, map.initial(0))
    assert found.kl == []
