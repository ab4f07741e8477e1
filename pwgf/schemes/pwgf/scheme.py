"""The parameterised Wasserstein gradient flow: θ̇ = argmin E|J θ̇ − v|², stepped on redrawn samples."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import (
    check_device,
    check_number,
    check_theta0,
    memory_for_blocks,
    plain_numbers,
    seeded,
)
from ...energies import Energy, refuse_ill_posed
from ...errors import ConfigError, NonFiniteError, SolverError
from ...integrate import Advance, Auto, Explicit, FixedStep, Implicit, Integrator, get_integrator
from ...linalg import LinearSolver, get_solver
from ...maps import Layers, ResidualMLP
from ...maps.base import PushForward
from ...measures import Reference
from ...parallel import ALONE, world
from ...state import Info, State
from .._arguments import check_lengths, in_standard_coordinates, refuse_jump, refuse_kinks, try_functions
from .._guards import finite_velocity, refuse_folded
from .._mobility import Given
from ..base import Description, MapReplay, Row, fork, member_config, merge_counters, tensor_config
from .cures import NOT_TRIED, errors_with_cures
from .description import described
from .draws import Draws
from .estimate import error_95, error_estimate, samples_for
from .evaluation import evaluate_row
from .growth import check_growth, grown
from .guards import MOST_TINY, check_shared, gave_up, memory_of, none_yet, stalled
from .right_side import EXACT_SLOPES, RightSide
from .settings import (
    auto_solver,
    check_accuracy,
    check_coordinates,
    check_members,
    check_numbers,
    checked_mobility,
    choose_chunk_size,
    default_tolerance,
    solve_settings,
)
from .setup import Setup
from .watch import PWGFWatch

_log = logging.getLogger("pwgf")
_REDRAWS = 4  # failed intervals in a row before the run stops


class PWGF(MapReplay):
    r"""Parameterised Wasserstein gradient flow of an energy by a push-forward map.

    ρ_θ = (T_θ)#λ follows ∂ₜρ = ∇·(ρ∇δF/δρ) through θ̇ = argmin_η E_λ|∂_θT η − v|², v = −∇δF/δρ(T_θ(z)). Each right side
    is one damped least-squares solve on `num_samples` samples, which are frozen during a sampling interval and redrawn
    after it: evenly spread ones of λ or, for a Gaussian λ and an energy with a density or without pairs, of a wider law
    with weights, so that the map is held in the tails.

    Args:
        energy: F, e.g. `energies.Potential(V) + energies.Entropy()`.
        map: T, e.g. `maps.ResidualMLP(dim)`. Where λ has a mean far from 0 or a spread far from 1, and there is no
            theta0, the run's map is `maps.Standardised` of it, the attribute `map` of the scheme: results do not depend
            on the origin and the unit of x.
        reference: λ, e.g. `Gaussian(dim)`.
        tolerance: largest rms displacement error of a sample per step, in units of x; None means 1e-4 for explicit
            steps and for d = 1, and 3e-4 for other implicit ones, whose estimate is that of a lower order; under a
            `maps.Standardised` map in units of the present spread of ρ.
        integrator: `auto` (implicit steps, and explicit ones once the flow is smooth), `implicit`,
            `explicit`, an adaptive method such as `bosh3`, or an integrator with its settings from `pwgf.integrate`:
            Implicit(…), Explicit(…), FixedStep("rk4", dt), Euler(dt).
        damping: of the solve, relative to the metric's trace; None means 1e-6, and 1e-7 for implicit steps of a map
            with few parameters (up to 600, and about n·d/4); for d = 1, but a circle, 1e-10 in all steps of a run that
            takes implicit ones with such a map; 1e-9 for `maps.Affine` from num_samples of 2(d + 1) on. Smaller is more
            accurate, and takes more steps.
        momentum: the damping is centred at up to momentum times the last accepted θ̇; in [0, 1]. None means .9, and 0
            for implicit steps of a map with few parameters.
        accuracy: error of the law that is aimed at, W₂ relative to its spread √tr cov. Each row's `error_estimate` is
            held against it, and what would help is tried where it is larger. Where no tolerance is given it also sets
            that of the steps, a fiftieth of it in present spreads of ρ. None: 2 %, with the default tolerance.
        on_miss: whether a row that misses the accuracy is only warned of, `warn`, or ends the run, `stop`.
        num_samples: n, samples of a right side.
        num_eval: fresh samples on which each row's energy, residual and fold fraction are measured.
        solver: `auto`, `primal`, `dual`, `block-pcg`, `pcg`, `cg`, `lsmr`, or a `linalg` solver with
            its settings.
        theta0: θ at the start, (p,); None means `map.initial(seed)`, the identity.
        mobility: M of ∂ₜρ = ∇·(ρM∇δF/δρ), positive definite: None, the identity; `covariance`, that of ρ, with which a
            flow relaxes at the same rate in all directions; a number, a diagonal (d,), a matrix (d,d), or a function
            of x (n,d) that gives (n,), (n,d) or (n,d,d). θ̇ is fitted in the norm of M⁻¹; with `covariance` the
            tolerance is in spreads of ρ, each direction in its own.
        form: `velocity`, or `gradient` for the published right side −∇_θF of the sampled energy (for comparison).
        chunk_size: samples per block in densities and tangents; results do not depend on it but for rounding. None: as
            many as `max_memory` allows.
        max_memory: bytes for what densities and tangents hold for the samples of a block; None: 1e9 on a CPU, a tenth
            of its memory on another device.
        dtype, device: of θ and all computation.

    Raises:
        ConfigError: an argument that cannot work; the message says which and what would.

    Example:
        >>> import torch, pwgf
        >>> from pwgf import energies, maps
        >>> energy = energies.Potential(lambda x: 2 * (x - 3).square().sum(-1)) + energies.Entropy()
        >>> scheme = pwgf.PWGF(energy, maps.Affine(dim=2), pwgf.Gaussian(dim=2), num_samples=200)
        >>> run = pwgf.solve(scheme, times=[0.0, 0.5], progress=False)
        >>> bool((run.sample(t=0.5, n=1000).mean(0) - 3 * (1 - torch.exp(torch.tensor(-2.0)))).abs().max() < 0.1)
        True

    References:
        Jin, Liu, Wu, Ye, Zhou, Parameterized Wasserstein gradient flow, 2024, arXiv 2404.19133.
    """

    @plain_numbers
    def __init__(
        self,
        energy: Energy,
        map: PushForward,
        reference: Reference,
        *,
        tolerance: float | None = None,
        integrator: str | Integrator = "auto",
        accuracy: float | None = None,
        on_miss: str = "warn",
        damping: float | None = None,
        momentum: float | None = None,
        num_samples: int = 1000,
        num_eval: int = 10_000,
        solver: str | LinearSolver = "auto",
        theta0: Tensor | None = None,
        mobility: Given = None,
        form: str = "velocity",
        chunk_size: int | None = None,
        max_memory: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        check_members(energy, map, reference)
        check_numbers(
            damping=damping, momentum=momentum, form=form, dtype=dtype, num_samples=num_samples, num_eval=num_eval,
        )  # fmt: skip
        refuse_ill_posed(energy)
        if tolerance is not None:
            check_number(tolerance, "tolerance", "PWGF", low=0.0, high=math.inf, open_low=True)
        if theta0 is None:
            map = in_standard_coordinates(map, reference)
        check_growth(map)
        super().__init__(map, reference, dtype, check_device(device, "PWGF"))
        max_memory = memory_for_blocks(self.device) if max_memory is None else max_memory
        chunk = choose_chunk_size(chunk_size, max_memory, map, dtype)
        self.energy, self.theta0 = energy, check_theta0(theta0, map.num_params, "PWGF")
        self.num_samples, self.num_eval, self.momentum = num_samples, num_eval, momentum
        chosen = self._chosen(integrator, form)
        self.accuracy, self.on_miss = check_accuracy(accuracy, on_miss, dtype), on_miss
        self.integrator = chosen.resolved(default_tolerance(tolerance, accuracy, chosen, map.dim))
        self.tolerance = getattr(self.integrator, "tolerance", tolerance)
        solver_ = auto_solver(self.tolerance) if solver == "auto" else get_solver(solver)
        default = tolerance is None and getattr(chosen, "tolerance", None) is None
        self._in_spreads = default and (accuracy is not None or map.own_coordinates)
        self.damping, self.chunk_size, self.max_memory = damping, chunk_size, max_memory
        moved_by = checked_mobility(mobility, energy, form, num_samples, map.dim)
        self._setup = Setup(energy, map, reference, solver_, form, chunk, world(), moved_by)
        self._alone = dataclasses.replace(self._setup, group=ALONE)  # for a few samples, in every process
        self._draws = Draws(self._alone, num_samples, num_eval, dtype, self.device)

    @classmethod
    def suited(cls, energy: Energy, reference: Reference, times: np.ndarray, **settings: Any) -> PWGF:
        """One with `maps.ResidualMLP(dim)`, in layers for d = 2 and 3, unless settings say otherwise; for any times."""
        map: PushForward = ResidualMLP(reference.dim)
        map = Layers(map) if reference.dim in (2, 3) else map
        return cls(energy, reference=reference, **{"map": map, **settings})

    @staticmethod
    def _chosen(integrator: str | Integrator, form: str) -> Integrator:
        """The integrator; with the gradient form, which has no velocity, an explicit one."""
        if form == "gradient" and integrator == "auto":
            return Explicit()
        chosen = get_integrator(integrator)
        if form == "gradient" and isinstance(chosen, (Auto, Implicit)):
            raise ConfigError(
                "PWGF(form='gradient') has no velocity for implicit steps; use integrator='explicit' or "
                "integrate.Euler(dt), or form='velocity'."
            )
        return chosen

    def altered_by(self) -> str:
        """A mobility."""
        return self._setup.mobility.argument

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError where fixed steps are lost in rounding beside the span of the times."""
        check_lengths(getattr(self.integrator, "dt", None), "dt", times, type(self.integrator).__name__)

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """θ₀ at time t. Evaluates the energy on a few samples, so that a wrong function is reported at once.

        Raises:
            ConfigError, ShapeError, NonFiniteError: the energy, map and reference do not work together.
        """
        theta = self.map.initial(seed) if self.theta0 is None else self.theta0
        theta = theta.to(self.dtype).to(self.device)
        generator = seeded(seed, "PWGF.start")
        rng = generator.get_state()
        z = self._draws.samples(min(self.num_samples, max(64, 4 * self.map.dim)), fork(rng, "start"))
        rho = self._alone.pushed(theta, z, t)
        try_functions(self.energy, rho)
        self._setup.mobility.try_function(rho)
        value, v = self.energy(rho), finite_velocity(self.energy, rho)
        if rho.asked_for_density:
            refuse_jump(self.reference, "PWGF", self.map)
            refuse_kinks(self.map, theta, z, "PWGF")
        if self.theta0 is None:  # the θ of a run that goes on may have folded a little
            refuse_folded(rho, "PWGF")
        if not bool(torch.isfinite(value)):
            bad = [name for name, _, part in self.energy.terms() if not bool(torch.isfinite(part(rho)))]
            raise NonFiniteError(
                f"the energy is {float(value)} at the start (term '{bad[0] if bad else 'sum'}'), t = {t:.6g}. Causes: "
                "(a) its function is NaN or infinite at some samples T(z): check it there, or take another reference; "
                "(b) theta0 makes the map singular: start at map.initial()."
            )
        check_shared(self._setup, theta, z, t)
        chosen = solve_settings(self.damping, self.momentum, self.map.moving_at(theta)[0], self.num_samples)
        if len(z) > 1:
            check_coordinates(z, self.map, chosen.implicit_damping)
        if self.takes_implicit_steps:
            with torch.no_grad():
                explicit = self.energy.hessian(rho).explicit
            if explicit:
                _log.info("implicit steps take the second variation of these terms as zero: %s", ", ".join(explicit))
        dt = self.integrator.first_step
        if dt is None:  # one per cent of the samples' spread; the error control takes over from there
            frame = self._alone.frame(rho)
            x, v = frame.measured(rho.x.detach()), frame.measured(frame.velocity(v))
            spread, speed = float(x.var(0, unbiased=False).mean().sqrt()), float(v.square().sum(1).mean().sqrt())
            dt = 0.01 * spread / speed if speed > 0 and spread > 0 else 1.0
        counted = ("num_steps", "num_stages", "num_rejected", "num_redraws", "num_products", "num_implicit")
        return self._agreed(State(t, theta, torch.zeros_like(theta), dt, rng, dict.fromkeys(counted, 0), none_yet(t)))

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One sampling interval towards t1: draw z, integrate, keep the proposal for the next.

        Raises:
            SolverError, NonFiniteError: no interval succeeded, however short; the last good state is untouched.
        """
        generator, dt, momentum = state.generator(), state.dt, self.momentum
        memory, left = memory_of(state), state.left(t1)
        rejected, stages = 0, 0
        setup, where = self._setup.moving(state.theta)
        theta, theta_dot = state.theta.clone(), torch.zeros_like(state.theta)
        for redraw in range(_REDRAWS + 1):
            z, weights = self._draws.of_side(generator)
            length = left if dt >= left * (1 - 1e-9) else dt
            side = self._side(setup, z, state.theta_dot[where], state.t, generator, momentum, weights)
            try:
                moved = self.integrator.advance(side, state.theta[where], length, dt, memory.integrator)
                break
            except (SolverError, NonFiniteError) as error:
                rejected = rejected + getattr(self.integrator, "max_rejections", 0)
                stages = stages + side.num_stages
                if redraw == _REDRAWS or not self.integrator.adaptive:
                    raise gave_up(error, state.t, dt, redraw) from error
                dt, momentum = dt / 4, 0.0
        try:
            t, rest = (t1, 0.0) if moved.length == left else state.later(moved.length, t1)
        except SolverError as error:
            raise SolverError(f"{error} Last rejection: {moved.reason or 'none'}.") from error
        counters = merge_counters(
            state.counters, num_steps=1, num_stages=stages + side.num_stages, num_products=side.num_products,
            num_rejected=rejected + moved.num_rejected, num_redraws=redraw, num_implicit=int(moved.implicit),
        )  # fmt: skip
        kept = memory.after(moved, left, side.unit_in_x)
        if float(kept["tiny"][0]) > MOST_TINY:
            raise stalled(MOST_TINY, moved.dt, state.t, side.diagnosis(), moved.reason)
        theta[where], theta_dot[where] = moved.theta, moved.theta_dot
        extra = {**state.extra, **kept}
        after = State(t, theta, theta_dot, moved.proposal, generator.get_state(), counters, extra, rest)
        further = grown(self._alone, self._draws, after, self.accuracy, side.damping)
        after = self._agreed(after if further is None else dataclasses.replace(after, theta=further))
        return after, self._info(side, state, after, moved, rejected)

    def _side(
        self, setup: Setup, z: Tensor, last: Tensor, t: float, generator: torch.Generator, momentum: float | None,
        weights: Tensor | None,
    ) -> RightSide:  # fmt: skip
        """The right side on the samples z, with random directions for slopes in high dimension."""
        probes = None
        if self.takes_implicit_steps:
            n, d = z.shape
            if d <= EXACT_SLOPES:
                probes = torch.eye(d, dtype=z.dtype, device=z.device).expand(n, d, d)
            else:
                signs = torch.randint(0, 2, (n, 1, d), generator=generator, dtype=torch.int8)
                probes = (2 * signs - 1).to(z)
        chosen = solve_settings(self.damping, momentum, setup.map, len(z), self.takes_implicit_steps)
        return RightSide(
            setup, z, last, t, probes=probes, in_spreads=self._in_spreads, weights=weights,
            **chosen._asdict(),
        )  # fmt: skip

    @property
    def takes_implicit_steps(self) -> bool:
        """Whether the integrator may take implicit steps."""
        return not isinstance(self.integrator, (Explicit, FixedStep))

    def _agreed(self, state: State) -> State:
        """Rank 0's state in all processes: what rounding makes of it may differ between machines."""
        group = self._setup.group
        if group.size == 1:
            return state
        theta, theta_dot = group.from_first(torch.stack([state.theta, state.theta_dot]))
        t, dt, rest = group.numbers_from_first(state.t, state.dt, state.rest)
        extra = {name: group.from_first(values) for name, values in state.extra.items()}
        return dataclasses.replace(state, t=t, dt=dt, rest=rest, theta=theta, theta_dot=theta_dot, extra=extra)

    def _info(self, side: RightSide, before: State, after: State, moved: Advance, rejected: int) -> Info:
        speed2 = side.start.speed2 if side.start else math.nan
        values = {
            **side.fall(moved.theta, moved.length),
            "length": moved.length,
            "velocity_rms": math.sqrt(speed2) if speed2 >= 0 else math.nan,
            "solver_residual": side.residual,
            "fit": side.fit,
            "moved": side.moved(),
            "implicit": float(moved.implicit),
            "num_products": float(side.num_products),
        }
        return Info(before.t, after.t, moved.dt, side.num_stages, rejected + moved.num_rejected, values)

    def measure(self, state: State) -> Row:
        """θ, a fresh θ̇, and energy by term, residual, dissipation, folds on `num_eval` fresh samples."""
        generator = fork(state.rng, "measure")
        z, weights = self._draws.of_side(generator)
        setup, where = self._setup.moving(state.theta)
        theta, theta_dot = state.theta[where], state.theta_dot.clone()
        side = self._side(setup, z, theta_dot[where], state.t, generator, self.momentum, weights)
        rate = theta_dot[where] = side(theta)
        row: Row = {"theta": state.theta, "theta_dot": theta_dot}
        row.update(evaluate_row(setup, theta, rate, self._draws.blocks(generator), state.t, side.frame))
        alone = dataclasses.replace(setup, group=ALONE)
        memory = memory_of(state)
        elapsed = state.t - memory.began
        z = self._draws.samples(samples_for(self.map.dim, self.energy.pairwise), generator, even=True)
        row["error_estimate"], row["spread"] = error_estimate(alone, theta, rate, z, elapsed, state.t, side.frame)
        row.update(step_error=memory.step_error)
        row.update(error_95=error_95(float(row["error_estimate"]), memory.step_error))
        row.update(NOT_TRIED)
        if row["error_estimate"] > self.accuracy * row["spread"]:
            draw = functools.partial(self._draws.of_side, generator)
            row.update(errors_with_cures(alone, theta, state.t, self.num_samples, draw, z, elapsed, side.damping))
        row.update({name: float(count) for name, count in state.counters.items()})
        row.update(
            dt=state.dt,
            damping=side.damping,
            solver_residual=side.residual,
            solver_iterations=float(side.num_products),
        )
        return row

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples at this θ, (1 + 16d,) float64."""
        rho = self._alone.pushed(state.theta, self._draws.samples(16, torch.Generator().manual_seed(0)), state.t)
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def watch(self, span: tuple[float, float]) -> PWGFWatch:
        """Warns of folds, missed velocities, vanishing steps and a rising energy."""
        return PWGFWatch(span, self.accuracy, self.on_miss == "stop", self.takes_implicit_steps)

    @classmethod
    def described(cls, config: Mapping[str, Any]) -> Description:
        """What figures and summaries say of a run, from `to_config()`."""
        return described(config)

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        setup = self._setup
        return {
            "name": "PWGF", "energy": member_config(self.energy), "map": member_config(self.map),
            "reference": member_config(self.reference), "theta0": tensor_config(self.theta0),
            "num_samples": self.num_samples, "num_eval": self.num_eval, "tolerance": self.tolerance,
            "integrator": self.integrator.to_config(), "accuracy": self.accuracy, "on_miss": self.on_miss,
            "damping": self.damping, "momentum": self.momentum,
            "solver": setup.solver.to_config(), "form": setup.form, "chunk_size": self.chunk_size,
            "max_memory": self.max_memory, "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device, **({"tolerance_in_spreads": True} if self._in_spreads else {}),
            **setup.mobility.to_config(),
        }  # fmt: skip
