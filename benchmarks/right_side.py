"""What one right side θ̇ = argmin E|J θ̇ − v|² costs, and its parts, beside the matrix-product rate of the same machine.

    python -m benchmarks.right_side            # about a minute and a half of one core

Times are medians of CPU seconds on one thread. Each is also given as *time × GEMM rate*, in Gflop: the matrix products
that the machine could have done meanwhile, which compares across machines. A pair of products Jη, Jᵀu is 8·n·p flops
(two products of n × p numbers, forward and backward), whence its share of the GEMM rate.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from pwgf import linalg, maps, problems
from pwgf.measures import PushedMeasure
from pwgf.schemes.right_side import Problem, RightSide
from pwgf.tangent import Tangent

CASES = ((2, 1000, 64), (10, 200, 64), (10, 1000, 240), (30, 500, 720))
"""(d, n, width): the defaults in the plane; a small problem and the defaults in ten dimensions; many parameters."""

DAMPING = 1e-6
MAX_UNKNOWNS = 2000  # unknowns up to which the direct solvers are timed


def cpu_seconds(call: Callable[[], object], budget: float = 0.3) -> float:
    """Median CPU seconds of a call, after one that warms up: at least three, or as many as fit into the budget."""
    call()
    spent: list[float] = []
    while len(spent) < 3 or sum(spent) < budget:
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def gemm_rate(dtype: torch.dtype, size: int = 1500) -> float:
    """Flops per second of a square matrix product."""
    a = torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / cpu_seconds(lambda: a @ a, budget=1.0)


class Case:
    """A double-well flow (Styblinski–Tang) in dimension d, somewhat away from its start so that no block is zero.

    Args:
        d, n, width: dimension, samples, units of the hidden layer.
        dtype: of all numbers.
    """

    def __init__(self, d: int, n: int, width: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        flow = problems.StyblinskiTang(d)
        self.map, self.energy, self.reference = maps.ResidualMLP(d, width=width), flow.energy, flow.reference
        noise = 0.3 * torch.randn(self.map.num_params, generator=generator, dtype=torch.float64)
        self.map.unpack(noise)[0].mul_(0.05)  # the affine part stays close to the identity, and invertible
        self.theta = (self.map.initial() + noise).to(dtype)
        self.z = self.reference.sample(n, generator).to(dtype)
        self.eta, self.d, self.n, self.p = noise.to(dtype), d, n, self.map.num_params
        self.v = self.energy.velocity(self.pushed())

    def pushed(self) -> PushedMeasure:
        """ρ_θ on the samples, with nothing computed yet."""
        return PushedMeasure(self.map, self.reference, self.theta, self.z)

    def tangent(self) -> Tangent:
        """J, with nothing computed yet but the layers' activations."""
        return Tangent(self.map, self.theta, self.z)

    def pair(self) -> float:
        """CPU seconds of one Jη and one Jᵀu."""
        tangent = self.tangent()
        return cpu_seconds(lambda: (tangent.jv(self.eta), tangent.jtu(self.v)))

    def parts(self) -> dict[str, float | None]:
        """CPU seconds by name; None where a size does not suit."""
        found: dict[str, float | None] = {"score": cpu_seconds(lambda: self.pushed().score)}
        few_rows, few_columns = self.n * self.d <= MAX_UNKNOWNS, self.p <= MAX_UNKNOWNS
        found["dual Gram JJᵀ"] = cpu_seconds(lambda: self.tangent().gram_dual()) if few_rows else None
        found["primal Gram JᵀJ/n"] = cpu_seconds(lambda: self.tangent().gram_primal()) if few_columns else None
        for name in ("primal", "dual", "pcg", "cg", "minres", "lsmr"):
            fits = {"primal": few_columns, "dual": few_rows}.get(name, True)
            found[f"solve, {name}"] = self.solve(name) if fits else None
        found["right side (auto)"] = self.right_side()
        return found

    def solve(self, name: str) -> float:
        """CPU seconds of one solve; infinite where the solver gives up."""
        solver, seen = linalg.get_solver(name), set()
        seconds = cpu_seconds(lambda: seen.add(solver(self.tangent(), self.v, damping=DAMPING).converged))
        return seconds if seen == {True} else math.inf

    def right_side(self) -> float:
        """CPU seconds of one whole right side with the solver that `auto` takes."""
        auto = linalg.get_solver("auto")
        setting = Problem(self.energy, self.map, self.reference, auto, DAMPING, "velocity", None, None)
        prior = torch.zeros_like(self.theta)
        return cpu_seconds(lambda: RightSide(setting, self.z, prior, 0.0)(self.theta))


def cell(seconds: float | None, rate: float) -> str:
    """'12.3 (0.45)': milliseconds, and Gflop at the GEMM rate."""
    if seconds is None or seconds == math.inf:
        return "–" if seconds is None else "not converged"
    return f"{short(1e3 * seconds)} ({short(seconds * rate / 1e9)})"


def short(number: float) -> str:
    """Two digits, without an exponent."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def table(dtype: torch.dtype) -> None:
    """Prints the table of one dtype."""
    rate = gemm_rate(dtype)
    cases = [Case(d, n, width, dtype) for d, n, width in CASES]
    pairs = [case.pair() for case in cases]
    parts = [case.parts() for case in cases]
    print(f"\n{str(dtype).removeprefix('torch.')}: GEMM {rate / 1e9:.1f} Gflop/s. Milliseconds (Gflop at that rate).\n")
    print("| | " + " | ".join(f"d={c.d}, n={c.n}, p={c.p}" for c in cases) + " |")
    print("|---|" + "---|" * len(cases))
    print("| Jη and Jᵀu | " + " | ".join(cell(seconds, rate) for seconds in pairs) + " |")
    shares = [8 * c.n * c.p / seconds / rate for c, seconds in zip(cases, pairs, strict=True)]
    print("| their share of the GEMM rate | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    for name in parts[0]:
        print(f"| {name} | " + " | ".join(cell(part[name], rate) for part in parts) + " |", flush=True)


def main() -> None:
    """Both dtypes."""
    torch.set_num_threads(1)
    began = time.process_time()
    print(f"Right sides, one thread, medians of CPU time; damping {DAMPING:g}; solvers at their default tolerances.")
    for dtype in (torch.float64, torch.float32):
        table(dtype)
    print(f"\n{time.process_time() - began:.0f} CPU seconds in all.")


if __name__ == "__main__":
    main()
