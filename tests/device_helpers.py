"""What the tests of devices share: results on the pretended device, held against those of the CPU."""

import numpy as np
import torch

import pwgf
from pwgf import energies, integrate, maps
from tests.maps.members import reference_for
from tests.pretend_device import DEVICE, PretendedDevice

FEW = {"num_samples": 24, "num_eval": 24}
TIMES = [0.0, 0.01]
SMALL = maps.ResidualMLP(2, width=4, axis_units=1)


def double_well():
    potential = energies.Potential(lambda x: (x.square().sum(-1) - 4).square() / 16 + x[:, 0])
    return potential + 0.5 * energies.Entropy()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def same_on_both(figures, rtol=1e-8):
    """figures(device), arrays or numbers by name, agree on the device and on the CPU; the device refuses mixes."""
    with PretendedDevice() as device:
        there = figures(DEVICE)
    here = figures("cpu")
    assert device.kernels and there.keys() == here.keys()
    for name in here:
        found, right = np.asarray(there[name]), np.asarray(here[name])
        size = np.abs(right[np.isfinite(right)]).max(initial=1.0)
        np.testing.assert_allclose(found, right, rtol=rtol, atol=rtol * size, err_msg=name)


def flow(map, energy, device, **settings):
    settings = {"integrator": integrate.Euler(0.01), **FEW, **settings}
    return pwgf.PWGF(energy, map, reference_for(map), device=device, **settings)


def figures(scheme, dense=True):
    """A short run and what is read from it, all on the CPU."""
    times = pwgf.schemes.ask(scheme, "rows_for")(np.array(TIMES))
    run = pwgf.solve(scheme, times, progress=False)
    x = run.sample(TIMES[1], 6)
    read = {"x": x}
    if dense:
        read |= {"log_density": run.log_density(TIMES[1], x), "score": run.score(TIMES[1], x)}
    assert all(value.device.type == "cpu" for value in read.values())
    return {name: run[name] for name in ("theta", "energy")} | {name: value.numpy() for name, value in read.items()}
