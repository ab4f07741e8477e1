"""log Z from both sides: against known constants, and what one side alone does not see."""

import math

import pytest
import torch

from pwgf import maps
from pwgf.errors import NonFiniteError
from pwgf.sampling import sample
from pwgf.sampling.bridge import bennett, bridge


def banana(x):  # x₁ ~ N(0, 1), x₂ | x₁ ~ N(x₁²/2, 1/4); integral π
    return -x[:, 0].square() / 2 - 2 * (x[:, 1] - x[:, 0].square() / 2).square()


def student(x):  # two degrees of freedom; integral 2√2
    return -1.5 * (1 + x[:, 0].square() / 2).log()


def test_two_gaussians_with_a_known_ratio():
    """ρ = N(0, 1), p = e³ N(1, 1): errors of 400 repetitions have the stated size."""
    errors, stated = [], []
    for seed in range(400):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(400, generator=g).double(), 1 + torch.randn(100, generator=g).double()
        found = bennett(3 + x - 0.5, 3 + y - 0.5)
        errors.append(found.log_z - 3)
        stated.append(found.log_z_stderr)
        assert found.kl_backward == pytest.approx(0.5, abs=0.5)
    assert math.sqrt(sum(error**2 for error in errors) / 400) == pytest.approx(sum(stated) / 400, rel=0.15)


@pytest.mark.parametrize("apart", [800.0, 1e4])
def test_laws_far_apart_have_a_finite_ratio(apart):
    """log p − log ρ = c − a at samples of ρ and c + a at those of π: by symmetry log Z = c, of unknown error."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    found = bennett(3 - apart + x, 3 + apart + x)
    assert all(math.isfinite(value) for value in found)
    assert abs(found.log_z - 3) < apart


def test_chains_go_where_the_law_has_no_samples():
    """ρ = N(0, 1) cut at 1, π = N(0, 1): importance alone misses 16 % of the mass."""
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    x = x[x[:, 0] < 1]
    cut = -0.5 * math.log(2 * math.pi) - math.log(0.8413)

    def log_density(x):  # a trace of mass beyond the cut
        return cut - x[:, 0].square() / 2 - 20 * (x[:, 0] > 1)

    found = bridge(lambda x: -x[:, 0].square() / 2, log_density, x, -x[:, 0].square() / 2 - log_density(x), 200, 0)
    assert found.log_z == pytest.approx(0.5 * math.log(2 * math.pi), abs=5 * found.log_z_stderr)
    assert 0.005 < found.log_z_stderr < 0.03 and found.kl_backward > 1


def test_the_stated_error_of_a_banana_is_true():
    found = sample(banana, 2, progress=False)
    assert abs(found.log_z - math.log(math.pi)) < 4 * found.log_z_stderr
    assert found.log_z_stderr < 0.005


def test_missed_mass_is_told(caplog):
    sample(student, 1, n=4000, map=maps.Affine(1), whiten=None, progress=False)
    assert any("found mass that the law misses" in m and "polish=200" in m for m in caplog.messages)


def test_importance_alone_on_request():
    found = sample(lambda x: -x.square().sum(1) / 2, 1, n=500, bridge=0, progress=False)
    assert found.log_z == pytest.approx(float(torch.logsumexp(found.log_weights, 0)) - math.log(500), abs=1e-12)


def test_wells_that_no_chain_crosses():
    """ρ half and half, π .9 and .1: the chains repeat the weights of the samples, and the stated error knows it."""
    errors, stated = [], []
    for seed in range(60):
        side = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < 0.5
        x = torch.where(side, -20.0, 20.0).double() + torch.randn(1000, generator=torch.Generator().manual_seed(seed))

        def target(x):
            return -(x[:, 0].abs() - 20).square() / 2 + torch.where(x[:, 0] < 0, math.log(0.9), math.log(0.1))

        def log_density(x):
            return -(x[:, 0].abs() - 20).square() / 2 + math.log(0.5)

        x = x[:, None]
        found = bridge(target, log_density, x, target(x) - log_density(x), 20, seed)
        errors.append(found.log_z)
        stated.append(found.log_z_stderr)
    assert math.sqrt(sum(error**2 for error in errors) / 60) < 1.4 * sum(stated) / 60


def test_a_chain_that_leaves_the_domain(caplog):
    """Then log Z comes from importance alone."""
    caplog.set_level("INFO", "pwgf")

    def log_density(x):
        if bool((x.abs() > 5).any()):
            raise ValueError("outside")
        return -x.square().sum(1) / 2

    x = torch.linspace(-4.99, 4.99, 200).double()[:, None]
    assert bridge(log_density, log_density, x, torch.zeros(200).double(), 50, 0) is None
    assert any("log Z by importance alone, since a chain met ValueError: outside" in m for m in caplog.messages)


def test_a_density_that_is_not_finite_at_a_sample():
    def log_density(x):
        return torch.where(x[:, 0].abs() < 3.75, -x[:, 0].square() / 2, math.nan)

    with pytest.raises(NonFiniteError, match=r"log p − log ρ is not finite at \d+ of 20000 samples at the end"):
        sample(log_density, 1, n=20_000, whiten=None, progress=False)


def test_steps_that_lose_the_domain_are_taken_back():
    def log_density(x):
        return torch.where(x[:, 0].abs() < 5.2, -x[:, 0].square() / 30, -math.inf)

    for seed in range(3):
        found = sample(log_density, 1, n=100, whiten=None, seed=seed, progress=False)
        assert math.isfinite(found.log_z_bound)
