"""A run on a CPU and on the pretended device, by each process that torchrun has started; see tests/test_device.py.

torchrun --nproc-per-node 2 tests/pretended_ranks.py FOLDER      # to FOLDER/rank-R.npz
"""

import sys

import numpy as np
import torch

import pwgf
from pwgf import energies, maps, parallel
from tests.pretend_device import DEVICE, PretendedDevice

TIMES = [0.0, 0.05, 0.1]


def theta(device):
    """θ of each row; implicit steps, and an interaction, whose pairs lie in both processes."""
    energy = energies.Potential(lambda x: (x.square().sum(-1) - 1).square()) + energies.Entropy()
    energy = energy + energies.Interaction(lambda r: (r.square().sum(-1) + 0.1).sqrt())
    map, few = maps.ResidualMLP(2, width=4, axis_units=2), {"num_samples": 61, "num_eval": 60}
    scheme = pwgf.PWGF(energy, map, pwgf.Gaussian(2), device=device, **few)
    return pwgf.solve(scheme, TIMES, progress=False)["theta"]


def main(folder):
    rank = parallel.world().rank
    parallel._identity = lambda device: f"{device} of process {rank}"  # there is one pretended device a process
    with PretendedDevice() as device:
        there = theta(DEVICE)
    np.savez(f"{folder}/rank-{rank}.npz", here=theta("cpu"), there=there, mixes=len(device.mixes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
