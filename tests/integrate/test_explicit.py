"""Orders, error control, rejections and interval ends of explicit integrators, on equations with closed forms."""

import math

import pytest
import torch

from pwgf import maps, problems
from pwgf.errors import NonFiniteError, SolverError
from pwgf.integrate import Explicit, FixedStep
from pwgf.integrate.base import NO_MEMORY
from pwgf.integrate.explicit import ADAPTIVE, FIXED
from pwgf.measures import Reference
from pwgf.schemes import PWGF

TOLERANCES = {"adaptive_heun": (1e-3, 1e-5), "bosh3": (1e-4, 1e-7), "dopri5": (1e-5, 1e-9), "dopri8": (1e-6, 1e-10)}


class Ode:
    """θ̇ = f(θ) as a field; the displacement of an error is its Euclidean length. Counts its calls."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, theta, since=0.0):
        self.calls += 1
        return self.f(theta)

    def displacement(self, e):
        return e.norm()


def logistic(theta):
    return theta * (1 - theta)


def logistic_exact(start, t):
    return start / (start + (1 - start) * math.exp(-t))


def move(field, start, length, method="bosh3", tolerance=1e-6, first_step=0.1, max_rejections=20):
    theta = torch.tensor([start], dtype=torch.float64)
    if method in FIXED:
        return FixedStep(method, first_step).advance(field, theta, length, first_step, NO_MEMORY)
    integrator = Explicit(method, tolerance, max_rejections=max_rejections)
    return integrator.advance(field, theta, length, first_step, NO_MEMORY)


def fixed_error(method, h):
    field, theta = Ode(logistic), torch.tensor([0.1], dtype=torch.float64)
    for _ in range(round(2 / h)):
        theta = FixedStep(method, h).advance(field, theta, h, h, NO_MEMORY).theta
    return abs(float(theta) - logistic_exact(0.1, 2.0))


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_fixed_methods_have_their_order(method, order):
    observed = math.log2(fixed_error(method, 0.1) / fixed_error(method, 0.05))
    assert observed == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("method", TOLERANCES)
def test_adaptive_error_is_proportional_to_the_tolerance(method):
    errors = []
    for tolerance in TOLERANCES[method]:
        moved = move(Ode(logistic), 0.1, 4.0, method, tolerance, first_step=0.01)
        errors.append(abs(float(moved.theta) - logistic_exact(0.1, 4.0)))
        assert errors[-1] < 10 * tolerance
    loose, tight = TOLERANCES[method]
    assert math.log(errors[0] / errors[1]) / math.log(loose / tight) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize(
    ("method", "order", "tolerance"), [("adaptive_heun", 2, 1e-5), ("bosh3", 3, 1e-6), ("dopri5", 5, 1e-8)]
)
def test_adaptive_work_grows_with_the_root_of_the_tolerance(method, order, tolerance):
    """A substep's error estimate is O(h^order), so a tolerance 4^order smaller takes 4 times as many substeps."""
    loose, tight = Ode(logistic), Ode(logistic)
    move(loose, 0.1, 4.0, method, tolerance, first_step=0.01, max_rejections=1000)
    move(tight, 0.1, 4.0, method, tolerance / 4**order, first_step=0.01, max_rejections=1000)
    assert tight.calls / loose.calls == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("method", [m for m in ADAPTIVE if m != "dopri8"] + ["euler", "rk4"])
@pytest.mark.parametrize("first_step", [0.3, 0.9999999999, 1.0, 1.0000000001, 50.0])
def test_the_interval_ends_exactly(method, first_step):
    """θ̇ = 1 is integrated to rounding by every method, so θ tells the time at which it stopped."""
    tolerance = 1e-3 if method in ADAPTIVE else None
    moved = move(Ode(torch.ones_like), 0.0, 1.0, method, tolerance, first_step)
    assert float(moved.theta) == pytest.approx(1.0, abs=1e-14)


def test_the_proposal_remembers_the_uncut_length():
    field = Ode(lambda theta: -theta)
    moved = move(field, 1.0, 1.0, tolerance=1e-2, first_step=0.8)
    assert moved.dt == pytest.approx(0.2, abs=1e-6)  # cut at the end
    assert moved.proposal >= 0.8
    whole = move(field, 1.0, 0.2, tolerance=1e-2, first_step=0.8)
    assert whole.dt == pytest.approx(0.2)
    assert whole.proposal >= 0.8


def test_a_good_step_grows_and_growth_is_bounded():
    """θ̇ = 1 has no error at all; a step grows at most fourfold."""
    assert move(Ode(torch.ones_like), 0.0, 0.1, first_step=0.1).proposal == pytest.approx(0.4)


def test_the_proposal_follows_the_error_ratio():
    """.9·ratio^{−1/3} of the error that the norm saw in the only substep; two more are for the stiffness."""
    seen = []

    class Watched(Ode):
        def displacement(self, e):
            seen.append(float(e.norm()))
            return e.norm()

    moved = move(Watched(lambda theta: -theta), 1.0, 0.1, tolerance=1e-4, first_step=0.1)
    assert len(seen) == 3
    assert moved.proposal == pytest.approx(0.1 * 0.9 * seen[0] ** (-1 / 3))


