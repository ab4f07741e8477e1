"""NumPy arrays go wherever tensors go, with equal results."""

import numpy as np
import pytest
import torch

import pwgf
from pwgf import distances, energies, fitting, maps, sampling
from pwgf.checks import as_float64, as_points, as_tensor
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import Cloud
from pwgf.run.spec import check_times
from pwgf.run.trajectory import checked_time

X = np.random.default_rng(0).standard_normal((50, 2))
QUICK = {"num_samples": 50, "num_eval": 50}


def log_density(x):
    return -x.square().sum(-1) / 2


def law(x):
    return Cloud(torch.from_numpy(X) + 1)


def whitened(m, scale):
    found = sampling.sample(
        log_density, 2, 50, whiten=(m, scale), map=maps.Affine(2), max_time=0.125, progress=False, **QUICK
    )
    return found.x


def last_theta(theta0):
    scheme = pwgf.PWGF(energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2), theta0=theta0, **QUICK)
    return pwgf.solve(scheme, [0.0, 0.1], progress=False).theta(0.1)


CALLS = {
    "MMD": (lambda x: energies.MMD(x).velocity(law(x)), (X,)),
    "SlicedW2": (lambda x: energies.SlicedW2(x).velocity(law(x)), (X,)),
    "Sinkhorn": (lambda x: energies.Sinkhorn(x)(law(x)), (X,)),
    "fit": (
        lambda x: fitting.fit(maps.Affine(2), pwgf.Gaussian(2), x, max_iterations=3, polish=2, progress=False).theta,
        (X,),
    ),
    "hmc": (lambda x: sampling.hmc(log_density, x, 20, warmup=2).samples, (X,)),
    "langevin": (lambda x: sampling.langevin(log_density, x, 3), (X,)),
    "whiten": (whitened, (np.ones(2), 2 * np.eye(2))),
    "theta0": (last_theta, (np.array([2.0, 0.0, 0.0, 0.0, 2.0, 1.0]),)),
    "Gaussian": (lambda mean, cov: pwgf.Gaussian(2, mean, cov).log_density(X), (np.ones(2), 2 * np.eye(2))),
    "InBox": (lambda a, b: maps.InBox(maps.Affine(2), a, b).initial(), (np.zeros(2), np.ones(2))),
    "w2": (lambda x, y: torch.as_tensor(distances.w2(x, y)), (X, X + 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_give_what_tensors_give(name):
    call, given = CALLS[name]
    found = call(*given)
    assert torch.equal(found, call(*map(torch.from_numpy, given)))
    assert bool(torch.isfinite(found).all())


def test_an_array_is_copied_and_other_things_are_left():
    x = np.zeros(3)
    tensor = as_tensor(x)
    x[:] = 1
    assert torch.equal(tensor, torch.zeros(3, dtype=torch.float64))
    words = np.array(["a"])
    assert as_tensor(words) is words and as_tensor(None) is None


def test_what_is_no_array_of_samples_is_still_refused():
    with pytest.raises(ShapeError, match="MMD.y. needs floating-point samples .*; got ndarray"):
        energies.MMD(np.array([["a", "b"]]))
    with pytest.raises(ShapeError, match=r"needs shapes \(2,\) and \(2, 2\); got \[\(3,\), \(2, 2\)\]"):
        whitened(np.zeros(3), np.eye(2))
    with pytest.raises(ConfigError, match=r"fit\(target=…\) must be samples .*; got list"):
        fitting.fit(maps.Affine(2), pwgf.Gaussian(2), [1.0])


TAKES = [
    as_tensor,
    lambda x: as_float64(x, "x"),
    lambda x: as_points(x, 1, "x"),
    lambda x: check_times(x[:, 0]),
    lambda x: checked_time(x[3, 0]),
    lambda x: pwgf.Euler(x[3, 0]),
    lambda x: distances.w2(x, np.zeros((4, 1))),
]


@pytest.mark.parametrize("take", TAKES)
def test_an_array_with_masked_entries_is_refused(take):
    """Their values are unknown; a tensor would hold them like the others."""
    x = np.ma.masked_greater(np.arange(4.0)[:, None], 2)
    with pytest.raises(ConfigError, match="masked entries; give the known ones"):
        take(x)
    take(np.ma.masked_greater(np.arange(4.0)[:, None], 9))  # nothing is masked
