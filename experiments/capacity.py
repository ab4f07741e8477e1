"""When is a map large enough? Error against width, number of samples and family of maps.

Double wells ∂ₜρ = ∇·(ρ∇V) + Δρ, V = c Σ(x⁴ − 16x² + 5x), from N(0, I) (Styblinski–Tang), at t = .5, where the exact law
is a product of 1-D laws by finite volumes: symmetric KL (KL + KL, nats, exact densities on 20 000 points each way),
beside √(projection residual)·rms|v|, the velocity that the map misses on fresh samples, which needs no exact law: a
run reports when its map is too small.

    python -m experiments.capacity                 # 5 minutes of one core, results/capacity/*.h5 and capacity.png

Runs that are there already are not repeated; the picture is drawn from the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import tyro

import pwgf
from experiments.common import cost, row_at, save, solved, sym_kl, table
from pwgf import maps, problems
from pwgf.maps import PushForward

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTHS = (2, 8, 32, 128)
SAMPLES = (100, 300, 1000, 3000)
FAMILIES: dict[str, Callable[[int], PushForward]] = {
    "affine": maps.Affine,
    "residual": maps.ResidualMLP,
    "convex ridge": maps.ConvexRidge,
    "neural ODE": maps.NeuralODE,
}


class Point(NamedTuple):
    """One run: its error, and what it knows of it."""

    name: str
    sym_kl: float
    missed: float
    line: list[str]


def point(problem: problems.StyblinskiTang, name: str, map: PushForward, n: int, t: float, seed: int) -> Point:
    """Solved, or read; judged at t."""
    scheme = pwgf.PWGF(problem.energy, map, problem.reference, num_samples=n)
    run = solved(f"capacity/d{problem.dim}-{name.replace(' ', '-')}-n{n}-seed{seed}", problem, scheme, (0.0, t), seed)
    k = row_at(run, t)
    error = sym_kl(run, problem, t)
    missed = float(np.sqrt(run["projection_residual"][k]) * run["velocity_rms"][k])
    figures = [f"{error:.1e}", f"{missed:.1e}", f"{run['fold_fraction'][k]:g}", cost(run, t)]
    return Point(name, error, missed, [name, str(map.num_params), str(n), *figures, str(seed)])


def main(dim: int = 2, c: float = 0.06, t: float = 0.5, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Three sweeps, a table and a picture.

    Args:
        dim: d.
        c: depth of the wells.
        t: when the law is judged.
        seeds: of the runs; the picture shows medians.
    """
    problem = problems.StyblinskiTang(dim, c=c)

    def several(name: str, map: PushForward, n: int = 1000) -> list[Point]:
        return [point(problem, name, map, n, t, seed) for seed in seeds]

    widths = {w: several(f"residual width {w}", maps.ResidualMLP(dim, width=w, axis_units=0)) for w in WIDTHS}
    samples = {n: several("residual", maps.ResidualMLP(dim), n) for n in SAMPLES}
    families = {name: several(name, make(dim)) for name, make in FAMILIES.items()}
    found = [run for sweep in (widths, samples, families) for runs in sweep.values() for run in runs]
    header = ["map", "p", "n", "symmetric KL", "missed velocity", "folds", "right sides", "CPU s", "seed"]
    lines = {tuple(run.line): None for run in found}  # the default map with 1000 samples is in two sweeps
    table(header, [list(line) for line in lines])
    _draw(widths, samples, families, t)


def _draw(widths: dict[int, list[Point]], samples: dict[int, list[Point]], families: dict, t: float) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    sweeps = ((widths, "units (no functions of single coordinates)"), (samples, "samples"))
    for ax, (sweep, label) in zip(axes, sweeps, strict=False):
        for what, colour, says in (("sym_kl", "#0072B2", "symmetric KL"), ("missed", "#D55E00", "missed velocity")):
            ax.loglog(list(sweep), _medians(sweep, what), "o-", color=colour, label=says)
        ax.set(xlabel=label)
        ax.legend(frameon=False)
    where = np.arange(len(families))
    axes[2].bar(where - 0.2, _medians(families, "sym_kl"), 0.4, color="#0072B2")
    axes[2].bar(where + 0.2, _medians(families, "missed"), 0.4, color="#D55E00")
    axes[2].set_xticks(where, list(families), rotation=35, ha="right")
    axes[0].set(ylabel=f"at t = {t:g}", title="width")
    axes[1].set(title="samples")
    axes[2].set(title="family of maps, default sizes")
    save(figure, "capacity/capacity.png")


def _medians(sweep: dict, what: str) -> list[float]:
    """Over the seeds, NaN (no inverse at some sample) counted as infinite."""
    values = [[getattr(run, what) for run in runs] for runs in sweep.values()]
    return [float(np.median(np.nan_to_num(found, nan=np.inf))) for found in values]


if __name__ == "__main__":
    tyro.cli(main)
