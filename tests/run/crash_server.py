"""Runs solves that die, for the tests: imports the package once, then forks one child for each job.

Usage: python crash_server.py FOLDER; prints {job: exit status}, negative for a signal.
       python crash_server.py FOLDER COUNT SEED; kills COUNT runs at random times, prints what was found.
"""

import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch

import pwgf
from pwgf import storage
from pwgf.schemes.pwgf.right_side import RightSide
from tests.run.helpers import TIMES, assert_same_rows, scheme, solve


def at(time, number):
    """A callback that sends this process a signal once t has passed `time`."""
    sent = []

    def callback(state, info):
        if state.t > time and not sent:
            sent.append(state.t)
            os.kill(os.getpid(), number)

    return callback


def killed_before_the_first_row(path):
    moving = scheme()
    moving.measure = lambda state: os.kill(os.getpid(), signal.SIGKILL)
    pwgf.solve(moving, TIMES, out=path, seed=3, progress=False)


def loads(path):
    """Loads a run in this new process and writes what it reads."""
    run = pwgf.load(path)
    values = {"sample": run.sample(0.25, 50).tolist(), "log_density": run.log_density(0.25, torch.zeros(3, 2)).tolist()}
    with open(path + ".json", "w", encoding="utf-8") as file:
        json.dump(values, file)


PLACES = {  # where a signal arrives: the function during whose `call`-th call it comes
    "linear solve": (RightSide, "solved", 11),  # the step from t = .1 to .125, after 1 + 4 · 2 + 1 solves
    "evaluation": (pwgf.PWGF, "measure", 3),  # of the row at t = .2
    "save": (storage.disk.Disk, "replace", 8),  # header and manifest, then a segment and the manifest for each row
    "first row": (pwgf.PWGF, "measure", 1),
    "packing": (storage.writer, "pack_record", 1),
}
UNSEEN = 77  # exit status when a second signal did not act at once


def signalled(place, numbers):
    """A job that gets signals in the midst of its work."""

    def job(path):
        owner, name, when = PLACES[place]
        original, calls = getattr(owner, name), []

        def changed(*args, **kwargs):
            calls.append(1)
            if len(calls) == when:
                for number in numbers:
                    os.kill(os.getpid(), number)
                if len(numbers) > 1:
                    os._exit(UNSEEN)
            return original(*args, **kwargs)

        setattr(owner, name, changed)
        solve(out=path)

    return job


def kill_at_random(folder, count, seed):
    """Runs that are killed at random times, resumed, killed again and resumed to the end; what was found."""
    rng, whole, span = np.random.default_rng(seed), solve(), math.inf
    for number in range(2):
        began = time.monotonic()
        solve(out=os.path.join(folder, f"timed-{number}.h5"))
        span = min(span, time.monotonic() - began)
    found = {"runs": count, "kills": 0, "loaded": 0, "identical": 0}
    for number in range(count):
        path = os.path.join(folder, f"{number}.h5")
        for _ in range(1 + number % 3):
            known, died = killed_once(path, rng.uniform(0, span))
            found["kills"] += died
            found["loaded"] += died and loads_a_prefix(path, whole, known)
        assert_same_rows(solve(out=path, resume=True), whole)
        found["identical"] += 1
    return found


def killed_once(path, delay):
    """Kills a process that solves after `delay` seconds: (number of rows it had acknowledged, was it killed?)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        report = [lambda state, info: os.write(writing, bytes([sum(t < state.t for t in TIMES)])) and None]
        solve(out=path, resume=True, callbacks=report)
        os._exit(0)
    os.close(writing)
    ended, status, until = 0, 0, time.monotonic() + delay
    while not ended and time.monotonic() < until:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    with os.fdopen(reading, "rb") as pipe:
        return max(pipe.read(), default=0), os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def loads_a_prefix(path, whole, known):
    """Does the file open, with the first rows of the whole run, at least the `known` ones?"""
    try:
        record = storage.open_record(path)
    except pwgf.errors.PathError:
        return known == 0 and not os.path.exists(path + ".parts/manifest.json")
    rows = len(record)
    same = all(
        np.array_equal(record.column(name), whole[name][:rows])
        for name in record.names
        if rows and name not in ("wall_time", "cpu_time")
    )
    theta = all(np.array_equal(record.vector("theta", k), whole["theta"][k]) for k in range(rows))
    return rows >= known and same and theta and record.verify() == []


JOBS = {
    "killed": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)]),
    "killed_between_rows": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)], checkpoint_seconds=1e-9),
    "killed_before_the_first_row": killed_before_the_first_row,
    "interrupted": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGINT)]),
    "terminated": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGTERM)]),
    "loads": loads,
    **{f"{place} {number}": signalled(place, [number]) for place in PLACES for number in (2, 15)},
    **{f"linear solve {number} twice": signalled("linear solve", [number] * 2) for number in (2, 15)},
}


def main(folder):
    """Runs all jobs, each in a child that ends as it will."""
    ends = {}
    for job in JOBS:
        child = os.fork()
        if not child:
            try:
                JOBS[job](os.path.join(folder, job + ".h5"))
            except KeyboardInterrupt:
                os._exit(130)
            except SystemExit as end:
                os._exit(end.code)
            os._exit(0)
        ends[job] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.stdout.write(json.dumps(kill_at_random(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
