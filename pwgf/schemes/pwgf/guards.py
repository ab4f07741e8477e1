"""What several processes must agree on, and the errors of a run that cannot go on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError, NonFiniteError, SolverError
from ...integrate import Advance
from ...integrate.base import NO_MEMORY
from ...linalg import Solution
from ...measures import PushedMeasure
from ...parallel import Group
from ...state import State
from .setup import Setup

MOST_TINY = 100
"""Tiny steps in a row after which a run gives up."""

NO_TINY = torch.zeros(2, dtype=torch.float64)
"""No tiny steps in a row so far: their number, and the length of the first."""

_TINY = 1e-5  # share of what is left to the next stored time below which a step is tiny
_GROWN = 2.0  # by what a step exceeds the first of these where they grow


class Memory(NamedTuple):
    """What a state keeps of the steps before.

    Args:
        integrator: its numbers, (k,).
        tiny: see `tiny_steps`.
        began: when the flow began.
        step_error: root of the sum of the squared errors of all steps, in units of x, as the integrator estimates them;
            NaN where one of them had no estimate.
    """

    integrator: Tensor
    tiny: Tensor
    began: float
    step_error: float

    def after(self, moved: Advance, left: float, unit: float) -> dict[str, Tensor]:
        """What the next state keeps: after a step with `left` to the next stored time, its errors in this unit of x."""
        error = math.hypot(self.step_error, moved.error * unit)
        return {
            "integrator": moved.memory,
            "tiny": tiny_steps(self.tiny, moved.dt, left),
            "step_error": torch.tensor([error], dtype=torch.float64),
        }


def none_yet(t: float) -> dict[str, Tensor]:
    """What a state keeps at the start t of a flow."""
    began, error = torch.tensor([t, 0.0], dtype=torch.float64).split(1)
    return {"integrator": NO_MEMORY, "tiny": NO_TINY, "began": began, "step_error": error}


def memory_of(state: State) -> Memory:
    """The memory of a state; ConfigError where it holds what no step of PWGF leaves."""
    none = {**none_yet(0.0), "step_error": torch.full((1,), math.nan)}  # of a state from elsewhere
    kept = {name: state.extra.get(name, values).cpu() for name, values in none.items()}
    sound = all(v.ndim == 1 and bool(torch.isfinite(v).all()) for name, v in kept.items() if name != "step_error")
    single = len(kept["began"]) == len(kept["step_error"]) == 1
    if not sound or not single or len(kept["tiny"]) not in (1, 2):  # 1 in files of version 0.1
        shapes = {name: tuple(values.shape) for name, values in kept.items()}
        raise ConfigError(
            f"the state at t = {state.t:.6g} keeps numbers of earlier steps that PWGF does not leave: {shapes}, or one "
            "is not finite. Begin a new run from dataclasses.replace(scheme.start(t=state.t), theta=state.theta)."
        )
    return Memory(kept["integrator"], kept["tiny"], float(kept["began"]), float(kept["step_error"]))


def tiny_steps(before: Tensor, dt: float, left: float) -> Tensor:
    """Number and first length (2,) of the tiny steps in a row; steps that grow, as from a tight start, begin anew."""
    if dt >= _TINY * left:
        return NO_TINY
    count, first = before[0], before[-1]  # version 0.1 stored the number alone
    same = bool(count > 0) and dt < _GROWN * float(first)
    return torch.stack([count + 1, first]) if same else torch.tensor([1.0, dt], dtype=torch.float64)


def agreed(solution: Solution, group: Group) -> Solution:
    """The solution of rank 0 in all processes: rounding may differ between machines, θ may not."""
    if group.size == 1:
        return solution
    residual, fit, num_products, converged = group.numbers_from_first(*solution[1:])
    return Solution(group.from_first(solution.x), residual, fit, int(num_products), bool(converged))


def check_shared(setup: Setup, theta: Tensor, z: Tensor, t: float) -> None:
    """Whether several processes would compute one flow: the same energy in all, and terms that go over all samples.

    Raises:
        ConfigError: in all processes, where the energy differs between them, or a term is a mean over own samples only.
    """
    group = setup.group
    if group.size == 1:
        return
    whole = PushedMeasure(setup.map, setup.reference, theta, z, setup.chunk_size, t=t)
    rtol = 1e-3 if theta.dtype == torch.float32 else 1e-9
    v = setup.energy.velocity(whole)
    if group.any(not torch.allclose(v, group.from_first(v), rtol=rtol, atol=rtol)):
        raise ConfigError(
            f"PWGF(energy=…) must be the same in all {group.size} processes; at the same samples its velocity differs "
            "between them. Give its random numbers a fixed seed (torch.Generator().manual_seed(0)), and load the same "
            "data in all."
        )
    shared = setup.pushed(theta, z, t)
    for name, _, part in setup.energy.terms():
        value, same = float(part(whole)), float(part(shared))
        moved = shared.gather(part.velocity(shared)) - part.velocity(whole)
        apart = abs(value - same) > rtol * (1 + abs(value)) or float(moved.abs().max()) > rtol * (
            1 + float(v.abs().max())
        )
        if group.any(apart):
            raise ConfigError(
                f"PWGF(energy=…): term '{name}' is {value:.6g} in one process and {same:.6g} when {group.size} share "
                f"the samples out (its velocity then differs by up to {float(moved.abs().max()):.2g}). An energy of "
                "your own must average by rho.mean(values), or see all samples as rho.gather(rho.x); or set "
                "PWGF_PARALLEL=0."
            )


def stalled(steps: int, dt: float, t: float, measured: str, rejection: str) -> SolverError:
    """The error of a run whose steps stay tiny."""
    return SolverError(
        f"the step has stayed below {dt:.1e} for {steps} steps up to t = {t:.6g}, where the state is good. Measured: "
        f"{measured}; last rejection: {rejection or 'none'}. If few samples carry the velocity or the map folds, it is "
        "too small there: a wider map, another family (maps.ConvexRidge cannot fold), more samples (num_samples). If "
        "all are fast, the energy is steep: check it at that x, or raise the tolerance."
    )


def gave_up(error: Exception, t: float, dt: float, redraws: int) -> Exception:
    """The error of a run in which no interval from t succeeds, of the kind of the last failure."""
    kind = type(error) if isinstance(error, (SolverError, NonFiniteError)) else SolverError
    return kind(
        f"no step from t = {t:.6g} succeeded (last tried dt = {dt:.2e}, {redraws} redraws): {error}. The state at "
        f"t = {t:.6g} is good. Causes: (a) the energy is not finite or not differentiable on the way: check it at the "
        "samples there; (b) the map is too small for the flow, or folds: a wider map, another family (maps.ConvexRidge "
        "cannot fold), more samples (num_samples); (c) the linear system is too ill-conditioned: larger damping; (d) "
        "explicit steps on a stiff flow, or fixed ones too long: integrator='auto'."
    )
