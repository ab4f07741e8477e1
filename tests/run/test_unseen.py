"""Flows at default settings that once stalled or were called wrong, against laws from elsewhere."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import pwgf
from pwgf import energies, maps
from pwgf.oracles import finite_volume
from pwgf.study import accuracy


def test_a_porous_medium_comes_to_rest_in_a_bowl(caplog):
    """m = 2, V = ½|x|², d = 2: at rest 2ρ + V is constant on |x| ≤ R, so that R⁴ = 8/π and E|x|² = R²/3.

    In a thin place of the map single samples once carried the velocity, and the steps shrank to nothing.
    """
    energy = energies.PorousMedium(2) + energies.Potential(lambda x: 0.5 * x.square().sum(-1))
    scheme = pwgf.PWGF(energy, maps.ResidualMLP(2), pwgf.Gaussian(2), num_eval=1000)
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(scheme, [0.0, 3.0], progress=False)
    x = run.push(3.0, pwgf.Gaussian(2).matched_sample(20_000, 1))
    assert float(x.square().sum(1).mean()) == pytest.approx(math.sqrt(8 / math.pi) / 3, rel=0.01)
    assert not caplog.messages
    assert run["num_steps"][-1] < 150


def test_a_cusp_is_followed_and_the_verdict_says_so(caplog):
    """V = |x|: the score jumps at 0, where no smooth map follows. Half of E|v|² is missed, and the law is right."""
    energy = energies.Potential(lambda x: x[:, 0].abs()) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.ResidualMLP(1), pwgf.Gaussian(1), num_eval=1000)
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(scheme, [0.0, 1.0, 2.0], progress=False)
    law = finite_volume.fokker_planck_marginal(lambda x: x[:, 0].abs(), 2.0, tau=1.0, num_nodes=4097, steps=200)
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x = run.push(2.0, torch.from_numpy(norm.ppf(levels.numpy()))[:, None])[:, 0]
    reached = np.interp(x.numpy(), law.grid, law.cdf)
    assert np.abs(reached - levels.numpy()).max() < 2e-3
    assert run["projection_residual"][-1] > 0.2
    assert accuracy.estimated_error(run)[0] < 4e-3
    assert not caplog.messages