@pytest.mark.parametrize("error", [SolverError, NonFiniteError])
def test_a_failing_stage_is_a_rejected_substep(error):
    """A step of length 5 on θ̇ = −θ overshoots below −1, where the field has no value."""

    def decay(theta):
        if float(theta) < -0.5:
            raise error("no value here")
        return -theta

    moved = move(Ode(decay), 1.0, 8.0, tolerance=1e-5, first_step=5.0)
    assert moved.num_rejected >= 1
    assert float(moved.theta) == pytest.approx(math.exp(-8), abs=1e-4)


def test_a_nan_stage_is_a_rejected_substep():
    field = Ode(lambda theta: torch.where(theta < -0.5, math.nan, -theta))
    moved = move(field, 1.0, 8.0, tolerance=1e-5, first_step=5.0)
    assert moved.num_rejected >= 1
    assert float(moved.theta) == pytest.approx(math.exp(-8), abs=1e-4)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "rk4"])
def test_a_nan_field_is_told(method):
    with pytest.raises(NonFiniteError, match="right side θ̇ is NaN"):
        move(Ode(lambda theta: theta * math.nan), 1.0, 1.0, method, 1e-4 if method in ADAPTIVE else None)


@pytest.mark.parametrize("method", ["bosh3", "euler"])
def test_a_failing_first_stage_is_raised(method):
    def fails(theta):
        raise SolverError("stage one")

    with pytest.raises(SolverError, match="stage one"):
        move(Ode(fails), 1.0, 1.0, method, 1e-4 if method in ADAPTIVE else None)


def test_a_failing_later_stage_of_a_fixed_method_is_raised():
    def fails(theta):
        if float(theta) != 1.0:
            raise SolverError("stage two")
        return -theta

    with pytest.raises(SolverError, match="stage two"):
        move(Ode(fails), 1.0, 1.0, "rk4", None)


def test_rejections_are_capped():
    class Hopeless(Ode):
        def displacement(self, e):
            return torch.tensor(1e12)

    with pytest.raises(SolverError, match=r"4 substeps rejected, down to dt = .*error still 1e\+12 × tolerance"):
        move(Hopeless(logistic), 0.1, 1.0, max_rejections=3)


def test_the_cap_names_the_failure_behind_the_rejections():
    def fails(theta):
        if float(theta) != 1.0:
            raise SolverError("the culprit")
        return -theta

    with pytest.raises(SolverError, match="3 substeps rejected.*last: the culprit"):
        move(Ode(fails), 1.0, 1.0, max_rejections=2)


def test_a_non_finite_displacement_is_a_rejection():
    class Odd(Ode):
        def displacement(self, e):
            return torch.tensor(math.nan) if self.calls < 6 else e.norm()

    assert move(Odd(logistic), 0.1, 1.0).num_rejected >= 1


def test_a_substep_below_rounding_is_a_solver_error():
    class Hopeless(Ode):
        def displacement(self, e):
            return torch.tensor(1e12)

    with pytest.raises(SolverError, match="underflow in dt"):
        move(Hopeless(logistic), 0.1, 1.0, max_rejections=10_000)


class Matched(Reference):
    """N(0, I) whose samples have mean 0 and covariance I exactly."""

    def __init__(self, dim):
        self._law, self.dim = problems.OrnsteinUhlenbeck(dim).reference, dim

    def sample(self, n, generator):
        return self._law.matched_sample(n, generator)

    def log_density(self, z):
        return self._law.log_density(z)


COV, MEAN = torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)


def ou_error(**settings):
    """|θ(t) − exact| for the flow of ½(x−b)ᵀΣ⁻¹(x−b) + entropy by the affine map, whose A stays (cov)^½."""
    problem = problems.OrnsteinUhlenbeck(2, cov=COV, mean=MEAN)
    scheme = PWGF(problem.energy, maps.Affine(2), Matched(2), num_samples=40, damping=0.0, momentum=0.0, **settings)
    state = scheme.start()
    while state.t < 0.4:
        state, _ = scheme.step(state, 0.4)
    law = problem.exact(0.4)
    values, vectors = torch.linalg.eigh(law.cov())
    exact = torch.cat([(vectors * values.sqrt()) @ vectors.T, law.mean()[:, None]], dim=1).reshape(-1)
    assert state.t == 0.4
    return float((state.theta - exact).norm())


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_flow_itself_has_the_order_of_the_method(method, order):
    coarse, fine = (ou_error(integrator=FixedStep(method, dt)) for dt in (0.02, 0.01))
    observed = math.log2(coarse / fine)
    assert observed == pytest.approx(order, abs=0.15)


def test_fixed_methods_do_not_warn(recwarn):
    move(Ode(logistic), 0.1, 0.1, "rk4", None)
    assert not recwarn.list


def test_the_flow_respects_its_tolerance():
    loose, tight = (ou_error(integrator="bosh3", tolerance=tolerance) for tolerance in (1e-3, 1e-6))
    assert loose < 1e-2
    assert tight < 1e-5
    assert math.log10(loose / tight) == pytest.approx(3, abs=0.7)
