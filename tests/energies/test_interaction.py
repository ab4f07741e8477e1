"""Interaction by pairs and by moments: the same sums, blocks of bounded memory, and no look at the diagonal."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pwgf import energies, maps
from pwgf.energies import interaction
from pwgf.errors import ConfigError
from pwgf.measures import Gaussian, PushedMeasure
from tests.energies.members import MEMBERS, measure, small, square

COEFFICIENTS = [(1.0, 0.0), (0.0, 1.0), (-0.5, 0.25), (0.7, -0.3)]
KERNELS = {
    "even": lambda r: -torch.log(torch.linalg.vector_norm(r, dim=-1)),
    "odd too": lambda r: torch.exp(-square(r)) + (r**3).sum(-1),
    "odd": lambda r: torch.sin(r[..., 0]),
}


def by_pairs(a, b):
    return energies.Interaction(lambda r: a * square(r) + b * square(r) ** 2)


def pushed(n, dim, requires_grad=False):
    """n correlated samples off the origin, as an affine function of θ."""
    generator = torch.Generator().manual_seed(n + dim)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    theta = 1 + 0.3 * torch.randn(dim * dim + dim, generator=generator, dtype=torch.float64)
    return PushedMeasure(maps.Affine(dim), Gaussian(dim), theta.requires_grad_(requires_grad), z)


@pytest.mark.parametrize(("a", "b"), COEFFICIENTS)
@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize("n", [2, 3, 101])
def test_moments_are_the_sum_over_pairs(n, dim, a, b):
    rho = pushed(n, dim)
    x = rho.x.numpy()
    r = x[:, None] - x
    squared = (r**2).sum(-1)
    value = (a * squared + b * squared**2).sum() / (2 * n * (n - 1))
    v = -((2 * a + 4 * b * squared)[..., None] * r).sum(1) / (n - 1)
    for energy in (energies.Interaction(energies.RadialPolynomial(quadratic=a, quartic=b)), by_pairs(a, b)):
        assert float(energy(rho)) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(energy.velocity(rho), v, rtol=0, atol=1e-12 * np.abs(v).max())


def weighted(n, dim, requires_grad=False):
    """Samples with weights of mean 1, between a third and three."""
    rho = pushed(n, dim, requires_grad)
    w = torch.linspace(-1, 1, n, dtype=torch.float64).mul(1.1).exp()
    rho.weights = w / w.mean()
    return rho


@pytest.mark.parametrize(
    "energy", [*(by_pairs(*pair) for pair in COEFFICIENTS), *map(energies.Interaction, KERNELS.values())]
)
def test_a_pair_counts_by_the_product_of_its_weights(energy):
    """Value, velocity and gradient against all pairs in one graph."""
    rho = weighted(40, 2, requires_grad=True)
    off = rho.weights.unsqueeze(1) * rho.weights * (1 - torch.eye(40, dtype=torch.float64))
    r = rho.x.unsqueeze(1) - rho.x + torch.eye(40, dtype=torch.float64).unsqueeze(2)
    truth = (off * energy.W(r)).sum() / (2 * off.sum())
    value = energy(rho)
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-14)
    by_x, by_theta = torch.autograd.grad(truth, (rho.x, rho.theta), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, rho.theta)[0], by_theta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(energy.velocity(rho), -40 * by_x / rho.weights.unsqueeze(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), COEFFICIENTS)
def test_moments_are_the_sum_over_pairs_with_weights(a, b):
    rho = weighted(30, 3)
    polynomial, pairs = energies.Interaction(energies.RadialPolynomial(quadratic=a, quartic=b)), by_pairs(a, b)
    torch.testing.assert_close(polynomial(rho), pairs(rho), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(polynomial.velocity(rho), pairs.velocity(rho), rtol=1e-11, atol=1e-12)


def test_curvatures_are_averaged_by_the_weights_of_partners():
    """All partners, since there are fewer than 64; by moments a sample is its own partner, at ∇²W(0)."""
    rho, kernel = weighted(30, 2), energies.RadialPolynomial(quadratic=0.7, quartic=0.3)
    r = rho.x.unsqueeze(1) - rho.x
    eye = torch.eye(2, dtype=torch.float64)
    squared = r.square().sum(-1)[..., None, None]
    each = (2 * 0.7 + 4 * 0.3 * squared) * eye + 8 * 0.3 * r.unsqueeze(3) * r.unsqueeze(2)
    w = rho.weights.view(1, -1, 1, 1) * (1 - torch.eye(30, dtype=torch.float64))[..., None, None]
    by_partners = 30 / 29 * (w * each).sum(1) / w.sum(1)
    found = energies.Interaction(lambda r: kernel(r)).hessian(rho).centred
    torch.testing.assert_close(found, by_partners, rtol=1e-9, atol=1e-10)
    factor = 30**2 / (30**2 - rho.weights.square().sum())
    quartic = each - 1.4 * eye
    by_moments = 30 / 29 * (1.4 * eye + factor * (rho.weights.view(1, -1, 1, 1) * quartic).mean(1))
    torch.testing.assert_close(energies.Interaction(kernel).hessian(rho).centred, by_moments, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize(("a", "b"), COEFFICIENTS)
def test_the_gradient_in_theta_by_moments_and_by_pairs(n, a, b):
    """Against the value written out in one graph."""
    rho = pushed(n, 3, requires_grad=True)
    r = rho.x.unsqueeze(1) - rho.x
    truth = (a * square(r) + b * square(r) ** 2).sum() / (2 * n * (n - 1))
    (expected,) = torch.autograd.grad(truth, rho.theta, retain_graph=True)
    for energy in (energies.Interaction(energies.RadialPolynomial(quadratic=a, quartic=b)), by_pairs(a, b)):
        (got,) = torch.autograd.grad(3 * energy(rho), rho.theta, retain_graph=True)
        torch.testing.assert_close(got, 3 * expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_a_second_derivative_by_pairs_is_refused():
    """The first derivative is known and kept no graph; a second one must not come out as zero."""
    rho, by_moments = pushed(5, 2, requires_grad=True), energies.Interaction(energies.RadialPolynomial(quartic=1.0))
    (slope,) = torch.autograd.grad(by_pairs(0.0, 1.0)(rho), rho.theta, create_graph=True)
    with pytest.raises(ConfigError, match=r"differentiated once; got a second derivative.*Use a RadialPolynomial"):
        torch.autograd.grad(slope.sum(), rho.theta)
    (slope,) = torch.autograd.grad(by_moments(rho), rho.theta, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), rho.theta)
    assert bool(second.any())


def test_moments_far_from_the_origin():
    """Centred first: the offset costs no more digits than it costs the differences."""
    z = small(50).z + 1e4
    rho = measure(2, 0.0, z)
    energy = energies.Interaction(energies.RadialPolynomial(quadratic=-0.5, quartic=0.25))
    torch.testing.assert_close(energy.velocity(rho), by_pairs(-0.5, 0.25).velocity(rho), rtol=0, atol=1e-9)


def test_a_radial_polynomial_is_a_plain_kernel():
    r = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    W = energies.RadialPolynomial(quadratic=-0.5, quartic=0.25)
    assert W(r).tolist() == [25 / 4 - 5 / 2, 0.0]
    assert W(r.reshape(1, 2, 1, 2)).shape == (1, 2, 1)
    config = energies.Interaction(W).to_config()
    assert (config["quadratic"], config["quartic"]) == (-0.5, 0.25)
    assert config["W"].endswith("RadialPolynomial")


@pytest.mark.parametrize("name", ["quadratic", "quartic"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1", None, [1.0]])
def test_coefficients_of_a_radial_polynomial(name, wrong):
    with pytest.raises(ConfigError, match=rf"RadialPolynomial\({name}=…\) must be a finite number; got .*any other W"):
        energies.RadialPolynomial(**{name: wrong})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("block", [1, 24, 100, 2**18])
def test_rows_in_any_parts_and_blocks(kernel, block, monkeypatch):
    """A part of the rows against all samples gives these rows of the whole, whatever the blocks."""
    W, x = KERNELS[kernel], small(13).x
    r = x.unsqueeze(1) - x + torch.eye(13).unsqueeze(-1)
    r.requires_grad_(True)
    off = 1 - torch.eye(13, dtype=torch.float64)
    values = W(r) * off
    (g,) = torch.autograd.grad(values.sum(), r)
    slopes = (g.sum(1) - g.sum(0)) / 2
    monkeypatch.setattr(interaction, "_BLOCK", block)
    for cuts in ([0, 13], [0, 1, 13], [0, 5, 6, 13]):
        parts = [(x[a:b], x, torch.ones_like(x[:, :1]), a) for a, b in zip(cuts, cuts[1:], strict=False)]
        torch.testing.assert_close(torch.cat([interaction.sum_of_slopes(W, *part) for part in parts]), slopes)
        torch.testing.assert_close(sum(interaction.sum_of_values(W, *part) for part in parts), values.detach().sum())


@pytest.mark.parametrize("block", [2, 24, 2**18])
def test_the_kernel_never_sees_zero(block, monkeypatch):
    monkeypatch.setattr(interaction, "_BLOCK", block)

    def coulomb(r):
        distance = torch.linalg.vector_norm(r, dim=-1)
        assert bool((distance > 0).all())
        return 1 / distance

    rho, energy = pushed(13, 2, requires_grad=True), energies.Interaction(coulomb)
    value = energy(rho)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert bool(torch.isfinite(energy.velocity(rho)).all())
    assert bool(torch.isfinite(rho.theta.grad).all())


@pytest.mark.parametrize("block", [1, 8, 2**18])
def test_flat_parts_of_a_kernel_are_legal(block, monkeypatch):
    """Blocks in which W takes several values, all of them flat, are no sign of a W without gradient."""
    monkeypatch.setattr(interaction, "_BLOCK", block)
    x = torch.tensor([0.0, 0.1, 0.2, 5.0, 9.0, 20.0], dtype=torch.float64).unsqueeze(1)
    energy = energies.Interaction(lambda r: square(r).clamp(max=1.0) + (square(r) > 30).to(r))
    v = energy.velocity(PushedMeasure(maps.Affine(1), Gaussian(1), maps.Affine(1).initial(), x))
    torch.testing.assert_close(v.squeeze(1) * 5, torch.tensor([0.6, 0.0, -0.6, 0, 0, 0], dtype=torch.float64))


def test_an_exact_balance_is_legal():
    """Two points at the distance that minimises |r|⁴/4 − |r|²/2: no pull at all, though W is differentiable."""
    x = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    rho = PushedMeasure(maps.Affine(1), Gaussian(1), maps.Affine(1).initial(), x)
    assert MEMBERS["interaction"]().velocity(rho).tolist() == [[0.0], [0.0]]


QUARTIC = """
import resource, torch
from types import SimpleNamespace
from pwgf import energies

