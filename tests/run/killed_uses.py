"""Samples, filters and comparisons whose processes are killed at random times and run again.

Usage: python killed_uses.py FOLDER USE COUNT; prints how many were killed and how many ended as one left alone.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

import pwgf
from pwgf import filtering, maps, problems, sampling
from pwgf.study.compare import NUMBERS, TEXTS, compare
from tests.run.deaths import killed_after, shortest


def samples(folder):
    """Samples and constants of N(2, 1)."""
    path = os.path.join(folder, "run.h5")
    made = sampling.sample(
        lambda x: -(x - 2).square().sum(-1) / 2, 1, 100, map=maps.Affine(1), tolerance=1e-4, num_samples=100,
        out=path, resume=True, progress=False,
    )  # fmt: skip
    found = sampling.load(path)
    np.testing.assert_array_equal(found.x, made.x)
    return [*found.x[:, 0].tolist(), found.log_z, found.ess, found.t, float(found.converged)]


def filtered(folder):
    """Law and evidence after two observations."""
    model = filtering.StateSpace(
        lambda x: x.square().sum(-1) / 2, lambda y, x: -(x - y).square().sum(-1) / 2, pwgf.Gaussian(1)
    )
    made = filtering.run(
        model, [0.5, 1.0], [1.0, 0.5], end=1.2, map=maps.Affine(1), num_samples=100, out=folder, resume=True,
        progress=False,
    )  # fmt: skip
    found = filtering.load(folder)
    np.testing.assert_array_equal(found.law.theta, made.law.theta)
    return [*found.law.theta.tolist(), found.log_evidence, *(update.kl_fit for update in found.updates)]


def compared(folder):
    """The rows of the runs; the figures of the table but CPU seconds, to ten digits: sums may differ in the last."""
    makes = {
        "pwgf": lambda problem, times: pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=60),
        "particles": lambda problem, times: pwgf.EulerMaruyama(
            problem.energy, problem.reference, num_samples=100, dt=0.1
        ),
    }
    table = compare(
        [problems.OrnsteinUhlenbeck(1)], makes, times=[0.0, 0.1, 0.2], num_samples=100,
        out=os.path.join(folder, "table.h5"), overwrite=True, runs=os.path.join(folder, "runs"),
    )  # fmt: skip
    rows = [pwgf.load(path)["theta"].tolist() for path in sorted(Path(folder, "runs").iterdir())]
    figures = [entry[name] for entry in table.entries for name in (*NUMBERS, *TEXTS) if name != "cpu_seconds"]
    return [*rows, *(round(value, 10) if isinstance(value, float) else value for value in figures)]


USES = {use.__name__: use for use in (samples, filtered, compared)}


def main(folder, use, count):
    """Kills `count` uses once or twice each at random times and lets them come to their end."""
    use, rng, found = USES[use], np.random.default_rng(1), {"kills": 0, "identical": 0}
    made = iter(range(10**9))

    def fresh():
        path = os.path.join(folder, str(next(made)))
        os.mkdir(path)
        return path

    span = shortest(lambda number: use(fresh()))
    whole = use(fresh())
    for number in range(count):
        path = fresh()
        for _ in range(1 + number % 2):
            found["kills"] += killed_after(rng.uniform(0, span), lambda path=path: use(path))
        np.testing.assert_equal(use(path), whole)
        found["identical"] += 1
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
