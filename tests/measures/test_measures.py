"""Reference measures and pushed measures, against scipy, quadrature and finite differences."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from scipy.integrate import quad

import pwgf
from pwgf import energies, maps, measures
from pwgf.errors import ConfigError, NonFiniteError, ShapeError
from pwgf.measures import Barenblatt, CosineSeries, Gaussian, PushedMeasure, UniformBall, UniformBox, Unnormalised

COV = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
BARENBLATTS = [(1, 2.0), (2, 2.0), (5, 2.0), (10, 2.0), (1, 3.0), (2, 1.5), (3, 4.0)]
# C, radius and E|x|² at t = 1 for m = 2, without the closed forms: in mpmath 1.3 with 40 digits, C is the root of
# ∫(C − k|x|²)₊ dx = 1 (radial quadrature), the radius √(C/k), and E|x|² the radial quadrature of |x|²(C − k|x|²)₊.
BARENBLATT_TABLE = {
    1: (0.3605623926, 2.080083823, 0.8653497422),
    2: (0.1994711402, 1.786487683, 1.063846081),
    5: (0.08235281075, 1.518512002, 1.281043723),
    10: (0.04580323554, 1.482752611, 1.570396647),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Gaussian -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "cov"), [(0.0, None), (MEAN, COV), (MEAN.tolist(), 4.0), (2.0, COV.numpy())])
def test_gaussian_log_density_agrees_with_scipy(mean, cov):
    law = Gaussian(3, mean, cov)
    z = 2 * torch.randn(40, 3, generator=seeded(), dtype=torch.float64)
    dense = np.eye(3) if cov is None else np.asarray(cov) if np.ndim(cov) else cov * np.eye(3)
    expected = scipy.stats.multivariate_normal(np.broadcast_to(np.asarray(mean), 3), dense).logpdf(z)
    np.testing.assert_allclose(law.log_density(z), expected, rtol=1e-12)
    single = law.log_density(z.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4)


def test_gaussian_samples_have_the_moments():
    n = 100_000
    x = Gaussian(3, MEAN, COV).sample(n, seeded(1))
    assert x.dtype == torch.float64
    z = (x.mean(0) - MEAN) / (COV.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 5
    error = (COV.diagonal()[:, None] * COV.diagonal() + COV**2) / n  # variance of a sample covariance
    assert float(((torch.cov(x.T) - COV) / error.sqrt()).abs().max()) < 5
    marginal = (x[:, 0] - MEAN[0]) / COV[0, 0].sqrt()
    assert scipy.stats.kstest(marginal, "norm").pvalue > 1e-4


@pytest.mark.parametrize("n", [12, 13, 100, 101])
def test_matched_gaussian_samples_have_exact_moments(n):
    x = Gaussian(3, MEAN, COV).matched_sample(n, seeded(2))
    assert x.shape == (n, 3)
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=1e-12)
    torch.testing.assert_close((x - MEAN).T @ (x - MEAN) / n, COV, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_few_matched_samples_are_plain_ones(n):
    law = Gaussian(3, MEAN, COV)
    assert torch.equal(law.matched_sample(n, seeded(2)), law.sample(n, seeded(2)))


def test_matched_gaussian_samples_stay_gaussian():
    """Evenly spread: closer to the normal law than independent points can be, in each coordinate and jointly."""
    n = 4096
    x = Gaussian(2).matched_sample(n, seeded(4))
    for k in range(2):
        assert scipy.stats.kstest(x[:, k], "norm").statistic < 0.1 / n**0.5
    radius = scipy.stats.kstest(x.square().sum(1), scipy.stats.chi2(2).cdf)
    assert radius.statistic < 0.5 / n**0.5


@pytest.mark.parametrize("n", [12, 101, 1000])
def test_wide_gaussian_samples_have_exact_moments_by_their_weights(n):
    x, weights = Gaussian(3, MEAN, COV).wide_sample(n, seeded(2))
    w = weights.unsqueeze(1)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close((w * x).mean(0), MEAN, rtol=0, atol=1e-12)
    torch.testing.assert_close((w * (x - MEAN)).T @ (x - MEAN) / n, COV, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_wide_gaussian_samples_stand_for_the_law_and_show_more_of_its_tails(dim):
    """Their weights give P(|x|² > c) of χ²; beyond its quantile of .999 lie several times as many as .1 %."""
    x, weights = Gaussian(dim).wide_sample(4096, seeded(4))
    size2 = x.square().sum(1)
    for share in (0.5, 0.9, 0.99):
        beyond = size2 > scipy.stats.chi2(dim).ppf(share)
        assert float((weights * beyond).mean()) == pytest.approx(1 - share, abs=0.02)
    assert float((size2 > scipy.stats.chi2(dim).ppf(0.999)).double().mean()) > 0.01
    assert float(1 / weights.square().mean()) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("law", [Gaussian(3), Barenblatt(2, t=1.0, m=2)])
def test_samples_without_a_wider_law_have_no_weights(law):
    x, weights = law.wide_sample(5, seeded(2))
    assert weights is None
    assert torch.equal(x, law.matched_sample(5, seeded(2)))


# --- Barenblatt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", BARENBLATT_TABLE)
def test_barenblatt_constants(dim):
    law = Barenblatt(dim, 2, 1)
    assert (law.C, law.radius, law.second_moment) == pytest.approx(BARENBLATT_TABLE[dim], rel=1e-9)


@pytest.mark.parametrize("t", [0.3, 1.0, 7.0])
@pytest.mark.parametrize(("dim", "m"), BARENBLATTS)
def test_barenblatt_has_unit_mass_and_the_stated_second_moment(dim, m, t):
    law = Barenblatt(dim, m, t)
    sphere = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)  # area of the unit sphere

    def shell(r: float, power: int) -> float:
        point = torch.zeros(1, dim, dtype=torch.float64)
        point[0, 0] = r
        return sphere * r ** (dim - 1 + power) * float(law.log_density(point).exp())

    mass = quad(shell, 0, law.radius, args=(0,))[0]
    second = quad(shell, 0, law.radius, args=(2,))[0]
    assert mass == pytest.approx(1, rel=1e-6)
    assert second == pytest.approx(law.second_moment, rel=1e-6)


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (2, 3.0)])
def test_barenblatt_solves_the_porous_medium_equation(dim, m):
    x = torch.tensor([[0.4] * dim], dtype=torch.float64)

    def density(t, x):
        return Barenblatt(dim, m, t).log_density(x).exp()

    h = 1e-4
    by_t = (density(1 + h, x) - density(1 - h, x)) / (2 * h)
    steps = h * torch.eye(dim, dtype=torch.float64)
    laplacian = sum((density(1, x + e) ** m - 2 * density(1, x) ** m + density(1, x - e) ** m) / h**2 for e in steps)
    torch.testing.assert_close(by_t, laplacian, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dim", "m"), [*BARENBLATTS, (40, 1.2)])
def test_barenblatt_radii_follow_the_beta_law(dim, m):
    law = Barenblatt(dim, m, 2.0)
    x = law.sample(50_000, seeded(3))
    share = (x.square().sum(1) / law.radius**2).numpy()
    assert scipy.stats.kstest(share, scipy.stats.beta(dim / 2, law.q + 1).cdf).pvalue > 1e-4
    mean = scipy.stats.ttest_1samp(x.numpy(), 0.0).pvalue
    assert float(np.min(mean)) > 1e-6
    assert bool(torch.isfinite(law.log_density(x)).all())


@pytest.mark.parametrize("n", [1, 4, 7])
def test_matched_barenblatt_samples_are_antithetic(n):
    law = Barenblatt(2, 2, 1)
    x = law.matched_sample(n, seeded(3))
    assert x.shape == (n, 2)
    if n % 2 == 0:
        torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)


def test_barenblatt_vanishes_outside_its_ball():
    law = Barenblatt(2, 2, 1)
    x = torch.tensor([[law.radius * 1.001, 0.0], [0.0, 0.0]], dtype=torch.float32)
    assert law.log_density(x).dtype == torch.float32
    assert law.log_density(x).exp().tolist() == pytest.approx([0.0, law.C])


# --- UniformBall ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "radius"), [(1, 2.0), (2, 0.5), (3, 1.0), (12, 1.5)])
def test_uniform_ball_samples_and_density(dim, radius):
    """|x|^d/R^d is uniform; the density is one over the volume, here by the recursion V_d = 2π R²/d · V_{d−2}."""
    law = UniformBall(dim, radius)
    volume = {0: 1.0, 1: 2 * radius}
    for d in range(2, dim + 1):
        volume[d] = 2 * math.pi * radius**2 / d * volume[d - 2]
    n = 50_000
    x = law.sample(n, seeded(3))
    assert scipy.stats.kstest((x.norm(dim=1) / radius) ** dim, "uniform").pvalue > 1e-4
    assert float(np.min(scipy.stats.ttest_1samp(x.numpy(), 0.0).pvalue)) > 1e-6
    squared = x.square().sum(1)
    assert float(squared.mean()) == pytest.approx(law.second_moment, abs=5 * float(squared.std()) / n**0.5)
    np.testing.assert_allclose(law.log_density(x).exp(), 1 / volume[dim], rtol=1e-12)
    assert law.log_density(x[:1] * 2 * radius / x[:1].norm()).tolist() == [-math.inf]
    assert float(law.matched_sample(10, seeded()).mean(0).abs().max()) < 1e-15


# --- UniformBox -----------------------------------------------------------------------------------------------------


def test_uniform_box_samples_and_density():
    """Each coordinate is uniform between its walls; the density is one over the volume, and 0 outside."""
    law, n = UniformBox([-1.0, 2.0, 0.0], [1.0, 2.5, 3.0]), 20_000
    x = law.sample(n, seeded(3))
    for k, (low, size) in enumerate([(-1.0, 2.0), (2.0, 0.5), (0.0, 3.0)]):
        assert scipy.stats.kstest(x[:, k], "uniform", args=(low, size)).pvalue > 1e-4
    np.testing.assert_allclose(law.log_density(x).exp(), 1 / 3, rtol=1e-12)
    for k in range(3):
        for wall, way in zip(law.box, (-1, 1), strict=True):
            outside = law.mean().clone()
            outside[k] = wall[k] + way * 1e-9
            assert law.log_density(outside[None]).tolist() == [-math.inf]


def test_uniform_box_samples_are_spread_evenly():
    """The means of matched samples miss the exact one by far less than independent ones, σ/√n = .009."""
    law, n = UniformBox(0.0, [1.0] * 4), 1000
    error = torch.stack([law.matched_sample(n, seed).mean(0) - 0.5 for seed in range(5)])
    assert float(error.square().mean().sqrt()) < 0.001
    z = law.matched_sample(7, 2)
    assert bool((law.log_density(z) == 0).all())
    assert not torch.equal(z, law.matched_sample(7, 3))


# --- CosineSeries ---------------------------------------------------------------------------------------------------


def test_cosine_series_by_quadrature():
    """Distribution function, moments and ∫ρ log ρ of 1 + .5 cos πu − .3 cos 2πu + .1 cos 3πu on [2, 5], by scipy."""

    def density(x):
        u = math.pi * (x - 2) / 3
        return (1 + 0.5 * np.cos(u) - 0.3 * np.cos(2 * u) + 0.1 * np.cos(3 * u)) / 3

    def mean_of(f):
        return scipy.integrate.quad(lambda x: density(x) * f(x), 2, 5)[0]

    law = CosineSeries(2.0, 5.0, [0.5, -0.3, 0.1])
    x = law.sample(20_000, seeded(4))
    grid = np.linspace(2, 5, 4001)
    below = scipy.integrate.cumulative_trapezoid(density(grid), grid, initial=0)
    assert scipy.stats.kstest(x[:, 0], lambda q: np.interp(q, grid, below)).pvalue > 1e-4
    np.testing.assert_allclose(law.log_density(x[:9]).exp(), density(x[:9, 0].numpy()), rtol=1e-12)
    assert float(law.mean()) == pytest.approx(mean_of(lambda x: x), rel=1e-12)
    assert float(law.cov()) == pytest.approx(mean_of(lambda x: x**2) - mean_of(lambda x: x) ** 2, rel=1e-10)
    assert law.mean_log_density() == pytest.approx(mean_of(lambda x: math.log(density(x))), abs=1e-9)
    assert float(law.matched_sample(1000, seeded()).mean()) == pytest.approx(float(law.mean()), abs=0.003)


def test_a_periodic_cosine_series_goes_on_beyond_its_box():
    law = CosineSeries([0.0, 1.0], [2.0, 5.0], [0.0, 0.7], periodic=True)
    x = law.sample(10, seeded())
    np.testing.assert_allclose(law.log_density(x + torch.tensor([2.0, -8.0])), law.log_density(x), atol=1e-12)


# --- Unnormalised ---------------------------------------------------------------------------------------------------


def gaussian_up_to(constant: float) -> Unnormalised:
    """N(MEAN, COV) by its functions, with a density off by a factor."""
    law = Gaussian(3, MEAN, COV)
    return Unnormalised(lambda z: law.log_density(z) + constant, law.sample, 3)


def test_an_unnormalised_reference_runs_like_the_law_itself_but_for_the_constant():
    target = energies.Potential(lambda x: x.square().sum(-1)) + 0.5 * energies.Entropy()
    law = Gaussian(3, MEAN, COV)

    class Even(Unnormalised):
        """With the samples that the law itself gives to right sides."""

        def matched_sample(self, n, generator):
            return law.matched_sample(n, generator)

        def wide_sample(self, n, generator):
            return law.wide_sample(n, generator)

    by_functions = Even(lambda z: law.log_density(z) + 1.5, law.sample, 3)
    runs = [
        pwgf.solve(pwgf.PWGF(target, maps.Affine(3), reference, num_samples=50, num_eval=50), [0, 0.2], progress=False)
        for reference in (law, by_functions)
    ]
    np.testing.assert_allclose(runs[1]["theta"], runs[0]["theta"], rtol=1e-9, atol=1e-9)
    x = runs[0].sample(0.2, 5)
    torch.testing.assert_close(runs[1].log_density(0.2, x), runs[0].log_density(0.2, x) + 1.5)
    torch.testing.assert_close(runs[1].score(0.2, x), runs[0].score(0.2, x))
    np.testing.assert_allclose(runs[1]["energy"], runs[0]["energy"] + 0.5 * 1.5)


def test_an_unnormalised_reference_is_handed_over_again_to_read_a_file(tmp_path):
    scheme = pwgf.PWGF(
        energies.Potential(lambda x: x.square().sum(-1)), maps.Affine(3), gaussian_up_to(0), num_samples=50, num_eval=50
    )
    run = pwgf.solve(scheme, [0, 0.1], out=tmp_path / "run.h5", progress=False)
    with pytest.raises(ConfigError, match=r"reference 'Unnormalised' cannot be rebuilt .*load\(path, reference=…\)\.$"):
        pwgf.load(tmp_path / "run.h5").sample(0.1, 3)
    again = pwgf.load(tmp_path / "run.h5", reference=gaussian_up_to(0))
    assert torch.equal(again.sample(0.1, 3), run.sample(0.1, 3))


def sampled(sampler, log_density=lambda z: -z.square().sum(-1)):
    return Unnormalised(log_density, sampler, 2).sample(5, seeded())


def drawn(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float32)


def test_samples_of_an_unnormalised_reference_are_float64():
    assert sampled(drawn).dtype == torch.float64


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda: Unnormalised(3, drawn, 2), ConfigError, r"Unnormalised\(log_density=…\) must be a function .*got int"),
        (lambda: Unnormalised(sum, torch.ones(2), 2), ConfigError, r"Unnormalised\(sampler=…\) must .*got Tensor"),
        (lambda: Unnormalised(sum, drawn, 0), ConfigError, r"Unnormalised\(.*dim\): dim must be an integer ≥ 1"),
        (lambda: sampled(lambda n, g: drawn(n, g)[:, 0]), ShapeError, r"sampler\(n=4.*shape \(4, 2\); got \(4,\)"),
        (lambda: sampled(lambda n, g: [0.0] * n), ShapeError, r"must return a tensor of shape \(4, 2\); got list"),
        (lambda: sampled(lambda n, g: drawn(n, g) / 0), NonFiniteError, r"returned NaN or infinite.*float64"),
        (
            lambda: sampled(lambda n, g: torch.randn(n, 2)),
            ConfigError,
            r"different samples for equal generators.*generator=generator",
        ),
        (
            lambda: Unnormalised(lambda z: -z.abs(), drawn, 2).log_density(torch.ones(3, 2)),
            ShapeError,
            r"log_density\(z\) must return a tensor of shape \(3,\) for z of shape \(3, 2\); got \(3, 2\)",
        ),
        (
            lambda: Unnormalised(lambda z: -z.detach().sum(-1), drawn, 2).log_density(
                torch.ones(3, 2).requires_grad_()
            ),
            ConfigError,
            r"log_density\(z\) has no gradient in z.*no \.detach\(\)",
        ),
    ],
)
def test_functions_of_an_unnormalised_reference_are_checked(do, error, message):
    with pytest.raises(error, match=message):
        do()


# --- what all that are stored promise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [
        Gaussian(3, MEAN, COV),
        Barenblatt(3, 2.5, 0.7),
        UniformBall(3, 1.5),
        UniformBox(0.0, [1.0] * 3),
        CosineSeries(0.0, [1.0] * 3, [0.5, 0.2]),
    ],
)
def test_a_reference_is_deterministic_and_is_rebuilt_from_its_config(law):
    again = measures.from_config(json.loads(json.dumps(law.to_config())))
    x = law.sample(9, seeded(5))
    assert isinstance(law, measures.Reference)
    assert torch.equal(x, law.sample(9, seeded(5)))
    assert not torch.equal(x, law.sample(9, seeded(6)))
    assert torch.equal(again.sample(9, seeded(5)), x)
    assert torch.equal(again.log_density(x), law.log_density(x))
    torch.autograd.gradcheck(law.log_density, (x.requires_grad_(True),))
    assert law == law


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gaussian(0), ConfigError, r"Gaussian\(dim\): dim must be an integer ≥ 1; got 0"),
        (lambda: Gaussian(2, [1, 2, 3]), ShapeError, r"Gaussian\(dim=2\): mean must .*shape \(2,\); got \(3,\)"),
        (lambda: Gaussian(2, "a"), ConfigError, r"Gaussian\(dim=2\): mean must be a number .*; got 'a', which is not"),
        (lambda: Gaussian(2, math.nan), ConfigError, r"Gaussian\(dim=2\): mean must be finite; got nan"),
        (lambda: Gaussian(2, cov=[1.0, 2.0]), ShapeError, r"Gaussian\(dim=2\): cov must .*shape \(2, 2\); got \(2,\)"),
        (lambda: Gaussian(2, cov=torch.eye(3)), ShapeError, r"cov must be a number or .*\(2, 2\); got \(3, 3\)"),
        (lambda: Gaussian(2, cov=object()), ConfigError, r"cov must be a number or a matrix; got <object"),
        (
            lambda: Gaussian(2, cov=math.inf),
            ConfigError,
            r"Gaussian\(dim=2, cov=…\): cov must be finite; got NaN or inf",
        ),
        (lambda: Gaussian(2, cov=0.0), ConfigError, r"positive definite; its smallest eigenvalue is 0"),
        (lambda: Gaussian(2, cov=-1.0), ConfigError, r"positive definite; its smallest eigenvalue is -1"),
        (lambda: Gaussian(2, cov=[[1.0, 2], [2, 1]]), ConfigError, r"positive definite; its smallest eigenvalue is -1"),
        (lambda: Gaussian(2, cov=[[1.0, 1], [0, 1]]), ConfigError, r"not symmetric\. Use \(cov \+ cov\.T\) / 2"),
        (lambda: Barenblatt(1.5, 2, 1), ConfigError, r"Barenblatt\(dim, m, t\): dim must be an integer ≥ 1; got 1\.5"),
        (lambda: Barenblatt(2, 1, 1), ConfigError, r"Barenblatt\(m=…\) must be > 1 .*use Gaussian\); got 1"),
        (lambda: Barenblatt(2, math.nan, 1), ConfigError, r"Barenblatt\(m=…\) must be > 1 .*; got nan"),
        (lambda: Barenblatt(2, "2", 1), ConfigError, r"Barenblatt\(m=…\) must be > 1 .*; got '2'"),
        (lambda: Barenblatt(2, 2, 0), ConfigError, r"Barenblatt\(t=…\) must be > 0 .*; got 0"),
        (lambda: UniformBall(0), ConfigError, r"UniformBall\(dim, radius\): dim must be an integer ≥ 1; got 0"),
        (lambda: UniformBall(2, -1), ConfigError, r"UniformBall\(radius=…\) must be positive and finite; got -1"),
        (
            lambda: UniformBox([0, 1], [1, 1]),
            ConfigError,
            r"UniformBox\(lower, upper\) needs .*lower < upper.*coordinate 1",
        ),
        (lambda: UniformBox(0, math.inf), ConfigError, r"lower = 0, upper = inf in coordinate 0\. Exchange them"),
        (lambda: UniformBox(math.nan, 1), ConfigError, r"needs finite numbers with lower < upper.*got lower = nan"),
        (lambda: UniformBox([0, 0], [1, 1, 1]), ShapeError, r"same number of coordinates in both.*\(2,\) and \(3,\)"),
        (lambda: UniformBox([[0.0]], 1), ShapeError, r"got shapes \(1, 1\) and \(\)"),
        (lambda: UniformBox([], []), ShapeError, r"got shapes \(0,\) and \(0,\)"),
        (
            lambda: UniformBox("a", 1),
            ConfigError,
            r"lower must be a number or d of them; got 'a', which is not made of",
        ),
        (
            lambda: CosineSeries(0, 1, [0.9, -0.9]),
            ConfigError,
            r"needs a density .* > 0; got \[0\.9, -0\.9\], with a least",
        ),
        (lambda: CosineSeries(0, 1, [math.nan]), ConfigError, r"needs a density .* > 0; got \[nan\]"),
        (lambda: CosineSeries(0, 1, [0.5], periodic=True), ConfigError, r"periodic=True\) needs a_1 = a_3 = … = 0"),
        (lambda: CosineSeries(1, 0, [0.5]), ConfigError, r"CosineSeries\(lower, upper\) needs .*lower < upper"),
        (lambda: Barenblatt(2, 2, math.inf), ConfigError, r"Barenblatt\(t=…\) must be > 0 .*; got inf"),
        (
            lambda: measures.from_config({"name": "Gausian", "dim": 2}),
            ConfigError,
            r"'Gausian' cannot be rebuilt .*pwgf\.load\(path, reference=…\)\. Did you mean 'Gaussian'\?",
        ),
    ],
)
def test_bad_arguments_are_told_at_the_door(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- the pushed measure ---------------------------------------------------------------------------------------------


class Counting(maps.ResidualMLP):
    """A residual map that counts what is asked of it."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        object.__setattr__(self, "calls", {"T": 0, "jacobian": 0})

    def __call__(self, theta, z):
        self.calls["T"] += 1
        return super().__call__(theta, z)

    def jacobian(self, theta, z):
        self.calls["jacobian"] += 1
        return super().jacobian(theta, z)


