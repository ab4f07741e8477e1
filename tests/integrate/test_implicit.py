"""Implicit steps: their order and exact formulas on Gaussians, rejections, and what they do with awkward energies."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
import torch

import pwgf
from pwgf import energies, maps, problems
from pwgf.energies import Energy
from pwgf.errors import ConfigError, NonFiniteError, SolverError
from pwgf.integrate import Auto, Explicit, FixedStep, Implicit, get_integrator
from pwgf.integrate.base import NO_MEMORY
from pwgf.integrate.implicit import _Step
from pwgf.tangent.implicit import _root

COV = torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)


def ou(cov=COV, mean=MEAN, integrator="implicit", n=40, **settings):
    """The flow of ½(x−b)ᵀΣ⁻¹(x−b) + entropy by the affine map, which follows it exactly on matched samples."""
    problem = problems.OrnsteinUhlenbeck(2, cov=cov, mean=mean)
    settings = {"num_samples": n, "num_eval": 100, "damping": 0.0, "momentum": 0.0, **settings}
    return problem, pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, integrator=integrator, **settings)


def flown(scheme, t1, t=0.0):
    state = scheme.start(t=t)
    while state.t < t1:
        state, _ = scheme.step(state, t1)
    return state


def side_of(scheme):
    state = scheme.start()
    generator = state.generator()
    z = scheme._draws.samples(scheme.num_samples, generator, even=True)
    return scheme._side(scheme._setup, z, state.theta_dot, state.t, generator, 0.0, None), state.theta


# ---- a scalar field -------------------------------------------------------------------------------------------------


class Point:
    """θ̇ = f(θ) at one θ, with the second variation −f′ or what is put in its place."""

    def __init__(self, field, theta):
        self.field, self.theta, self.energy = field, theta, 0.0

    def velocity(self, h, moved=None):
        v = self.field.f(self.theta)
        if moved is not None:
            v = v - moved / h
        return v / (1 + h * self.stiffness(v))

    def displacement(self, e):
        return float(e.norm())

    def unseen(self, h):
        return 0.0

    def agreement(self):
        return self.field.agreement

    def stiffness(self, e):
        return float(self.field.hessian(self.theta))

    def moved_since(self, start):
        return self.theta - start.theta

    def folded_since(self, start):
        return self.field.folds(float(self.theta))


class Ode:
    """A scalar field for implicit steps."""

    def __init__(self, f, hessian=lambda theta: 0.0, folds=lambda theta: False, fault=lambda theta, h: None):
        self.f, self.hessian, self.folds, self.reason = f, hessian, folds, fault
        self.seen, self.agreement = [], 1.0

    def linearise(self, theta, since=0.0):
        self.seen.append(float(theta))
        return Point(self, theta)

    def fault(self, start, theta, h):
        return self.reason(float(theta), h)


def move(field, start=1.0, length=1.0, first_step=0.1, memory=NO_MEMORY, **settings):
    theta = torch.tensor([start], dtype=torch.float64)
    return Implicit(**{"tolerance": 1e-3, **settings}).advance(field, theta, length, first_step, memory)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("exact", [1.0, 0.0, 2.0])
def test_the_order_does_not_depend_on_the_second_variation(order, exact):
    """θ̇ = θ(1−θ): one step's error falls by 2^(order+1), with −f′ right, absent or twice itself."""
    field = Ode(lambda theta: theta * (1 - theta), lambda theta: -exact * (1 - 2 * float(theta)))
    start, errors = torch.tensor([0.1], dtype=torch.float64), []
    for h in (0.1, 0.05):
        trial = _Step(field, field.linearise(start), start).extrapolated(h, order, 1e9)
        errors.append(abs(float(trial.theta) - 0.1 / (0.1 + 0.9 * math.exp(-h))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.35)


def test_a_step_is_no_longer_than_the_interval_and_remembers_what_it_wanted():
    decay = Ode(lambda theta: -theta, lambda theta: 1.0)
    short = move(decay, length=0.01, first_step=0.1)
    assert short.length == short.dt == 0.01
    assert short.proposal >= 0.1
    assert short.implicit and len(short.memory) == 3
    assert float(short.theta) == pytest.approx(math.exp(-0.01), abs=1e-8)
    assert float(short.theta_dot) == pytest.approx((float(short.theta) - 1) / 0.01)


def test_a_step_grows_at_most_fourfold_and_its_stiffness_is_h_times_the_rate():
    still = move(Ode(torch.ones_like, lambda theta: 50.0), first_step=0.1)
    assert still.proposal <= 0.4 * (1 + 1e-12)
    assert still.stiffness == pytest.approx(50 * still.dt)
    smooth = move(Ode(lambda theta: torch.ones_like(theta)), first_step=0.1)
    assert smooth.proposal == pytest.approx(0.4)


def test_an_error_above_the_tolerance_is_a_rejection():
    moved = move(Ode(lambda theta: -theta, lambda theta: 1.0), first_step=1.0, tolerance=1e-6)
    assert moved.num_rejected >= 1
    assert moved.length < 1.0
    assert moved.proposal <= moved.dt  # right after a rejection there is no growth
    assert float(moved.theta) == pytest.approx(math.exp(-moved.length), abs=1e-5)


def test_a_fold_within_a_step_is_a_rejection():
    field = Ode(lambda theta: torch.ones_like(theta), folds=lambda theta: theta > 1.02)
    moved = move(field, first_step=0.4)
    assert moved.num_rejected >= 3
    assert moved.length <= 0.05


def test_a_fault_at_the_end_is_a_rejection():
    field = Ode(lambda theta: torch.ones_like(theta), fault=lambda theta, h: "no" if h > 0.15 else None)
    moved = move(field, first_step=0.4)
    assert moved.num_rejected == 2
    assert moved.length == pytest.approx(0.1)


@pytest.mark.parametrize("error", [SolverError, NonFiniteError])
def test_a_failure_within_a_step_is_a_rejection(error):
    def decay(theta):
        if float(theta) < 0.7:
            raise error("no value here")
        return -theta

    moved = move(Ode(decay, lambda theta: 1.0), first_step=2.0, length=4.0, tolerance=1.0)
    assert moved.num_rejected >= 1
    assert 0 < moved.length < 2


def test_rejections_are_capped_and_told():
    never = Ode(lambda theta: torch.ones_like(theta), fault=lambda theta, h: "the culprit")
    with pytest.raises(SolverError, match=r"4 implicit steps rejected, down to h = 1\.25e-02; last: the culprit"):
        move(never, max_rejections=3)
    rough = Ode(lambda theta: torch.sin(1e9 * theta))
    with pytest.raises(SolverError, match="3 implicit steps rejected.*last: error still .* × tolerance"):
        move(rough, max_rejections=2, tolerance=1e-12)


def test_the_order_in_use_is_remembered_and_the_third_tried_again():
    field = Ode(lambda theta: -theta, lambda theta: 1.0)

    def points(memory):
        del field.seen[:]
        move(field, memory=torch.tensor(memory, dtype=torch.float64), tolerance=0.1)
        return len(field.seen)

    assert points([3.0, 0.0, 1.0]) == 4  # θ, one within 2 × h/2, two within 3 × h/3
    assert points([2.0, 0.0, 1.0]) == 2
    assert points([2.0, 8.0, 1.0]) == 4  # after eight steps of order two
    assert points([2.0, 7.0, 1.0]) == 2


def test_an_error_raises_the_damping_and_a_step_without_one_lowers_it():
    rough = Ode(lambda theta: -theta + torch.sin(30 * theta), lambda theta: 1.0)
    found = move(rough, first_step=1.0, tolerance=1e-4)
    assert found.num_rejected > 0
    assert 1 < float(found.memory[2]) <= 10
    smooth = Ode(lambda theta: -theta, lambda theta: 1.0)
    calm = move(smooth, memory=torch.tensor([3.0, 0.0, 8.0], dtype=torch.float64), tolerance=0.1)
    assert float(calm.memory[2]) == 4
    assert smooth.extra_damping == 8


def test_a_rate_that_was_noise_raises_the_damping_of_the_same_step():
    decay = Ode(lambda theta: -theta, lambda theta: 1.0)

    def damping(agreement, before):
        decay.agreement = agreement
        found = move(decay, memory=torch.tensor([3.0, 0.0, before], dtype=torch.float64), tolerance=0.1)
        return decay.extra_damping, float(found.memory[2])

    assert damping(0.3, 1.0) == (2, 2)
    assert damping(-1.0, 64.0) == (100, 100)
    assert damping(0.6, 64.0) == (64, 32)


def test_agreement_is_the_best_multiple_of_the_last_rate():
    """½|x|² moves every sample by −x: θ̇ = −2θ̇* of the affine map agrees by a half, one across it not at all."""
    energy = energies.Potential(lambda x: 0.5 * x.square().sum(-1))
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), integrator="implicit", momentum=0.9)
    state = scheme.start()
    z = scheme._draws.samples(500, state.generator(), even=True)

    def agreement(last, **settings):
        made = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), integrator="implicit", **settings)
        side = made._side(made._setup, z, last, 0.0, state.generator(), made.momentum, None)
        return side.linearise(state.theta).agreement()

    inwards = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64).flatten()
    turning = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).flatten()
    assert agreement(2 * inwards, momentum=0.9) == pytest.approx(0.5, rel=1e-9)
    assert agreement(inwards + turning, momentum=0.9) == pytest.approx(0.5, rel=0.01)
    assert agreement(torch.zeros_like(inwards), momentum=0.9) == 1
    assert agreement(turning) == 1  # a map with few parameters carries no rate over


