"""Many readers, each with `pwgf.load` in a loop, beside one process that solves.

Usage: python readers.py FOLDER PROCESSES THREADS; half of THREADS in each of two of the processes. Prints the loads.
"""

import concurrent.futures
import json
import os
import sys
import time

import numpy as np
import torch

import pwgf
from tests.run.deaths import end_of, forked
from tests.run.helpers import solve

TIMES = np.linspace(0, 0.4, 9)
PAUSE = 0.05  # seconds between two loads of a reader: the writer needs a processor, too


def reads(path, whole):
    """Loads the run until it is complete; how often it did, after a check of every row each time."""
    loads, seen, complete = 0, 0, False
    while not complete:
        time.sleep(PAUSE)
        try:
            run = pwgf.load(path)
        except pwgf.ConfigError as error:
            assert seen == 0 and ("no such file" in str(error) or "its first row is not stored" in str(error)), error
            continue
        rows, loads = len(run), loads + 1
        assert seen <= rows <= len(whole)
        for name in whole.names:
            if name not in ("wall_time", "cpu_time"):
                assert np.array_equal(run[name], whole[name][: len(run[name])], equal_nan=True), name
                assert len(run[name]) >= rows
        assert torch.equal(run.sample(run.t[rows - 1], 5), whole.sample(run.t[rows - 1], 5))
        seen, complete = rows, rows == len(whole) and os.path.exists(path) and not os.path.exists(path + ".parts")
    return loads


def crowd(path, whole, threads, pipe):
    """Reads in one thread or more, and reports the loads."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: reads(path, whole), range(threads)))
    os.write(pipe, "".join(f"{loads} " for loads in found).encode())


def main(folder, processes, threads):
    """Starts the readers and then solves; what they all did."""
    whole, path = solve(TIMES), os.path.join(folder, "run.h5")
    reading, writing = os.pipe()
    sizes = [1] * processes + ([threads // 2] * 2 if threads else [])
    children = [forked(lambda size=size: crowd(path, whole, size, writing)) for size in sizes]
    solve(TIMES, out=path, callbacks=[lambda state, info: time.sleep(PAUSE * (1 + len(sizes) / 5))])
    ends = [end_of(child) for child in children]
    os.close(writing)
    with os.fdopen(reading) as pipe:
        loads = [int(word) for word in pipe.read().split()]
    sys.stdout.write(json.dumps({"ends": ends, "loads": loads}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
