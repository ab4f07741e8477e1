"""The tangent of slopes along several directions a sample, against reverse mode through `jacobian`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwgf import maps
from pwgf.tangent import SlopeTangent, base


def module(dim: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, dim)).double()


MAPS = {
    "affine": lambda: maps.Affine(3),
    "residual": lambda: maps.ResidualMLP(2, width=5),
    "deep": lambda: maps.ResidualMLP(2, width=4, depth=2),
    "ridge": lambda: maps.ConvexRidge(3, width=4),
    "module": lambda: maps.FromModule(module(2), dim=2, residual=True),
}
each_map = pytest.mark.parametrize("name", MAPS)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(name: str, n: int = 7, q: int = 3, **settings):
    """A tangent of slopes, and D (n, q·d, p)."""
    map = MAPS[name]()
    theta, z, xi = map.initial() + 0.3 * random(map.num_params, seed=2), random(n, map.dim, seed=3), None
    xi = random(n, q, map.dim, seed=4)
    rates = torch.autograd.functional.jacobian(lambda t: map.jacobian(t, z), theta)  # (n,d,d,p)
    dense = torch.einsum("nabp,nqb->nqap", rates, xi).reshape(n, q * map.dim, -1)
    return SlopeTangent(map, theta, z, xi, **settings), dense


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@each_map
def test_products_and_rows(name, chunk_size):
    t, dense = case(name, chunk_size=chunk_size)
    eta, u = random(t.p, seed=5), random(*dense.shape[:2], seed=6)
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(t.jv(eta), dense @ eta, **close)
    torch.testing.assert_close(t.jtu(u), torch.einsum("nkp,nk->p", dense, u), **close)
    flat = dense.reshape(-1, t.p)
    torch.testing.assert_close(torch.cat(list(t.rows())), flat, **close)
    torch.testing.assert_close(t.dense(), flat, **close)
    torch.testing.assert_close(t.gram_primal(), flat.T @ flat / t.n, **close)


@each_map
def test_blocks_of_rows_hold_whole_samples(name, monkeypatch):
    """However little may be held at once: whoever weighs the rows needs all directions of a sample together."""
    t, dense = case(name)
    monkeypatch.setattr(base, "CACHED", 1)
    monkeypatch.setattr(base, "ENTRIES", 1)
    blocks = list(t.rows())
    assert {len(block) for block in blocks} == {dense.shape[1]}
    torch.testing.assert_close(torch.cat(blocks), dense.reshape(-1, t.p), rtol=1e-10, atol=1e-10)


@each_map
def test_a_subset_and_another_precision(name):
    t, dense = case(name)
    index = torch.tensor([5, 0, 0])
    part = t.subset(index)
    assert (part.n, part.num_directions) == (3, 3)
    torch.testing.assert_close(part.dense(), dense[index].reshape(-1, t.p), rtol=1e-10, atol=1e-10)
    single = t.to(torch.float32)
    eta = random(t.p, seed=5)
    assert single.jv(eta.float()).dtype == torch.float32
    torch.testing.assert_close(single.jv(eta.float()).double(), dense @ eta, rtol=1e-3, atol=1e-3)
