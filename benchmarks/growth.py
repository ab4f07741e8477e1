"""How the cost of a right side and of its parts grows with n, p and d, and the memory of a large one.

    python -m benchmarks.growth                # about two minutes

Each of n, p (by the width) and d goes over two decades while the others stay, on a double-well flow in mid-flow. Times
are in GEMMs: multiples of one 2048³ product in float64, measured in the same run. The exponent a of time ∝ sizeᵃ is a
fit by least squares of the logarithms, of the larger half of the sizes alone as well, where what a call costs in itself
no longer counts. A right side is a first stage of a step, whose later ones keep the preconditioner.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.common import MidFlow, cpu_seconds, exponent, gemm_seconds, heading, mid_flow, off_start, short
from experiments.common import table
from pwgf import linalg, maps

MAX_ROWS, MAX_COLUMNS = 5000, 5000  # sizes up to which Gram matrices are formed


class Sizes(NamedTuple):
    """The sweeps: (d, width) with several n; (d, n) with several widths; (n, width) with several d; the large case."""

    of_n: tuple[int, int, tuple[int, ...]] = (5, 120, (300, 1000, 3000, 10_000, 30_000))
    of_p: tuple[int, int, tuple[int, ...]] = (5, 1000, (44, 130, 440, 1300, 4400))
    of_d: tuple[int, int, tuple[int, ...]] = (1000, 240, (1, 3, 10, 30, 100))
    large: tuple[int, int, int] = (50, 5000, 965)


FULL, TINY = Sizes(), Sizes((2, 10, (20, 40, 80)), (2, 20, (5, 10, 20)), (20, 10, (1, 2)), (3, 40, 10))
PARTS = ("product", "score", "primal Gram", "dual Gram", "solve", "right side")


def parts(state: MidFlow, n: int) -> dict[str, float]:
    """CPU seconds by name; NaN where a matrix would be too large."""
    pieces, z = state.pieces(), state.sample(n)
    pushed = pieces.pushed(state.theta, z, 0.0)
    v, tangent = state.problem.energy.velocity(pushed), pieces.tangent(state.theta, z)
    prior = 0.9 * state.theta_dot
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: tangent.jtu(tangent.jv(prior)),
        "score": lambda: pieces.pushed(state.theta, z, 0.0).score,
        "solve": lambda: pieces.solver(pieces.tangent(state.theta, z), v, damping=1e-6, prior=prior),
        "right side": lambda: state.right_side(n),
    }
    if tangent.p <= MAX_COLUMNS:
        calls["primal Gram"] = tangent.gram_primal
    if n * state.map.dim <= MAX_ROWS:
        calls["dual Gram"] = tangent.gram_dual
    return {name: cpu_seconds(calls[name]) if name in calls else math.nan for name in PARTS}


def sweep(symbol: str, cases: list[tuple[float, int, MidFlow]]) -> None:
    """A table: a row per (size, n, state), the parts in GEMMs, and two rows of exponents."""
    gemm = gemm_seconds()
    sizes = [size for size, _, _ in cases]
    found = [parts(state, n) for _, n, state in cases]
    header, rows = [symbol, "auto takes", *PARTS], []
    for (size, n, state), spent in zip(cases, found, strict=True):
        solver = linalg.choose(n, state.map.dim, state.map.num_params, True).name
        rows.append([f"{size:.0f}", solver, *(short(spent[name] / gemm) for name in PARTS)])
    for title, first in (("exponent", 0), ("of the larger half", len(sizes) // 2)):
        fits = []
        for name in PARTS:
            kept = [(size, s[name]) for size, s in zip(sizes, found, strict=True) if not math.isnan(s[name])]
            kept = [pair for pair in kept if pair[0] >= sizes[first]]
            fits.append(f"**{exponent(*zip(*kept, strict=True)):.2f}**" if len(kept) > 1 else "–")
        rows.append([title, "", *fits])
    table(header, rows)


def flow(d: int, width: int) -> MidFlow:
    """A state in mid-flow, at the price of a few right sides."""
    return mid_flow(maps.ResidualMLP(d, width=width), tolerance=1e-2, num_samples=300)


def large_right_side(d: int, n: int, width: int) -> None:
    """Prints CPU seconds, and peak memory of this process, of one right side off the start of a flow."""
    state = off_start(maps.ResidualMLP(d, width=width))
    seconds = cpu_seconds(lambda: state.right_side(n), turns=1)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"d = {d}, n = {n}, p = {state.map.num_params}: {seconds:.1f} CPU s, at most {peak / 1e9:.2f} GB resident.")


def main(sizes: Sizes = FULL) -> None:
    """Three tables, and a line about the large case."""
    d, width, several = sizes.of_n
    state = flow(d, width)
    heading(f"Growth with n: d = {d}, p = {state.map.num_params}; in GEMMs")
    sweep("n", [(n, n, state) for n in several])
    d, n, several = sizes.of_p
    states = [flow(d, width) for width in several]
    heading(f"Growth with p: d = {d}, n = {n}; in GEMMs")
    sweep("p", [(state.map.num_params, n, state) for state in states])
    n, width, several = sizes.of_d
    states = [flow(d, width) for d in several]
    heading(f"Growth with d: n = {n}, width {width}; in GEMMs")
    sweep("d", [(state.map.dim, n, state) for state in states])
    command = [sys.executable, "-m", "benchmarks.growth", *map(str, sizes.large)]
    print("\nA large right side, in a process of its own: ", end="", flush=True)
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 4:
        large_right_side(*map(int, sys.argv[1:]))
    else:
        main()
