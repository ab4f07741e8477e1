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
from collections.abc import Sequence

import torch

from benchmarks.common import off_start
from pwgf import maps, parallel
from pwgf.parallel import ALONE, Group

DIM, TURNS = 10, 7
CASES = ((1000, "pcg"), (8000, "pcg"), (8000, "cg"), (16000, "pcg"))


def right_side(n: int, solver: str, group: Group) -> float:
    """Wall seconds of one right side."""
    state = off_start(maps.ResidualMLP(DIM))
    group.barrier()
    began = time.perf_counter()
    state.right_side(n, solver, group)
    return time.perf_counter() - began


def main(cases: Sequence[tuple[int, str]] = CASES, turns: int = TURNS) -> None:
    """A line per case, from the first process."""
    world = parallel.world()
    for n, solver in cases:
        alone, together = [], []
        for _ in range(turns):
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
    torch.set_num_threads(1)
    main()