def test_newton_is_the_minimising_movement_of_a_scalar():
    """(θ − θ₀)/h = f(θ), here −θ³, to rounding; without Newton one linear step."""

    def step(newton):
        field = Ode(lambda theta: -(theta**3), lambda theta: 3 * float(theta) ** 2)
        integrator = Implicit(dt=0.5, newton=newton)
        return float(integrator.advance(field, torch.tensor([2.0], dtype=torch.float64), 0.5, 0.5, NO_MEMORY).theta)

    assert step(0) == pytest.approx(2 - 0.5 * 8 / (1 + 0.5 * 12))
    end = step(8)
    assert (end - 2) / 0.5 == pytest.approx(-(end**3), rel=1e-12)


# ---- Gaussians ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_flow_has_the_order_of_its_steps(order, entropy):
    """Against exp(−Σ⁻¹h), linear in θ without entropy; with it against the exact law, whose A is (cov)^½."""
    problem, scheme = ou()
    if not entropy:
        precision = torch.linalg.inv(COV)
        quadratic = energies.Potential(lambda x: 0.5 * ((x - MEAN) @ precision * (x - MEAN)).sum(-1))
        scheme = pwgf.PWGF(
            quadratic, maps.Affine(2), problem.reference, num_samples=40, damping=0.0, momentum=0.0,
            integrator="implicit",
        )  # fmt: skip
    side, theta = side_of(scheme)
    start, errors = side.linearise(theta), []
    for h in (0.04, 0.02):
        found = _Step(side, start, theta).extrapolated(h, order, 1e9).theta.view(2, 3)
        law = problem.exact(h)
        values, vectors = torch.linalg.eigh(law.cov())
        root, decay = (vectors * values.sqrt()) @ vectors.T, torch.linalg.matrix_exp(-h * torch.linalg.inv(COV))
        exact = torch.cat([root if entropy else decay, (MEAN - decay @ MEAN)[:, None]], 1)
        errors.append(float((found - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.35)


def test_a_stiff_law_is_reached_in_few_stages():
    """Variances 1 and 10⁻³: explicit steps are bound to 2.5/1000 and take thousands of stages."""
    law = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    _, scheme = ou(cov=law, mean=torch.zeros(2, dtype=torch.float64), n=200)
    state = flown(scheme, 10.0)
    matrix = state.theta.view(2, 3)[:, :2]
    assert float((matrix @ matrix.T - law).abs().max()) < 1e-6
    assert state.counters["num_stages"] < 200
    assert state.counters["num_implicit"] == state.counters["num_steps"]


def along_axes(newton, h, steps):
    """Means and standard deviations after steps of one length on the law N((1,−2), diag(.5, .02))."""
    law = torch.diag(torch.tensor([0.5, 0.02], dtype=torch.float64))
    _, scheme = ou(cov=law, integrator=Implicit(dt=h, newton=newton))
    state = scheme.start()
    for _ in range(steps):
        state, info = scheme.step(state, 10.0)
        assert info.t1 - info.t0 == pytest.approx(h)
    found = state.theta.view(2, 3)
    assert float(found[0, 1].abs() + found[1, 0].abs()) < 1e-10
    return found[:, 2], found[:, :2].diagonal()


def test_a_plain_step_is_the_linearly_implicit_euler_step():
    h, w = 0.1, torch.tensor([0.5, 0.02], dtype=torch.float64)
    m, s = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for _ in range(3):
        m = m + h * (MEAN - m) / w / (1 + h / w)
        s = s + h * (1 / s - s / w) / (1 + h * (1 / w + 1 / s**2))
    means, deviations = along_axes(0, h, 3)
    torch.testing.assert_close(means, m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deviations, s, rtol=1e-9, atol=1e-9)


def test_newton_steps_are_minimising_movements():
    """JKO steps of a Gaussian: (s − s₀)/h = 1/s − s/w and (m − m₀)/h = (b − m)/w in each eigendirection."""
    h, w = 0.1, torch.tensor([0.5, 0.02], dtype=torch.float64)
    m, s = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    a = 1 / h + 1 / w
    for _ in range(3):
        m = (m / h + MEAN / w) / a
        s = (s / h + ((s / h) ** 2 + 4 * a).sqrt()) / (2 * a)
    means, deviations = along_axes(5, h, 3)
    torch.testing.assert_close(means, m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deviations, s, rtol=1e-8, atol=1e-8)


def test_the_tolerance_is_met():
    for tolerance in (1e-2, 1e-3, 1e-4):
        problem, scheme = ou(integrator=Implicit(tolerance))
        state, law = flown(scheme, 1.0), problem.exact(1.0)
        found = state.theta.view(2, 3)
        assert float((found[:, 2] - law.mean()).norm()) < 3 * tolerance
        assert float((found[:, :2] @ found[:, :2].T - law.cov()).norm()) < 3 * tolerance


def test_single_precision_runs_in_single_precision():
    problem, scheme = ou(dtype=torch.float32)
    state, law = flown(scheme, 1.0), problem.exact(1.0)
    assert state.theta.dtype == state.theta_dot.dtype == torch.float32
    assert state.counters["num_implicit"] == state.counters["num_steps"]
    assert state.extra["integrator"].dtype == torch.float64
    assert float((state.theta.view(2, 3)[:, 2].double() - law.mean()).norm()) < 3e-3


# ---- awkward energies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["implicit", "auto"])
def test_a_concave_potential_runs_away_as_it_should(integrator):
    """V = −|x|²/2: x = eᵗz. The second variation is negative and counts as zero."""
    energy = energies.Potential(lambda x: -0.5 * x.square().sum(-1))
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=100, integrator=integrator, damping=1e-10)
    state = flown(scheme, 1.0)
    exact = math.e * torch.eye(2, dtype=torch.float64)
    assert float((state.theta.view(2, 3)[:, :2] - exact).abs().max()) < 0.02


def bent(x):
    """½|x|² + a power 3/2 that begins at x₁ = −1.5; before that autograd's second derivative is ∞ · 0."""
    ahead = x[..., 0] + 1.5
    return 0.5 * x.square().sum(-1) + 0.1 * (ahead * (ahead > 0)) ** 1.5


class Silent(Energy):
    """½|x − 1|² that does not tell its second variation."""

    def __call__(self, rho):
        return rho.mean(0.5 * (rho.x - 1).square().sum(1))

    def velocity(self, rho):
        return (1 - rho.x).detach()


@pytest.mark.parametrize(
    ("part", "reported"),
    [(energies.Potential(bent), r"potential \(not finite at \d+ of 64 samples\)"), (Silent(), "silent")],
    ids=["not finite", "missing"],
)
def test_a_term_without_a_second_variation_is_explicit(part, reported):
    energy = part + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=400, integrator="implicit")
    state = scheme.start()
    rho = scheme._setup.pushed(state.theta, pwgf.Gaussian(2).sample(64, torch.Generator().manual_seed(0)), 0.0)
    (named,) = energy.hessian(rho).explicit
    assert re.fullmatch(reported, named)
    run = pwgf.solve(scheme, [0.0, 0.5, 1.0], progress=False)
    explicit = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=400, integrator="explicit")
    beside = pwgf.solve(explicit, [0.0, 0.5, 1.0], progress=False)
    assert run["num_implicit"][-1] == run["num_steps"][-1]
    assert float(abs(run["theta"] - beside["theta"]).max()) < 5e-3