def curved(dim: int, seed: int = 7, **settings) -> tuple[maps.PushForward, torch.Tensor]:
    """A residual map bent away from the identity, still with det ∂_zT > 0."""
    map = Counting(dim, width=12, depth=2, axis_share=0.5, **settings)
    theta = map.initial(seed)
    affine, *_, out = map.unpack(theta)
    affine += 0.1 * torch.randn(affine.shape, generator=seeded(seed), dtype=torch.float64)
    out += 0.08 / map.gain * torch.randn(out.shape, generator=seeded(seed + 1), dtype=torch.float64)
    return map, theta


@pytest.mark.parametrize("reference", [Gaussian(2, [0.5, 0.0], [[1.0, 0.3], [0.3, 2.0]]), Barenblatt(2, 2.0, 1.0)])
def test_score_agrees_with_finite_differences_of_the_density_through_the_inverse(reference):
    map, theta = curved(2)
    z = 0.9 * reference.sample(20, seeded())  # away from the edge of a ball, where the density is not smooth
    rho = PushedMeasure(map, reference, theta, z)

    def log_density(x):
        back = map.inverse(theta, x)
        return reference.log_density(back) - map.log_abs_det(theta, back)

    torch.testing.assert_close(log_density(rho.x), rho.log_density, rtol=1e-9, atol=1e-9)
    h = 1e-5
    steps = h * torch.eye(2, dtype=torch.float64)
    slopes = torch.stack([(log_density(rho.x + e) - log_density(rho.x - e)) / (2 * h) for e in steps], dim=1)
    torch.testing.assert_close(rho.score, slopes, rtol=1e-5, atol=1e-6)


