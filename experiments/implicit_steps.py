r"""Implicit steps against explicit ones, and against the minimising movements that they approximate.

`tearing`: double wells V = .5 Σ(x⁴ − 16x² + 5x) in d = 2 tear N(0, I) apart; default map and settings, explicit and
implicit steps. The picture is drawn from the two files alone. `narrow`: right sides that an Ornstein–Uhlenbeck flow to
a Gaussian of variances 1 and σ² takes to t = 2, affine map. `movements`: steps of one length h by `Implicit(dt=h,
newton=3)` and by `JKOICNN(h=h)`, judged against the flow and against exact JKO steps, a recursion for Gaussians:
in an eigendirection of Σ with variance w the objective is ½(m′−m)² + ½(s′−s)² + h[((m′−b)² + s′²)/2w − log s′].

    python -m experiments.implicit_steps                    # four minutes, results/implicit_steps/*.h5 and a picture
    python -m experiments.implicit_steps --part tearing
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
import tyro

import pwgf
from experiments.common import RESULTS, row_at, save, sym_kl, table
from experiments.targets import ou_target
from pwgf import maps, problems
from pwgf.problems.base import MeasureLaw

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES = np.linspace(0, 0.48, 49)
SHOWN = (0.05, 0.1, 0.16, 0.32, 0.48)
COLOURS = {"explicit": "#D55E00", "implicit": "#0072B2"}


class Budget:
    """Ends a run when its CPU seconds are used up; the row it ends at is stored."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.process_time()

    def __call__(self, state: Any, info: Any) -> bool:
        return time.process_time() - self.began > self.seconds


def tearing(seed: int = 0, explicit: float = 40.0, implicit: float = 120.0) -> None:
    """Both integrators on the double wells, each within its CPU seconds."""
    problem, rows = problems.StyblinskiTang(2, 0.5), []
    for name, budget in (("explicit", explicit), ("implicit", implicit)):
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(2), problem.reference, integrator=name, num_eval=20_000)
        out = RESULTS / f"implicit_steps/{name}.h5"
        run = pwgf.solve(
            scheme,
            TIMES,
            out=out,
            seed=seed,
            overwrite=True,
            problem=problem,
            callbacks=[Budget(budget)],
            progress=False,
        )
        for t in SHOWN:
            k = row_at(run, t)
            if abs(run.t[k] - t) > 1e-9:
                rows.append([name, f"{t:g}", f"ended at t = {run.t[-1]:.3f}", *_work(run, -1)])
                break
            exact = problem.exact_energy(t)
            noise = run["energy_stderr"][k] / abs(exact)
            off = f"{100 * (run['energy'][k] / exact - 1):+.2f} ± {100 * noise:.2f} %"
            rows.append([name, f"{t:g}", off, *_work(run, k)])
    table(["steps", "t", "energy", "right sides", "rejected", "folds", "CPU s"], rows)
    draw()


def _work(run: pwgf.Trajectory, k: int) -> list[str]:
    folds = run["fold_fraction"][: len(run) if k < 0 else k + 1].max()
    return [f"{run['num_stages'][k]:.0f}", f"{run['num_rejected'][k]:.0f}", f"{folds:.0e}", f"{run['cpu_time'][k]:.0f}"]


def draw() -> None:
    """Energy, right sides and step length against t, from the files."""
    problem = problems.StyblinskiTang(2, 0.5)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    fine = np.linspace(0, 0.48, 25)
    left.plot(fine, [problem.exact_energy(t) / 2 for t in fine], color="0.65", lw=5, label="exact")
    for name, colour in COLOURS.items():
        run = pwgf.load(RESULTS / f"implicit_steps/{name}.h5")
        label = f"{name}, {run['cpu_time'][-1]:.0f} CPU s"
        steps = np.diff(run.t) / np.maximum(np.diff(run["num_steps"]), 1)
        left.plot(run.t, run["energy"] / 2, color=colour, lw=1.8, label=label)
        middle.semilogy(run.t[1:], run["num_stages"][1:], color=colour, lw=1.8)
        right.stairs(steps, run.t, baseline=None, color=colour, lw=1.8)
        if run.t[-1] < TIMES[-1]:
            height = run["energy"][-1] / 2, run["num_stages"][-1], steps[-1]
            for axes, y in zip((left, middle, right), height, strict=True):
                axes.plot(run.t[-1], y, "X", color=colour, ms=9, mec="white")
            note = f"stopped at t = {run.t[-1]:.2f}"
            middle.annotate(
                note, (run.t[-1], height[1]), (8, -3), textcoords="offset points", color=colour, va="center"
            )
    right.set_yscale("log")
    left.set(ylabel="F(ρ) / d", title="Energy")
    middle.set(ylabel="linear solves so far", title="Work")
    right.set(ylabel="mean step between rows, units of t", title="Step length")
    left.legend(frameon=False)
    for axes in (left, middle, right):
        axes.set(xlabel="t", xlim=(0, 0.49))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, "implicit_steps.png")


