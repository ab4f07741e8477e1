"""Langevin flow from N(0, 16 I) to a mixture of five Gaussians with centres in a cube [−5, 5]^d (d = 32: [−3, 3]^d).

The problem of the JKO-ICNN study (Mokrov et al., 2021, arXiv 2106.00736, §5.1), which compares at t = 4 with the
*stationary* law; the masses of the components have not come to rest then, so the law at time t is the one to compare
with: 50 000 Langevin particles, by the squared energy distance (floor: between two samples of the particles) and by the
masses of the components. The symmetric KL (KL + KL, nats) to the mixture itself stands beside the published one.

    python -m experiments.gaussian_mixture                       # d = 2, 6, 12: six minutes; *.h5 and *.png
    python -m experiments.gaussian_mixture --dims 32             # principal components, masses: eight minutes

Runs that are there already are not repeated; pictures are drawn from the files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import matplotlib
import torch
import tyro

import pwgf
from experiments.common import cost, row_at, samples, save, solved, sym_kl, table
from pwgf import distances, fitting, maps, problems
from pwgf.errors import PWGFError
from pwgf.maps import PushForward
from pwgf.problems import Law

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PUBLISHED = {2: (0.06, 973), 6: (0.30, 2125), 12: (0.51, 7175)}  # symmetric KL to the mixture; GPU seconds
FAMILIES: dict[str, Callable[[int], PushForward]] = {
    "max": lambda dim: maps.ConvexMax(dim, scale=4),
    "residual": lambda dim: maps.ResidualMLP(dim, scale=4),
    "convex-ridge": lambda dim: maps.ConvexRidge(dim, scale=4),
    "ode": lambda dim: maps.NeuralODE(dim, scale=4),
    "composed": lambda dim: maps.Composed([maps.Affine(dim), maps.ConvexRidge(dim, scale=4)]),
}
POINTS = 10_000  # of each law for the energy distance
ROWS = (0.5, 1.0, 2.0, 4.0)


class AtEnd:
    """The mixture in place of the problem's law at t, for `sym_kl`."""

    def __init__(self, problem: problems.GaussianMixture) -> None:
        self.problem, self.reference = problem, problem.reference

    def __getattr__(self, name: str) -> object:
        return getattr(self.problem, name)

    def exact(self, t: float) -> Law:
        """The stationary law, whatever t."""
        return self.problem.equilibrium


def main(
    dims: tuple[int, ...] = (2, 6, 12),
    map: Literal["max", "residual", "convex-ridge", "ode", "composed"] = "max",
    num_samples: int = 2000,
    seed: int = 0,
) -> None:
    """A table of distances, masses and costs; a picture for each dimension.

    Args:
        dims: dimensions.
        map: family of maps.
        num_samples: samples of a right side.
        seed: of the runs; the centres are those of the problem's seed 0.
    """
    rows = []
    for d in dims:
        problem = problems.GaussianMixture(d)
        family = FAMILIES[map](d)
        scheme = pwgf.PWGF(
            problem.energy, family, problem.reference, num_samples=num_samples, theta0=_start(family, problem, seed)
        )
        name = f"gaussian_mixture/{map}-d{d}-n{num_samples}-seed{seed}"
        run = solved(name, problem, scheme, (0.0, *ROWS), seed)
        rows += [line(run, problem, t, [map, str(d)]) + [str(seed)] for t in ROWS]
        _draw(run, problem, name)
    header = ["map", "d", "t", "masses, largest error", "energy distance²", "floor", "symmetric KL to π", "published"]
    table([*header, "residual", "rms∣v∣", "folds", "right sides", "CPU s", "seed"], rows)


def _start(map: PushForward, problem: problems.GaussianMixture, seed: int) -> torch.Tensor | None:
    """θ₀; groups that choose look along the directions in which the first velocity bends, four for five Gaussians."""
    if isinstance(map, maps.ConvexMax):
        return map.initial(seed, fitting.active_directions(problem.energy, problem.reference))
    return None


def line(run: pwgf.Trajectory, problem: problems.GaussianMixture, t: float, start: list[str]) -> list[str]:
    """The figures of one row."""
    x, law, k = samples(run, t, 50_000), problem.exact(t), row_at(run, t)
    y = law.sample(2 * POINTS, torch.Generator().manual_seed(3))
    masses = float((problem.masses(x) - problem.masses(law.sample(50_000, torch.Generator()))).abs().max())
    distance = float(distances.energy_distance(x[:POINTS], y[:POINTS]))
    floor = float(distances.energy_distance(y[:POINTS], y[POINTS:]))
    try:
        to_target = f"{sym_kl(run, AtEnd(problem), t):.3f}"  # type: ignore[arg-type]
    except PWGFError:  # a point of π that no z is mapped to, as where the map folds
        to_target = "no inverse"
    theirs = f"{PUBLISHED[problem.dim][0]:g}" if problem.dim in PUBLISHED and t == ROWS[-1] else "–"
    own = [f"{run['projection_residual'][k]:.2f}", f"{run['velocity_rms'][k]:.2g}", f"{run['fold_fraction'][k]:.2g}"]
    return [*start, f"{t:g}", f"{masses:.3f}", f"{distance:.1e}", f"{floor:.1e}", to_target, theirs, *own, cost(run, t)]


def _draw(run: pwgf.Trajectory, problem: problems.GaussianMixture, name: str) -> None:
    """Samples of the start, of the run and of the mixture in the plane of the mixture's first principal components."""
    _, vectors = torch.linalg.eigh(problem.equilibrium.cov())
    plane = vectors[:, -2:].flip(1)
    drawn = (
        ("t = 0", samples(run, 0.0, 2000)),
        (f"pwgf, t = {ROWS[-1]:g}", samples(run, ROWS[-1], 2000)),
        (f"Langevin particles, t = {ROWS[-1]:g}", problem.exact(ROWS[-1]).sample(2000, torch.Generator())),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharex=True, sharey=True)
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
