"""Aggregation ∂ₜρ = ∇·(ρ ∇W∗ρ), W = |x|⁴/4 − |x|²/2, from N(0, I): mass gathers on a sphere of R² = d/(2(d+1)).

The exact law is a radial map of the start; compared are m(t) = E|x|²/d and, for d = 2 at t = 5, the rms radius and the
energy, all by exact quadrature-like samples (antithetic, moment-matched, centred).

    python -m experiments.aggregation          # about 5 minutes, results/aggregation/*.h5 and aggregation.png
"""

from __future__ import annotations

import math

import matplotlib
import torch
import tyro

import pwgf
from experiments.common import RESULTS, cost, samples, save, solved, table
from pwgf import maps, problems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CASES = {2: (0.0, 0.1, 0.5, 1.0, 5.0), 10: (0.0, 0.1, 0.5, 1.0)}


def aggregation(dims: tuple[int, ...] = (2, 10), seed: int = 0) -> None:
    """Second moments and energies against the exact law.

    Args:
        dims: 2 and 10.
        seed: of the runs.
    """
    rows = []
    for d in dims:
        problem = problems.Aggregation(d)
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(d), problem.reference)
        run = solved(f"aggregation/d{d}", problem, scheme, CASES[d], seed)
        for t in CASES[d][1:]:
            x = samples(run, t, 200_000, matched=True)
            x = x - x.mean(0)
            m, exact = float(x.square().sum(1).mean()) / d, float(problem.exact(t).cov().trace()) / d
            energy, exact_energy = _energy(x), problem.exact_energy(t)
            rows.append(
                [str(d), f"{t:g}", f"{m - exact:+.1e}", f"{math.sqrt(m * d):.5f}", f"{math.sqrt(exact * d):.5f}"]
                + [f"{energy:.6f}", f"{exact_energy:.6f}", cost(run, t), str(seed)]
            )
    header = ["d", "t", "m − exact", "rms radius", "exact", "F", "exact", "right sides", "CPU s", "seed"]
    table(header, rows)
    _draw()


def _energy(x: torch.Tensor) -> float:
    """½∬W over all pairs of centred x (n,d): for this W a function of second and fourth moments alone."""
    r2, c = x.square().sum(1), x.T @ x / len(x)
    fourth = 2 * r2.square().mean() + 2 * r2.mean() ** 2 + 4 * c.square().sum()
    return float(fourth / 8 - r2.mean() / 2)


def _draw() -> None:
    """Samples in 2-D at four times, from the file alone."""
    run = pwgf.load(RESULTS / "aggregation/d2.h5")
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharex=True, sharey=True)
    for panel, t in zip(axes, (0.0, 0.5, 1.0, 5.0), strict=True):
        x = run.sample(t, 2000)
        panel.plot(x[:, 0], x[:, 1], ".", ms=1.5, color="#0072B2")
        panel.add_patch(plt.Circle((0, 0), 1 / math.sqrt(3), fill=False, color="#D55E00", lw=1))
        panel.set(title=f"t = {t:g}", aspect="equal", xlim=(-2, 2), ylim=(-2, 2))
    figure.suptitle("Aggregation, d = 2: 2000 samples and the limiting circle of radius 1/√3")
    save(figure, "aggregation/aggregation.png")


if __name__ == "__main__":
    tyro.cli(aggregation)
