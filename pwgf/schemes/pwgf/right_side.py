"""One right side: where energy, tangent and linear solve meet to give θ̇ = argmin E|J θ̇ − v|²."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import NonFiniteError, SolverError
from ...linalg import Solution
from ...linalg.choice import MAX_IMPLICIT_PRIMAL, MIN_OUTPUT_SHARE
from ...measures import FlooredMeasure
from ...tangent import Curvature, ImplicitTangent, Tangent
from .._guards import finite_velocity, first_point
from .._mobility import Frame, covariance_root
from .guards import agreed
from .setup import Setup

EXACT_SLOPES = 2
"""Dimension up to which |∇u|² is formed from all d directions at a sample; above it from one random direction."""

TAIL = 0.005
"""Share of the samples at which the map may fold within a step: those in a tail of λ, where it is least known."""

STRETCH = 2.0
"""Slope of the map, relative to its typical one, above which a sample's displacement is measured in z instead of x."""

FASTEST = 5.0
"""Speed allowed where the map is thin, relative to the rms of all but the fastest `TAIL` of the samples."""

_FIRST_ORDER = 1e-3  # share of a step over which the energy's slope along it is taken
_ROUNDING = 1e-6  # relative to 1 + |F|: a rise of the energy below it is none


class Start(NamedTuple):
    """F at the first stage, by how much it should fall per unit of t, and E|velocity|²."""

    energy: float
    falling: float
    speed2: float