def test_a_negative_temperature_is_refused():
    quadratic = energies.Potential(lambda x: x.square().sum(-1))
    with pytest.raises(ConfigError, match=r"entropy enters with coefficient -0\.5 < 0.*temperature >= 0"):
        pwgf.PWGF(quadratic - 0.5 * energies.Entropy(), maps.Affine(2), pwgf.Gaussian(2), integrator="implicit")


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Implicit(tolerance=0.0), r"Implicit\(tolerance=…\) must be positive and finite; got 0\.0"),
        (lambda: Implicit(first_step=math.inf), r"Implicit\(first_step=…\) must be positive and finite; got inf"),
        (lambda: Implicit(dt=-1), r"Implicit\(dt=…\) must be positive and finite; got -1"),
        (lambda: Implicit(dt=True), r"Implicit\(dt=…\) must be positive and finite; got True"),
        (lambda: Implicit(max_rejections=0), r"Implicit\(max_rejections=…\) must be an integer ≥ 1; got 0"),
        (lambda: Implicit(order=4), r"Implicit\(order=…\) must be 2 or 3; got 4"),
        (lambda: Implicit(dt=0.1, newton=-1), r"Implicit\(newton=…\) must be an integer ≥ 0; got -1"),
        (lambda: Implicit(dt=0.1, newton=1.0), r"Implicit\(newton=…\) must be an integer ≥ 0; got 1\.0"),
        (
            lambda: Implicit(newton=2),
            r"Implicit\(newton=2\) solves minimising movements.*Implicit\(dt=0\.05, newton=2\)",
        ),
        (lambda: Implicit(dt=0.1, tolerance=1e-3), r"Implicit\(dt=…\) takes fixed steps.*give one of the two"),
        (lambda: Implicit(dt=0.1).resolved(1e-3), r"got Implicit\(dt=0\.1\), which takes fixed steps.*one of the two"),
        (lambda: Explicit(tolerance=math.nan), r"Explicit\(tolerance=…\) must be positive and finite; got nan"),
        (lambda: Explicit(first_step="a"), r"Explicit\(first_step=…\) must be positive and finite; got 'a'"),
        (lambda: Explicit(max_rejections=1.5), r"Explicit\(max_rejections=…\) must be an integer ≥ 1; got 1\.5"),
        (
            lambda: Explicit("rk4"),
            r"method='rk4'\) is no adaptive method; .* It takes fixed steps: FixedStep\('rk4', dt",
        ),
        (lambda: Explicit("bosh4"), r"Explicit\(method='bosh4'\) is no adaptive method.*Did you mean 'bosh3'\?"),
        (lambda: FixedStep("rk5", 0.1), r"FixedStep\(method='rk5'\) is unknown; there are .*Did you mean 'rk4'\?"),
        (lambda: FixedStep("rk4", None), r"FixedStep\('rk4', dt\) needs the length of its steps"),
        (lambda: FixedStep("rk4", 0.0), r"FixedStep\(dt=…\) must be positive and finite; got 0\.0"),
        (lambda: pwgf.Euler(-0.1), r"FixedStep\(dt=…\) must be positive and finite; got -0\.1"),
        (
            lambda: FixedStep("rk4", 0.1).resolved(1e-3),
            r"got integrator=FixedStep\('rk4', …\), which takes fixed steps",
        ),
        (lambda: get_integrator("rk4"), r"takes fixed steps and needs their length: .*FixedStep\('rk4', dt\)"),
        (lambda: get_integrator("implict"), r"integrator='implict'\) is unknown.*Did you mean 'implicit'\?"),
        (lambda: get_integrator(3), r"must be a name or an integrator such as integrate\.Implicit\(\); got 3"),
        (
            lambda: get_integrator(Implicit),
            r"must be a name or an integrator such as integrate\.Implicit\(\); got <class",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "tolerance", "found"),
    [
        ("implicit", None, Implicit(3e-4)),
        ("implicit", 1e-5, Implicit(1e-5)),
        (Implicit(1e-2), 1e-5, Implicit(1e-2)),
        ("explicit", None, Explicit(tolerance=1e-4)),
        ("dopri5", 1e-6, Explicit("dopri5", 1e-6)),
        ("auto", None, Auto(Explicit(tolerance=1e-4), Implicit(3e-4))),
        ("auto", 1e-5, Auto(Explicit(tolerance=1e-5), Implicit(1e-5))),
        (Implicit(dt=0.1), None, Implicit(dt=0.1, first_step=0.1)),
        (FixedStep("rk4", 0.1), None, FixedStep("rk4", 0.1)),
    ],
)
def test_the_schemes_tolerance_counts_where_the_integrator_has_none(given, tolerance, found):
    _, scheme = ou(integrator=given, tolerance=tolerance)
    assert scheme.integrator == found
    assert json.loads(json.dumps(scheme.to_config()["integrator"]))["name"] == type(found).__name__


