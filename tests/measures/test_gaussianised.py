"""A law fitted to samples: its density against quadrature and exact laws, its score against differences, its limits."""

import math

import pytest
import torch

from pwgf import problems
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import Gaussian, Gaussianised
from pwgf.measures._mixtures import Mixtures, fit_mixtures


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def banana(n, seed=0):
    z = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    return torch.stack([z[:, 0], z[:, 0].square() / 2 + 0.5 * z[:, 1]], 1)


@pytest.fixture(scope="module")
def fitted():
    return Gaussianised(banana(5000))


def test_the_density_integrates_to_one(fitted):
    x, y = torch.linspace(-7, 7, 561).double(), torch.linspace(-5, 22, 1081).double()
    mass = fitted.log_density(torch.cartesian_prod(x, y)).exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert float(mass) == pytest.approx(1, abs=1e-4)


def test_the_density_is_near_the_true_one(fitted):
    """KL against p(x₁)p(x₂|x₁) on fresh samples; that of the Gaussian with the same moments is .55."""
    x = banana(20_000, 1)
    exact = -0.5 * x[:, 0].square() - 2 * (x[:, 1] - x[:, 0].square() / 2).square() - math.log(math.pi)
    plain = Gaussian(2, fitted.mean(), fitted.cov())
    assert float((exact - plain.log_density(x)).mean()) > 0.5
    assert float((exact - fitted.log_density(x)).mean()) < 0.06


def test_the_score_is_the_gradient_of_the_density(fitted):
    x, step = fitted.sample(100, 3), 1e-5
    shifts = step * torch.eye(2, dtype=torch.float64)
    slopes = [(fitted.log_density(x + h) - fitted.log_density(x - h)) / (2 * step) for h in shifts]
    assert torch.allclose(fitted.score(x), torch.stack(slopes, 1), rtol=1e-5, atol=1e-5)


def test_samples_have_the_density(fitted):
    """E log ρ of samples against its quadrature, within five standard errors."""
    x, y = torch.linspace(-7, 7, 561).double(), torch.linspace(-5, 22, 1081).double()
    log_rho = fitted.log_density(torch.cartesian_prod(x, y))
    entropy = float((log_rho.exp() * log_rho).sum() * (x[1] - x[0]) * (y[1] - y[0]))
    found = fitted.log_density(fitted.sample(20_000, 5))
    assert abs(float(found.mean()) - entropy) < 5 * float(found.std()) / math.sqrt(len(found))


def test_a_product_of_wells_takes_few_layers_in_high_dimension():
    law = problems.StyblinskiTang(8, c=0.5).exact(0.48)
    found = Gaussianised(law.sample(5000, 0))
    x = law.sample(5000, 1)
    assert len(found.layers) <= 4
    assert float((law.log_density(x) - found.log_density(x)).mean()) < 0.1
    assert found.log_likelihood == pytest.approx(float(law.log_density(x).mean()), abs=0.3)


def test_a_gaussian_law_is_found_to_its_sampling_error():
    factor = torch.randn(6, 6, generator=seeded(2), dtype=torch.float64)
    law = Gaussian(6, 1.0, factor @ factor.T + torch.eye(6))
    found, x = Gaussianised(law.sample(5000, 0)), law.sample(5000, 1)
    assert float((law.log_density(x) - found.log_density(x)).mean()) < 3 * (36 + 18) / (4 * 4000) + 0.02


def test_moments_are_those_of_the_samples():
    x = banana(2000)
    found = Gaussianised(x)
    assert torch.allclose(found.mean(), x.mean(0)) and torch.allclose(found.cov(), torch.cov(x.T))


def test_far_from_all_samples_the_law_goes_on_as_a_gaussian(fitted):
    x = torch.tensor([[1e3, 0.0], [1e5, -1e5], [math.inf, 0.0]])
    found = fitted.log_density(x)
    assert bool((found[:2] < -1e5).all() and found[:2].isfinite().all()) and float(found[2]) == -math.inf
    assert bool(fitted.score(x[:2]).isfinite().all())


def test_mixtures_are_turned_into_normals_and_back():
    """Two Gaussians on the line, whose distribution function is known; z from −6 to 6 and in the gap between."""
    two = Mixtures(
        torch.tensor([[0.3], [0.7]], dtype=torch.float64).log(),
        torch.tensor([[-5.0], [4.0]]).double(),
        torch.full((2, 1), 0.2, dtype=torch.float64),
    )
    u = torch.tensor([[-6.0], [-5.0], [-1.0], [4.0], [4.9]], dtype=torch.float64)
    z, log_slope = two.normal(u)
    exact = 0.3 * torch.special.ndtr((u + 5) / 0.2) + 0.7 * torch.special.ndtr((u - 4) / 0.2)
    assert torch.allclose(torch.special.ndtr(z), exact, rtol=1e-10, atol=1e-12)
    step = 1e-6
    slope = (two.normal(u + step)[0] - two.normal(u - step)[0]) / (2 * step)
    here = [0, 1, 3, 4]  # in the gap the slope is 1e-80
    assert torch.allclose(log_slope.exp()[here], slope[here], rtol=1e-5)
    again = two.inverse(z)
    assert torch.allclose(again[here], u[here], atol=1e-9)
    assert torch.allclose(two.normal(again)[0], z, atol=1e-9)


def test_the_tail_is_that_of_the_widest_component():
    one = Mixtures(torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    u = torch.tensor([[-50.0], [40.0], [1e4]], dtype=torch.float64)
    z, log_slope = one.normal(u)
    assert torch.allclose(z, u, rtol=1e-7)
    assert float(log_slope.abs().max()) < 1e-1


def test_mixtures_are_fitted_by_maximum_likelihood():
    x = torch.cat(
        [torch.randn(3000, 1, generator=seeded(1)) - 4, 0.5 * torch.randn(7000, 1, generator=seeded(2)) + 3]
    ).double()
    found = fit_mixtures(x, 2)
    order = found.mean[:, 0].argsort()
    assert torch.allclose(found.mean[order, 0], torch.tensor([-4.0, 3.0]).double(), atol=0.06)
    assert torch.allclose(found.deviation[order, 0], torch.tensor([1.0, 0.5]).double(), atol=0.04)
    assert torch.allclose(found.log_weight.exp()[order, 0], torch.tensor([0.3, 0.7]).double(), atol=0.005)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (
            torch.zeros(100),
            ShapeError,
            r"Gaussianised\(x\) needs samples of shape \(n, d\), a row per sample; got \(100,\)",
        ),
        (torch.zeros(10, 2), ConfigError, "needs at least 50 finite samples .* got 10, 0 of them NaN or infinite"),
        (torch.full((60, 2), math.nan), ConfigError, "got 60, 60 of them NaN or infinite"),
        (torch.arange(120.0).view(60, 2), ConfigError, "the samples lie in a plane of fewer dimensions"),
    ],
)
def test_samples_that_have_no_law_are_refused(x, error, match):
    with pytest.raises(error, match=match):
        Gaussianised(x)
