"""Full runs: their cost in matrix products, how it grows, and the time to a given accuracy beside the published scheme.

    python -m benchmarks.runs                  # about five minutes

- Ornstein–Uhlenbeck targets in d = 12 at default settings to t = .9: CPU time as a multiple of that of one 2048³
  product in float64 measured before and after, and the symmetric KL.
- Growth of a full run with n, p and d over two decades each, in the same unit.
- Time to accuracy on Ornstein–Uhlenbeck flows: our own gradient form with forward Euler and conjugate gradients, nearly
  as published (Jin et al., 2024, arXiv 2404.19133, solve the same system by MINRES), beside the default, for several
  steps, dampings, sample numbers and tolerances.

CPU times are of `solve` with its two rows, each of which is measured on 10 000 fresh samples. Errors are Bures–W₂ (the
root, in units of x) and symmetric KL (KL + KL, nats) against the exact law.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

import pwgf
from benchmarks.common import exponent, gemm_seconds, heading, short
from experiments.common import table
from experiments.targets import ou_target
from pwgf import linalg, maps, problems
from pwgf.run.trajectory import Trajectory
from pwgf.study.accuracy import errors

LEVELS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the symmetric KL


class Sizes(NamedTuple):
    """Dimension and number of targets; n, width and d of the growth; (d, T, time steps) and tolerances of the
    time to accuracy; points on which rows are measured, and twice as many for errors."""

    dim: int = 12
    targets: int = 3
    several_n: tuple[int, ...] = (100, 1000, 10_000)
    several_width: tuple[int, ...] = (20, 200, 2000)
    several_d: tuple[int, ...] = (1, 10, 100)
    flows: tuple[tuple[int, float, tuple[float, ...]], ...] = ((2, 0.5, (0.05, 0.01, 0.0025)), (10, 0.9, (0.05, 0.01)))
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    points: int = 10_000


FULL = Sizes()
TINY = Sizes(1, 1, (50, 100), (5, 10), (1, 2), ((2, 0.1, (0.05,)),), (1e-2,), 100)


class Found(NamedTuple):
    """What a run cost and how far it is from the exact law; NaN where it broke down."""

    seconds: float
    num_stages: int
    bures_w2: float
    sym_kl: float


def solved(problem: problems.Problem, t: float, map: maps.PushForward, **settings: Any) -> tuple[float, Trajectory]:
    """CPU seconds of a run to t, and the run."""
    began = time.process_time()
    done = pwgf.solve(pwgf.PWGF(problem.energy, map, problem.reference, **settings), (0.0, t), progress=False)
    return time.process_time() - began, done


def run(problem: problems.Problem, t: float, map: maps.PushForward, points: int, **settings: Any) -> Found:
    """One run to t, with its rows measured on `points` samples and its errors on twice as many."""
    began = time.process_time()
    try:
        seconds, done = solved(problem, t, map, num_eval=points, **settings)
    except (pwgf.SolverError, pwgf.NonFiniteError):
        return Found(time.process_time() - began, 0, math.nan, math.nan)
    found = errors(done, problem, n=2 * points, rows=[-1])
    return Found(seconds, int(done["num_stages"][-1]), float(found["bures_w2"][0]), float(found["sym_kl"][0]))


def target(dim: int, index: int) -> problems.OrnsteinUhlenbeck:
    """The Ornstein–Uhlenbeck flow to a target of the JKO-ICNN study."""
    cov, mean = ou_target(dim, index)
    return problems.OrnsteinUhlenbeck(dim, cov=cov, mean=mean)


def full_runs(sizes: Sizes) -> Iterator[list[str]]:
    """Default settings to t = .9."""
    for index in range(sizes.targets):
        before = gemm_seconds()
        found = run(target(sizes.dim, index), 0.9, maps.ResidualMLP(sizes.dim), sizes.points)
        gemm = statistics.mean([before, gemm_seconds()])
        yield [str(index), str(found.num_stages), f"{found.seconds:.1f}", f"{gemm:.2f}",
               short(found.seconds / gemm), f"{found.sym_kl:.1e}", f"{found.bures_w2:.1e}"]  # fmt: skip


def growth(sizes: Sizes) -> Iterator[list[str]]:
    """Runs of the default flow, in GEMMs; a stage's share of the run grows by an exponent of its own."""
    gemm = gemm_seconds()
    sweeps = [
        ("n", [(n, 2, 64, n) for n in sizes.several_n]),
        ("p", [(maps.ResidualMLP(2, width=w).num_params, 2, w, 1000) for w in sizes.several_width]),
        ("d", [(d, d, 64, 1000) for d in sizes.several_d]),
    ]
    for symbol, cases in sweeps:
        spent, stages = [], []
        for size, d, width, n in cases:
            map = maps.ResidualMLP(d, width=width)
            seconds, done = solved(problems.OrnsteinUhlenbeck(d), 0.1, map, num_samples=n, num_eval=n)
            count = int(done["num_stages"][-1])
            spent.append(seconds)
            stages.append(seconds / count)
            yield [symbol, str(size), str(count), short(seconds / gemm), short(stages[-1] / gemm)]
        of = [size for size, *_ in cases]
        yield [symbol, "exponent", "", f"**{exponent(of, spent):.2f}**", f"**{exponent(of, stages):.2f}**"]


