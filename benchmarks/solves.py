"""The linear solve: preconditioned against plain conjugate gradients, and `auto` against every single solver.

    python -m benchmarks.solves                # about four minutes

The systems are those of a double-well flow in mid-flow (`common.MidFlow`) on samples that it has not seen, with the
momentum's prior, each solve on a tangent with nothing cached. A tight solve gives x*; the error of a solver is that in
the displacement, |J(x − x*)|/|Jx*|, the one thing that moves samples. "At equal error" means: with the loosest
tolerance out of 10^(−2), 10^(−2.25), … whose error is at most the level.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import MidFlow, cpu_seconds, heading, in_turn, mid_flow, milliseconds, short
from experiments.common import table
from pwgf import linalg, maps
from pwgf.linalg import LinearSolver, Solution
from pwgf.schemes._guards import finite_velocity

LEVEL = 5e-4  # displacement error at which solvers are compared: a few are what `auto` promises
MAX_DIRECT = 5000  # unknowns up to which a direct solver is tried


class Size(NamedTuple):
    """A system of `auto`'s grid: dimension, samples, units of the hidden layer, damping."""

    dim: int
    n: int
    width: int
    damping: float = 1e-6


class Sizes(NamedTuple):
    """Maps and sample number of the comparison with plain CG; `auto`'s grid; turns of the medians."""

    maps: tuple[tuple[str, maps.PushForward], ...]
    num_samples: int
    grid: tuple[Size, ...]
    turns: int


_GRID = [Size(d, n, 24 * d if d > 2 else 64) for d in (2, 5, 10, 20) for n in (100, 300, 1000, 3000)]
_GRID += [Size(2, 1000, 20), Size(2, 1000, 128), Size(2, 1000, 512), Size(10, 1000, 60), Size(10, 1000, 457)]
_GRID += [Size(30, 500, 720)]
_GRID += [Size(d, n, 24 * d if d > 2 else 64, 1e-4) for d in (2, 5, 10) for n in (300, 3000)]
FULL = Sizes(
    (
        ("ResidualMLP, 1 × 457", maps.ResidualMLP(10, width=457)),
        ("2 × 88", maps.ResidualMLP(10, width=88, depth=2)),
        ("2 × 88, dense, gain 1", maps.ResidualMLP(10, width=88, depth=2, axis_share=0.0, gain=1.0)),
    ),
    1000,
    tuple(_GRID),
    3,
)
TINY = Sizes((("1 × 30", maps.ResidualMLP(2, width=30)),), 60, (Size(2, 30, 10), Size(2, 60, 200)), 1)


class System:
    """min |Jx − v|²/n + ε tr(Ĝ)|x − prior|² at n fresh samples of a flow, with its solution x*."""

    def __init__(self, state: MidFlow, n: int, damping: float) -> None:
        self.pieces, self.z, self.theta = state.pieces(), state.sample(n), state.theta
        self.v = finite_velocity(state.problem.energy, self.pieces.pushed(self.theta, self.z, 0.0))
        self.prior, self.damping = 0.9 * state.theta_dot, damping
        self.tangent = self.pieces.tangent(self.theta, self.z)
        self.exact = self.solve(linalg.SubsamplePCG(rtol=1e-9, mixed=False)).x

    def solve(self, solver: LinearSolver, last: Any = None) -> Solution:
        """A solve on a tangent with nothing cached, or with what the solver kept in its state `last`."""
        state = solver.prepare(self.pieces.tangent(self.theta, self.z), self.damping, last)
        return solver.solve(state, self.v, self.prior)

    def error(self, x: Tensor) -> float:
        """|J(x − x*)|/|Jx*|."""
        return float(self.tangent.jv(x - self.exact).norm() / self.tangent.jv(self.exact).norm())

    def loosest(
        self, family: Callable[[float], LinearSolver], level: float, limit: float = math.inf
    ) -> LinearSolver | None:
        """The solver of a family (rtol ↦ solver) with the loosest tolerance that reaches the level.

        None where none does, or a solve took more than `limit` CPU seconds: a tighter one takes longer.
        """
        for k in range(8, 33):
            solver, began = family(10 ** (-k / 4)), time.process_time()
            solution = self.solve(solver)
            if time.process_time() - began > limit:
                return None
            if solution.converged and self.error(solution.x) <= level:
                return solver
        return None