# ---- explicit and implicit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("map", "first"),
    [
        (maps.Affine(2), True),
        (maps.ConvexRidge(2, width=4), True),
        (maps.ResidualMLP(8), True),
        (maps.ConvexRidge(8, width=96), False),
    ],
)
def test_auto_starts_with_implicit_steps_where_their_solves_are_cheap(map, first):
    problem = problems.OrnsteinUhlenbeck(map.dim)
    scheme = pwgf.PWGF(problem.energy, map, problem.reference, num_samples=100, num_eval=10)
    state, info = scheme.step(scheme.start(0), 1e-3)
    assert bool(info.values["implicit"]) == first


def test_auto_turns_explicit_where_the_flow_is_smooth():
    problem, scheme = ou(integrator="auto")
    state = flown(scheme, 1.0)
    assert 0 < state.counters["num_implicit"] < state.counters["num_steps"]
    assert not bool(state.extra["integrator"][0])
    assert float((state.theta.view(2, 3)[:, 2] - problem.exact(1.0).mean()).norm()) < 1e-3


def test_auto_stays_implicit_where_the_flow_is_stiff():
    law = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    _, scheme = ou(cov=law, integrator="auto", n=200)
    state = flown(scheme, 5.0)
    explicit = flown(ou(cov=law, integrator="explicit", n=200)[1], 0.1)
    assert state.counters["num_implicit"] > 0
    assert bool(state.extra["integrator"][0])
    assert state.counters["num_stages"] < explicit.counters["num_stages"]  # a fiftieth of the way
    matrix = state.theta.view(2, 3)[:, :2]
    assert float((matrix @ matrix.T)[1, 1]) == pytest.approx(1e-3, rel=1e-2)