def test_score_of_a_module_with_layer_norm():
    module = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)).double()
    map = maps.FromModule(module, dim=2, residual=True)
    theta = map.initial() + 0.05 * torch.randn(map.num_params, generator=seeded(), dtype=torch.float64)
    rho = PushedMeasure(map, Gaussian(2), theta, Gaussian(2).sample(10, seeded()))
    h = 1e-5
    for axis, e in enumerate(h * torch.eye(2, dtype=torch.float64)):
        up, down = (
            PushedMeasure(map, Gaussian(2), theta, map.inverse(theta, rho.x + sign * e)).log_density for sign in (1, -1)
        )
        torch.testing.assert_close(rho.score[:, axis], (up - down) / (2 * h), rtol=1e-5, atol=1e-6)


def test_affine_push_of_a_gaussian_is_the_known_gaussian():
    A = torch.tensor([[1.5, 0.3], [-0.4, 0.8]], dtype=torch.float64)
    b = torch.tensor([1.0, -1.0], dtype=torch.float64)
    reference = Gaussian(2, [0.5, 0.0], [[1.0, 0.3], [0.3, 2.0]])
    rho = PushedMeasure(
        maps.Affine(2), reference, torch.cat([A, b[:, None]], 1).reshape(-1), reference.sample(30, seeded())
    )
    mean, cov = A @ reference.mean() + b, A @ reference.cov() @ A.T
    np.testing.assert_allclose(rho.log_density, scipy.stats.multivariate_normal(mean, cov).logpdf(rho.x), rtol=1e-12)
    torch.testing.assert_close(rho.score, -(rho.x - mean) @ torch.linalg.inv(cov))
    assert bool((rho.det_sign == 1).all())
    torch.testing.assert_close(rho.log_abs_det, torch.linalg.slogdet(A).logabsdet.expand(30))