def contenders(tolerances: Sequence[float], steps: Sequence[float]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(mode, settings in words, settings)."""
    for tolerance in tolerances:
        yield "default", f"tolerance {tolerance:g}", {"tolerance": tolerance}
    solver = linalg.CG(rtol=1e-3)
    for n, damping in ((1000, 1e-4), (1000, 1e-6), (4000, 1e-4)):
        for dt in steps:
            settings = dict(integrator=pwgf.Euler(dt), momentum=0.0, damping=damping, solver=solver, num_samples=n)
            yield "gradient", f"dt {dt:g}, damping {damping:g}, n = {n}", {"form": "gradient", **settings}


def time_to_accuracy(d: int, t: float, steps: Sequence[float], tolerances: Sequence[float], points: int) -> None:
    """A table of all settings, and one of the least CPU time by mode at which each level of the symmetric KL is met."""
    problem = problems.OrnsteinUhlenbeck(2) if d == 2 else target(d, 0)
    found: list[tuple[str, str, Found]] = []

    def rows() -> Iterator[list[str]]:
        for mode, words, settings in contenders(tolerances, steps):
            result = run(problem, t, maps.ResidualMLP(d), points, **settings)
            found.append((mode, words, result))
            shown = [f"{x:.1e}" if math.isfinite(x) else "broke down" for x in (result.sym_kl, result.bures_w2)]
            yield [mode, words, *shown, str(result.num_stages), f"{result.seconds:.1f}"]

    table(["mode", "settings", "symmetric KL", "Bures–W₂", "right sides", "CPU s"], rows())
    print()
    least = []
    for level in LEVELS:
        cells = []
        for mode in ("default", "gradient"):
            met = [(r.seconds, words) for one, words, r in found if one == mode and r.sym_kl <= level]
            cells.append("{:.1f} ({})".format(*min(met)) if met else "never")
        least.append([f"{level:g}", *cells])
    table(["symmetric KL ≤", "default, CPU s", "gradient form, Euler, CG, CPU s"], least)


def main(sizes: Sizes = FULL) -> None:
    """All tables."""
    heading(f"Full runs: Ornstein–Uhlenbeck targets, d = {sizes.dim}, t = .9, default settings")
    table(["target", "right sides", "CPU s", "one GEMM, s", "GEMMs", "symmetric KL", "Bures–W₂"], full_runs(sizes))
    heading("Growth of a full run: Ornstein–Uhlenbeck flow to t = .1, from d = 2, n = 1000, width 64; in GEMMs")
    table(["over", "size", "right sides", "run", "per right side"], growth(sizes))
    for d, t, steps in sizes.flows:
        heading(f"Time to accuracy: Ornstein–Uhlenbeck flow, d = {d}, t = {t:g}")
        time_to_accuracy(d, t, steps, sizes.tolerances, sizes.points)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
