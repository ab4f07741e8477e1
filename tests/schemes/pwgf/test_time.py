"""Energies that depend on time: the order of every integrator, checks at one time, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.integrate import Auto, Explicit, FixedStep, Implicit
from pwgf.integrate.implicit import _Step
from pwgf.measures import Cloud, PushedMeasure


def wave(t, x):
    """V = ½(x − sin 2t)², whose mean from 0 is (sin 2t − 2cos 2t + 2e^{−t})/5."""
    return 0.5 * (x - torch.sin(2 * t)).square().sum(-1)


def mean_of_wave(t):
    return (math.sin(2 * t) - 2 * math.cos(2 * t) + 2 * math.exp(-t)) / 5


def scheme_of(integrator, V=wave, entropy=0.0, **settings):
    energy = energies.Potential(V, time=True) + entropy * energies.Entropy()
    settings = {"num_samples": 40, "num_eval": 100, "damping": 0.0, "momentum": 0.0, **settings}
    return pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), integrator=integrator, **settings)


def flown(scheme, t1, t=0.0):
    state, infos = scheme.start(t=t), []
    while state.t < t1:
        state, info = scheme.step(state, t1)
        infos.append(info)
    return state, infos


def error_of(integrator, t1=1.0):
    state, _ = flown(scheme_of(integrator), t1)
    return abs(float(scheme_of(integrator).map(state.theta, torch.zeros(1, 1).double())) - mean_of_wave(t1))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
def test_fixed_steps_keep_their_order_in_time(method, order):
    errors = [error_of(FixedStep(method, h)) for h in (0.1, 0.05)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_implicit_euler_takes_the_velocity_at_the_end_of_the_step():
    """m ← (m + h sin 2(t + h))/(1 + h), the minimising movement for F at the end of the step, also with Newton."""
    for newton in (0, 2):
        state, _ = flown(scheme_of(Implicit(dt=0.1, newton=newton)), 0.3)
        mean = 0.0
        for k in range(3):
            mean = (mean + 0.1 * math.sin(2 * 0.1 * (k + 1))) / 1.1
        assert float(maps.Affine(1)(state.theta, torch.zeros(1, 1).double())) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_extrapolated_implicit_steps_keep_their_order_in_time(order):
    """One step from t = .3, whose error falls by 2^(order+1) with half the step."""
    scheme, errors, start = scheme_of("implicit"), [], mean_of_wave(0.3)
    theta = torch.tensor([1.0, start], dtype=torch.float64)
    state = scheme.start(t=0.3)
    generator = state.generator()
    for h in (0.1, 0.05):
        z = scheme._draws.samples(40, generator, even=True)
        side = scheme._side(scheme._setup, z, state.theta_dot, state.t, generator, 0.0, None)
        trial = _Step(side, side.linearise(theta), theta).extrapolated(h, order, 1e9)
        errors.append(abs(float(trial.theta[1]) - mean_of_wave(0.3 + h)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.35)


@pytest.mark.parametrize("integrator", [Auto(), Explicit("dopri5"), Implicit()])
def test_the_error_is_about_the_tolerance(integrator):
    assert error_of(integrator, 3.0) < 1e-3


@pytest.mark.parametrize("integrator", ["auto", "implicit", "bosh3"])
@pytest.mark.parametrize("when", [0.05, 0.021, 0.0999])
def test_a_force_that_is_switched_on_is_not_stepped_over(integrator, when):
    """V = x after the switch: the mean falls by the time since then. Implicit steps alone never take v at a start."""
    energy = energies.Potential(lambda t, x: torch.where(t > when, 1.0, 0.0) * x.sum(-1), time=True)
    scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=40, num_eval=40, integrator=integrator)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    assert float(run.theta(0.1)[1]) == pytest.approx(when - 0.1, abs=1e-3)


@pytest.mark.parametrize("integrator", ["implicit", "bosh3"])
def test_a_potential_that_rises_in_time_alone_is_no_reason_to_reject_or_warn(integrator, caplog):
    """V = e^{3t} + ½x²: F rises by e^{3t}, the law is that of ½x²."""
    scheme = scheme_of(integrator, lambda t, x: torch.exp(3 * t) + 0.5 * x.square().sum(-1), entropy=1.0)
    state, infos = flown(scheme, 1.0)
    assert all(info.values["energy_change"] <= 1e-9 for info in infos)
    assert all("rise" not in str(info) for info in infos)
    run = pwgf.solve(scheme, [0.0, 0.5, 1.0], progress=False)
    assert run["energy"][-1] - run["energy"][0] == pytest.approx(math.exp(3) - 1, abs=1e-2)
    assert "rose" not in caplog.text


def test_a_step_that_raises_the_energy_at_its_end_is_still_rejected():
    """From equilibrium in ½x² up to a mean of 1: F rises by ½, of which the motion within h = 10 may cost .1."""
    scheme = scheme_of("implicit", lambda t, x: torch.exp(-t) + 0.5 * x.square().sum(-1), entropy=1.0)
    state = scheme.start()
    generator = state.generator()
    z = scheme._draws.samples(40, generator, even=True)
    side = scheme._side(scheme._setup, z, state.theta_dot, state.t, generator, 0.0, None)
    start = side.linearise(state.theta)
    start.velocity(0.1)
    uphill = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert "the energy would rise by 0.5 on the same samples" in side.fault(start, uphill, 10.0)
    assert side.fault(start, state.theta, 10.0) is None


def test_rows_and_fingerprints_are_taken_at_their_time():
    scheme = scheme_of("implicit", lambda t, x: t * x.sum(-1))
    run = pwgf.solve(scheme, [1.0, 2.0], progress=False)
    assert run["velocity_rms"] == pytest.approx([1.0, 2.0])
    state = scheme.start(t=1.0)
    assert scheme.fingerprint(state)[1:] == pytest.approx(-1.0)


def test_an_error_of_the_function_is_passed_on_with_the_time():
    def ends(t, x):
        if t > 0.5:
            raise ValueError("no data after 0.5")
        return x.square().sum(-1)

    message = r"Potential: V\(t, x\) failed on .* at t = 0\.\d+: ValueError: no data after 0\.5"
    with pytest.raises(ConfigError, match=message):
        pwgf.solve(scheme_of("bosh3", ends), [0.0, 1.0], progress=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: energies.Potential(lambda x: x, time=True),
            r"Potential\(V, time=True\) calls V\(t, x\).*function of \(x\)",
        ),
        (
            lambda: energies.Potential(lambda t, x: x),
            r"Potential\(V\) calls V\(x\).*V\(t, x\).*Potential\(V, time=True\)",
        ),
        (lambda: energies.KL(lambda t, x: x), r"KL\(log_target\) calls log_target\(x\)"),
        (lambda: energies.Local(lambda x, ell: x, time=True), r"Local\(g, time=True\) calls g\(t, x, log_rho\)"),
        (lambda: energies.Interaction(lambda t, r: r), r"Interaction\(W\) calls W\(r\)"),
        (lambda: energies.Drift(lambda x: x, time=True), r"Drift\(b, time=True\) calls b\(t, x\)"),
        (lambda: energies.Potential(lambda x: x, time=1), r"Potential\(time=…\) must be True or False; got 1"),
    ],
)
def test_functions_of_other_arguments_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_measure_without_a_time_is_refused():
    with pytest.raises(ConfigError, match=r"Potential: V\(t, x\) needs a time, and this measure has none: Cloud"):
        energies.Potential(wave, time=True)(Cloud(torch.zeros(3, 1)))


def test_a_clock_of_its_own_is_told_where_time_belongs():
    clock = iter(range(1000))
    energy = energies.Potential(lambda x: next(clock) * x.square().sum(-1))
    with pytest.raises(
        ConfigError, match=r"the time of the flow: it belongs in the argument, V\(t, x\) with time=True"
    ):
        pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1)).start()


@pytest.mark.parametrize(
    ("timed", "frozen"),
    [
        (
            energies.KL(lambda t, x: -t * x.square().sum(-1), time=True),
            energies.KL(lambda x: -1.5 * x.square().sum(-1)),
        ),
        (
            energies.Local(lambda t, x, ell: t * ell * x.square().sum(-1), time=True),
            energies.Local(lambda x, ell: 1.5 * ell * x.square().sum(-1)),
        ),
        (
            energies.Interaction(lambda t, r: t * r.square().sum(-1) ** 2, time=True),
            energies.Interaction(lambda r: 1.5 * r.square().sum(-1) ** 2),
        ),
        (energies.Drift(lambda t, x: t * x, time=True), energies.Drift(lambda x: 1.5 * x)),
        (
            energies.Diffusion(lambda t, x: t * x.square(), time=True, form="ito"),
            energies.Diffusion(lambda x: 1.5 * x.square(), form="ito"),
        ),
    ],
)
def test_every_energy_sees_the_time_of_the_measure(timed, frozen):
    map = maps.Affine(2)
    z = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rho = PushedMeasure(map, pwgf.Gaussian(2), map.initial(), z, t=1.5)
    assert timed.time and not frozen.time and (timed + frozen).time
    torch.testing.assert_close(timed(rho), frozen(rho))
    torch.testing.assert_close(timed.velocity(rho), frozen.velocity(rho))
    one, other = timed.hessian(rho), frozen.hessian(rho)
    assert one.explicit == other.explicit == ()
    for name in ("point", "centred", "slope", "divergence"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert float((timed.velocity(rho.at(0.5)) - timed.velocity(rho)).abs().max()) > 0.1


def test_particles_see_the_time():
    """A constant force t: the mean moves by t²/2, by Euler steps ½t(t − h)."""
    energy = energies.Potential(lambda t, x: -t * x.sum(-1), time=True)
    scheme = pwgf.EulerMaruyama(energy, pwgf.Gaussian(1), num_samples=10, dt=0.1)
    run = pwgf.solve(scheme, [0.0, 1.0], progress=False)
    moved = run.theta(1.0) - run.theta(0.0)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.45))


@pytest.mark.parametrize("energy", [energies.Potential(wave, time=True), energies.Drift(lambda x: -x)])
def test_schemes_that_minimise_refuse_driven_flows(energy):
    with pytest.raises(
        ConfigError, match=r"JKOICNN\(energy=…\) minimises F step by step, and its term '.*' (depends|is)"
    ):
        pwgf.JKOICNN(energy, pwgf.Gaussian(1), h=0.1)
    with pytest.raises(ConfigError, match=r"SWJKO\(energy=…\) minimises F step by step.*Use PWGF, or EulerMaruyama"):
        pwgf.SWJKO(energy, maps.Affine(1), pwgf.Gaussian(1), tau=0.1)


@pytest.mark.parametrize(
    ("energy", "slope"),
    [
        (energies.Potential(lambda t, x: t**2 * x.square().sum(-1), time=True), lambda x: 3 * x.square().sum(1).mean()),
        (energies.KL(lambda t, x: -t * x.sum(-1), time=True), lambda x: x.sum(1).mean()),
        (energies.Local(lambda t, x, ell: t * x.sum(-1), time=True), lambda x: x.sum(1).mean()),
        (
            energies.Interaction(lambda t, r: t * r.square().sum(-1), time=True),
            lambda x: (len(x) / (len(x) - 1)) * (x - x.mean(0)).square().sum(1).mean(),
        ),
        (energies.Drift(lambda t, x: t * x, time=True), lambda x: x.new_zeros(())),
    ],
)
def test_the_power_is_the_derivative_of_the_value_in_time(energy, slope):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rho = PushedMeasure(maps.Affine(2), pwgf.Gaussian(2), maps.Affine(2).initial(), x, t=1.5)
    torch.testing.assert_close(energy.power(rho), slope(x))
    torch.testing.assert_close((2.0 * energy + energies.Entropy()).power(rho), 2 * slope(x))


def test_a_function_that_reads_the_time_outside_torch_has_an_unknown_power():
    energy = energies.Potential(lambda t, x: float(t) * x.sum(-1), time=True)
    assert math.isnan(energy.power(Cloud(torch.zeros(3, 1), t=1.0)))
