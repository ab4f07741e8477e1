"""What the benchmarks share: CPU time, the rate of a matrix product, growth exponents, a state in mid-flow.

All times are medians of CPU seconds (`time.process_time`) of one thread; a first call warms up. What is compared is
timed in turns, so that a busy neighbour slows all of it alike. Work is also given as a multiple of the time of one
square matrix product (GEMM) of size 2048 measured in the same run: such ratios compare across machines.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import pwgf
from pwgf import linalg, problems
from pwgf.maps import PushForward
from pwgf.parallel import ALONE, Group
from pwgf.schemes.pwgf.right_side import RightSide
from pwgf.schemes.pwgf.settings import choose_chunk_size
from pwgf.schemes.pwgf.setup import Setup

GEMM_SIZE = 2048
_GEMM = "GEMM"


def cpu_seconds(call: Callable[[], object], turns: int = 3) -> float:
    """Median CPU seconds of a call."""
    return in_turn({"": call}, turns)[""]


def in_turn(calls: Mapping[str, Callable[[], object]], turns: int = 3, least: float = 0.02) -> dict[str, float]:
    """Median CPU seconds of each call, over turns in which each runs once, or often enough for `least` seconds."""
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            count, began = 0, time.process_time()
            while count == 0 or time.process_time() - began < least:
                call()
                count += 1
            spent[name].append((time.process_time() - began) / count)
    return {name: statistics.median(found) for name, found in spent.items()}


def gemm(dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    """A square matrix product of size `GEMM_SIZE` to be timed, and its flops."""
    a = torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out), 2.0 * GEMM_SIZE**3


def gemm_seconds(dtype: torch.dtype = torch.float64, turns: int = 5) -> float:
    """Median CPU seconds of one product of size 2048."""
    return cpu_seconds(gemm(dtype)[0], turns)


def gemm_shares(
    calls: Mapping[str, tuple[Callable[[], object], float]], dtype: torch.dtype, turns: int
) -> dict[str, tuple[float, float]]:
    """CPU seconds of each call and its flops per second as a share of the GEMM's, from the same turns."""
    reference, work = gemm(dtype)
    seconds = in_turn({_GEMM: reference, **{name: call for name, (call, _) in calls.items()}}, turns)
    rate = work / seconds[_GEMM]
    return {name: (seconds[name], flops / seconds[name] / rate) for name, (_, flops) in calls.items()}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The growth exponent a of seconds ∝ sizeᵃ, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


class MidFlow(NamedTuple):
    """A state of a double-well flow (Styblinski–Tang, c = .06); solves are damped towards .9·`theta_dot`."""

    problem: problems.Problem
    map: PushForward
    theta: Tensor
    theta_dot: Tensor

    def sample(self, n: int) -> Tensor:
        """n samples of λ that the flow has not seen, (n,d)."""
        return self.problem.reference.sample(n, torch.Generator().manual_seed(1))

    def pieces(self, solver: str | linalg.LinearSolver = "auto", group: Group = ALONE) -> Setup:
        """The fixed part of a right side, with the defaults of `PWGF`."""
        chunk_size = choose_chunk_size(None, 1e9, self.map, torch.float64)
        solver = linalg.get_solver(solver)
        return Setup(self.problem.energy, self.map, self.problem.reference, solver, "velocity", chunk_size, group)

    def right_side(self, n: int, solver: str | linalg.LinearSolver = "auto", group: Group = ALONE) -> Tensor:
        """θ̇ at n samples: densities, velocity, tangent, and the solve alone, as in the first stage of a step."""
        pieces, z = self.pieces(solver, group), self.sample(n)
        return RightSide(pieces, z, self.theta_dot, 0.0, momentum=0.9, damping=1e-6)(self.theta)


def mid_flow(map: PushForward, t: float = 0.3, tolerance: float = 1e-3, num_samples: int = 500) -> MidFlow:
    """Runs the flow to t, more loosely than by default: only the state counts."""
    problem = problems.StyblinskiTang(map.dim)
    scheme = pwgf.PWGF(
        problem.energy, map, problem.reference, num_samples=num_samples, num_eval=100, tolerance=tolerance
    )
    state = pwgf.solve(scheme, (0.0, t), progress=False).state()
    return MidFlow(problem, map, state.theta, state.theta_dot)


def off_start(map: PushForward) -> MidFlow:
    """A state somewhat off the start, where no block of θ is zero: at once, for maps too large to be run first."""
    noise = 0.3 * torch.randn(map.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    map.unpack(noise)[0].mul_(0.05)  # the affine part stays close to the identity, and invertible
    return MidFlow(problems.StyblinskiTang(map.dim), map, map.initial() + noise, torch.zeros_like(noise))


def heading(title: str) -> None:
    """Prints a title with the machine's state."""
    rates = ", ".join(
        f"{gemm(dtype)[1] / gemm_seconds(dtype) / 1e9:.0f} in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.float64)
    )
    print(f"\n### {title}\n\nGEMM Gflop/s: {rates}; one thread; load {os.getloadavg()[0]:.1f}.\n", flush=True)


def short(number: float | None) -> str:
    """Two digits; – for what was not measured."""
    if number is None or math.isnan(number):
        return "–"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def milliseconds(seconds: float | None) -> str:
    """The same, in milliseconds."""
    return short(None if seconds is None else 1e3 * seconds)
