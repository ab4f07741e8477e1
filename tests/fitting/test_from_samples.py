"""A start at data, in one call: what is fitted, how far it is off, and that a flow begins there."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

import pwgf
from pwgf import energies, fitting, maps
from pwgf.errors import ConfigError


def moons(n, seed):
    return make_moons(n, noise=0.1, random_state=seed)[0]


def test_a_flow_starts_at_two_moons():
    x = moons(500, 0)
    start = fitting.from_samples(x, progress=False, max_iterations=150, polish=20)
    straight = fitting.from_samples(x, maps.Affine(2), progress=False, max_iterations=50)
    unseen = torch.from_numpy(moons(2000, 1))
    off, off_straight = (pwgf.distances.sliced_w2(s.law.sample(2000), unseen) ** 0.5 for s in (start, straight))
    assert off < 0.5 * off_straight and off < start.floor  # 100 samples alone were kept aside
    assert 0.5 * start.floor < start.error < 2.5 * start.floor
    scheme = pwgf.PWGF(energies.Potential(lambda x: x.square().sum(-1)), **start.settings, num_samples=100)
    run = pwgf.solve(scheme, [0.0, 0.01], progress=False)
    torch.testing.assert_close(run.sample(0.0, 50), start.law.sample(50))


def test_data_far_away_and_of_another_scale():
    """In coordinates of their own; 400 samples of the fit, so that the mean is off by 50/√400 = 2.5."""
    x = 1000 + 50 * np.random.default_rng(0).standard_normal((500, 2))
    start = fitting.from_samples(torch.from_numpy(x), progress=False, max_iterations=20, polish=5)
    assert start.error < 2 * start.floor
    scheme = pwgf.PWGF(energies.Entropy(), **start.settings, num_samples=100, num_eval=100)
    run = pwgf.solve(scheme, [0.0, 1.0], progress=False)
    np.testing.assert_allclose(run.at(0.0).mean(), [1000, 1000], atol=10)
    np.testing.assert_allclose(run.at(0.0).cov().diagonal(), [2500, 2500], rtol=0.2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((5, 2)), r"at least 20 finite samples of shape \(n, d\); got shape \(5, 2\)"),
        (np.full((50, 2), np.nan), r"got shape \(50, 2\).*Leave out"),
        (np.zeros(50), r"got shape \(50,\)"),
        ([1.0, 2.0], "got list"),
        (np.ones((50, 1)), "the samples lie in a plane"),
        (np.arange(100.0).reshape(50, 2), "the samples lie in a plane of fewer dimensions.*Leave out coordinates"),
    ],
)
def test_what_is_no_data_is_refused(x, message):
    with pytest.raises(ConfigError, match=message):
        fitting.from_samples(x, progress=False)
