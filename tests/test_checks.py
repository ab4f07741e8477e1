"""Numbers of other kinds than Python's, times with units, and steps that rounding swallows."""

import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.checks import Constants, plain
from pwgf.errors import ConfigError, SolverError
from pwgf.state import State

INTEGERS = [np.int64, np.int32, np.uint8, np.array, torch.tensor]
REALS = [np.float64, np.float32, Fraction, np.array, torch.tensor]


def square(x):
    return x.square().sum(-1) / 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3), (torch.tensor(3), 3), (np.array(3), 3), (np.float32(0.5), 0.5), (Fraction(1, 2), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5), (np.bool_(True), True), (torch.tensor(False), False),
    ],
)  # fmt: skip
def test_numbers_become_pythons(value, expected):
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_constants_follow_dtype_and_pickle_without_copies():
    one, constants = torch.ones(3, dtype=torch.float64), Constants(torch.ones(3, dtype=torch.float64))
    (single,) = constants.like(one.float())
    assert single.dtype == torch.float32 and constants.like(one.float())[0] is single
    assert torch.equal(pickle.loads(pickle.dumps(constants)).like(one)[0], one)
    assert len(pickle.dumps(constants)) == len(pickle.dumps(Constants(one)))


@pytest.mark.parametrize("value", [None, "3", [3], np.array([3]), torch.tensor([3.0]), np.timedelta64(1, "s")])
def test_what_is_no_number_stays(value):
    assert plain(value) is value


MEMBERS = {
    "Affine": lambda i, r: maps.Affine(i(2)),
    "ResidualMLP": lambda i, r: maps.ResidualMLP(dim=i(2), width=i(8), gain=r(0.5)),
    "ConvexRidge": lambda i, r: maps.ConvexRidge(i(2), width=i(8), scale=r(0.5)),
    "ConvexMax": lambda i, r: maps.ConvexMax(i(2), groups=i(3), sharpness=r(4.0)),
    "NeuralODE": lambda i, r: maps.NeuralODE(i(2), width=i(8), scale=r(0.5)),
    "FromModule": lambda i, r: maps.FromModule(torch.nn.Linear(2, 2), i(2)),
    "Gaussian": lambda i, r: pwgf.Gaussian(i(2), mean=r(0.5), cov=r(2.0)),
    "Barenblatt": lambda i, r: pwgf.Barenblatt(i(2), m=r(2.0), t=r(0.5)),
    "UniformBall": lambda i, r: pwgf.UniformBall(i(2), radius=r(0.5)),
    "UniformBox": lambda i, r: pwgf.UniformBox(lower=r(0.5), upper=i(3)),
    "PorousMedium": lambda i, r: energies.PorousMedium(i(2)),
    "RadialPolynomial": lambda i, r: energies.Interaction(energies.RadialPolynomial(quadratic=r(0.5))),
    "MMD": lambda i, r: energies.MMD(torch.eye(2), "gaussian", bandwidth=r(0.5)),
    "SlicedW2": lambda i, r: energies.SlicedW2(torch.eye(2), num_directions=i(4), seed=i(1)),
    "StyblinskiTang": lambda i, r: pwgf.problems.StyblinskiTang(i(2), c=r(0.5)),
    "Funnel": lambda i, r: pwgf.problems.Funnel(i(2), scale=r(2.0)),
    "PWGF": lambda i, r: pwgf.PWGF(
        energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2), num_samples=i(100), num_eval=i(50), tolerance=r(0.5),
        damping=r(0.25), momentum=r(0.5), max_memory=r(1e6),
        solver=pwgf.linalg.CG(rtol=r(0.5), max_iterations=i(9)),
    ),
    "FixedStep": lambda i, r: pwgf.PWGF(
        energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2), integrator=pwgf.FixedStep("rk4", dt=r(0.5))
    ),
    "EulerMaruyama": lambda i, r: pwgf.EulerMaruyama(
        energies.Entropy(), pwgf.Gaussian(2), num_samples=i(10), dt=r(0.5)
    ),
    "SWJKO": lambda i, r: pwgf.SWJKO(
        energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2), tau=r(0.5), num_samples=i(100), learning_rate=r(0.5)
    ),
    "PWHF": lambda i, r: pwgf.PWHF(
        energies.FisherInformation(r(0.5)), maps.Affine(2), pwgf.Gaussian(2), num_samples=i(100), num_eval=i(50),
        dt=r(0.5), friction=r(0.25), damping=r(0.25),
    ),
    "HarmonicHamiltonian": lambda i, r: pwgf.problems.HarmonicHamiltonian(i(2), omega=r(2.0)),
    "JKOICNN": lambda i, r: pwgf.JKOICNN(energies.Entropy(), pwgf.Gaussian(2), h=r(0.5), width=i(8), num_samples=i(64)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_every_kind_of_number_gives_the_same_settings(name):
    expected = json.dumps(MEMBERS[name](int, float).to_config())
    for integer, real in zip(INTEGERS, REALS, strict=True):
        assert json.dumps(MEMBERS[name](integer, real).to_config()) == expected, (integer, real)


def test_a_solve_takes_them_too():
    scheme = pwgf.PWGF(
        energies.Potential(square), maps.Affine(2), pwgf.Gaussian(2), num_samples=np.int64(100), num_eval=200
    )
    times = [torch.tensor(0.0), np.float32(0.5)]
    run = pwgf.solve(scheme, times, seed=np.int64(3), checkpoint_seconds=np.float32(60), progress=False)
    same = pwgf.solve(scheme, [0, 0.5], seed=3, progress=False)
    assert np.array_equal(run["theta"], same["theta"])
    assert torch.equal(run.sample(torch.tensor(0.5), np.int64(5), seed=np.uint8(1)), run.sample(0.5, 5, seed=1))


# ---- multiples of energies ------------------------------------------------------------------------------------------


def coefficients(energy):
    return [(term.coefficient, term.name) for term in energy.terms()]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, np.array, torch.tensor, Fraction])
