"""What every energy promises: above all that its velocity is −∇ δF/δρ."""

from __future__ import annotations

import json

import pytest
import torch

from pwgf.energies import Diffusion
from pwgf.measures import PushedMeasure
from tests.energies.members import NAMES, PRECISION, WITHOUT_VALUE, field, measure, member, points_for, small

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_velocity_is_the_derivative_of_the_value(name, dim):
    """d/dε F((id + εu)#ρ) = −E[v·u] at ε = 0."""
    energy, z, h = member(name, dim), points_for(name, dim), 1e-4
    rho = measure(dim, 0.0, z)
    assert energy.has_value == (name not in WITHOUT_VALUE)
    if not energy.has_value:
        assert float(energy(rho)) == 0
        return
    derivative = float(energy(measure(dim, h, z)) - energy(measure(dim, -h, z))) / (2 * h)
    products = (energy.velocity(rho) * field(rho.x)).sum(-1)
    assert abs(derivative) > 0.05 * float(products.abs().mean())  # the test has something to see
    assert -float(products.mean()) == pytest.approx(derivative, rel=PRECISION.get(name, 1e-5))


def test_weights_count_samples_where_the_energy_takes_any(name):
    """Whole weights are repetitions; where pairs count, samples without weight might as well be left out."""
    energy, rho = member(name), small(6)
    if not energy.weighable:
        assert energy.pairwise
        return
    times = torch.tensor([2, 2, 0, 2, 0, 0] if energy.pairwise else [3, 1, 0, 2, 0, 0])
    repeated = (times > 0).long() if energy.pairwise else times
    again = PushedMeasure(rho.map, rho.reference, rho.theta, rho.z.repeat_interleave(repeated, 0), t=rho.t)
    weighted = PushedMeasure(rho.map, rho.reference, rho.theta, rho.z, t=rho.t, weights=times.to(rho.z))
    torch.testing.assert_close(energy(weighted), energy(again))
    expected = energy.velocity(again if energy.pairwise else rho)
    found = energy.velocity(weighted)[times > 0]
    torch.testing.assert_close(found, expected if energy.pairwise else expected[times > 0])


def test_the_value_is_differentiable_in_theta(name):
    energy, z, h = member(name, 1), points_for(name, 1), 1e-4
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    if not energy.has_value:
        assert not energy(measure(1, theta, z)).requires_grad
        return
    (slope,) = torch.autograd.grad(energy(measure(1, theta, z)), theta)
    derivative = float(energy(measure(1, h, z)) - energy(measure(1, -h, z))) / (2 * h)
    assert float(slope) == pytest.approx(derivative, rel=PRECISION.get(name, 1e-5))


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(name, n, dtype):
    energy, rho = member(name), small(n, dtype=dtype)
    value, v = energy(rho), energy.velocity(rho)
    assert value.shape == ()
    assert v.shape == (n, 2)
    assert value.dtype == v.dtype == dtype
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(v).all())


def test_the_velocity_is_detached_and_needs_no_ambient_gradients(name):
    energy = member(name)
    v = energy.velocity(small())
    with torch.no_grad():
        torch.testing.assert_close(energy.velocity(small()), v, rtol=0, atol=0)
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    traced = energy.velocity(measure(2, theta, small().z))
    assert not traced.requires_grad
    torch.testing.assert_close(traced, v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hessian_is_a_detached_form_of_the_right_shapes(name, n, dtype):
    """And the same without ambient gradients; an energy without one says so."""
    energy, rho = member(name), small(n, dtype=dtype)
    theta = torch.zeros(1, dtype=dtype, requires_grad=True)
    traced = energy.hessian(measure(2, theta, rho.z))
    with torch.no_grad():
        form = energy.hessian(rho)
    shapes = {"point": (n, 2, 2), "centred": (n, 2, 2), "slope": (n,), "divergence": (n,)}
    given = [part for part in shapes if getattr(form, part) is not None]
    assert given or form.explicit
    assert form.explicit == traced.explicit
    for part in given:
        values = getattr(form, part)
        assert values.shape == shapes[part]
        assert values.dtype == dtype
        assert bool(torch.isfinite(values).all())
        assert not getattr(traced, part).requires_grad
        torch.testing.assert_close(getattr(traced, part), values)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 50])
def test_blocks_of_samples_give_the_same(name, chunk_size):
    energy, z = member(name), small().z
    whole, blocks = measure(2, 0.3, z), measure(2, 0.3, z, chunk_size=chunk_size)
    torch.testing.assert_close(energy(blocks), energy(whole), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy.velocity(blocks), energy.velocity(whole), rtol=1e-11, atol=1e-11)


def test_evaluating_changes_nothing(name):
    energy, rho = member(name), small()
    x, ell = rho.x.clone(), rho.log_density.clone()
    first = (energy(rho), energy.velocity(rho))
    second = (energy(rho), energy.velocity(rho))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(rho.x, x)
    assert torch.equal(rho.log_density, ell)
    assert not rho.x.requires_grad


def test_samples_count_one_by_one_unless_the_energy_is_pairwise(name):
    energy, z = member(name), small().z
    halves = [measure(2, 0.0, part) for part in (z[:5], z[5:])]
    alone = torch.cat([energy.velocity(rho) for rho in halves])
    together = energy.velocity(measure(2, 0.0, z))
    if not energy.pairwise:
        torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)
    else:
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
        shuffled = energy.velocity(measure(2, 0.0, z[order]))
        torch.testing.assert_close(shuffled, together[order], rtol=1e-10, atol=1e-10)


def test_the_config_is_json_and_the_terms_add_up(name):
    energy, rho = member(name), small()
    assert json.loads(json.dumps(energy.to_config()))["name"] == type(energy).__name__
    terms = energy.terms()
    assert len({term.name for term in terms}) == len(terms)
    torch.testing.assert_close(sum(t.coefficient * t.energy(rho) for t in terms), energy(rho))
    torch.testing.assert_close(sum(t.coefficient * t.energy.velocity(rho) for t in terms), energy.velocity(rho))


def test_the_particle_form_follows_the_same_velocity(name):
    """Σ c·v − temperature·score, less ∂ⱼ(Dᵢⱼρ)/ρ of further noises, is the velocity, or the energy refuses."""
    energy, rho = member(name), small()
    try:
        drifts, temperature = energy.particle_form()
    except ValueError as error:
        assert "particles have no density" in str(error)
        assert name.split("-")[0] in ("internal", "porous", "fast", "local", "functional", "fisher")
        return
    total = -temperature * rho.score
    for coefficient, term in drifts:
        total = total + coefficient * term.velocity(rho)
    for factor, source in energy.noises():
        total = total + factor * Diffusion(source.D, form="ito").velocity(rho)
    torch.testing.assert_close(total, energy.velocity(rho), rtol=1e-12, atol=1e-12)