torch.set_num_threads(1)
x = torch.randn({n}, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_({graph})
energy = energies.Interaction(lambda r: r.square().sum(-1).square() / 4 - r.square().sum(-1) / 2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before, rho = peak(), SimpleNamespace(x=x)
value = energy(rho)
v = -{n} * torch.autograd.grad(value, x)[0] if {graph} else energy.velocity(rho)
after, n, y = peak(), {n}, x.detach()
y = y - y.mean(0)
s, C, q = y.square().sum(1, keepdim=True), y.T @ y / n, (y * y.square().sum(1, keepdim=True)).mean(0)
exact = -n / (n - 1) * (s * y + s.mean() * y + 2 * y @ C - q - y)
assert float((v - exact).abs().max()) < 1e-10 * float(exact.abs().max())
mean = n / (n - 1) * ((s.square().mean() + s.mean() ** 2 + 2 * C.square().sum()) / 4 - s.mean() / 2)
assert abs(float(value.detach() - mean)) < 1e-10 * abs(float(mean))
print(before, after)
"""


def peak_memory(n, graph):
    """(before, after) the energy and its velocity, in GiB, of a process of its own."""
    done = subprocess.run([sys.executable, "-c", QUARTIC.format(n=n, graph=graph)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return map(float, done.stdout.split())


def test_the_gradient_form_keeps_no_graph_of_pairs():
    """2000² differences in ten dimensions are .3 GiB, a graph several of them."""
    before, after = peak_memory(2000, graph=True)
    assert after - before < 0.15


@pytest.mark.slow
def test_twelve_thousand_samples_in_ten_dimensions_fit_into_four_gigabytes():
    """All their differences would take 11."""
    _, after = peak_memory(12_000, graph=False)
    assert after < 4
