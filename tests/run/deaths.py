"""Child processes that end early, for the tests: how each ended, and whether what it left can be continued."""

import math
import os
import signal
import time
import traceback

import numpy as np
import torch

import pwgf
from pwgf import storage
from tests.run.helpers import assert_same_rows


def forked(job):
    """The pid of a child that does the job and ends as it will.

    Torch makes its thread pool anew at the first call after a fork, and two threads that make that call at once can
    find none: the child makes it before the job starts threads.
    """
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    status = 1
    try:
        job()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child):
    """Its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(delay, job):
    """Whether a child that does the job had to be killed after `delay` seconds; AssertionError if it failed before."""
    child, until = forked(job), time.monotonic() + delay
    while time.monotonic() < until:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
    os.kill(child, signal.SIGKILL)
    return end_of(child) == -signal.SIGKILL


def shortest(job):
    """Seconds of a job, the shorter of two tries: job(0) and job(1)."""
    span = math.inf
    for number in range(2):
        began = time.monotonic()
        job(number)
        span = min(span, time.monotonic() - began)
    return span


def kill_at_random(solve, folder, count, seed):
    """Runs that are killed at random times, resumed, killed again and resumed to the end; what was found.

    `solve` takes the arguments of `pwgf.solve` after scheme and times.
    """
    rng, whole = np.random.default_rng(seed), solve()
    span = shortest(lambda number: solve(out=os.path.join(folder, f"timed-{number}.h5")))
    found = {"runs": count, "kills": 0, "loaded": 0, "identical": 0}
    for number in range(count):
        path = os.path.join(folder, f"{number}.h5")
        for _ in range(1 + number % 3):
            known, died = killed_solve(solve, path, whole.t, rng.uniform(0, span))
            found["kills"] += died
            found["loaded"] += died and loads_a_prefix(path, whole, known)
        assert_same_rows(solve(out=path, resume=True), whole)
        found["identical"] += 1
    return found


def killed_solve(solve, path, times, delay):
    """Kills a process that solves after `delay` seconds: (number of rows it had acknowledged, was it killed?)."""
    reading, writing = os.pipe()
    report = [lambda state, info: os.write(writing, bytes([sum(t < state.t for t in times)])) and None]
    died = killed_after(delay, lambda: solve(out=path, resume=True, callbacks=report))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return max(pipe.read(), default=0), died


def loads_a_prefix(path, whole, known):
    """Does the file open, with the first rows of the whole run, at least the `known` ones?"""
    try:
        record = storage.open_record(path)
    except pwgf.errors.PathError:
        return known == 0 and not os.path.exists(path + ".parts/manifest.json")
    rows = len(record)
    same = all(
        np.array_equal(record.column(name), whole[name][:rows], equal_nan=True)
        for name in record.names
        if rows and name not in ("wall_time", "cpu_time")
    )
    theta = all(np.array_equal(record.vector("theta", k), whole["theta"][k]) for k in range(rows))
    return rows >= known and same and theta and record.verify() == []
