"""The parameterised Wasserstein gradient flow: θ̇ = argmin E|J θ̇ − v|², stepped on redrawn samples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..energies import Energy
from ..errors import NonFiniteError, ShapeError, SolverError
from ..integrate import ADAPTIVE, Advance, advance, check_method
from ..linalg import LinearSolver, get_solver
from ..maps.base import PushForward
from ..measures import Reference
from ..parallel import ALONE, world
from ..state import Info, State
from .base import (
    MapReplay,
    Row,
    check_device,
    fork,
    member_config,
    merge_counters,
    tensor_config,
)
from .damping import adapted_damping, is_due, tried_damping
from .evaluation import evaluate_row
from .right_side import Problem, RightSide, check_shared, finite_velocity, refuse_folded
from .settings import DEFAULT_TOLERANCE, auto_solver, check_members, check_numbers, check_theta0, choose_chunk_size

_REDRAWS = 4  # failed intervals in a row before the run stops


class PWGF(MapReplay):
    r"""Parameterised Wasserstein gradient flow of an energy by a push-forward map.

    ρ_θ = (T_θ)#λ follows ∂ₜρ = ∇·(ρ∇δF/δρ) through θ̇ = argmin_η E_λ|∂_θT η − v|², v = −∇δF/δρ(T_θ(z)). Each right side
    is one damped least-squares solve on `num_samples` samples of λ, which are frozen during a sampling interval and
    redrawn after it.

    Args:
        energy: F, e.g. `energies.Potential(V) + energies.Entropy()`.
        map: T, e.g. `maps.ResidualMLP(dim)`.
        reference: λ, e.g. `Gaussian(dim)`.
        theta0: θ at the start, (p,); None means `map.initial(seed)`, the identity.
        num_samples: n, samples of a right side.
        num_eval: fresh samples on which each row's energy, residual and fold fraction are measured.
        method: adaptive `bosh3`, `dopri5`, `adaptive_heun`, `fehlberg2`, `dopri8`; fixed `euler`, `midpoint`, `heun2`,
            `heun3`, `rk4`.
        tolerance: adaptive methods: largest rms displacement error of a sample per substep, in units of x; None means
            1e-4.
        dt: fixed methods: the step, in units of t; adaptive ones: the first step (None: from the velocity).
        damping: λ of the solve, relative to the metric's trace. Smaller is more accurate and less stable.
        max_damping: adaptive methods in velocity form raise λ up to this while solves miss clearly more of v on fresh
            samples than on their own, and lower it again afterwards; equal to `damping` it stays fixed.
        tune_damping: the same methods try λ/4 and 4λ every 20 intervals (5 while much of v is missed) and go on from
            one that leaves less than four fifths of what λ leaves of v on fresh samples, between 1e-8 and
            `max_damping`; less than 1 % left over is not worth a smaller λ. False never goes below `damping`.
        momentum: the damping is centred at momentum × last accepted θ̇; in [0, 1].
        solver: `auto`, `primal`, `dual`, `pcg`, `cg`, `minres`, `lsmr`, or a `linalg` solver with its settings.
        clip: None, or limit |v| to clip × rms|v| at samples where the map has (nearly) folded; ≥ 5.
        form: `velocity`, or `gradient` for the published right side −∇_θF of the sampled energy (for comparison).
        chunk_size: samples per block in densities and tangents; results do not depend on it but for rounding. None: as
            many as `max_memory` allows.
        max_memory: bytes for what densities and tangents hold for each sample of a block.
        max_rejections: substeps rejected within an interval before it is drawn anew.
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

    def __init__(
        self,
        energy: Energy,
        map: PushForward,
        reference: Reference,
        *,
        theta0: Tensor | None = None,
        num_samples: int = 1000,
        num_eval: int = 10_000,
        method: str = "bosh3",
        tolerance: float | None = None,
        dt: float | None = None,
        damping: float = 1e-6,
        max_damping: float = 1e-3,
        tune_damping: bool = True,
        momentum: float = 0.9,
        solver: str | LinearSolver = "auto",
        clip: float | None = None,
        form: str = "velocity",
        chunk_size: int | None = None,
        max_memory: float = 1e9,
        max_rejections: int = 20,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        check_members(energy, map, reference)
        check_method(method, tolerance, dt)
        check_numbers(
            damping=damping, max_damping=max_damping, momentum=momentum, clip=clip, form=form, dtype=dtype,
            num_samples=num_samples, num_eval=num_eval, max_rejections=max_rejections,
        )  # fmt: skip
        chunk = choose_chunk_size(chunk_size, max_memory, map, dtype)
        super().__init__(map, reference, dtype, check_device(device, "PWGF"))
        self.energy, self.theta0 = energy, check_theta0(theta0, map)
        self.num_samples, self.num_eval, self.method = num_samples, num_eval, method
        self.tolerance = tolerance if method not in ADAPTIVE or tolerance is not None else DEFAULT_TOLERANCE
        self.dt, self.momentum, self.max_rejections = dt, momentum, max_rejections
        solver_ = auto_solver(self.tolerance) if solver == "auto" else get_solver(solver)
        adapts = method in ADAPTIVE and form == "velocity"
        self.damping, self.max_damping = damping, max(max_damping, damping) if adapts else damping
        self.tune_damping = bool(tune_damping) and self.max_damping > damping
        self.chunk_size, self.max_memory = chunk_size, max_memory
        self._problem = Problem(energy, map, reference, solver_, form, clip, chunk, world())
        self._alone = dataclasses.replace(self._problem, group=ALONE)  # for a few samples, in every process

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """θ₀ at time t. Evaluates the energy on a few samples, so that a wrong function is told at once.

        Raises:
            ConfigError, ShapeError, NonFiniteError: the energy, map and reference do not work together.
        """
        theta = self.map.initial(seed) if self.theta0 is None else self.theta0
        theta = theta.to(self.dtype).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        rng = generator.get_state()
        z = self._draw(min(self.num_samples, 64), fork(rng, "start"))
        rho = self._alone.pushed(theta, z)
        value, v = self.energy(rho), finite_velocity(self.energy, rho, t)
        if self.theta0 is None:  # the θ of a run that goes on may have folded a little
            refuse_folded(rho)
        if not bool(torch.isfinite(value)):
            bad = [name for name, _, part in self.energy.terms() if not bool(torch.isfinite(part(rho)))]
            raise NonFiniteError(
                f"the energy is {float(value)} at the start (term '{bad[0] if bad else 'sum'}'), t = {t:.6g}. Causes: "
                "(a) its function is NaN or infinite at some samples T(z): check it there, or take another reference; "
                "(b) theta0 makes the map singular: start at map.initial()."
            )
        check_shared(self._problem, theta, z)
        dt = self.dt
        if dt is None:  # one per cent of the samples' spread; the error control takes over from there
            spread, speed = float(rho.x.std(unbiased=False)), float(v.square().sum(1).mean().sqrt())
            dt = 0.01 * spread / speed if speed > 0 and spread > 0 else 1.0
        counters = {"num_steps": 0, "num_stages": 0, "num_rejected": 0, "num_redraws": 0, "num_products": 0}
        extra = {"damping": _number(self.damping), "base_damping": _number(self.damping)}
        return self._agreed(State(t, theta, torch.zeros_like(theta), dt, rng, counters, extra))

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One sampling interval towards t1: draw z, integrate, keep the proposal for the next.

        Raises:
            SolverError, NonFiniteError: no interval succeeded, however short; the last good state is untouched.
        """
        generator, dt, momentum, damping = state.generator(), state.dt, self.momentum, self._damping(state)
        rejected, stages = 0, 0
        for redraw in range(_REDRAWS + 1):
            z = self._draw(self.num_samples, generator)
            length = t1 - state.t if dt >= (t1 - state.t) * (1 - 1e-9) else dt
            side = RightSide(self._problem, z, state.theta_dot, state.t, momentum=momentum, damping=damping)
            try:
                moved = advance(
                    side, state.theta, length, method=self.method, tolerance=self.tolerance,
                    first_step=dt if self.method in ADAPTIVE else length, max_rejections=self.max_rejections,
                )  # fmt: skip
                break
            except (SolverError, NonFiniteError) as error:
                rejected, stages = rejected + self.max_rejections, stages + side.num_stages
                if redraw == _REDRAWS or self.method not in ADAPTIVE:
                    raise self._gave_up(error, state, dt, redraw) from error
                dt, momentum = dt / 4, 0.0
                damping = min(4 * damping, self.max_damping)
        t_end = t1 if length == t1 - state.t else state.t + length
        counters = merge_counters(
            state.counters, num_steps=1, num_stages=stages + side.num_stages, num_products=side.num_products,
            num_rejected=rejected + moved.num_rejected, num_redraws=redraw,
        )  # fmt: skip
        proposal = moved.proposal if self.method in ADAPTIVE else dt
        base = self._base_damping(state)
        damping = adapted_damping(damping, base, self.max_damping, side.first_fit, side.held_out)
        extra = {"damping": _number(damping), "base_damping": _number(base)}
        after = State(t_end, moved.theta, moved.theta_dot, proposal, generator.get_state(), counters, extra)
        after = self._agreed(self._tuned(after, side.held_out))
        return after, self._info(side, state, after, moved, rejected)

    def _tuned(self, state: State, held_out: float) -> State:
        """Puts the damping to the test now and then."""
        if not self.tune_damping or not is_due(state.counters["num_steps"], held_out):
            return state
        generator, damping = fork(state.rng, "tune"), self._damping(state)
        z, fresh = (self._draw(self.num_samples, generator) for _ in range(2))
        prior = self.momentum * state.theta_dot
        found = tried_damping(
            self._problem, state.theta, prior, z, fresh, state.t, damping=damping, high=self.max_damping
        )
        base = found if found > damping else min(found, self._base_damping(state))
        return dataclasses.replace(state, extra={"damping": _number(found), "base_damping": _number(base)})

    def _agreed(self, state: State) -> State:
        """Rank 0's state in all processes: what rounding makes of it may differ between machines."""
        group = self._problem.group
        if group.size == 1:
            return state
        theta, theta_dot = group.from_first(torch.stack([state.theta, state.theta_dot]))
        numbers = [float(state.extra[name]) for name in ("damping", "base_damping")]
        t, dt, damping, base = group.numbers_from_first(state.t, state.dt, *numbers)
        extra = {"damping": _number(damping), "base_damping": _number(base)}
        return dataclasses.replace(state, t=t, dt=dt, theta=theta, theta_dot=theta_dot, extra=extra)

    def _info(self, side: RightSide, before: State, after: State, moved: Advance, rejected: int) -> Info:
        energy, speed2 = side.start or (math.nan, math.nan)
        end = side.energy_at(moved.theta)
        values = {
            "energy": end,
            "energy_change": end - energy,
            "predicted_change": -(after.t - before.t) * speed2 * (1 - min(side.fit, 1.0)),
            "velocity_rms": math.sqrt(speed2) if speed2 >= 0 else math.nan,
            "solver_residual": side.residual,
            "fit": side.fit,
            "held_out": side.held_out,
            "damping": side.damping,
            "num_products": float(side.num_products),
            "clipped_fraction": side.clipped,
        }
        return Info(before.t, after.t, moved.dt, side.num_stages, rejected + moved.num_rejected, values)

    def _gave_up(self, error: Exception, state: State, dt: float, redraws: int) -> Exception:
        kind = type(error) if isinstance(error, (SolverError, NonFiniteError)) else SolverError
        return kind(
            f"no step from t = {state.t:.6g} succeeded (last tried dt = {dt:.2e}, {redraws} redraws): {error}. The "
            f"state at t = {state.t:.6g} is good. Causes: (a) the map folds or is too small for the flow: another map, "
            "more samples (num_samples), clip=5; (b) the linear system is too ill-conditioned: larger damping; (c) the "
            "energy is not finite on the way: check it; (d) fixed step too long: smaller dt, or method='bosh3'."
        )

    def measure(self, state: State) -> Row:
        """θ, a fresh θ̇, and energy by term, residual, dissipation, folds on `num_eval` fresh samples."""
        generator = fork(state.rng, "measure")
        z, damping = self._draw(self.num_samples, generator), self._damping(state)
        side = RightSide(self._problem, z, state.theta_dot, state.t, momentum=self.momentum, damping=damping)
        theta_dot = side(state.theta)
        row: Row = {"theta": state.theta, "theta_dot": theta_dot}
        row.update(evaluate_row(self._problem, state.theta, theta_dot, self._blocks(generator)))
        row.update({name: float(count) for name, count in state.counters.items()})
        row.update(
            dt=state.dt,
            damping=damping,
            solver_residual=side.residual,
            solver_iterations=float(side.num_products),
        )
        return row

    def _base_damping(self, state: State) -> float:
        carried = float(state.extra["base_damping"]) if "base_damping" in state.extra else self.damping
        return min(carried, self.max_damping) if self.tune_damping else self.damping

    def _damping(self, state: State) -> float:
        base = self._base_damping(state)
        carried = float(state.extra["damping"]) if "damping" in state.extra else base
        return min(max(carried, base), self.max_damping)  # a state of other settings may carry another

    def _blocks(self, generator: torch.Generator) -> list[Tensor]:
        """Fresh evaluation samples in blocks of at most num_samples (pairwise energies couple only within a block)."""
        size = max(self.num_samples, 100)
        return [self._draw(min(size, self.num_eval - start), generator) for start in range(0, self.num_eval, size)]

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        matched = getattr(self.reference, "matched_sample", None) if self.energy.pairwise else None
        z = (matched or self.reference.sample)(n, generator)
        if not isinstance(z, Tensor) or z.shape != (n, self.map.dim):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(
                f"reference.sample(n={n}, generator) must return a tensor of shape ({n}, {self.map.dim}); got {got}. "
                "Return a row per sample."
            )
        return z.to(self.dtype).to(self.device)

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples at this θ, (1 + 16d,) float64."""
        rho = self._alone.pushed(state.theta, self._draw(16, torch.Generator().manual_seed(0)))
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        problem = self._problem
        solver = {"name": problem.solver.name}
        if dataclasses.is_dataclass(problem.solver):
            solver.update(
                {f.name: getattr(problem.solver, f.name) for f in dataclasses.fields(problem.solver) if f.init}
            )
        return {
            "name": "PWGF", "energy": member_config(self.energy), "map": member_config(self.map),
            "reference": member_config(self.reference), "theta0": tensor_config(self.theta0),
            "num_samples": self.num_samples, "num_eval": self.num_eval, "method": self.method,
            "tolerance": self.tolerance, "dt": self.dt, "damping": self.damping,
            "max_damping": self.max_damping, "tune_damping": self.tune_damping, "momentum": self.momentum,
            "solver": solver, "clip": problem.clip, "form": problem.form, "chunk_size": self.chunk_size,
            "max_memory": self.max_memory,
            "max_rejections": self.max_rejections, "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device,
        }  # fmt: skip


def _number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
