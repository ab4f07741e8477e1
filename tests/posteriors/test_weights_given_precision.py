"""Expectation propagation and the coordinates made of it, against quadrature, autograd and Hamiltonian chains."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from pwgf import sampling
from pwgf.errors import ConfigError, ShapeError, SolverError
from pwgf.posteriors import LogisticRegression
from pwgf.posteriors._expectation_propagation import expectation_propagation
from pwgf.sampling.coordinates import Target


def data(n=120, k=3, seed=0, slope=1.0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, k, generator=generator, dtype=torch.float64)
    y = torch.rand(n, generator=generator) < torch.sigmoid(slope * X.sum(1) + 0.3)
    return X, y.long()


def normal(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_quadrature(rows, precision, shift):
    """Mean, variance and log constant of one weight."""
    w = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    logs = shift * w - precision * w * w / 2 + logsigmoid(w[:, None] * rows.T).sum(1)
    share = torch.softmax(logs, 0)
    mean = float(share @ w)
    return mean, float(share @ (w - mean) ** 2), float(torch.logsumexp(logs, 0)) + math.log(float(w[1] - w[0]))


@pytest.mark.parametrize(("a", "precision", "shift"), [(2.0, 0.05, -1.0), (-0.7, 0.4, 0.3)])
def test_one_row_and_one_weight_are_exact(a, precision, shift):
    rows = torch.tensor([[a]], dtype=torch.float64)
    found = expectation_propagation(
        rows, torch.tensor([[precision]]).double(), torch.tensor([shift]).double(), tolerance=1e-10
    )
    mean, variance, log_z = by_quadrature(rows, precision, shift)
    assert float(found.mean) == pytest.approx(mean, abs=1e-4)
    assert float(found.cov) == pytest.approx(variance, rel=1e-3)
    assert found.log_z == pytest.approx(log_z, abs=1e-3)


def test_many_rows_are_nearly_exact():
    rows = 0.5 * normal(30, 1)
    mean, variance, log_z = by_quadrature(rows, 0.01, 0.0)
    found = expectation_propagation(rows, torch.tensor([[0.01]]).double(), torch.zeros(1).double())
    assert float(found.mean) == pytest.approx(mean, abs=0.01 * math.sqrt(variance))
    assert float(found.cov) == pytest.approx(variance, rel=0.02)
    assert found.log_z == pytest.approx(log_z, abs=0.01)


def test_where_the_classes_separate_it_is_far_nearer_than_the_mode():
    rows = 3 * normal(30, 1).abs()  # half a Gaussian of deviation 10
    mean, variance, _ = by_quadrature(rows, 0.01, 0.0)
    found = expectation_propagation(rows, torch.tensor([[0.01]]).double(), torch.zeros(1).double())
    assert float(found.mean) == pytest.approx(mean, abs=0.15 * math.sqrt(variance))
    assert float(found.cov) == pytest.approx(variance, rel=0.25)
    mode, _ = sampling.laplace(lambda w: logsigmoid(w @ rows.T).sum(1) - 0.005 * w.square().sum(1), 1)
    assert abs(float(mode) - mean) > 0.5 * math.sqrt(variance)


def test_it_starts_from_the_sites_of_a_neighbour():
    rows, zero = normal(40, 3), torch.zeros(3).double()
    first = expectation_propagation(rows, torch.eye(3).double(), zero, tolerance=1e-8)
    again = expectation_propagation(rows, torch.eye(3).double(), zero, start=first.sites, max_sweeps=1)
    torch.testing.assert_close(again.cov, first.cov, rtol=1e-6, atol=1e-9)


def test_rows_out_of_range_are_told():
    with pytest.raises(SolverError, match=r"expectation_propagation: .*not finite.*scale the features"):
        rows = torch.full((2, 1), 1e200, dtype=torch.float64)
        expectation_propagation(rows, torch.eye(1).double(), torch.zeros(1).double())


@pytest.mark.parametrize("batch_size", [None, 40])
def test_the_volume_is_that_of_the_map(batch_size):
    X, y = data()
    coordinates = LogisticRegression(X, y, batch_size=batch_size).coordinates()
    points = torch.cat([normal(20, 4), 3 * normal(20, 4, seed=2), torch.tensor([[0, 1, 0, 7.0], [1, 0, 0, -7.0]])])
    x, log_volume = coordinates(points)
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(lambda q: coordinates(q[None])[0][0], p) for p in points]
    )
    torch.testing.assert_close(log_volume, torch.linalg.slogdet(jacobians)[1], rtol=1e-8, atol=1e-8)
    assert x.shape == points.shape and bool((torch.linalg.slogdet(jacobians)[0] > 0).all())
    assert torch.autograd.gradcheck(lambda q: coordinates(q), normal(3, 4).requires_grad_())


def test_the_slope_is_right_at_the_knots_too():
    problem = LogisticRegression(*data())
    coordinates = problem.coordinates()
    at = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(coordinates(at)[1].sum(), at)
    step = torch.tensor([0.0, 0.0, 0.0, 1e-3], dtype=torch.float64)
    difference = (coordinates(at + step)[1] - coordinates(at - step)[1]) / 2e-3
    torch.testing.assert_close(slope[:, 3], difference, rtol=0.1, atol=0.02)


def test_what_is_not_finite_stays_so_and_touches_no_other():
    coordinates = LogisticRegression(*data()).coordinates()
    y = normal(3, 4)
    y[1, 3] = math.nan
    x, log_volume = coordinates(y)
    assert bool(x[1].isnan().all()) and bool(log_volume[1].isnan())
    torch.testing.assert_close(x[::2], coordinates(y[::2])[0])


def test_the_log_precision_is_normal_into_its_tails():
    X, y = data(2000, 12)
    problem = LogisticRegression(X, y)
    points = torch.cat([normal(1, 12).expand(81, -1), torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]], 1)
    flat = Target(problem.log_target, problem.coordinates())(points) + points[:, -1].square() / 2
    assert float(flat.max() - flat.min()) < 0.15


@pytest.mark.parametrize("batch_size", [None, 60])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_posterior_is_nearly_standard_normal_in_them(batch_size, intercept):
    X, y = data(400)
    problem = LogisticRegression(X, y, batch_size=batch_size, intercept=intercept)
    y = normal(4000, problem.dim)
    log_w = Target(problem.log_target, problem.coordinates())(y) + y.square().sum(1) / 2
    w = torch.exp(log_w - log_w.max())
    assert float(w.sum() ** 2 / w.square().sum()) > (0.97 if batch_size is None else 0.9) * len(w)
    moments = torch.softmax(log_w, 0) @ torch.cat([y, y * y - 1], 1)
    assert float(moments.abs().max()) < (0.08 if batch_size is None else 0.25)


def test_chains_mix_in_them_where_the_classes_can_be_separated(caplog):
    X, y = data(60, 6, slope=8.0)
    problem = LogisticRegression(X, y)
    assert problem.separating_weights() is not None
    coordinates = problem.coordinates()
    assert any("a plane through 0 separates the classes" in m and "quantiles" in m for m in caplog.messages)
    chains = sampling.hmc(Target(problem.log_target, coordinates), normal(64, 7), 300, warmup=100)
    assert float(chains.rhat.max()) < 1.05
    y = chains.samples
    assert float(y.mean(0).abs().max()) < 0.15 and 0.7 < float(torch.linalg.eigvalsh(torch.cov(y.T))[-1]) < 1.6
    w = coordinates(y)[0][:, :-1].norm(dim=1)
    assert float(w.max()) > 8 * float(w.median())  # no variance: p(|w|) falls as |w|⁻³


def test_weights_that_separate_are_a_proof_and_none_are_found_where_there_are_none():
    X, y = data(50, 4, slope=50.0)
    w = LogisticRegression(X, y).separating_weights()
    assert w is not None and bool((torch.where(y > 0, 1.0, -1.0) * (X @ w) > 0).all())
    assert LogisticRegression(*data(200, 4)).separating_weights() is None
    assert LogisticRegression(X, y, batch_size=20).separating_weights() is None  # a batch proves nothing


def test_rows_of_zeros_say_nothing():
    X, y = data(60, 2)
    with_zeros = LogisticRegression(torch.cat([X, torch.zeros(3, 2)]), torch.cat([y, torch.tensor([0, 1, 1])]))
    points = normal(5, 3)
    for one, other in zip(
        with_zeros.coordinates()(points), LogisticRegression(X, y).coordinates()(points), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert bool(with_zeros.coordinates().directions(63).isfinite().all())


def test_directions_are_those_of_the_rows_that_tell():
    X, y = data(30, 2)
    X[:10] *= 1e-3  # rows that tell nothing
    coordinates = LogisticRegression(X, y).coordinates()
    rows = coordinates.directions(8)
    assert rows.shape == (8, 3) and float(rows[:, 2].abs().max()) == 0
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8).double())
    assert coordinates.directions(100).shape == (30, 3)
    with pytest.raises(ConfigError, match=r"directions\(count=…\) must be an integer ≥ 1; got 0"):
        coordinates.directions(0)


@pytest.mark.parametrize("shape", [(4, 3), (5,)])
def test_points_of_another_dimension_are_refused(shape):
    coordinates = LogisticRegression(*data(30, 4)).coordinates()
    with pytest.raises(ShapeError, match=r"coordinates\(\)\(y\) needs shape \(n, 5\).*got \("):
        coordinates(torch.zeros(shape).double())
