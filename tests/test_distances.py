"""Distances against scipy, POT, torch.distributions and closed forms."""

import math
import sys

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch

from pwgf import distances
from pwgf.errors import ConfigError, NonFiniteError, ShapeError


def samples(n, dim, seed=0, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def random_gaussian(dim, seed):
    root = samples(dim, dim, seed)
    return samples(1, dim, seed + 100)[0], root @ root.T + 0.1 * torch.eye(dim)


class Normal:
    """A Gaussian by torch.distributions, so that nothing of the package is between the test and the truth."""

    def __init__(self, mean, cov):
        self.law = torch.distributions.MultivariateNormal(mean, cov)

    def sample(self, n, generator):
        return self.law.mean + torch.randn(n, len(self.law.mean), generator=generator).double() @ self.law.scale_tril.T

    def log_density(self, x):
        return self.law.log_prob(x)


class Interval:
    """Uniform on [low, low + 1]."""

    def __init__(self, low):
        self.low = low

    def sample(self, n, generator):
        return self.low + torch.rand(n, 1, generator=generator, dtype=torch.float64)

    def log_density(self, x):
        inside = (x[:, 0] >= self.low) & (x[:, 0] <= self.low + 1)
        return torch.where(inside, 0.0, -math.inf)


def test_w2_is_the_optimal_assignment():
    x, y = samples(60, 3, 1), samples(60, 3, 2, shift=0.5)
    cost = torch.cdist(x, y).square().numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    assert float(distances.w2(x, y)) == pytest.approx(cost[rows, columns].mean(), rel=1e-10)


def test_w2_of_a_shifted_sample_is_the_squared_shift():
    x, shift = samples(50, 2), torch.tensor([3.0, 4.0])
    assert float(distances.w2(x, x + shift)) == pytest.approx(25.0, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25), (7, 30), (1, 5)])
def test_w2_in_one_dimension_matches_pot(n, m):
    x, y = samples(n, 1, 1), samples(m, 1, 2, shift=1.0)
    truth = ot.emd2_1d(x[:, 0].numpy(), y[:, 0].numpy(), metric="sqeuclidean")
    assert float(distances.w2(x, y)) == pytest.approx(truth, rel=1e-12)


def test_w2_of_unequal_sizes_matches_a_linear_program():
    x, y = samples(6, 2, 1), samples(4, 2, 2)
    cost = torch.cdist(x, y).square().numpy()
    marginals = np.vstack([np.kron(np.eye(6), np.ones(4)), np.kron(np.ones(6), np.eye(4))])
    weights = np.r_[np.full(6, 1 / 6), np.full(4, 1 / 4)]
    truth = scipy.optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=weights).fun
    assert float(distances.w2(x, y)) == pytest.approx(truth, rel=1e-9)


def test_w2_without_pot_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ConfigError, match=r"w2\(x, y\) in dimension 2 needs the package POT.*pwgf\[eval\]"):
        distances.w2(samples(3, 2), samples(3, 2))
    assert float(distances.w2(samples(3, 1), samples(3, 1))) == 0.0


@pytest.mark.parametrize(("n", "m"), [(80, 80), (80, 33)])
def test_sliced_w2_matches_pot_on_the_same_directions(n, m):
    x, y, directions = samples(n, 4, 1), samples(m, 4, 2, shift=0.3), samples(12, 4, 3)
    unit = (directions / directions.norm(dim=1, keepdim=True)).T.numpy()
    truth = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=unit) ** 2
    assert float(distances.sliced_w2(x, y, directions=directions)) == pytest.approx(truth, abs=1e-10)


def test_sliced_w2_of_a_shift_averages_the_squared_cosines_and_is_differentiable():
    x, shift = samples(20, 3).requires_grad_(True), torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    value = distances.sliced_w2(x, x.detach() + shift, 20_000, torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(value, x)
    assert float(value.detach()) == pytest.approx(4 / 3, rel=0.03)  # E⟨u, a⟩² = |a|²/d
    assert float(gradient.sum(0)[0]) == pytest.approx(-4 / 3, rel=0.03)  # moving all points by s: (2 − s)²/3


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 31)])
def test_energy_distance_in_one_dimension_is_the_square_of_scipys(n, m):
    x, y = samples(n, 1, 1), samples(m, 1, 2, shift=0.5)
    truth = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert float(distances.energy_distance(x, y)) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("block", [4_000_000, 100])