def test_energies_take_any_number_as_factor_and_divisor(kind):
    heat = energies.Entropy()
    assert (
        coefficients(kind(0.5) * heat)
        == coefficients(heat * kind(0.5))
        == coefficients(heat / kind(2))
        == [(0.5, "entropy")]
    )


def test_energies_add_up_by_sum():
    total = sum([energies.Entropy(), 2 * energies.Potential(square)])
    assert coefficients(total) == [(1.0, "entropy"), (2.0, "potential")]


@pytest.mark.parametrize("wrong", ["2", None, [2.0], np.array([1.0, 2.0]), torch.ones(2), np.timedelta64(1, "s")])
def test_what_is_no_number_is_no_factor(wrong):
    for product in (
        lambda: energies.Entropy() * wrong,
        lambda: wrong * energies.Entropy(),
        lambda: energies.Entropy() / wrong,
    ):
        with pytest.raises(TypeError):
            product()


def test_division_by_zero_is_refused():
    with pytest.raises(ConfigError, match=r"cannot be divided by 0"):
        energies.Entropy() / 0


# ---- time -----------------------------------------------------------------------------------------------------------


def ornstein_uhlenbeck():
    return energies.Potential(square) + energies.Entropy()


@pytest.mark.parametrize(
    "times",
    [
        pd.to_timedelta([0, 1], unit="s"),
        pd.to_datetime([0, 1], unit="s"),
        np.array([0, 1], dtype="m8[s]"),
        np.array([0, 1], dtype="M8[s]"),
        [np.timedelta64(0, "s"), np.timedelta64(1, "s")],
        list(pd.to_timedelta([0, 1], unit="s")),
        [0.0, np.timedelta64(1, "s")],
        ["0", "1"],
        [0j, 1j],
        [False, True],
    ],
)
def test_times_with_units_are_refused(times):
    scheme = pwgf.EulerMaruyama(ornstein_uhlenbeck(), pwgf.Gaussian(2), num_samples=10, dt=0.5)
    with pytest.raises(ConfigError, match=r"solve\(times=…\) must be a sequence of numbers"):
        pwgf.solve(scheme, times, progress=False)


def test_a_time_with_a_unit_is_refused_where_a_run_is_read():
    scheme = pwgf.EulerMaruyama(ornstein_uhlenbeck(), pwgf.Gaussian(2), num_samples=10, dt=0.5)
    run = pwgf.solve(scheme, [0, 1], progress=False)
    for t in (np.timedelta64(1, "s"), pd.Timedelta(1, "s"), np.datetime64(0, "s")):
        with pytest.raises(ConfigError, match=r"need a number for t; got"):
            run.sample(t, 5)


def state_at(t, rest=0.0):
    nothing = torch.zeros(0)
    return State(t, nothing, nothing, 1.0, nothing, rest=rest)


def test_steps_far_below_the_spacing_of_doubles_add_up():
    """Against exact fractions: 10⁶ steps of 1e-9 after t = 1.7e9, where doubles lie 2.4e-7 apart."""
    state, end, h = state_at(1.7e9), 1.7e9 + 2**-10, 1e-9
    for k in range(10**4):
        t, rest = state.later(h, end)
        state = state_at(t, rest)
        assert abs(Fraction(t) + Fraction(rest) - Fraction(1.7e9) - (k + 1) * Fraction(h)) < 1e-19
        assert abs(rest) <= math.ulp(t) / 2
    assert Fraction(state.left(end)) == pytest.approx(2**-10 - 1e-5, rel=1e-15)


def test_a_time_that_rounds_to_its_end_has_not_reached_it():
    """From LATE to the next double but one, by steps of .9 of a spacing."""
    gap = math.ulp(1.7e9)
    end = 1.7e9 + 2 * gap
    t, rest = state_at(1.7e9).later(0.9 * gap, end)
    t, rest = state_at(t, rest).later(0.9 * gap, end)
    assert t == 1.7e9 + gap < end
    assert state_at(t, rest).left(end) == pytest.approx(0.2 * gap, rel=1e-9)


def test_a_step_that_is_lost_beside_the_time_to_go_is_refused():
    assert state_at(1.0).later(0.5, 2.0) == (1.5, 0.0)
    with pytest.raises(SolverError, match=r"a step of 1e-17 from t = 1 is lost in rounding beside the 0.5 that remain"):
        state_at(1.0).later(1e-17, 1.5)


def schemes():
    energy, reference = ornstein_uhlenbeck(), pwgf.Gaussian(2, mean=1.0)
    few = {"num_samples": 50, "num_eval": 50}
    yield pwgf.PWGF(energy, maps.Affine(2), reference, integrator=pwgf.Euler(1e-17), **few)
    yield pwgf.EulerMaruyama(energy, reference, num_samples=50, dt=1e-17)
    yield pwgf.SWJKO(energy, maps.Affine(2), reference, tau=1e-17, max_iterations=2, **few)
    yield pwgf.PWHF(energy, maps.Affine(2), reference, dt=1e-17, **few)


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("k", range(4))
def test_fixed_steps_that_rounding_swallows_are_refused(k, start):
    """From t = 0 the first of them would count, and 1e17 of them be needed."""
    with pytest.raises(ConfigError, match=r"steps of 1e-17 are lost in rounding beside the .* would never end"):
        pwgf.solve(list(schemes())[k], [start, 1.5], progress=False)
    scheme = list(schemes())[k]
    with pytest.raises(SolverError, match=r"lost in rounding"):
        scheme.step(scheme.start(t=1.0), 1.5)
