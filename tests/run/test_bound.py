"""The bound and the estimate of the distance to the exact law, where they are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.study import accuracy


class Shift(maps.Affine):
    """A map that can only translate."""

    def __call__(self, theta, z):
        return z + self.unpack(theta)[0][:, -1]

    def linearise(self, theta, z):
        return maps.PushForward.linearise(self, theta, z)

    def jacobian(self, theta, z):
        return torch.eye(self.dim, dtype=z.dtype).expand(len(z), -1, -1)


def run_of(num_rows, start=0.0):
    energy = energies.Potential(lambda x: (x - 3).square().sum(-1)) + energies.Entropy()
    scheme = pwgf.PWGF(
        energy, Shift(1), pwgf.Gaussian(1), num_samples=300, num_eval=3000, integrator=pwgf.FixedStep("rk4", 0.02)
    )
    return pwgf.solve(scheme, np.linspace(start, start + 0.3, num_rows), progress=False)


def test_the_bound_holds_and_is_the_integral_of_what_was_missed():
    """V = (x − 3)² has K = 2. The map misses −z of v, so δ = 1; the exact variance is (1 + e^{−4t})/2."""
    run = run_of(7)
    bound = run.error_bound(2.0)
    assert bound == pytest.approx((1 - np.exp(-2 * run.t)) / 2, rel=0.03, abs=1e-12)
    distance = np.abs(1 - np.sqrt((1 + np.exp(-4 * run.t)) / 2))  # W₂ of Gaussians with the same mean
    assert (bound[1:] > distance[1:]).all()


def test_without_convexity_errors_are_not_damped():
    run = run_of(4)
    assert run.error_bound(0.0) == pytest.approx(run.t, rel=0.03, abs=1e-12)


@pytest.mark.parametrize("convexity", [float("nan"), float("inf"), "2", None])
def test_a_convexity_that_is_no_number_is_refused(convexity):
    with pytest.raises(ConfigError, match=r"run\.error_bound\(convexity=…\) must be a finite number"):
        run_of(2).error_bound(convexity)


def test_particles_have_no_bound():
    energy = energies.Potential(lambda x: x.square().sum(-1))
    scheme = pwgf.EulerMaruyama(energy, pwgf.Gaussian(1), num_samples=50, dt=0.1)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    with pytest.raises(ConfigError, match=r"needs the velocity that a map has missed.*Solve by scheme PWGF"):
        run.error_bound(1.0)


def test_the_estimated_error_is_that_of_the_mode_that_the_map_misses():
    """Of x = z + b the spread stays 1. The map misses v = −(x − b), and Q(c(x − b)) = c²(2·1 + 1): c = 1/(3 + 1/T)."""
    run = run_of(4, start=5.0)
    elapsed = run.t - 5
    assert run["spread"] == pytest.approx(np.ones(4), rel=0.03)  # without the fastest samples
    assert run["error_estimate"][0] == 0
    assert run["error_estimate"][1:] == pytest.approx(1 / (3 + 1 / elapsed[1:]), rel=0.03)
    assert np.isnan(run["step_error"][1:]).all() and np.isnan(run["error_95"][1:]).all()  # steps without error control
    error, t = accuracy.estimated_error(run)
    assert (error, t) == (pytest.approx(1 / (3 + 1 / 0.3), rel=0.03), pytest.approx(5.3))


@pytest.mark.parametrize("integrator", ["auto", "implicit", "explicit"])
def test_errors_of_the_steps_add_up_and_bound_those_of_the_law(integrator):
    """Affine maps of Gaussians: what is wrong, the steps have done. V = x₁² + 50x₂², variances 1 at the start."""
    rates = torch.tensor([2.0, 100.0]).double()
    energy = energies.Potential(lambda x: (x.square() * rates.to(x)).sum(-1) / 2) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), integrator=integrator, num_samples=200, tolerance=1e-3)
    run = pwgf.solve(scheme, np.linspace(0, 1, 5), progress=False)
    variances = 1 / rates + (1 - 1 / rates) * torch.exp(-2 * rates * torch.from_numpy(run.t)[:, None])
    for k, t in list(enumerate(run.t))[1:]:
        root = np.sqrt(np.linalg.eigvalsh(run.at(t).cov().numpy()))[::-1]
        off = np.linalg.norm(root - variances[k].sqrt().numpy())
        assert off <= run["error_95"][k] + 1e-12
    assert run["error_95"] == pytest.approx(np.hypot(6 * run["error_estimate"], 5 * run["step_error"]))
    assert run["step_error"][0] == 0 and (np.diff(run["step_error"]) >= 0).all()
    assert 1e-4 < run["step_error"][-1] < 1e-3 * np.sqrt(run["num_stages"][-1])


def test_errors_of_the_steps_go_on_after_a_resume(tmp_path):
    """Not from zero: they are in the state."""
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=200)
    whole = pwgf.solve(scheme, np.linspace(0, 1, 5), progress=False)
    path = tmp_path / "run.h5"
    pwgf.solve(scheme, np.linspace(0, 1, 5), out=path, max_steps=3, progress=False)
    run = pwgf.solve(scheme, np.linspace(0, 1, 5), out=path, resume=True, progress=False)
    np.testing.assert_array_equal(run["step_error"], whole["step_error"])