def narrow(variances: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4), seed: int = 0) -> None:
    """Right sides to t = 2 by each integrator; explicit steps down to variance 10⁻³ only."""
    rows = []
    for variance in variances:
        cov = torch.tensor([1.0, variance], dtype=torch.float64).diag()
        problem = problems.OrnsteinUhlenbeck(2, cov=cov, mean=torch.zeros(2))
        cells = [f"{variance:g}"]
        for name in ("explicit", "implicit"):
            if name == "explicit" and variance < 1e-3:
                cells += ["–", "–", "–"]
                continue
            scheme = pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, integrator=name, tolerance=1e-3)
            run = pwgf.solve(scheme, (0.0, 2.0), seed=seed, progress=False)
            off = _off(run, problem.exact(2.0).cov.diagonal())
            cells += [f"{run['num_stages'][-1]:.0f}", f"{run['cpu_time'][-1]:.1f}", f"{off:.0e}"]
        rows.append(cells)
    header = ["right sides", "CPU s", "variances"]
    table(["σ²", *(f"{name}: {word}" for name in ("explicit", "implicit") for word in header)], rows)


def _off(run: pwgf.Trajectory, theirs: torch.Tensor) -> float:
    """Largest relative error of a variance of an affine run."""
    theta = run.theta(2.0)
    scale = run.push(2.0, torch.eye(2, dtype=theta.dtype)) - run.push(2.0, torch.zeros(1, 2, dtype=theta.dtype))
    return float((scale.square().sum(0) / theirs - 1).abs().max())


class ExactSteps(problems.OrnsteinUhlenbeck):
    """The problem with the law after exact JKO steps of length h in place of the flow's."""

    def __init__(self, d: int, h: float, **target: Any) -> None:
        super().__init__(d, **target)
        self.h, self.target = h, target

    def exact(self, t: float) -> MeasureLaw:
        """N(m, QS²Qᵀ) after t/h steps from N(0, I)."""
        w, q = np.linalg.eigh(np.asarray(self.target["cov"]))
        b, m, s = q.T @ np.asarray(self.target["mean"]), np.zeros(len(w)), np.ones(len(w))
        a = 1 / self.h + 1 / w
        for _ in range(round(t / self.h)):
            m, s = (m / self.h + b / w) / a, (s / self.h + np.sqrt((s / self.h) ** 2 + 4 * a)) / (2 * a)
        cov = torch.from_numpy((q * s**2) @ q.T)
        mean, cov = torch.from_numpy(q @ m), (cov + cov.T) / 2
        return MeasureLaw(mean, cov, pwgf.Gaussian(len(w), mean, cov))


def movements(dims: tuple[int, ...] = (2, 6), steps: tuple[float, ...] = (0.1, 0.05), end: float = 0.5) -> None:
    """Symmetric KL at the end against the flow and against exact steps of the same length; CPU seconds."""
    rows = []
    for d in dims:
        cov, mean = ou_target(d, 0)
        problem = problems.OrnsteinUhlenbeck(d, cov=cov, mean=mean)
        for h in steps if d == 2 else steps[:1]:
            exact = ExactSteps(d, h, cov=cov, mean=mean)
            times = np.linspace(0, end, math.ceil(end / h - 1e-9) + 1)
            schemes = {
                "PWGF, Implicit(dt=h)": _pwgf(problem, pwgf.Implicit(dt=h)),
                "PWGF, Implicit(dt=h, newton=3)": _pwgf(problem, pwgf.Implicit(dt=h, newton=3)),
                "PWGF, Implicit(), own steps": _pwgf(problem, pwgf.Implicit()),
                "JKOICNN(h=h)": pwgf.JKOICNN(problem.energy, problem.reference, h=h, dtype=torch.float32),
            }
            for name, scheme in schemes.items():
                run = pwgf.solve(scheme, times if "JKO" in name else (0.0, end), seed=0, progress=False)
                found = [f"{sym_kl(run, against, end):.1e}" for against in (problem, exact)]
                rows.append([str(d), f"{h:g}", name, *found, f"{run['cpu_time'][-1]:.1f}"])
    table(["d", "h", "scheme", "to the flow", "to exact steps", "CPU s"], rows)


def _pwgf(problem: problems.OrnsteinUhlenbeck, integrator: pwgf.Implicit) -> pwgf.PWGF:
    return pwgf.PWGF(problem.energy, maps.ResidualMLP(problem.dim), problem.reference, integrator=integrator)


def main(part: Literal["all", "tearing", "narrow", "movements", "draw"] = "all", seed: int = 0) -> None:
    """The picture and the tables.

    Args:
        part: one of them; `draw` draws the picture again from the files.
        seed: of the runs.
    """
    if part == "draw":
        return draw()
    if part in ("all", "tearing"):
        tearing(seed)
    if part in ("all", "narrow"):
        narrow(seed=seed)
    if part in ("all", "movements"):
        movements()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
