"""Porous-medium equation ∂ₜρ = Δρ^m, from the Barenblatt law at t = 1 to t = 2, and from N(0, 1).

The exact solution from the Barenblatt law is self-similar, x → 2^b x with b = 1/(d(m−1)+2), so E|x|² grows by 2^{2b}
sample by sample: the ratio of the second moments on the same reference samples shows the method's error without
sampling noise. From N(0, 1) in one dimension nothing is self-similar; the densities are compared with finite volumes,
by ∫|ρ − ρ*| dx.

    python -m experiments.porous_medium        # half a minute, results/porous_medium/*.h5 and two pictures
"""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
import tyro
from scipy.integrate import trapezoid

import pwgf
from experiments.common import RESULTS, cost, samples, save, solved, table
from pwgf import energies, maps, problems
from pwgf.oracles import finite_volume

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CASES = ((1, 2), (2, 2), (5, 2), (1, 3))
FAMILIES = {"residual": maps.ResidualMLP, "convex ridge": maps.ConvexRidge}
GRID = np.linspace(-7, 7, 4001)


def porous_medium(seed: int = 0) -> None:
    """Both parts.

    Args:
        seed: of the runs.
    """
    barenblatt(seed)
    gaussian(seed)


def barenblatt(seed: int) -> None:
    """Growth of E|x|² for each (d, m)."""
    rows = []
    for d, m in CASES:
        problem = problems.BarenblattFlow(d, m=m)
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(d), problem.reference)
        run = solved(f"porous_medium/d{d}-m{m}", problem, scheme, (1.0, 1.25, 1.5, 2.0), seed)
        before, after = (samples(run, t, 100_000).square().sum(1).mean() for t in (1.0, 2.0))
        exact = problem.exact(2.0).cov().trace() / problem.exact(1.0).cov().trace()
        rows.append([str(d), str(m), f"{float(after / before / exact - 1):+.1e}", cost(run, 2.0), str(seed)])
    table(["d", "m", "growth of E∣x∣², relative error", "right sides", "CPU s", "seed"], rows)
    _draw_barenblatt()


def gaussian(seed: int) -> None:
    """∫|ρ − ρ*| dx at t = .1, .25, .5 for m = 2 from N(0, 1)."""
    rows = []
    for name, make in FAMILIES.items():
        scheme = pwgf.PWGF(energies.PorousMedium(2), make(1), pwgf.Gaussian(1))
        out = RESULTS / f"porous_medium/gaussian-{name.replace(' ', '-')}.h5"
        run = pwgf.solve(scheme, (0.0, 0.1, 0.25, 0.5), out=out, seed=seed, resume=True)
        gaps = (np.abs(density(run, t) - reference(t)) for t in (0.1, 0.25, 0.5))
        errors = [f"{trapezoid(gap, GRID):.1e}" for gap in gaps]
        rows.append([name, *errors, cost(run, 0.5), str(seed)])
    table(["map", "t = .1", "t = .25", "t = .5", "right sides", "CPU s", "seed"], rows)
    _draw_gaussian()


def density(run: pwgf.Trajectory, t: float) -> np.ndarray:
    """The density at t on the grid, by inverting the map."""
    return run.log_density(t, torch.from_numpy(GRID).unsqueeze(1)).exp().numpy()


def reference(t: float) -> np.ndarray:
    """The density at t by finite volumes."""
    start = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi)
    return finite_volume.porous_medium(GRID, np.zeros_like(GRID), start, t, steps=400)


def _draw_gaussian() -> None:
    """Densities at three times against finite volumes."""
    run = pwgf.load(RESULTS / "porous_medium/gaussian-residual.h5")
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for t, colour in ((0.0, "#0072B2"), (0.1, "#009E73"), (0.5, "#D55E00")):
        if t > 0:
            axes.plot(GRID, reference(t), color=colour, lw=5, alpha=0.25)
        axes.plot(GRID, density(run, t), color=colour, label=f"t = {t:g}")
    axes.set(xlabel="x", ylabel="ρ", xlim=(-4, 4), title="Porous medium, m = 2, from N(0, 1), on finite volumes")
    axes.legend(frameon=False)
    save(figure, "porous_medium/gaussian.png")


def _draw_barenblatt() -> None:
    """Density in 1-D, m = 2, at three times, against the exact one; from the file alone."""
    run = pwgf.load(RESULTS / "porous_medium/d1-m2.h5")
    problem = problems.from_config(run.config["problem"])
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for t, colour in ((1.0, "#0072B2"), (1.5, "#009E73"), (2.0, "#D55E00")):
        edge = 0.9999 * float(pwgf.Barenblatt(1, 2, t).radius)
        x = torch.linspace(-edge, edge, 201, dtype=torch.float64).unsqueeze(1)
        axes.plot(x, problem.exact(t).log_density(x).exp(), color=colour, lw=5, alpha=0.25)
        inside = run.log_density(t, x).exp()
        axes.plot(x, inside, color=colour, label=f"t = {t:g}")
    axes.set(xlabel="x", ylabel="ρ", title="Porous medium, d = 1, m = 2: pwgf (thin) on the exact law (thick)")
    axes.legend(frameon=False)
    save(figure, "porous_medium/porous_medium.png")


if __name__ == "__main__":
    tyro.cli(porous_medium)
