"""Times that begin late, such as seconds since 1970: the same flow as from t = 0, where doubles lie 2.4e-7 apart."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, SolverError
from pwgf.state import Info

LATE = 1.7e9
TIMES = np.arange(4) * 2.0**-20  # exact beside LATE, at four spacings of doubles
RATE = 1e6  # of decay, so that a row decays by e^{-.95}


def pull(x):
    return 0.5 * RATE * x.square().sum(-1)


def scheme_of(name):
    energy = energies.Potential(pull) + RATE * energies.Entropy()
    reference, map, few = pwgf.Gaussian(1, mean=3.0), maps.Affine(1), {"num_samples": 40, "num_eval": 40}
    short = 2.0**-20 / 7
    return {
        "auto": lambda: pwgf.PWGF(energy, map, reference, **few),
        "explicit": lambda: pwgf.PWGF(energy, map, reference, integrator="explicit", tolerance=1e-8, **few),
        "euler": lambda: pwgf.PWGF(energy, map, reference, integrator=pwgf.Euler(short), **few),
        "EulerMaruyama": lambda: pwgf.EulerMaruyama(energy, reference, num_samples=40, dt=short),
        "SWJKO": lambda: pwgf.SWJKO(energy, map, reference, tau=short, max_iterations=3, **few),
        "PWHF": lambda: pwgf.PWHF(energies.Potential(pull), map, reference, dt=short, num_samples=40, num_eval=40),
        "JKOICNN": lambda: pwgf.JKOICNN(energy, reference, h=2.0**-20, width=4, num_samples=40, max_iterations=5),
    }[name]()


NAMES = ["auto", "explicit", "euler", "EulerMaruyama", "SWJKO", "PWHF", "JKOICNN"]


@pytest.mark.parametrize("name", NAMES)
def test_a_late_run_is_an_early_one(name):
    late, early = (pwgf.solve(scheme_of(name), start + TIMES, progress=False) for start in (LATE, 0.0))
    assert late.t.tolist() == (LATE + early.t).tolist()
    assert late["num_stages"].tolist() == early["num_stages"].tolist()
    for k, t in enumerate(late.t):
        torch.testing.assert_close(late.theta(t), early.theta(TIMES[k]), rtol=1e-9, atol=1e-9)


def test_fixed_steps_of_less_than_the_spacing_cover_the_whole_time():
    """Euler steps of h = 2⁻²⁰/7: the mean 3 falls by (1 − h·RATE) in each of 21 steps, none lost or counted twice."""
    run = pwgf.solve(scheme_of("euler"), LATE + TIMES, progress=False)
    assert run["num_steps"].tolist() == [0, 7, 14, 21]
    assert float(run.at(run.t[-1]).mean()) == pytest.approx(3 * (1 - RATE * TIMES[1] / 7) ** 21, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_late_run_that_was_stopped_within_a_row_goes_on_to_the_bit(name, tmp_path):
    whole = pwgf.solve(scheme_of(name), LATE + TIMES, progress=False)
    path = tmp_path / "run.h5"
    for _ in range(3):
        pwgf.solve(scheme_of(name), LATE + TIMES, out=path, resume=True, max_steps=2, progress=False)
    run = pwgf.solve(scheme_of(name), LATE + TIMES, out=path, resume=True, progress=False)
    assert run.t.tolist() == whole.t.tolist()
    assert all(torch.equal(run.theta(t), whole.theta(t)) for t in whole.t)


def test_a_callback_that_stops_within_the_spacing_of_the_last_row_keeps_the_state(tmp_path):
    path = tmp_path / "run.h5"
    scheme = pwgf.EulerMaruyama(energies.Potential(pull), pwgf.Gaussian(1), num_samples=5, dt=1e-9)
    run = pwgf.solve(scheme, LATE + TIMES, out=path, callbacks=[lambda state, info: True], progress=False)
    assert len(run) == 1 and run.state().t == LATE and run.state().rest == 1e-9


def test_the_velocity_of_an_energy_that_depends_on_time_is_taken_at_the_late_time():
    """V = −(t − LATE)·x: the mean moves by s²/2 in a time s."""
    seen = []

    def push(t, x):
        seen.append(float(t))
        return -(t - LATE) * x.sum(-1)

    energy, times = energies.Potential(push, time=True), LATE + np.linspace(0, 1, 3)
    run = pwgf.solve(pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=40), times, progress=False)
    for t, s in zip(run.t, (0.0, 0.5, 1.0), strict=True):
        assert float(run.push(t, torch.zeros(1, 1, dtype=torch.float64))) == pytest.approx(s**2 / 2, abs=1e-5)
    assert min(seen) == LATE and max(seen) <= LATE + 1


class Standing(pwgf.EulerMaruyama):
    """Its steps end where they begin, as those of t + dt == t."""

    def step(self, state, t1):
        after, info = super().step(state, t1)
        return dataclasses.replace(after, t=state.t, rest=state.rest), info


class Passing(pwgf.EulerMaruyama):
    """Its steps pass t1."""

    def step(self, state, t1):
        after, info = super().step(state, t1)
        return dataclasses.replace(after, t=math.nextafter(t1, math.inf), rest=0.0), Info(state.t, t1, 0.1, 1, 0)


@pytest.mark.parametrize("kind", [Standing, Passing])
def test_a_step_that_stands_still_or_passes_its_end_is_an_error(kind):
    scheme = kind(energies.Potential(pull), pwgf.Gaussian(1), num_samples=5, dt=0.1)
    with pytest.raises(
        SolverError, match=rf"{kind.__name__}\.step\(state, t1\) must end after its start and not after"
    ):
        pwgf.solve(scheme, [0.0, 1.0], progress=False)


def test_a_start_of_another_time_is_refused_also_where_times_are_late():
    scheme = scheme_of("EulerMaruyama")
    with pytest.raises(ConfigError, match=r"let times\[0\] = start\.t"):
        pwgf.solve(scheme, LATE + TIMES, start=scheme.start(t=LATE + 0.5), progress=False)