def test_density_integrates_to_one_after_a_nonlinear_map():
    map, theta = curved(1)
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64).unsqueeze(1)
    rho = PushedMeasure(map, Gaussian(1), theta, z)
    x, order = rho.x.squeeze(1).sort()
    assert bool((order.diff() == 1).all())  # T is increasing here
    assert float(torch.trapezoid(rho.log_density.exp()[order], x)) == pytest.approx(1, abs=1e-6)


def test_a_fold_is_seen_in_the_sign_of_the_determinant():
    map = maps.Affine(2)
    mirrored = torch.tensor([1.0, 0, 0, 0, -1, 0], dtype=torch.float64)
    for theta in (mirrored, mirrored.clone().requires_grad_(True)):
        rho = PushedMeasure(map, Gaussian(2), theta, Gaussian(2).sample(5, seeded()))
        assert rho.det_sign.tolist() == [-1.0] * 5


def test_every_quantity_is_computed_once_and_only_when_asked_for():
    map, theta = curved(2)
    rho = PushedMeasure(map, Gaussian(2), theta, Gaussian(2).sample(10, seeded()))
    assert map.calls == {"T": 0, "jacobian": 0}
    rho.x, rho.x  # noqa: B018
    assert map.calls == {"T": 1, "jacobian": 0}
    for _ in range(2):
        rho.score, rho.log_density, rho.det_sign, rho.log_abs_det  # noqa: B018
    assert map.calls == {"T": 1, "jacobian": 1}


