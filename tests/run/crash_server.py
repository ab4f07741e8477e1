"""Runs solves that die, for the tests: imports the package once, then forks one child for each job.

Usage: python crash_server.py FOLDER; prints {job: exit status}, negative for a signal.
       python crash_server.py FOLDER COUNT SEED; kills COUNT runs at random times, prints what was found.
"""

import json
import os
import resource
import signal
import sys

import torch

import pwgf
from pwgf import storage
from pwgf.schemes.pwgf.right_side import RightSide
from tests.run.deaths import end_of, forked, kill_at_random
from tests.run.helpers import TIMES, scheme, solve


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
LARGE = {"num_samples": 5000}  # whose steps take megabytes
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


def without_memory(path):
    """The system gives no more memory once t has passed .26; what is said of it is written beside the run."""

    def limited(state, info):
        if state.t > 0.26:
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

    try:
        solve(out=path, settings=LARGE, callbacks=[limited])
    except pwgf.PWGFError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with open(path + ".txt", "w", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}")


JOBS = {
    "killed": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)]),
    "killed_between_rows": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)], checkpoint_seconds=1e-9),
    "killed_before_the_first_row": killed_before_the_first_row,
    "interrupted": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGINT)]),
    "terminated": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGTERM)]),
    "loads": loads,
    "without memory": without_memory,
    **{f"{place} {number}": signalled(place, [number]) for place in PLACES for number in (2, 15)},
    **{f"linear solve {number} twice": signalled("linear solve", [number] * 2) for number in (2, 15)},
}


def main(folder):
    """Runs all jobs, each in a child that ends as it will."""
    paths = {job: os.path.join(folder, job + ".h5") for job in JOBS}
    sys.stdout.write(json.dumps({job: end_of(forked(lambda job=job: JOBS[job](paths[job]))) for job in JOBS}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.stdout.write(json.dumps(kill_at_random(solve, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