def against_plain(system: System, turns: int) -> list[list[str]]:
    """Rows: solver, tolerance, products, error, milliseconds, and CPU time of plain CG in units of it."""
    pcg, cg = linalg.SubsamplePCG, partial(linalg.CG, mixed=True)
    kept = {"pcg, kept": pcg().prepare(system.tangent, system.damping)}
    rows = []
    groups: list[tuple[str, dict[str, LinearSolver | None]]] = [
        ("residual 1e-3", {"cg": linalg.CG(rtol=1e-3), "cg, mixed": cg(rtol=1e-3), "pcg": pcg(rtol=1e-3),
                           "pcg, kept": pcg()}),
    ]  # fmt: skip
    level = system.error(system.solve(pcg()).x)
    loosest = {"cg": linalg.CG, "cg, mixed": cg}
    equal: dict[str, LinearSolver | None] = {
        name: system.loosest(lambda rtol, family=family: family(rtol=rtol), level) for name, family in loosest.items()
    }
    groups.append((f"error {level:.0e}", {**equal, "pcg": pcg(), "pcg, kept": pcg()}))
    for what, solvers in groups:
        found = {name: solver for name, solver in solvers.items() if solver is not None}
        seconds = in_turn(
            {name: partial(system.solve, solver, kept.get(name)) for name, solver in found.items()}, turns
        )
        for name, solver in found.items():
            solution = system.solve(solver, kept.get(name))
            ratio = seconds["cg"] / seconds[name] if "cg" in seconds else math.nan
            rows.append(
                [what, name, f"{solver.rtol:.0e}", str(solution.num_products), f"{system.error(solution.x):.1e}",  # type: ignore[attr-defined]
                 milliseconds(seconds[name]), short(ratio)]
            )  # fmt: skip
    return rows


def comparison(sizes: Sizes) -> Iterator[list[str]]:
    """The rows of the table of plain and preconditioned conjugate gradients, map by map."""
    for name, map in sizes.maps:
        system = System(mid_flow(map), sizes.num_samples, 1e-6)
        for row in against_plain(system, sizes.turns):
            yield [f"{name}, p = {map.num_params}", *row]


def candidates(system: System) -> dict[str, LinearSolver]:
    """`auto`, as it is unless that misses the level, and each solver that meets it in at most twice the time."""
    auto = system.loosest(lambda rtol: linalg.Auto(accuracy=min(1.0, 100 * rtol)), LEVEL) or linalg.Auto(1e-3)
    limit = 2 * cpu_seconds(partial(system.solve, auto), turns=1)
    n, d, p = system.tangent.n, system.tangent.d, system.tangent.p
    families: dict[str, Callable[[float], LinearSolver]] = {
        "primal": lambda rtol: linalg.Primal(),
        "dual": lambda rtol: linalg.Dual(),
        "pcg": lambda rtol: linalg.SubsamplePCG(rtol=rtol),
        "cg": lambda rtol: linalg.CG(rtol=rtol),
        "cg, mixed": lambda rtol: linalg.CG(rtol=rtol, mixed=True),
        "lsmr": lambda rtol: linalg.LSMR(rtol=rtol),
    }
    if p > MAX_DIRECT:
        del families["primal"]
    if n * d > MAX_DIRECT:
        del families["dual"]
    found = {name: system.loosest(family, LEVEL, limit) for name, family in families.items()}
    return {"auto": auto, **{name: solver for name, solver in found.items() if solver is not None}}


def grid(sizes: Sizes, ratios: list[float]) -> Iterator[list[str]]:
    """The rows of `auto`'s table, one after another; its time as a ratio to the best solver's is added to `ratios`."""
    states: dict[tuple[int, int], MidFlow] = {}
    for size in sizes.grid:
        key = size.dim, size.width
        if key not in states:
            states[key] = mid_flow(maps.ResidualMLP(size.dim, width=size.width), tolerance=1e-2, num_samples=300)
        system = System(states[key], size.n, size.damping)
        solvers = candidates(system)
        seconds = in_turn({name: partial(system.solve, solver) for name, solver in solvers.items()}, sizes.turns)
        auto = seconds.pop("auto")
        best = min(seconds, key=lambda name: seconds[name])
        p = system.tangent.p
        chosen = linalg.choose(size.n, size.dim, p, True, damping=size.damping).name
        error = system.error(system.solve(solvers["auto"]).x)
        ratios.append(auto / seconds[best])
        row = [str(size.dim), str(size.n), str(p), f"{size.damping:.0e}", chosen, f"{error:.0e}", milliseconds(auto)]
        others = ", ".join(f"{name} {milliseconds(s)}" for name, s in seconds.items() if name != best)
        yield [*row, best, milliseconds(seconds[best]), f"{ratios[-1]:.2f}", others]


def main(sizes: Sizes = FULL) -> None:
    """The two tables."""
    heading(f"Solves at damping 1e-6, n = {sizes.num_samples}, d = {sizes.maps[0][1].dim}")
    table(["map", "at", "solver", "rtol", "products", "error", "ms", "times faster than cg"], comparison(sizes))
    heading(f"auto against the best solver at a displacement error of {LEVEL:g}")
    header = ["d", "n", "p", "damping", "auto takes", "its error", "ms", "best", "ms", "ratio", "others, ms"]
    ratios: list[float] = []
    table(header, grid(sizes, ratios))
    print(f"\nWorst ratio {max(ratios):.2f}, of {len(ratios)}.", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