class Phased(Ode):
    """A field that has both sides: fast at first, as slow as its explicit side can see later."""

    def __init__(self, rate):
        super().__init__(lambda theta: -rate * theta, lambda theta: rate)
        self.share = (0.0, 0.0)
        self.cheap = True

    def __call__(self, theta, since=0.0):
        return self.f(theta)

    def displacement(self, e):
        return e.norm()

    def strain(self):
        return self.share

    def implicit_is_cheap(self, theta):
        return self.cheap


def interval(field, memory, first_step=0.5, tolerance=1e-2):
    integrator = Auto().resolved(tolerance)
    theta = torch.tensor([1.0], dtype=torch.float64)
    return integrator.advance(field, theta, 10.0, first_step, torch.tensor(memory, dtype=torch.float64))


def test_auto_goes_over_when_the_map_is_strained_and_does_a_folded_interval_again():
    field, explicit = Phased(1.0), [0.0, 0.0, 1.0]
    assert interval(field, []).implicit
    assert not Auto(explicit_start=True).resolved(1e-2).advance(field, torch.ones(1), 0.5, 0.5, torch.zeros(0)).implicit
    field.cheap = False
    assert not interval(field, []).implicit
    assert not interval(field, explicit).implicit
    field.share = (0.0, 0.01)
    strained = interval(field, explicit)
    assert not strained.implicit and bool(strained.memory[0])
    field.share = (0.01, 0.01)
    again = interval(field, explicit)
    assert again.implicit and bool(again.memory[0])


