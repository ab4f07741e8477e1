"""Runs solves that die, for the tests: imports the package once, then forks one child for each line of jobs.

Usage: python crash_server.py FOLDER; prints {job: exit status}, negative for a signal.
"""

import json
import os
import signal
import sys

import torch
from flow_helpers import TIMES, scheme, solve

import pwgf


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


JOBS = {
    "killed": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)]),
    "killed_between_rows": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGKILL)], checkpoint_seconds=1e-9),
    "killed_before_the_first_row": killed_before_the_first_row,
    "interrupted": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGINT)]),
    "terminated": lambda path: solve(out=path, callbacks=[at(0.26, signal.SIGTERM)]),
    "loads": loads,
}


def main(folder):
    """Runs all jobs, each in a child that ends as it will."""
    torch.set_num_threads(1)
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
    main(sys.argv[1])
