"""Functions of the user's: they hold copies of the solver's tensors, and answer for each sample alone, always alike."""

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps


def square(x):
    return (x - 1).square().sum(-1)


def moved(x):
    """The same function of a tensor that it moves where it lies."""
    x.data.sub_(1)
    return x.square().sum(-1)


def marked(x):
    """The same function of a tensor that it marks for differentiation."""
    return square(x.requires_grad_())


class Reference(pwgf.Gaussian):
    """A user's subclass whose density moves its points."""

    def log_density(self, z):
        z.data.sub_(1)
        return super().log_density(z + 1)


def from_samples(view):
    view.x.data.sub_(1)
    view.log_density.data.add_(1)
    return view.x.square().sum(-1).mean() + view.log_density.mean() - 1


PAIRS = {
    "V": (energies.Potential(moved), energies.Potential(square)),
    "V that marks": (energies.Potential(marked), energies.Potential(square)),
    "log_target": (energies.KL(lambda x: -moved(x)), energies.KL(lambda x: -square(x))),
    "g": (energies.Local(lambda x, ell: moved(x) + ell), energies.Local(lambda x, ell: square(x) + ell)),
    "W": (energies.Interaction(moved), energies.Interaction(square)),
    "F": (
        energies.Functional(from_samples),
        energies.Functional(lambda rho: square(rho.x).mean() + rho.log_density.mean()),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_function_that_changes_its_points_in_place_changes_nothing_else(name):
    runs = []
    for energy in PAIRS[name]:
        scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=100, num_eval=200)
        runs.append(pwgf.solve(scheme, [0, 0.1], progress=False))
    for column in ("energy", "theta", "projection_residual"):
        np.testing.assert_allclose(runs[0][column], runs[1][column], rtol=1e-12, atol=1e-12)


def test_a_function_holds_no_tensor_of_the_solver():
    held = []
    energy = energies.Potential(lambda x: held.append(x) or square(x))
    z = torch.randn(8, 2, dtype=torch.float64)
    theta = maps.Affine(2).initial()
    rho = pwgf.measures.PushedMeasure(maps.Affine(2), pwgf.Gaussian(2), theta, z)
    energy(rho), energy.velocity(rho)
    with torch.no_grad():
        held[0].fill_(7)
    assert torch.equal(rho.x, z)
    assert len({x.data_ptr() for x in held} & {rho.x.data_ptr(), z.data_ptr(), theta.data_ptr()}) == 0


def test_a_density_of_the_reference_that_moves_its_points():
    theta, z = maps.Affine(2).initial(), torch.randn(8, 2, dtype=torch.float64)
    found = pwgf.measures.PushedMeasure(maps.Affine(2), Reference(2), theta, z.clone())
    torch.testing.assert_close(found.log_density, pwgf.Gaussian(2).log_density(z))
    torch.testing.assert_close(found.z, z)
    torch.testing.assert_close(found.score, -z)


def test_a_sampler_may_write_into_its_own_tensor_again():
    buffer = torch.empty(4, 1, dtype=torch.float64)
    reference = pwgf.Unnormalised(
        lambda z: -square(z), lambda n, g: buffer[:n].copy_(torch.randn(n, 1, generator=g)), 1
    )
    one = reference.sample(4, torch.Generator().manual_seed(0))
    before = one.clone()
    reference.sample(4, torch.Generator().manual_seed(1))
    assert torch.equal(one, before)
