"""The tangent against J itself, which torch.func forms row by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from pwgf import maps
from pwgf.tangent import Tangent
from pwgf.tangent import base as tangent


def module(dim: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(dim, 5), nn.Softplus(), nn.Linear(5, dim)).double()


class Transposed(maps.PushForward):
    """T(z) = Wᵀz, whose only matrix acts by its transpose."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def layout(self):
        return [maps.Block("weight", (self.dim, self.dim), 0)]

    def initial(self, seed=0):
        return torch.eye(self.dim, dtype=torch.float64).reshape(-1)

    def __call__(self, theta, z):
        return z @ theta.view(self.dim, self.dim)

    def linearise(self, theta, z):
        plain = super().linearise(theta, z)
        return maps.Linearisation(
            plain.jv, plain.jtu, lambda: [maps.Layer(0, (self.dim, self.dim), z, None, transposed=True)]
        )


MAPS = {
    "transposed": lambda: Transposed(3),
    "transposed-two": lambda: Transposed(2),
    "affine": lambda: maps.Affine(3),
    "one-dimension": lambda: maps.ResidualMLP(1, width=6),
    "residual": lambda: maps.ResidualMLP(3, width=7, axis_share=0.5),
    "four": lambda: maps.ResidualMLP(4, width=5, axis_units=2),
    "deep": lambda: maps.ResidualMLP(2, width=4, depth=3),
    "ridge-one-dimension": lambda: maps.ConvexRidge(1, width=4),
    "ridge": lambda: maps.ConvexRidge(3, width=5),
    "max": lambda: maps.ConvexMax(3, groups=2, size=3),
    "composed": lambda: maps.Composed([maps.ConvexRidge(3, width=4), maps.ResidualMLP(3, width=3), maps.Affine(3)]),
    "ode": lambda: maps.NeuralODE(3, width=4),
    "module": lambda: maps.FromModule(module(2), dim=2),
    "residual-module": lambda: maps.FromModule(module(3), dim=3, residual=True),
    "scaled-module": lambda: maps.FromModule(nn.Sequential(module(2), nn.LayerNorm(2)), dim=2, residual=True),
}
NUMBERS = [1, 4, 60]  # n·d below and above p


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(name: str, n: int, chunk_size: int | None = None, dtype: torch.dtype = torch.float64):
    """A tangent away from the start, and J (n·d, p) in float64 by automatic differentiation."""
    map = MAPS[name]()
    theta, z = map.initial() + 0.3 * random(map.num_params, seed=2), random(n, map.dim, seed=3)
    if isinstance(map, maps.NeuralODE):  # torchdiffeq writes in place, which vmap refuses
        J = torch.autograd.functional.jacobian(lambda q: map(q, z), theta)
    else:
        J = vmap(jacrev(lambda th, zi: map(th, zi[None])[0]), (None, 0))(theta, z)
    J = J.reshape(n * map.dim, -1)
    return Tangent(map, theta.to(dtype), z.to(dtype), chunk_size), J


def test_the_cases_lie_on_both_sides_of_square():
    wide = {map.num_params > n * map.dim for map in (make() for make in MAPS.values()) for n in NUMBERS}
    assert wide == {True, False}


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
@pytest.mark.parametrize("n", NUMBERS)
@pytest.mark.parametrize("name", MAPS)
def test_against_the_dense_tangent(name, n, chunk_size):
    t, J = case(name, n, chunk_size)
    assert (t.n * t.d, t.p) == J.shape
    eta, u = random(t.p, seed=4), random(n, t.d, seed=5)
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(t.jv(eta).reshape(-1), J @ eta, **close)
    torch.testing.assert_close(t.jtu(u), J.T @ u.reshape(-1), **close)
    torch.testing.assert_close(t.trace(), J.square().sum() / n, **close)
    torch.testing.assert_close(t.gram_dual(), J @ J.T, **close)
    torch.testing.assert_close(t.gram_primal(), J.T @ J / n, **close)
    torch.testing.assert_close(t.dense(), J, **close)


