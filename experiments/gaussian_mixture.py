"""Langevin flow from N(0, 16 I) to the mixtures of Gaussians of the JKO-ICNN study, with its own centres.

The problem of Mokrov et al., 2021, arXiv 2106.00736, §5.1: 5, 6, 7, 8, 9, 10 centres in d = 2, 4, 6, 8, 10, 12, five
draws of them each, ∂ₜρ = −∇·(ρ∇log π) + Δρ to t = 4. The study scores by the symmetric KL (KL + KL, nats) to π itself,
the *stationary* law. The masses of the components have not come to rest at t = 4, so the exact law is itself at some
distance from π: at least the symmetric KL of the masses, by the data-processing inequality. `floor` is that figure from
50 000 Langevin particles, which also give the squared energy distance to the law at t = 4, beside that of two samples.

    python -m experiments.gaussian_mixture --dims 2 4 6 --targets 0     # six minutes; results/mixtures.csv
    python -m experiments.gaussian_mixture                              # all thirty targets: hours

Targets that have a row in results/mixtures.csv are not run again; runs are kept in results/gaussian_mixture/.
"""

from __future__ import annotations

import csv
import statistics
from typing import NamedTuple

import matplotlib
import torch
import tyro

import pwgf
from experiments.common import RESULTS, row_at, samples, save, solved, table
from experiments.targets import mixture_centres, mixture_published
from pwgf import distances, fitting, maps, problems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLE = RESULTS / "mixtures.csv"
POINTS = 10_000  # of each law for the energy distance
END = 4.0
MEASURED = ("sym_kl", "floor", "masses", "energy_distance", "two_samples", "right_sides", "cpu_seconds")
COLUMNS = ("d", "target", *MEASURED, "seed")


def main(
    dims: tuple[int, ...] = (2, 4, 6, 8, 10, 12), targets: tuple[int, ...] = (0, 1, 2, 3, 4), seed: int = 0
) -> None:
    """A row in results/mixtures.csv and a picture for each target, then the table beside the published means.

    Args:
        dims: dimensions out of 2, 4, 6, 8, 10, 12.
        targets: numbers of the centres, 0 to 4.
        seed: of the runs.
    """
    done = {(row["d"], row["target"]) for row in rows()}
    for k in targets:
        for d in dims:
            if (str(d), str(k)) not in done:
                _append(_target(d, k, seed))
    compare()


def rows() -> list[dict[str, str]]:
    """What results/mixtures.csv holds."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def _append(row: dict[str, object]) -> None:
    new = not TABLE.exists()
    with open(TABLE, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def _target(d: int, k: int, seed: int) -> dict[str, object]:
    """Solves one target and measures its last row."""
    problem = problems.GaussianMixture(d, centres=mixture_centres(d, k))
    map = maps.ConvexMax(d, size=max(6, problem.components), scale=4)
    start = map.initial(seed, fitting.active_directions(problem.energy, problem.reference))
    scheme = pwgf.PWGF(
        problem.energy, map, problem.reference,
        theta0=start, num_samples=2000, integrator="explicit", tolerance=1e-3, damping=1e-5,
    )  # fmt: skip
    name = f"gaussian_mixture/d{d}-target{k}-seed{seed}"
    run = solved(name, problem, scheme, (0.0, END), seed)
    _draw(run, problem, name)
    x, y = samples(run, END, 50_000), problem.exact(END).sample(50_000)
    ours, exact = problem.masses(x), problem.masses(y)
    last, rest = row_at(run, END), problem.masses(problem.equilibrium.sample(200_000))
    figures = {
        "sym_kl": distances.sym_kl(run.at(END), problem.equilibrium),
        "floor": ((exact - rest) * (exact / rest).log()).sum(),
        "masses": (ours - exact).abs().max(),
        "energy_distance": distances.energy_distance(x[:POINTS], y[:POINTS]),
        "two_samples": distances.energy_distance(y[:POINTS], y[-POINTS:]),
    }
    cost = {"right_sides": int(run["num_stages"][last]), "cpu_seconds": round(float(run["cpu_time"][last]))}
    return {"d": d, "target": k, **{key: f"{float(value):.3g}" for key, value in figures.items()}, **cost, "seed": seed}


class Means(NamedTuple):
    """Over the targets of one dimension: their numbers, and the mean of each column of `MEASURED`."""

    targets: str
    values: dict[str, float]


def means() -> dict[int, Means]:
    """What results/mixtures.csv holds, by dimension."""
    found = {}
    for d in sorted({int(row["d"]) for row in rows()}):
        mine = [row for row in rows() if row["d"] == str(d)]
        values = {key: statistics.fmean(float(row[key]) for row in mine) for key in MEASURED}
        found[d] = Means(", ".join(sorted(row["target"] for row in mine)), values)
    return found


def compare() -> None:
    """Prints means over the targets that have been measured, beside the study's means of five."""
    lines = []
    for d, (targets, mean) in means().items():
        theirs = mixture_published(d)
        cells = [str(d), theirs["components"], targets, *(f"{mean[key]:.3g}" for key in MEASURED[:3])]
        cells += [theirs["jko_icnn_sym_kl"], theirs["particles_50000_sym_kl"]]
        cells += [f"{mean[key]:.1e}" for key in MEASURED[3:5]]
        lines.append([*cells, *(f"{mean[key]:.0f}" for key in MEASURED[5:]), theirs["jko_icnn_gpu_seconds"]])
    header = ["d", "centres", "targets", "symmetric KL to π", "floor", "masses, largest error", "JKO-ICNN, published"]
    header += ["50 000 particles, published", "energy distance² at t = 4", "two samples", "right sides", "CPU s"]
    table([*header, "JKO-ICNN, GPU s"], lines)


def _draw(run: pwgf.Trajectory, problem: problems.GaussianMixture, name: str) -> None:
    """Samples of the start, the run and the particles in the plane of the mixture's first principal components."""
    _, vectors = torch.linalg.eigh(problem.equilibrium.cov())
    plane = vectors[:, -2:].flip(1)
    drawn = (
        ("t = 0", samples(run, 0.0, 2000)),
        (f"pwgf, t = {END:g}", samples(run, END, 2000)),
        (f"Langevin particles, t = {END:g}", problem.exact(END).sample(2000)),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 4), layout="constrained", sharex=True, sharey=True)
    for ax, (title, x) in zip(axes, drawn, strict=True):
        x, colours = x @ plane, problem.assign(x)
        ax.scatter(x[:, 0], x[:, 1], s=2, c=colours, cmap="tab10", vmin=0, vmax=9)
        ax.plot(*(problem.centres @ plane).T, "k+", ms=10)
        ax.set(title=title, xlabel="first principal component", aspect="equal")
    axes[0].set(ylabel="second")
    save(figure, f"{name}.png")
    plt.close(figure)


if __name__ == "__main__":
    tyro.cli(main)
