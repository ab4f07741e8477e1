"""Maps that grow while they flow: when they do, and what it gives, against finite volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.oracles.finite_volume import fokker_planck

TIMES = [0.0, 0.4, 0.8, 1.2]
MAP = maps.Layers(maps.ResidualMLP(2, width=16, axis_units=6), count=4)


def ring(count=4):
    """Mass that is torn open to a ring about a hole, V = (|x|² − 4)²/8 at temperature ¼, by a small map."""
    energy = energies.Potential(lambda x: (x.square().sum(1) - 4).square() / 8) + 0.25 * energies.Entropy()
    map = maps.Layers(MAP.map, count)
    return pwgf.PWGF(energy, map, pwgf.Gaussian(2, cov=0.25), num_samples=500, num_eval=500)


def radii_off(run, t):
    """W₁ of |x| to that of the exact law, by finite volumes of the radius, whose potential is V − τ log r."""
    r = np.linspace(0.0005, 5.0, 5000)
    start = r * np.exp(-2 * r**2)
    rho = fokker_planck(r, (r**2 - 4) ** 2 / 8 - 0.25 * np.log(r), start / start.sum(), t, tau=0.25, steps=400)
    found = run.push(t, pwgf.Gaussian(2, cov=0.25).matched_sample(40_000)).norm(dim=1).sort()[0].numpy()
    at = (np.arange(len(found)) + 0.5) / len(found)
    return float(np.abs(found - np.interp(at, np.cumsum(rho), r)).mean())


@pytest.fixture(scope="module")
def run():
    return pwgf.solve(ring(), TIMES, progress=False)


def begun(run):
    return [MAP.begun(run.theta(t)) for t in run.t]


def test_it_grows_where_the_law_lags_behind_and_is_nearer_to_it(run):
    plain = pwgf.solve(ring(count=1), TIMES, progress=False)
    assert begun(run)[0] == 1
    assert begun(run)[-1] > 1
    assert begun(plain) == [1, 1, 1, 1]
    share, plain_share = (one["error_estimate"] / one["spread"] for one in (run, plain))
    assert share[-1] < 0.25 * plain_share[-1]
    assert radii_off(run, 1.2) < 0.5 * radii_off(plain, 1.2)
    assert radii_off(run, 1.2) < 2e-3


def test_a_smooth_flow_keeps_its_one_layer():
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.Entropy()
    run = pwgf.solve(pwgf.PWGF(energy, MAP, pwgf.Gaussian(2, mean=1.0), num_samples=500), [0.0, 1.0], progress=False)
    assert begun(run) == [1, 1]


def test_a_map_too_large_to_grow_is_refused():
    words = r"PWGF\(map=Layers\): with a second layer 7900 parameters would move, more than the 1000.*without layers"
    with pytest.raises(ConfigError, match=words):
        pwgf.PWGF(energies.Entropy(), maps.Layers(maps.ResidualMLP(10)), pwgf.Gaussian(10))
    alone = maps.Layers(maps.ResidualMLP(10), count=1)
    assert pwgf.PWGF(energies.Entropy(), alone, pwgf.Gaussian(10)).map == alone


def test_parameters_of_earlier_layers_stay(run):
    p = MAP.map.num_params
    for k in range(1, len(run)):
        still = max(begun(run)[k - 1] - 2, 0) * p
        assert np.array_equal(run["theta"][k][:still], run["theta"][k - 1][:still])
        later = begun(run)[k] * p
        assert np.array_equal(run["theta"][k][later : 4 * p], MAP.initial()[later : 4 * p].numpy())


def test_a_run_that_goes_on_is_the_same_to_the_bit(run, tmp_path):
    path = tmp_path / "run.h5"
    pwgf.solve(ring(), TIMES, out=path, progress=False, max_steps=int(run["num_steps"][-1]) - 4)
    again = pwgf.solve(ring(), TIMES, out=path, progress=False, resume=True)
    assert np.array_equal(again["theta"], run["theta"])
    z = pwgf.Gaussian(2).sample(20)
    loaded = pwgf.load(path)
    assert torch.equal(loaded.push(1.2, z), run.push(1.2, z))
    torch.testing.assert_close(loaded.push(1.2, z), MAP(run.theta(1.2), z))


def test_between_the_rows_about_a_new_layer_the_law_is_that_of_a_run_with_more_rows():
    coarse, fine = (pwgf.solve(ring(), np.linspace(0.0, 1.2, n), progress=False) for n in (13, 25))
    z = pwgf.Gaussian(2, cov=0.25).sample(500)
    k = int((np.diff(begun(coarse)) > 0).argmax())
    assert begun(coarse)[k + 1] > begun(coarse)[k]

    def apart(x, y):
        return float((x - y).square().mean().sqrt())

    exact = fine.push(fine.t[2 * k + 1], z)
    moved = apart(coarse.push(coarse.t[k + 1], z), coarse.push(coarse.t[k], z))
    assert apart(coarse.push(float(fine.t[2 * k + 1]), z), exact) < 0.4 * moved  # θ has a kink there