def test_auto_comes_back_when_explicit_steps_would_be_as_long():
    field, memory = Phased(1.0), [1.0, 0.0, 1.0]
    for _ in range(10):
        assert bool(memory[0])
        found = interval(field, memory, first_step=0.01)
        assert found.implicit
        memory = found.memory.tolist()
    assert not bool(memory[0])
    assert len(memory) == 6  # which side, its count, the rate, and what the implicit side remembers


def test_the_memory_of_another_integrator_counts_for_nothing():
    """κ = 1e4 in the place of a multiple of the damping."""
    of_auto = torch.tensor([1.0, 3.0, 1e4, 3.0, 2.0, 8.0], dtype=torch.float64)
    for integrator, other in ((Implicit(), of_auto), (Implicit(), of_auto[:3]), (Auto(), of_auto[3:])):
        made = integrator.resolved(1e-2)
        theta = torch.tensor([1.0], dtype=torch.float64)
        known, fresh = Phased(1.0), Phased(1.0)
        found = made.advance(known, theta, 10.0, 0.01, other)
        anew = made.advance(fresh, theta, 10.0, 0.01, torch.zeros(0, dtype=torch.float64))
        assert torch.equal(found.theta, anew.theta) and torch.equal(found.memory, anew.memory)
        assert known.extra_damping == fresh.extra_damping == 1


