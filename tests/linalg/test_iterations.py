"""The Krylov iterations against scipy's, iterate by iterate."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

from pwgf.linalg._iterations import conjugate_gradients, lsmr


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(values: torch.Tensor, seed: int = 1) -> torch.Tensor:
    Q, _ = torch.linalg.qr(random(len(values), len(values), seed=seed))
    return (Q * values) @ Q.T


DEFINITE = symmetric(torch.logspace(-2, 0, 40, dtype=torch.float64))
INDEFINITE = symmetric(torch.cat([-torch.linspace(0.3, 2, 15), torch.linspace(0.2, 3, 25)]).double())
B, X0 = random(40, seed=2), random(40, seed=3)


class Counted:
    """A matrix as an operator that counts its products."""

    def __init__(self, A: torch.Tensor) -> None:
        self.A, self.count = A, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.A @ x


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("x0", [None, X0], ids=["from zero", "from x0"])
def test_conjugate_gradients_equal_scipy_at_each_conjugate_gradients(k, x0):
    mine = conjugate_gradients(lambda x: DEFINITE @ x, B, x0, rtol=1e-30, max_iterations=k)
    truth, _ = sla.cg(DEFINITE.numpy(), B.numpy(), None if x0 is None else x0.numpy(), rtol=0, atol=0, maxiter=k)
    assert mine.num_iterations == k
    np.testing.assert_allclose(mine.x, truth, rtol=1e-9)


def test_preconditioned_conjugate_gradients_equal_scipy():
    M = symmetric(torch.linspace(1, 3, 40, dtype=torch.float64), seed=9)
    mine = conjugate_gradients(lambda x: DEFINITE @ x, B, rtol=1e-30, max_iterations=7, precondition=lambda r: M @ r)
    truth, _ = sla.cg(DEFINITE.numpy(), B.numpy(), rtol=0, atol=0, maxiter=7, M=M.numpy())
    np.testing.assert_allclose(mine.x, truth, rtol=1e-9)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)], ids=["tall", "wide"])
@pytest.mark.parametrize("damp", [0.0, 0.3])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_lsmr_equals_scipy_at_each_conjugate_gradients(shape, damp, k):
    J, b = random(*shape, seed=4), random(shape[0], seed=5)
    mine = lsmr(lambda x: J @ x, lambda u: J.T @ u, b, damp=damp, rtol=1e-30, max_iterations=k)
    truth = sla.lsmr(J.numpy(), b.numpy(), damp=damp, atol=0, btol=0, conlim=0, maxiter=k)[0]
    np.testing.assert_allclose(mine.x, truth, rtol=1e-8, atol=1e-12)
    gradient = J.T @ (b - J @ mine.x) - damp**2 * mine.x
    assert mine.residual == pytest.approx(float(gradient.norm() / (J.T @ b).norm()), rel=1e-6)


def test_a_start_at_the_answer_takes_no_iterations():
    matvec = Counted(DEFINITE)
    end = conjugate_gradients(matvec, DEFINITE @ X0, X0, rtol=1e-9, max_iterations=50)
    assert end.num_iterations == 0 and end.converged and matvec.count == 1
    assert torch.equal(end.x, X0)


@pytest.mark.parametrize("scale", [2.0**-46, 2.0**46])
def test_the_stopping_test_is_relative(scale):
    one = conjugate_gradients(lambda x: DEFINITE @ x, B, rtol=1e-6, max_iterations=200)
    other = conjugate_gradients(lambda x: DEFINITE @ x, scale * B, rtol=1e-6, max_iterations=200)
    assert other.num_iterations == one.num_iterations
    assert torch.equal(other.x / scale, one.x)  # a power of two: to the bit
    assert float((B - DEFINITE @ one.x).norm() / B.norm()) <= 1.01e-6


def test_a_good_start_does_not_tighten_the_test():
    near = torch.linalg.solve(DEFINITE, B) + 1e-5 * X0
    end = conjugate_gradients(lambda x: DEFINITE @ x, B, near, rtol=1e-3, max_iterations=50)
    assert end.num_iterations == 0 and end.converged


@pytest.mark.parametrize(
    "A", [INDEFINITE, -DEFINITE, torch.zeros(40, 40).double()], ids=["indefinite", "negative", "zero"]
)
def test_negative_curvature_stops_before_the_division(A):
    end = conjugate_gradients(lambda x: A @ x, B, rtol=1e-8, max_iterations=200)
    assert not end.converged and torch.isfinite(end.x).all() and end.num_iterations < 200
    if A is not INDEFINITE:
        assert end.num_iterations == 1 and not end.x.any()


def test_an_indefinite_preconditioner_stops_too():
    end = conjugate_gradients(lambda x: DEFINITE @ x, B, rtol=1e-8, max_iterations=200, precondition=lambda r: -r)
    assert not end.converged and not end.x.any()


def test_a_right_side_of_zero_is_solved_by_zero():
    end = conjugate_gradients(lambda x: DEFINITE @ x, torch.zeros(40).double(), rtol=1e-8, max_iterations=9)
    assert end.converged and end.num_iterations == 0 and end.residual == 0.0


def test_one_product_per_conjugate_gradients():
    matvec = Counted(DEFINITE)
    end = conjugate_gradients(matvec, B, rtol=1e-6, max_iterations=100)
    assert end.converged and matvec.count == end.num_iterations
