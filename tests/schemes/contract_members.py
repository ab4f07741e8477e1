"""One small scheme of each kind for the contract tests, and a scheme as a user writes it, all on one problem.

Usage: python contract_members.py FOLDER; solves each in processes that get a signal in the midst of it.
       python contract_members.py FOLDER MEMBER COUNT; kills COUNT runs of a member at random times.
"""

import functools
import json
import os
import signal
import sys

import numpy as np
import torch

import pwgf
from pwgf import maps, problems
from pwgf.schemes import MapReplay
from pwgf.state import Info, State
from tests.run.deaths import end_of, forked, kill_at_random

PROBLEM = problems.Aggregation(2)
SWING = problems.HarmonicHamiltonian(2)
TIMES = np.array([0.0, 0.1, 0.2])
ENDS = {int(signal.SIGKILL): -9, int(signal.SIGTERM): 143}  # exit status by signal
DIES_AFTER = 0.12  # between two rows, but for a scheme whose steps are its rows


class MeanFlow(MapReplay):
    """Translations that follow the mean velocity, by Euler steps: what a user's script might hold."""

    def __init__(self, energy, reference, dt):
        super().__init__(maps.Affine(reference.dim), reference)
        self.energy, self.dt = energy, dt

    def _seen(self, theta, generator):
        return pwgf.measures.PushedMeasure(self.map, self.reference, theta, self.reference.sample(64, generator))

    def start(self, seed=0, t=0.0):
        theta = self.map.initial(seed)
        rng = torch.Generator().manual_seed(seed).get_state()
        return State(t, theta, torch.zeros_like(theta), self.dt, rng, {"num_steps": 0})

    def step(self, state, t1):
        t, generator = min(state.t + self.dt, t1), state.generator()
        velocity = self.energy.velocity(self._seen(state.theta, generator)).mean(0)
        theta_dot = torch.zeros_like(state.theta)
        theta_dot.view(self.map.dim, -1)[:, -1] = velocity
        theta = state.theta + (t - state.t) * theta_dot
        counters = {"num_steps": state.counters["num_steps"] + 1}
        after = State(t, theta, theta_dot, self.dt, generator.get_state(), counters)
        return after, Info(state.t, t, t - state.t, num_stages=1, num_rejected=0)

    def measure(self, state):
        return {"theta": state.theta, "theta_dot": state.theta_dot, "num_steps": float(state.counters["num_steps"])}

    def fingerprint(self, state):
        rho = self._seen(state.theta, torch.Generator().manual_seed(0))
        return self.energy.velocity(rho).reshape(-1).numpy()

    def to_config(self):
        return {"dt": self.dt}


def pwgf_(problem, times):
    return pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, num_samples=60, num_eval=120)


def particles(problem, times):
    return pwgf.EulerMaruyama(problem.energy, problem.reference, num_samples=80, dt=0.03)


def fitted_particles(problem, times):
    return pwgf.FittedParticles(problem.energy, problem.reference, num_samples=80, dt=0.03)


def sw_jko(problem, times):
    settings = {"tau": 0.05, "num_directions": 4, "num_samples": 50, "num_eval": 100, "max_iterations": 30}
    return pwgf.SWJKO(problem.energy, maps.Affine(2), problem.reference, **settings)


def sw_jko_particles(problem, times):
    settings = {"tau": 0.05, "num_directions": 4, "num_samples": 80, "max_iterations": 30}
    return pwgf.SWJKO(problem.energy, None, problem.reference, **settings)


def jko_icnn(problem, times):
    settings = {"width": 8, "num_samples": 64, "num_eval": 64, "num_batches": 1, "max_iterations": 10}
    return pwgf.JKOICNN(problem.energy, problem.reference, h=0.05, **settings)


def pwhf(problem, times):
    return pwgf.PWHF(problem.energy, maps.Affine(2), problem.reference, dt=0.005, num_samples=60, num_eval=120)


def of_a_user(problem, times):
    return MeanFlow(problem.energy, problem.reference, dt=0.03)


MEMBERS = {  # the name in the registry, and what is made
    "pwgf": ("pwgf", pwgf_),
    "particles": ("particles", particles),
    "fitted-particles": ("fitted-particles", fitted_particles),
    "sw-jko": ("sw-jko", sw_jko),
    "sw-jko-particles": ("sw-jko", sw_jko_particles),
    "jko-icnn": ("jko-icnn", jko_icnn),
    "pwhf": ("pwhf", pwhf),
    "of a user": (None, of_a_user),
}


def problem_of(name):
    return SWING if MEMBERS[name][0] == "pwhf" else PROBLEM


def scheme_of(name):
    return MEMBERS[name][1](problem_of(name), TIMES)


def solve(name, scheme=None, **arguments):
    scheme = scheme or scheme_of(name)
    times = pwgf.schemes.ask(scheme, "rows_for")(TIMES)
    return pwgf.solve(scheme, times, seed=3, problem=problem_of(name), progress=False, **arguments)


def stopped(name, number, path):
    """The run of a member that gets a signal: a kill between two rows, SIGTERM in the midst of a step."""
    scheme = scheme_of(name)
    step = scheme.step

    def dies(state, info):
        if number == signal.SIGKILL and state.t > DIES_AFTER:
            os.kill(os.getpid(), number)

    def interrupted(state, t1):
        if number == signal.SIGTERM and state.t >= TIMES[1]:
            os.kill(os.getpid(), number)
        return step(state, t1)

    scheme.step = interrupted
    solve(name, scheme, out=path, callbacks=[dies], checkpoint_seconds=1e-9)


def main(folder):
    """Solves all, each in a child for each signal; prints how these ended."""
    ends = {}
    for name in MEMBERS:
        for number in ENDS:
            path = os.path.join(folder, f"{name} {number}.h5")
            ends[f"{name} {number}"] = end_of(forked(functools.partial(stopped, name, number, path)))
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        member = functools.partial(solve, sys.argv[2])
        sys.stdout.write(json.dumps(kill_at_random(member, sys.argv[1], int(sys.argv[3]), seed=1)))