def test_with_a_gradient_one_jacobian_serves_density_and_sign():
    map, theta = curved(2)
    rho = PushedMeasure(map, Gaussian(2), theta.requires_grad_(True), Gaussian(2).sample(10, seeded()))
    rho.log_density, rho.det_sign, rho.log_abs_det  # noqa: B018
    assert map.calls["jacobian"] == 1
    assert rho.x.requires_grad
    assert rho.log_density.requires_grad
    assert not rho.score.requires_grad


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 50])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_blocks_give_the_same_results(chunk_size, requires_grad):
    map, theta = curved(2)
    theta, z = theta.requires_grad_(requires_grad), Gaussian(2).sample(10, seeded())
    whole, split = (PushedMeasure(map, Gaussian(2), theta, z, size) for size in (None, chunk_size))
    for name in ("x", "log_density", "score", "det_sign", "log_abs_det"):
        torch.testing.assert_close(getattr(split, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_density_with_and_without_a_gradient_agree():
    map, theta = curved(2)
    z = Gaussian(2).sample(10, seeded())
    plain = PushedMeasure(map, Gaussian(2), theta, z)
    traced = PushedMeasure(map, Gaussian(2), theta.clone().requires_grad_(True), z)
    torch.testing.assert_close(plain.log_density, traced.log_density.detach())
    torch.testing.assert_close(plain.score, traced.score)
    assert not plain.log_density.requires_grad


def test_float32_measure():
    map, theta = curved(2)
    z = Gaussian(2).sample(10, seeded())
    double = PushedMeasure(map, Gaussian(2), theta, z)
    single = PushedMeasure(map, Gaussian(2), theta.float(), z.float())
    for name in ("x", "log_density", "score"):
        assert getattr(single, name).dtype == torch.float32
        torch.testing.assert_close(getattr(single, name).double(), getattr(double, name), rtol=1e-3, atol=1e-3)
