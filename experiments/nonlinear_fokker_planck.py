"""Nonlinear Fokker–Planck equation ∂ₜρ = ∂ₓ(2xρ) + ∂ₓ²ρ² from N(0, .2²) to the Barenblatt profile, d = 1.

F = ∫x²ρ + ∫ρ², the porous-medium example (m = 2) of the code with which Alvarez-Melis, Schiff and Mroueh accompany
*Optimizing functionals on the space of probabilities with input convex neural networks*, 2021, arXiv 2106.00774. The
limit is ρ = ½(C − x²)₊ with C = (3/2)^{2/3}. Scored by ∫|ρ − ρ*| dx against finite volumes and against the limit.

    python -m experiments.nonlinear_fokker_planck      # two minutes of one core, results/nonlinear_fokker_planck/*

Runs that are there already are not repeated; the picture is drawn from the files.
"""

from __future__ import annotations

import functools

import matplotlib
import numpy as np
import torch
import tyro
from scipy.integrate import trapezoid

import pwgf
from experiments.common import RESULTS, cost, save, table
from pwgf import energies, maps
from pwgf.oracles import finite_volume
from pwgf.schemes import Scheme

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRID = np.linspace(-2, 2, 4001)
WIDTH = 0.2
TIMES = (0.0, 0.1, 0.25, 0.5, 1.0)


def main(seed: int = 0) -> None:
    """Errors of PWGF and JKO-ICNN at t = .1, .25, .5, 1.

    Args:
        seed: of the runs.
    """
    (RESULTS / "nonlinear_fokker_planck").mkdir(parents=True, exist_ok=True)
    rows, runs = [], {}
    for name, scheme in _schemes().items():
        out = RESULTS / f"nonlinear_fokker_planck/{name}-seed{seed}.h5"
        times = np.linspace(0, TIMES[-1], 21) if name == "jko-icnn" else TIMES
        runs[name] = pwgf.solve(scheme, times, out=out, seed=seed, resume=True)
        found = {t: density(runs[name], t) for t in TIMES[1:]}
        errors = [f"{trapezoid(np.abs(rho - reference(t)), GRID):.1e}" for t, rho in found.items()]
        to_limit = f"{trapezoid(np.abs(found[TIMES[-1]] - limit()), GRID):.1e}"
        rows.append([name, *errors, to_limit, cost(runs[name], TIMES[-1]), str(seed)])
    exact = trapezoid(np.abs(reference(TIMES[-1]) - limit()), GRID)
    rows.append(["finite volumes", *("–" for _ in TIMES[1:]), f"{exact:.1e}", "–", "–", "–"])
    table(["scheme", *(f"t = {t:g}" for t in TIMES[1:]), "limit, t = 1", "work", "CPU s", "seed"], rows)
    _draw(runs)


def _schemes() -> dict[str, Scheme]:
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.PorousMedium(2)
    start = pwgf.Gaussian(1, cov=WIDTH**2)
    return {
        "pwgf": pwgf.PWGF(energy, maps.ConvexRidge(1), start),
        "jko-icnn": pwgf.JKOICNN(energy, start, h=0.05, dtype=torch.float32),
    }


def density(run: pwgf.Trajectory, t: float) -> np.ndarray:
    """The density at t on the grid, by inverting the map."""
    return run.log_density(t, torch.from_numpy(GRID).unsqueeze(1)).double().exp().numpy()


@functools.cache
def reference(t: float) -> np.ndarray:
    """The density at t by finite volumes."""
    start = np.exp(-((GRID / WIDTH) ** 2) / 2) / (WIDTH * np.sqrt(2 * np.pi))
    return finite_volume.porous_medium(GRID, GRID**2, start, t, steps=400)


def limit() -> np.ndarray:
    """The Barenblatt profile of mass one at which the flow rests."""
    return 0.5 * np.maximum(1.5 ** (2 / 3) - GRID**2, 0.0)


def _draw(runs: dict[str, pwgf.Trajectory]) -> None:
    """Densities at three times on finite volumes."""
    figure, panels = plt.subplots(1, len(runs), figsize=(9, 3.4), layout="constrained", sharex=True, sharey=True)
    for panel, (name, run) in zip(panels, runs.items(), strict=True):
        for t, colour in ((0.1, "#0072B2"), (0.25, "#009E73"), (1.0, "#D55E00")):
            panel.plot(GRID, reference(t), color=colour, lw=5, alpha=0.25)
            panel.plot(GRID, density(run, t), color=colour, lw=1, label=f"t = {t:g}")
        panel.set(xlabel="x", title=f"{name} (thin) on finite volumes (thick)")
    panels[0].set(ylabel="ρ")
    panels[0].legend(frameon=False)
    save(figure, "nonlinear_fokker_planck/densities.png")


if __name__ == "__main__":
    tyro.cli(main)
