"""Every family of maps on four problems: error, right sides, CPU seconds.

Ornstein–Uhlenbeck in d = 2 (the study's target 0, t = .9) and double wells in d = 2 (Styblinski–Tang, c = .06,
t = .5) by the symmetric KL to the exact law (KL + KL, nats, 20 000 points each way); five Gaussians in d = 2 (t = 4) by
the largest error of a component's mass; the porous-medium equation from N(0, 1) in d = 1 (t = .5) by ∫|ρ − ρ*| against
finite volumes. All settings are the defaults apart from num_samples=1000 and `scale` where the start is N(0, 16 I).

    python -m experiments.families                 # ten minutes of one core, results/families/*.h5

Runs that are there already are not repeated. A run that cannot go on says why, in a word; its file ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import tyro
from scipy.integrate import trapezoid

import pwgf
from experiments.common import RESULTS, cost, samples, sym_kl, table
from experiments.porous_medium import GRID, density, reference
from experiments.targets import ou_target
from pwgf import energies, maps, problems
from pwgf.errors import PWGFError
from pwgf.maps import PushForward
from pwgf.measures import Reference

FAMILIES: dict[str, Callable[[int, float], PushForward]] = {
    "Affine": lambda d, scale: maps.Affine(d),
    "ResidualMLP": lambda d, scale: maps.ResidualMLP(d, scale=scale),
    "ConvexRidge": lambda d, scale: maps.ConvexRidge(d, scale=scale),
    "ConvexMax": lambda d, scale: maps.ConvexMax(d, scale=scale),
    "NeuralODE": lambda d, scale: maps.NeuralODE(d, scale=scale),
    "NeuralODE, 4 steps": lambda d, scale: maps.NeuralODE(d, num_steps=4, scale=scale),
    "Affine after ConvexRidge": lambda d, scale: maps.Composed([maps.ConvexRidge(d, scale=scale), maps.Affine(d)]),
}


class Case(NamedTuple):
    """A problem, and how far off a run's last law is."""

    name: str
    energy: energies.Energy
    reference: Reference
    dim: int
    scale: float
    end: float
    error: Callable[[pwgf.Trajectory], float]


def cases() -> list[Case]:
    """The columns of the table."""
    cov, mean = ou_target(2, 0)
    ou, wells = problems.OrnsteinUhlenbeck(2, cov=cov, mean=mean), problems.StyblinskiTang(2, 0.06)
    mixture = problems.GaussianMixture(2)

    def masses(run: pwgf.Trajectory) -> float:
        exact = mixture.exact(4.0).sample(50_000, torch.Generator())
        return float((mixture.masses(samples(run, 4.0, 50_000)) - mixture.masses(exact)).abs().max())

    def distance(run: pwgf.Trajectory) -> float:
        return float(trapezoid(np.abs(density(run, 0.5) - reference(0.5)), GRID))

    return [
        Case("ornstein-uhlenbeck", ou.energy, ou.reference, 2, 1.0, 0.9, lambda run: sym_kl(run, ou, 0.9)),
        Case("double-wells", wells.energy, wells.reference, 2, 1.0, 0.5, lambda run: sym_kl(run, wells, 0.5)),
        Case("five-gaussians", mixture.energy, mixture.reference, 2, 4.0, 4.0, masses),
        Case("porous-medium", energies.PorousMedium(2), pwgf.Gaussian(1), 1, 1.0, 0.5, distance),
    ]


def main(families: tuple[str, ...] = tuple(FAMILIES), seed: int = 0) -> None:
    """One row a family, one cell a problem: error, right sides, CPU seconds.

    Args:
        families: names out of `FAMILIES`.
        seed: of the runs.
    """
    (RESULTS / "families").mkdir(parents=True, exist_ok=True)
    columns = cases()
    rows = [[family, *(_cell(family, case, seed) for case in columns)] for family in families]
    table(["map", *(f"{case.name}, t = {case.end:g}" for case in columns)], rows)


def _cell(family: str, case: Case, seed: int) -> str:
    try:
        map = FAMILIES[family](case.dim, case.scale)
        scheme = pwgf.PWGF(case.energy, map, case.reference, num_samples=1000)
        label = family.replace(" ", "-").replace(",", "")
        out = RESULTS / "families" / f"{case.name}-{label}-seed{seed}.h5"
        run = pwgf.solve(scheme, (0.0, case.end), out=out, seed=seed, resume=True)
        error = f"{case.error(run):.1e}"
    except PWGFError as reason:
        return f"stopped: {type(reason).__name__}"
    sides, seconds = cost(run, case.end).split(" | ")
    folds = float(run["fold_fraction"][-1])
    return f"{error} ({sides}, {seconds} s{f', folds {folds:.1g}' if folds else ''})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