@pytest.mark.parametrize("implicit", [Implicit(), Implicit(dt=0.01)])
def test_auto_remembers_which_side_works_whatever_its_implicit_side_remembers(implicit):
    """After an explicit start, and of implicit steps of fixed length, there is nothing of that side."""
    made = Auto(implicit=implicit, explicit_start=True)
    made = dataclasses.replace(made, explicit=made.explicit.resolved(1e-2))
    made = dataclasses.replace(made, implicit=implicit if implicit.dt else implicit.resolved(1e-2))
    field, theta = Phased(1.0), torch.tensor([1.0], dtype=torch.float64)
    field.share = (0.0, 0.01)
    found = made.advance(field, theta, 1.0, 0.01, NO_MEMORY)
    assert not found.implicit and bool(found.memory[0])
    counts = []
    field.share = (0.0, 0.0)
    for _ in range(3):
        found = made.advance(field, theta, 1.0, 0.01, found.memory)
        assert found.implicit
        counts.append(int(found.memory[1]))
    assert counts == [1, 2, 3]


def test_auto_stays_implicit_where_explicit_steps_would_be_bound():
    field, memory = Phased(1e4), [1.0, 0.0, 1e4]
    for _ in range(12):
        found = interval(field, memory, first_step=0.5)
        memory = found.memory.tolist()
    assert bool(memory[0])


def test_a_blow_up_in_finite_time_stops_with_what_was_measured():
    """ẋ = x³: the outermost sample reaches infinity at t = 1/(2x²)."""
    energy = energies.Potential(lambda x: -x.square().sum(-1).square() / 4)
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=50, num_eval=50)
    with pytest.raises(pwgf.SolverError, match="stayed below .* for 100 steps .* Measured: rms.*carry.*last rejection"):
        for _ in pwgf.evolve(scheme, scheme.start(0), [10.0]):
            pass


def test_a_second_variation_beyond_rounding_is_an_error_of_the_solve():
    with pytest.raises(SolverError, match="no Cholesky factor"):
        _root(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64))


def test_terms_taken_as_explicit_are_named(caplog):
    energy = energies.Functional(lambda rho: rho.x.square().sum(-1).mean()) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=50, num_eval=50)
    with caplog.at_level("INFO", "pwgf"):
        scheme.start(0)
    assert "second variation of these terms as zero: functional" in caplog.text
