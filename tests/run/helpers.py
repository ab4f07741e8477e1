"""A small flow, the same in every process, and the comparison of its runs."""

import numpy as np

import pwgf
from pwgf import energies, maps

TIMES = [0.0, 0.1, 0.2, 0.3, 0.4]


def scheme(shift=0.0, **settings):
    """A flow with a few steps between rows."""
    energy = energies.Potential(lambda x: 2 * (x - 1 - shift).square().sum(-1)) + energies.Entropy()
    settings = {"num_samples": 50, "num_eval": 1000, "integrator": pwgf.FixedStep("midpoint", 0.025), **settings}
    return pwgf.PWGF(energy, maps.ResidualMLP(2, width=4), pwgf.Gaussian(2), **settings)


def solve(times=TIMES, shift=0.0, settings=None, **arguments):
    """The flow, solved; arguments are those of `pwgf.solve`."""
    return pwgf.solve(scheme(shift, **(settings or {})), times, **{"seed": 3, "progress": False, **arguments})


def assert_same_rows(one, other, but=("wall_time", "cpu_time")):
    """Equal to the bit, but for the clocks."""
    assert set(one.names) == set(other.names)
    for name in one.names:
        if name not in but:
            assert np.array_equal(one[name], other[name], equal_nan=True), name
