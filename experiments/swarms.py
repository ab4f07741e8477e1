"""Aggregation in the plane from N(0, .25² I): a ring, a disc and an annulus, by four schemes beside the exact laws.

∂ₜρ = ∇·(ρ∇(W∗ρ + V)), as in Bonet et al., 2022, arXiv 2110.10972, and Carrillo et al., 2019, arXiv 1901.08081:

    ring      W = |x|⁴/4 − |x|²/2          t = 10    circle of radius 1/√3
    disc      W = |x|²/2 − log|x|          t = 3     uniform on the unit disc
    annulus   the same, V = −¼log|x|       t = 4     uniform on ½ < |x| < √5/2

Every exact law is the image of the start by a radial map. `W₂ of radii`: between the radii of the samples and the exact
ones, by quantiles. `rms|T − T*|`: the distance of the map from the exact one, an upper bound of W₂.

    python -m experiments.swarms --methods pwgf particles       # two minutes of one core, results/swarms/*
    python -m experiments.swarms                                # SW-JKO as well: more than ten minutes

Runs that are there already are not repeated; the picture is drawn from the files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import tyro
from torch import Tensor

import pwgf
from experiments.common import cost, save, solved, table
from pwgf import maps, problems
from pwgf.schemes import Scheme

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIGMA = 0.25
EXACT = 100_000  # samples of the exact law behind its quantiles
PARTICLES = 1000
Swarm = problems.Aggregation | problems.NewtonianAggregation


class Case(NamedTuple):
    """A problem and the time at which it is looked at."""

    problem: Swarm
    end: float


CASES = {
    "ring": Case(problems.Aggregation(2, sigma=SIGMA), 10.0),
    "disc": Case(problems.NewtonianAggregation(sigma=SIGMA), 3.0),
    "annulus": Case(problems.NewtonianAggregation(sigma=SIGMA, annulus=True), 4.0),
}
SCHEMES: dict[str, Callable[[Swarm], Scheme]] = {
    "pwgf": lambda p: pwgf.PWGF(p.energy, maps.ResidualMLP(2), p.reference),
    "sw-jko, map": lambda p: pwgf.SWJKO(p.energy, maps.ResidualMLP(2, scale=SIGMA), p.reference, tau=0.1),
    "sw-jko, particles": lambda p: pwgf.SWJKO(p.energy, None, p.reference, tau=0.1, num_samples=PARTICLES),
    "particles": lambda p: pwgf.EulerMaruyama(p.energy, p.reference, num_samples=PARTICLES, dt=0.02),
}


def main(cases: tuple[str, ...] = tuple(CASES), methods: tuple[str, ...] = tuple(SCHEMES), seed: int = 0) -> None:
    """A table of errors and a picture of all laws.

    Args:
        cases: out of ring, disc, annulus.
        methods: names out of `SCHEMES`.
        seed: of the runs.
    """
    rows, shown = [], []
    for name in cases:
        problem, end = CASES[name]
        for method in methods:
            label = f"swarms/{name}-{method.replace(', ', '-')}-seed{seed}"
            run = solved(label, problem, SCHEMES[method](problem), (0.0, end), seed)
            rows.append([name, f"{end:g}", method, *_figures(run, problem, end), cost(run, end), str(seed)])
            shown.append((f"{name}: {method}", run.sample(end, PARTICLES)))
        shown.append((f"{name}: exact", problem.exact(end).sample(PARTICLES)))
    header = ["law", "t", "scheme", "mean radius", "exact", "W₂ of radii", "rms∣T − T*∣", "work", "CPU s"]
    table([*header, "seed"], rows)
    _draw(shown, len(cases))


def _figures(run: pwgf.Trajectory, problem: Swarm, end: float) -> list[str]:
    """Mean radius, the exact one, W₂ of the radii, distance of the maps."""
    radius, exact = _radii(run.sample(end, EXACT)), _radii(problem.exact(end).sample(EXACT, 1))
    at = torch.linspace(0, 1, 2001, dtype=torch.float64)[1::2]
    apart = (radius.quantile(at) - exact.quantile(at)).square().mean().sqrt()
    maps_apart = "–"
    if run.description.has_density:  # maps have, particles have not
        z = run.reference.sample(EXACT, torch.Generator().manual_seed(2))
        gap = run.push(end, z) - _exact_map(problem, z, end)
        maps_apart = f"{float(gap.square().sum(1).mean().sqrt()):.1e}"
    means = [f"{float(radius.mean()):.4f}", f"{float(exact.mean()):.4f}"]
    return [*means, f"{float(apart):.1e}", maps_apart]


def _radii(x: Tensor) -> Tensor:
    """Distances from the centre of mass, which the flow of an interaction keeps where the samples have it."""
    return (x - x.mean(0)).norm(dim=1)


def _exact_map(problem: Swarm, z: Tensor, t: float) -> Tensor:
    """The exact image at t of samples z (n,2) of the start."""
    if isinstance(problem, problems.NewtonianAggregation):
        return problem.exact(t).moved(z)
    map, z = problem.map(t), z / SIGMA
    return z / (map.q + 2 * map.beta * z.square().sum(1, keepdim=True)).sqrt()


def _draw(shown: list[tuple[str, Tensor]], count: int) -> None:
    """Samples of every run, a row for each law."""
    across = len(shown) // count
    size = (2.2 * across, 2.3 * count)
    figure, axes = plt.subplots(count, across, figsize=size, layout="constrained", sharex=True, sharey=True)
    for panel, (title, x) in zip(np.ravel(axes), shown, strict=True):
        panel.plot(x[:, 0], x[:, 1], ".", ms=1.5, color="#0072B2")
        panel.set_title(title, fontsize=9)
        panel.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    save(figure, "swarms/swarms.png")


if __name__ == "__main__":
    tyro.cli(main)
