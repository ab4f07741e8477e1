"""What a right side gains when several processes share its samples, in wall-clock time.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m benchmarks.processes

Double wells (Styblinski–Tang) in ten dimensions with the default map, off its start. The first process computes alone
while the others wait, then all together, in turn; medians over the turns. An idle machine with a core for each process
gives the true figures, a busy one too small ones.
"""

from __future__ import annotations

import os
import statistics
import time

import torch

from pwgf import linalg, maps, parallel, problems
from pwgf.parallel import ALONE, Group
from pwgf.schemes.right_side import Problem, RightSide

DIM, TURNS = 10, 7
CASES = ((1000, "pcg"), (8000, "pcg"), (8000, "cg"), (16000, "pcg"))


def right_side(n: int, solver: str, group: Group) -> float:
    """Wall seconds of one right side."""
    generator, flow, map = torch.Generator().manual_seed(0), problems.StyblinskiTang(DIM), maps.ResidualMLP(DIM)
    noise = 0.3 * torch.randn(map.num_params, generator=generator, dtype=torch.float64)
    map.unpack(noise)[0].mul_(0.05)  # the affine part stays close to the identity, and invertible
    theta, z = map.initial() + noise, flow.reference.sample(n, generator)
    problem = Problem(flow.energy, map, flow.reference, linalg.get_solver(solver), "velocity", None, None, group)
    group.barrier()
    began = time.perf_counter()
    RightSide(problem, z, torch.zeros_like(theta), 0.0, momentum=0.0, damping=1e-6)(theta)
    return time.perf_counter() - began


def main() -> None:
    """A line per case, from the first process."""
    torch.set_num_threads(1)
    world = parallel.world()
    for n, solver in CASES:
        alone, together = [], []
        for _ in range(TURNS):
            if world.rank == 0:
                alone.append(right_side(n, solver, ALONE))
            together.append(right_side(n, solver, world))
        if world.rank == 0:
            one, all_, load = statistics.median(alone), statistics.median(together), os.getloadavg()[0]
            print(
                f"d={DIM}, n={n}, {solver}: {one:.2f} s alone, {all_:.2f} s in {world.size} processes "
                f"(least {min(alone):.2f}, {min(together):.2f}): {one / all_:.2f} times; load {load:.1f}",
                flush=True,
            )
    world.barrier()


if __name__ == "__main__":
    main()
