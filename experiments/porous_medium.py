"""Porous-medium equation ∂ₜρ = Δρ^m from the Barenblatt law at t = 1 to t = 2.

The exact solution is self-similar, x → 2^b x with b = 1/(d(m−1)+2), so E|x|² grows by 2^{2b} sample by sample: the
ratio of the second moments on the same reference samples shows the method's error without sampling noise.

    python -m experiments.porous_medium        # half a minute, results/porous_medium/*.h5 and porous_medium.png
"""

from __future__ import annotations

import matplotlib
import torch
import tyro

import pwgf
from experiments.common import RESULTS, cost, samples, save, solved, table
from pwgf import maps, problems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CASES = ((1, 2), (2, 2), (5, 2), (1, 3))


def porous_medium(seed: int = 0) -> None:
    """Growth of E|x|² for each (d, m).

    Args:
        seed: of the runs.
    """
    rows = []
    for d, m in CASES:
        problem = problems.BarenblattFlow(d, m=m)
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(d), problem.reference)
        run = solved(f"porous_medium/d{d}-m{m}", problem, scheme, (1.0, 1.25, 1.5, 2.0), seed)
        before, after = (samples(run, t, 100_000).square().sum(1).mean() for t in (1.0, 2.0))
        exact = problem.exact(2.0).cov.trace() / problem.exact(1.0).cov.trace()
        rows.append([str(d), str(m), f"{float(after / before / exact - 1):+.1e}", cost(run, 2.0), str(seed)])
    table(["d", "m", "growth of E∣x∣², relative error", "right sides", "CPU s", "seed"], rows)
    _draw()


def _draw() -> None:
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