class RightSide:
    """θ̇(θ) on frozen samples z (n,d), damped towards a multiple of `last`; counts its calls and keeps the latest stage.

    Args:
        setup: the fixed part.
        z: (n,d) samples of λ, the same in every process.
        last: last accepted θ̇ (p,), from other samples; zeros when there is none.
        momentum, damping: of an explicit solve.
        t: time at the start of the interval.
        implicit_damping, implicit_momentum: the same of the solves of implicit steps.
        probes: (n,q,d) directions in which implicit steps see slopes; None where only explicit ones are taken.
        in_spreads: whether displacements are measured in units of the spread of ρ at the first stage, not of x.
        weights: (n,) of mean 1, by which z stand for samples of λ; None where they are such samples.
    """

    def __init__(
        self,
        setup: Setup,
        z: Tensor,
        last: Tensor,
        t: float,
        *,
        momentum: float,
        damping: float,
        implicit_damping: float = 0.0,
        implicit_momentum: float = 0.0,
        probes: Tensor | None = None,
        in_spreads: bool = False,
        weights: Tensor | None = None,
    ) -> None:
        self.setup, self.z, self.t, self.damping, self.probes = setup, z, t, damping, probes
        self.implicit_damping, self.implicit_momentum = implicit_damping, implicit_momentum
        self.in_spreads, self.unit, self.unit_in_x = in_spreads, 1.0, 1.0
        self.weights = weights
        self.prepared: Any = None  # what the solver has of the latest J, and may use again at the next
        self.last, self.momentum = last, momentum
        self.floor: float | None = None  # that of the first stage, so that the field is one function of θ
        self.num_stages, self.num_products, self.extra_damping = 0, 0, 1.0
        self.residual = 0.0
        self.misfit: float | Tensor = 0.0  # share of the velocity that the latest solve misses
        self.frame = Frame()  # of the latest stage
        self.start: Start | None = None
        self.first: FlooredMeasure | None = None  # ρ at the first stage, where its energy at a later time is wanted

    @property
    def fit(self) -> float:
        """Share of the velocity that the latest solve misses, in sample."""
        return float(self.misfit)

    def __call__(self, theta: Tensor, since: float = 0.0) -> Tensor:
        """One least-squares solve, at the time `since` after the start of the interval."""
        if self.setup.form == "gradient":
            self.num_stages += 1
            self.tangent = self.setup.tangent(theta, self.z)
            self.rho = self._measure(theta, self.t + since)
            return self._accepted(self._gradient_form())
        v = self._look(theta, since)
        return self.solved(self.fitted, self.weighted(v), self.damping, self.momentum)

    def weighted(self, v: Tensor) -> Tensor:
        """Own rows v (n,d) of a right side times the roots of their weights, as those of `fitted` are."""
        return v if self.rho.weights is None else self.rho.weights.sqrt().unsqueeze(1) * v

    def _measure(self, theta: Tensor, t: float) -> FlooredMeasure:
        """ρ at θ and t on the samples, with the floor of the first stage."""
        return self.setup.floored(theta, self.z, self.floor, t, self.weights)

    def solved(self, system: Tangent | ImplicitTangent, rhs: Tensor, damping: float, momentum: float) -> Tensor:
        """η = argmin |Rη − r|²/n + damping, centred at the multiple of the last θ̇ that fits r best, up to momentum.

        A fixed multiple would drag the rates of a fast transient into what follows it.
        """
        prior = torch.zeros_like(self.last)
        if momentum > 0:
            last = self.frame.coordinates(self.last)
            prior = _multiple(system, last, rhs).clamp(0.0, momentum) * last
        return self.frame.rates(self._accepted(self._solution(system, damping, rhs, prior)))

    def _solution(
        self, system: Tangent | ImplicitTangent, damping: float, v: Tensor, prior: Tensor, rhs: Tensor | None = None
    ) -> Solution:
        solver = self.setup.solver
        self.prepared = solver.prepare(system, damping, self.prepared, has_rhs=rhs is not None)
        return solver.solve(self.prepared, v, prior, rhs)

    def _look(self, theta: Tensor, since: float = 0.0) -> Tensor:
        """v (n,d) at θ and the time `since` after the start, in the coordinates of a frame; keeps ρ, J and it."""
        self.num_stages += 1
        self.tangent = self.setup.tangent(theta, self.z)
        self.rho = self._measure(theta, self.t + since)
        force = self.velocity_at(self.rho)
        self.frame = self.setup.frame(self.rho)
        self.fitted, v = self.frame.tangent(self.tangent), self.frame.pull(force)
        if self.weights is not None:
            self.fitted = self.fitted.weighted(self.weights)
        if self.floor is None and self.rho.asked_for_density:
            self.floor = self.rho.floor
        if self.start is None:
            speeds = [self.rho.mean(u.square().sum(1)) for u in (v, self.frame.outside(v))]
            self.start = Start(*torch.stack([self.setup.energy(self.rho).detach(), *speeds]).tolist())
            self.unit = self._spread() if self.in_spreads and not self.frame.in_spreads else 1.0
            self.unit_in_x = self._spread() if self.frame.in_spreads else self.unit
            self.first = self.rho if self.setup.energy.time else None
        return v

    def velocity_at(self, rho: FlooredMeasure) -> Tensor:
        """−∇δF/δρ (n,d), no faster than the others by `FASTEST` where the map is thin.

        There the score grows as 1/slope². Of 4000 samples on their way to a banana, one in the tail carried 87 % of
        E|v|²: it alone decided the fit and the step.
        """
        v = finite_velocity(self.setup.energy, rho)
        if not rho.asked_for_density:
            return v
        speed = v.norm(dim=1)
        every = rho.gather(speed)
        slow = every.topk(max(1, len(every) - math.ceil(TAIL * len(every))), largest=False).values
        limit = FASTEST * slow.square().mean().sqrt()
        return torch.where(rho.thin & (speed > limit), limit / speed, 1.0).unsqueeze(1) * v

    def _accepted(self, solution: Solution) -> Tensor:
        """θ̇ of a solve that has converged to finite numbers."""
        solution = agreed(solution, self.setup.group)
        self.num_products += solution.num_products
        self.residual, self.misfit = solution.residual, solution.fit
        if not self.setup.solver.finite and not bool(torch.isfinite(solution.x).all()):
            raise NonFiniteError(f"the linear solve gave NaN or infinite θ̇ at t = {self.t:.6g}")
        if not solution.converged:
            raise SolverError(
                f"the linear solve stopped at relative residual {solution.residual:.1e} after {solution.num_products} "
                f"products at t = {self.t:.6g}"
            )
        return solution.x

    def _gradient_form(self) -> Solution:
        """The paper's right side: −∇_θF of the sampled energy instead of Jᵀv/n."""
        with torch.enable_grad():
            theta = self.rho.theta.detach().requires_grad_(True)
            energy = self.setup.energy(self.setup.pushed(theta, self.z, float(self.rho.t or 0.0)))
            gradient = self.rho.group.sum(torch.autograd.grad(energy, theta)[0])
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(f"the energy's gradient in θ is NaN or infinite at t = {self.t:.6g}")
        if self.start is None:
            self.start = Start(float(energy.detach()), math.nan, math.nan)
            self.first = self.rho if self.setup.energy.time else None
        unused = torch.zeros_like(self.rho.x)
        return self._solution(self.tangent, self.damping, unused, self.momentum * self.last, -gradient)

    def displacement(self, e: Tensor) -> Tensor:
        """rms_i |J_i e| at the latest stage, over the unit of displacements."""
        u = self.frame.measured(self.tangent.jv(e.to(self.z)))
        return self.rho.mean(u.square().sum(1)).sqrt() / self.unit

    def _spread(self, x: Tensor | None = None) -> float:
        """That of samples, rms over the coordinates; of ρ at the latest stage."""
        x = self.rho.x.detach() if x is None else x
        return float(self.rho.mean((x - self.rho.mean(x)).square().mean(1)).sqrt())

    def moved(self) -> float:
        """How far the mean of ρ lies from that of λ, in the larger of their spreads, at the latest stage."""
        apart = self.rho.mean(self.rho.x.detach()) - self.rho.mean(self.rho.z)
        return float(apart.norm()) / max(self._spread(), self._spread(self.rho.z), 1e-300)

    def linearise(self, theta: Tensor, since: float = 0.0) -> Linearised:
        """v, J and H at θ, for implicit steps from the time `since` after the start."""
        v = self._look(theta, since)
        with torch.no_grad():
            form = self.frame.form(self.setup.energy.hessian(self.rho).majorant())
        bends = form.slope is not None or form.divergence is not None
        inverse = self.frame.slopes(self.rho.inverse_jacobian) if bends else None
        exact = self.z.shape[1] <= EXACT_SLOPES
        return Linearised(self, v, Curvature(self.fitted, form, inverse, self.probes, exact))

    def implicit_is_cheap(self, theta: Tensor) -> bool:
        """Whether implicit steps are solved directly, or preconditioned by blocks of J as explicit ones are."""
        return (
            len(theta) <= MAX_IMPLICIT_PRIMAL or self.setup.tangent(theta, self.z[:1]).output_share > MIN_OUTPUT_SHARE
        )

    def fault(self, start: Linearised, theta: Tensor, h: float) -> str | None:
        """Why a step of length h from `start` must not end at θ; None if it may.

        An F that depends on time is compared at the end of the step, where its change in time is none. v then turns
        within the step, and F may rise by as much as the motion of the samples costs, E|Δx|²/h. The value of an energy
        with drifts need not fall at all.
        """
        end = start.t + h
        rho = self._measure(theta, end)
        energy = float(self.setup.energy(rho))
        if not math.isfinite(energy):
            return "the energy is not finite at its end"
        if start.rho.asked_for_density and _share_folded(rho, start.rho) > TAIL:
            return "the map would fold at more samples than a few in the tail"
        timed = self.setup.energy.time
        before = float(self.setup.energy(start.rho.at(end))) if timed else start.energy
        rise = energy - before
        if not self.setup.energy.has_value or rise <= _ROUNDING * (1 + abs(energy)):
            return None
        # v is the gradient of F, not of its mean over these samples: along the step that mean may rise at first order
        near = self._measure(start.rho.theta + _FIRST_ORDER * (theta - start.rho.theta), end)
        slope = (float(self.setup.energy(near)) - before) / _FIRST_ORDER
        allowed = self._action(start.rho, start.frame, rho, h) if timed else 0.0
        if rise > 2 * max(slope, 0.0) + 0.5 * start.fallen(h) + allowed:
            return f"the energy would rise by {rise:.2g} on the same samples"
        return None

    def _action(self, start: FlooredMeasure, frame: Frame, end: FlooredMeasure, h: float) -> float:
        """E|Δx|²/h between two measures on the same z, in the norm in which velocities are fitted."""
        return float(end.mean(frame.inside((end.x - start.x).detach()).square().sum(1))) / h

    def strain(self) -> tuple[float, float]:
        """Shares of samples that have folded beyond the tail's, and that are at the edge of it, at the latest stage."""
        folded, unsound = self._folded()
        return (folded if folded > TAIL else 0.0), unsound

    def _folded(self) -> tuple[float, float]:
        """Shares of samples that have folded, and that have folded or nearly so; 0 where no density is asked for."""
        if not self.rho.asked_for_density:
            return 0.0, 0.0
        flags = torch.stack([self.rho.det_sign <= 0, self.rho.unsound], 1).to(self.z.dtype)
        folded, unsound = self.rho.mean(flags).tolist()
        return folded, unsound

    def diagnosis(self) -> str:
        """What was measured at the latest stage, for the message of a run that cannot go on."""
        v2 = self.rho.gather(self.frame.velocity(self.setup.energy.velocity(self.rho)).square().sum(1))
        few = max(1, len(v2) // 100)
        fastest = int(v2.argmax())
        carried = float(v2.topk(few).values.sum() / v2.sum().clamp_min(1e-300))
        place = first_point(self.rho.gather(self.rho.x), v2 == v2[fastest])
        found = f"rms|v| is {float(v2.mean().sqrt()):.2g}, of which the fastest {few} of {len(v2)} samples carry "
        found += f"{100 * carried:.0f} % (the fastest at x = {place})"
        folded, unsound = self._folded()
        if not self.rho.asked_for_density:
            return found
        return f"{found}; the map has folded at {folded:.2g} of the samples and nearly so at {unsound - folded:.2g}"

    def fall(self, theta: Tensor, h: float) -> dict[str, float]:
        """F at θ, h after the start, its change since the first stage by the motion alone, and how much it should fall.

        All on the same samples. An energy that depends on time is taken at the end both times, and then may fall by
        the cost E|Δx|²/h of the motion. The change is NaN where terms have no value.
        """
        energy, t = self.setup.energy, self.t + h
        same = torch.allclose(theta, self.rho.theta, rtol=1e-12, atol=1e-14)
        rho = self.rho.at(t) if same else self._measure(theta, t)
        end, start = float(energy(rho)), self.start or Start(math.nan, math.nan, math.nan)
        before, predicted = start.energy, h * start.falling * (1 - min(self.fit, 1.0))
        if self.first is not None:
            before = float(energy(self.first.at(t)))
            predicted = max(predicted, self._action(self.first, self.frame, rho, h))
        change = end - before if energy.has_value else math.nan
        return {"energy": end, "energy_change": change, "predicted_change": -predicted}


class Linearised:
    """The flow at one θ on frozen samples: v, J and H; see `integrate.Linearised`."""

    def __init__(self, side: RightSide, v: Tensor, curvature: Curvature) -> None:
        self.side, self.rho, self.frame, self.tangent = side, side.rho, side.frame, side.tangent
        self.v, self.curvature = v, curvature
        self.t = float(self.rho.t or 0.0)
        self.w: Tensor | None = None  # J η of the first solve, as v in the coordinates of the frame
        self.pull = v  # its v
        self.pulls: dict[float, Tensor] = {}  # v at a time h after θ's, by h, where the energy depends on time

    @cached_property
    def energy(self) -> float:
        """F on the samples."""
        return float(self.side.setup.energy(self.rho))

    def velocity(self, h: float, moved: Tensor | None = None) -> Tensor:
        """η = argmin E|Jη − v + moved/h|² + h·ηᵀHη + damping, (p,)."""
        side, system = self.side, ImplicitTangent(self.curvature, h)
        side.frame = self.frame
        pull = self.frame.pull(side.velocity_at(self.rho.at(self.t + h))) if side.setup.energy.time else self.v
        if side.setup.energy.time:
            self.pulls[h] = pull
        v = pull if moved is None else pull - self.frame.inside(moved) / h
        momentum = side.implicit_momentum if moved is None else 0.0
        rhs = system.right_side(side.weighted(v))
        eta = side.solved(system, rhs, side.extra_damping * side.implicit_damping, momentum)
        if self.w is None:
            self.pull = pull
            self.w = self.frame.inside(self.tangent.jv(eta))
            missed, whole = torch.stack([self.rho.mean(u.square().sum(1)) for u in (self.w - v, v)])
            side.misfit = torch.where(whole > 0, missed / whole, 0.0)
        return eta

    def agreement(self) -> float:
        """The multiple of the last θ̇ that fits v best, where rates are carried over by momentum; elsewhere 1."""
        if self.side.implicit_momentum == 0:
            return 1.0
        last = self.frame.coordinates(self.side.last)
        return float(_multiple(self.curvature.tangent, last, self.side.weighted(self.v)))

    def unseen(self, h: float) -> float:
        """How far a jump of v in time would move samples that lies before the first of the steps to h, h/2, h/3; rms.

        v at the ends of these steps, extrapolated to their start, is v there unless it jumps between: for a smooth v
        the difference is of the order of the method.
        """
        ends = [h / k for k in (1, 2, 3) if h / k in self.pulls]
        if not ends:
            return 0.0
        weights = [math.prod(s / (s - end) for s in ends if s != end) for end in ends]
        gap = self.v - sum(weight * self.pulls[end] for weight, end in zip(weights, ends, strict=True))
        return min(ends) * float(self.rho.mean(gap.square().sum(1)).sqrt()) / self.side.unit

    def fallen(self, h: float) -> float:
        """h·|E v·Jη| of the first solve: by how much F should fall within h."""
        return 0.0 if self.w is None else h * abs(float(self.rho.mean((self.pull * self.w).sum(1))))

    def displacement(self, e: Tensor) -> float:
        """rms_i of |J_i e|, but no more than `STRETCH` times the typical slope of T times |(∂_zT)⁻¹J_i e|.

        Where the law is torn the map is a cliff: the few samples on it move far at the least change of θ, and would
        decide the step alone. They are compared in the coordinates of λ.
        """
        u = self.tangent.jv(e)
        size2 = self.frame.measured(u).square().sum(1)
        if self.rho.asked_for_density:
            back = (self.rho.inverse_jacobian @ u.unsqueeze(2)).squeeze(2)
            slope = self.rho.typical_slope
            if self.frame.in_spreads:  # then of λ in each direction
                back, slope = Frame(covariance_root(self.rho.z, self.rho)).inside(back), 1.0
            size2 = torch.minimum(size2, (STRETCH * slope) ** 2 * back.square().sum(1))
        return float(self.rho.mean(size2).sqrt()) / self.side.unit

    def stiffness(self, e: Tensor) -> float:
        """eᵀHe/E|Je|²."""
        size2 = self.rho.mean(self.frame.inside(self.tangent.jv(e)).square().sum(1))
        plain, bent = torch.stack([size2, self.curvature.quadratic(self.frame.coordinates(e))]).tolist()
        return bent / plain if plain > 0 else 0.0

    def moved_since(self, start: Linearised) -> Tensor:
        """T_θ(z) − T_θ₀(z), (n,d)."""
        return (self.rho.x - start.rho.x).detach()

    def folded_since(self, start: Linearised) -> bool:
        """Whether more samples have folded since than a few in the tail."""
        return self.rho.asked_for_density and _share_folded(self.rho, start.rho) > TAIL


def _multiple(system: Tangent | ImplicitTangent, eta: Tensor, rhs: Tensor) -> Tensor:
    """The multiple of η (p,) with the best fit of Rη to r; 1 where Rη = 0."""
    moved = system.jv(eta)
    fit, size = system.group.sum(torch.stack([(moved * rhs).sum(), moved.square().sum()]))
    return torch.where(size > 0, fit / size, 1.0)


def _share_folded(rho: FlooredMeasure, before: FlooredMeasure) -> float:
    """Share of samples whose det ∂_zT has turned ≤ 0."""
    return float(rho.mean(((rho.det_sign <= 0) & (before.det_sign > 0)).to(rho.z.dtype)))