@pytest.mark.parametrize("n", NUMBERS)
@pytest.mark.parametrize("name", MAPS)
def test_products_are_adjoint_and_agree_with_the_metric(name, n):
    t, _ = case(name, n)
    eta, u = random(t.p, seed=4), random(n, t.d, seed=5)
    left, right = float((t.jv(eta) * u).sum()), float(eta @ t.jtu(u))
    assert left == pytest.approx(right, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(t.gram_primal() @ eta, t.jtu(t.jv(eta)) / n, rtol=1e-10, atol=1e-10)
    assert float(torch.linalg.eigvalsh(t.gram_dual())[0]) > -1e-10 * float(t.trace()) * n


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("name", MAPS)
def test_a_subset_has_the_rows_of_its_samples(name, chunk_size):
    t, J = case(name, 20, chunk_size)
    index = torch.tensor([17, 0, 5, 5])
    part = t.subset(index)
    rows = J.view(20, t.d, t.p)[index].reshape(-1, t.p)
    assert (part.n, part.d, part.p) == (4, t.d, t.p)
    torch.testing.assert_close(part.dense(), rows, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(part.gram_dual(), rows @ rows.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(part.trace(), rows.square().sum() / 4, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAPS)
def test_memory_bounds_change_nothing(name, monkeypatch):
    """Rows and Gram blocks of one sample at a time."""
    t, J = case(name, 7)
    monkeypatch.setattr(tangent, "ENTRIES", 1)
    torch.testing.assert_close(t.gram_primal(), J.T @ J / 7, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(t.gram_dual(), J @ J.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(t.dense(), J, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAPS)
def test_float32(name):
    t, J = case(name, 9, dtype=torch.float32)
    eta, u = random(t.p, seed=4), random(9, t.d, seed=5)
    pairs = [
        (t.jv(eta.float()).reshape(-1), J @ eta),
        (t.jtu(u.float()), J.T @ u.reshape(-1)),
        (t.trace(), J.square().sum() / 9),
        (t.gram_dual(), J @ J.T),
        (t.gram_primal(), J.T @ J / 9),
        (t.dense(), J),
    ]
    assert t.dtype == torch.float32
    for got, expected in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_a_tangent_is_a_constant(name):
    """It follows neither later changes of gradients nor the ambient gradient mode."""
    map = MAPS[name]()
    theta = (map.initial() + 0.3 * random(map.num_params, seed=2)).requires_grad_(True)
    z = random(5, map.dim, seed=3).requires_grad_(True)
    eta = random(map.num_params, seed=4)
    with torch.no_grad():
        quiet = Tangent(map, theta, z)
    loud = Tangent(map, theta, z)
    for t in (quiet, loud):
        assert not t.jv(eta).requires_grad
        assert not t.jtu(z.detach()).requires_grad
        assert not t.gram_dual().requires_grad
        assert not t.gram_primal().requires_grad
        assert not t.trace().requires_grad
    torch.testing.assert_close(quiet.jv(eta), loud.jv(eta), rtol=0, atol=0)


def test_which_maps_have_layers():
    assert {name: case(name, 4)[0].layered for name in MAPS} == {
        "affine": True,
        "one-dimension": True,
        "residual": True,
        "four": True,
        "deep": True,
        "transposed": True,
        "transposed-two": True,
        "ridge-one-dimension": True,
        "ridge": True,
        "max": True,
        "composed": True,
        "ode": True,
        "module": True,
        "residual-module": True,
        "scaled-module": False,
    }


def test_affine_metric_is_the_second_moment_of_the_samples():
    """Ĝ = I_d ⊗ E[(z,1)(z,1)ᵀ]."""
    z = random(50, 2, seed=1)
    a = torch.cat([z, torch.ones(50, 1, dtype=torch.float64)], dim=1)
    t = Tangent(maps.Affine(2), maps.Affine(2).initial(), z)
    torch.testing.assert_close(t.gram_primal(), torch.kron(torch.eye(2, dtype=torch.float64), a.T @ a / 50))
    torch.testing.assert_close(t.trace(), 2 * (1 + z.square().sum(1).mean()))