def test_energy_distance_in_blocks_matches_the_full_matrices(monkeypatch, block):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", block)
    x, y = samples(40, 3, 1), samples(30, 3, 2, shift=0.5)

    def mean(a, b):
        return float(np.linalg.norm(a.numpy()[:, None] - b.numpy()[None], axis=-1).mean())

    truth = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert float(distances.energy_distance(x, y)) == pytest.approx(truth, rel=1e-10)
    assert float(distances.mmd(x, y, "energy")) == pytest.approx(truth, rel=1e-10)


def test_mmd_matches_numpy_and_takes_a_function():
    x, y = samples(40, 2, 1), samples(30, 2, 2, shift=0.5)

    def gaussian(a, b):
        return np.exp(-((a.numpy()[:, None] - b.numpy()[None]) ** 2).sum(-1) / (2 * 0.7**2))

    truth = gaussian(x, x).mean() + gaussian(y, y).mean() - 2 * gaussian(x, y).mean()
    assert float(distances.mmd(x, y, bandwidth=0.7)) == pytest.approx(truth, rel=1e-10)
    linear = distances.mmd(x, y, lambda a, b: a @ b.T)  # the squared distance of the means
    assert float(linear) == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()), rel=1e-10)
    pooled = torch.cat([x, y]).numpy()
    median = np.sort(scipy.spatial.distance.pdist(pooled))[(70 * 69 // 2 - 1) // 2]
    assert float(distances.mmd(x, y)) == pytest.approx(float(distances.mmd(x, y, bandwidth=median)), rel=1e-10)


def test_mmd_refuses_what_it_cannot_use():
    x = samples(5, 2)
    with pytest.raises(ConfigError, match=r"mmd\(kernel=…\) needs 'gaussian', 'energy'.*got 'cubic'"):
        distances.mmd(x, x, "cubic")
    with pytest.raises(ConfigError, match=r"mmd\(bandwidth=…\) needs a positive length.*got -1"):
        distances.mmd(x, x, bandwidth=-1)
    with pytest.raises(ShapeError, match=r"mmd\(kernel=…\) must return shape \(n, m\) = \(5, 5\); got \(5,\)"):
        distances.mmd(x, x, lambda a, b: a[:, 0])


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_gaussian_kl_matches_torch_distributions(dim):
    p, q = random_gaussian(dim, 1), random_gaussian(dim, 2)
    laws = [torch.distributions.MultivariateNormal(*law) for law in (p, q)]
    forth = float(torch.distributions.kl_divergence(laws[0], laws[1]))
    back = float(torch.distributions.kl_divergence(laws[1], laws[0]))
    assert float(distances.gaussian_kl(*p, *q)) == pytest.approx(forth, rel=1e-10)
    assert float(distances.gaussian_sym_kl(*p, *q)) == pytest.approx(forth + back, rel=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_bures_w2_matches_the_matrix_root(dim):
    (mean0, cov0), (mean1, cov1) = random_gaussian(dim, 1), random_gaussian(dim, 2)
    root = scipy.linalg.sqrtm(cov0.numpy())
    cross = np.trace(scipy.linalg.sqrtm(root @ cov1.numpy() @ root)).real
    truth = float((mean0 - mean1).square().sum() + cov0.trace() + cov1.trace()) - 2 * cross
    assert float(distances.bures_w2(mean0, cov0, mean1, cov1)) == pytest.approx(math.sqrt(truth), rel=1e-8)


@pytest.mark.parametrize("cov", [-torch.eye(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.full((2, 2), math.nan)])
def test_bures_w2_refuses_what_is_no_covariance(cov):
    with pytest.raises(ConfigError, match="finite, symmetric, positive semidefinite matrices"):
        distances.bures_w2(torch.zeros(2), torch.eye(2), torch.zeros(2), cov)


def test_bures_w2_resolves_nearly_equal_covariances():
    mean, cov = random_gaussian(4, 1)
    truth = (math.sqrt(1 + 1e-9) - 1) * math.sqrt(float(cov.trace()))
    assert float(distances.bures_w2(mean, cov, mean, (1 + 1e-9) * cov)) == pytest.approx(truth, rel=1e-4)
    assert float(distances.bures_w2(mean, 0 * cov, mean, 0 * cov)) == 0.0


def test_sym_kl_matches_the_closed_form_and_resolves_small_values():
    mean, cov = random_gaussian(3, 1)
    p = Normal(mean, cov)
    assert float(distances.sym_kl(p, p)) == 0.0
    for scale, tolerance in ((1.2, 0.05), (1 + 1e-4, 0.05)):
        truth = float(distances.gaussian_sym_kl(mean, cov, mean, scale * cov))
        assert float(distances.sym_kl(p, Normal(mean, scale * cov))) == pytest.approx(truth, rel=tolerance)


def test_sym_kl_is_infinite_between_different_supports_and_names_nan():
    assert float(distances.sym_kl(Interval(0.0), Interval(0.5), n=100)) == math.inf
    broken = Interval(0.0)
    broken.log_density = lambda x: x[:, 0] * math.nan
    with pytest.raises(NonFiniteError, match=r"sym_kl: the log density of p or q is NaN at samples of p"):
        distances.sym_kl(Interval(0.0), broken, n=100)
    with pytest.raises(ConfigError, match=r"sym_kl\(n=…\) needs at least 1 sample; got 0"):
        distances.sym_kl(broken, broken, n=0)


def test_floor_of_the_energy_distance_is_known():
    n, dim = 50, 1  # E = (2/n) E|x − x'| with E|x − x'| = 2/√π for the standard normal law
    measured = distances.floor(
        distances.energy_distance, lambda k, g: torch.randn(k, dim, generator=g).double(), n, repeats=400
    )
    assert measured == pytest.approx(2 / n * 2 / math.sqrt(math.pi), rel=0.1)
    with pytest.raises(ConfigError, match=r"floor\(n=…, repeats=…\) needs at least 1 of each; got n=0, repeats=10"):
        distances.floor(distances.w2, lambda k, g: samples(k, 1), 0)


@pytest.mark.parametrize("name", ["w2", "sliced_w2", "energy_distance", "mmd"])
def test_sample_distances_check_shapes_accept_float32_and_are_symmetric(name):
    distance = getattr(distances, name)
    x, y = samples(8, 2, 1), samples(6, 2, 2)
    assert distance(x.float(), y.float()).dtype == torch.float64
    assert float(distance(x, y)) == pytest.approx(float(distance(y, x)), rel=1e-10)
    assert float(distance(x, x)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ShapeError, match=rf"{name}\(x=…\) needs samples of shape \(n, d\).*got \(8,\).*x\[:, None\]"):
        distance(x[:, 0], y)
    with pytest.raises(ShapeError, match=rf"{name}\(y=…\) needs samples of shape \(n, d\)"):
        distance(x, y[:0])
    with pytest.raises(ShapeError, match=rf"{name}\(x, y\) needs samples of one dimension d"):
        distance(x, y[:, :1])


def test_remaining_arguments_are_checked():
    x, eye = samples(5, 2), torch.eye(2)
    with pytest.raises(ConfigError, match=r"sliced_w2\(num_directions=…\) needs at least 1; got 0"):
        distances.sliced_w2(x, x, 0)
    with pytest.raises(ShapeError, match=r"sliced_w2\(directions=…\) needs rows \(L, 2\); got \(2, 3\)"):
        distances.sliced_w2(x, x, directions=torch.ones(2, 3))
    with pytest.raises(ShapeError, match=r"gaussian_kl\(mean0, cov0, mean1, cov1\) needs shapes"):
        distances.gaussian_kl(torch.zeros(2), eye, torch.zeros(3), eye)
    with pytest.raises(ConfigError, match=r"gaussian_kl\(cov1=…\) needs a positive definite matrix"):
        distances.gaussian_kl(torch.zeros(2), eye, torch.zeros(2), 0 * eye)
