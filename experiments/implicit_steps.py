r"""Implicit steps against explicit ones, and against the minimising movements that they approximate.

`curves`: a flow to N(1, diag(1, .001)), and double wells V = .5 Σ(x⁴ − 16x² + 5x) that tear N(0, I) apart, in d = 2 by
default map and settings with explicit and implicit steps. The picture is drawn from the files alone. `narrow`: right
sides to t = 2 for Gaussians of variances 1 and σ², affine map, tolerance 1e-3. `movements`: steps of one length h by
`Implicit(dt=h, newton=3)` and by `JKOICNN(h=h)`, judged against the flow and against exact JKO steps, a recursion for
Gaussians: in an eigendirection of Σ with variance w the objective is
½(m′−m)² + ½(s′−s)² + h[((m′−b)² + s′²)/2w − log s′].

    python -m experiments.implicit_steps                    # five minutes, results/implicit_steps/*.h5 and a picture
    python -m experiments.implicit_steps --part draw
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
import tyro

import pwgf
from experiments.common import RESULTS, row_at, save, sym_kl, table
from experiments.targets import ou_target
from pwgf import maps, problems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"explicit": "#D55E00", "implicit": "#0072B2"}


@dataclass(frozen=True)
class Flow:
    """A flow to draw: its problem, rows, the rows of the table, the least energy, and how its axes are scaled."""

    title: str
    problem: problems.Problem
    times: np.ndarray
    shown: tuple[float, ...]
    scale: Literal["linear", "log"]
    label: str

    def height(self, energy: np.ndarray) -> np.ndarray:
        """The energy as drawn: per dimension, and above that of the equilibrium where this is a Gaussian."""
        if isinstance(self.problem, problems.OrnsteinUhlenbeck):
            return energy - self.problem.exact_energy(1e3)
        return energy / self.problem.dim


def flows() -> dict[str, Flow]:
    """A narrow Gaussian, and double wells 32 kT deep, both in d = 2."""
    cov = torch.tensor([1.0, 1e-3], dtype=torch.float64).diag()
    narrow = problems.OrnsteinUhlenbeck(2, cov=cov, mean=torch.ones(2))
    early = np.append(0.0, np.geomspace(1e-4, 2.0, 44))
    return {
        "narrow": Flow("Gaussian, variances 1 and .001", narrow, early, (2.0,), "log", "F(ρ) − F(ρ∞)"),
        "wells": Flow(
            "double wells, c = .5", problems.StyblinskiTang(2, 0.5), np.linspace(0, 0.48, 49),
            (0.05, 0.1, 0.16, 0.32, 0.48), "linear", "F(ρ) / d",
        ),
    }  # fmt: skip


class Budget:
    """Ends a run when its CPU seconds are used up; the row it ends at is stored."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.process_time()

    def __call__(self, state: Any, info: Any) -> bool:
        return time.process_time() - self.began > self.seconds


def curves(seed: int = 0, explicit: float = 40.0, implicit: float = 120.0) -> None:
    """Both integrators on both flows with the default map, each within its CPU seconds."""
    rows = []
    for flow_name, flow in flows().items():
        for name, budget in (("explicit", explicit), ("implicit", implicit)):
            problem = flow.problem
            scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(2), problem.reference, integrator=name, num_eval=20_000)
            run = pwgf.solve(
                scheme, flow.times, out=path(flow_name, name), seed=seed, overwrite=True, problem=problem,
                callbacks=[Budget(budget)], progress=False,
            )  # fmt: skip
            rows += [[flow.title, name, *cells] for cells in lines(run, flow)]
    table(["flow", "steps", "t", "energy", "right sides", "rejected", "folds", "CPU s"], rows)
    draw()


def path(flow: str, integrator: str) -> Path:
    """Where a run is."""
    return RESULTS / f"implicit_steps/{flow}-{integrator}.h5"


def lines(run: pwgf.Trajectory, flow: Flow) -> list[list[str]]:
    """Error of the energy and work at the times shown, up to the end of the run."""
    found = []
    for t in flow.shown:
        k = row_at(run, t)
        if abs(run.t[k] - t) > 1e-9:
            return [*found, [f"{t:g}", f"stopped at t = {run.t[-1]:.3g}", *_work(run, len(run) - 1)]]
        off, noise = run["energy"][k] - flow.problem.exact_energy(t), run["energy_stderr"][k]
        found.append([f"{t:g}", f"{off:+.3f} ± {noise:.3f}", *_work(run, k)])
    return found


def _work(run: pwgf.Trajectory, k: int) -> list[str]:
    folds = run["fold_fraction"][: k + 1].max()
    return [f"{run['num_stages'][k]:.0f}", f"{run['num_rejected'][k]:.0f}", f"{folds:g}", f"{run['cpu_time'][k]:.0f}"]


def draw() -> None:
    """Energy, right sides and step length against t, a line of panels for each flow, from the files."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
    for line, (flow_name, flow) in zip(axes, flows().items(), strict=True):
        fine = flow.times[1:]
        exact = np.array([flow.problem.exact_energy(t) for t in fine])
        line[0].plot(fine, flow.height(exact), color="0.7", lw=6, solid_capstyle="round", label="exact")
        for name, colour in COLOURS.items():
            _draw_run(line, pwgf.load(path(flow_name, name)), flow, name, colour)
        line[0].set(ylabel=flow.label, title=f"Energy: {flow.title}", yscale=flow.scale)
        line[1].set(ylabel="linear solves so far", title="Work", yscale="log")
        line[2].set(ylabel="mean step, in units of t", title="Step length", yscale="log")
        line[0].legend(frameon=False)
        for panel in line:
            panel.set(xlabel="t", xscale=flow.scale)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
    save(figure, "implicit_steps.png")


def _draw_run(line: np.ndarray, run: pwgf.Trajectory, flow: Flow, name: str, colour: str) -> None:
    """One run in the three panels; a cross where it was stopped."""
    t, steps = run.t[1:], np.diff(run.t) / np.maximum(np.diff(run["num_steps"]), 1)
    columns = flow.height(run["energy"][1:]), run["num_stages"][1:], steps
    label = f"{name}, {run['cpu_time'][-1]:.0f} CPU s"
    for panel, values in zip(line, columns, strict=True):
        dashed = name == "explicit"  # on top, so that both are seen where they agree
        panel.plot(t, values, "--" if dashed else "-", color=colour, lw=1.8, label=label, zorder=4 if dashed else 3)
        if t[-1] < flow.times[-1]:
            panel.plot(t[-1], values[-1], "X", color=colour, ms=9, mec="white", zorder=5)
    if t[-1] < flow.times[-1]:
        note, end = f"stopped at\nt = {t[-1]:.2g}", (t[-1], columns[1][-1])
        line[1].annotate(note, end, (8, 0), textcoords="offset points", color=colour, va="center")


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
            off = _off(run, problem.exact(2.0).cov().diagonal())
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

    def exact(self, t: float) -> pwgf.Gaussian:
        """N(m, QS²Qᵀ) after t/h steps from N(0, I)."""
        w, q = np.linalg.eigh(np.asarray(self.target["cov"]))
        b, m, s = q.T @ np.asarray(self.target["mean"]), np.zeros(len(w)), np.ones(len(w))
        a = 1 / self.h + 1 / w
        for _ in range(round(t / self.h)):
            m, s = (m / self.h + b / w) / a, (s / self.h + np.sqrt((s / self.h) ** 2 + 4 * a)) / (2 * a)
        cov = torch.from_numpy((q * s**2) @ q.T)
        mean, cov = torch.from_numpy(q @ m), (cov + cov.T) / 2
        return pwgf.Gaussian(len(w), mean, cov)


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


def main(part: Literal["all", "curves", "narrow", "movements", "draw"] = "all", seed: int = 0) -> None:
    """The picture and the tables.

    Args:
        part: one of them; `draw` draws the picture again from the files.
        seed: of the runs.
    """
    if part == "draw":
        return draw()
    if part in ("all", "curves"):
        curves(seed)
    if part in ("all", "narrow"):
        narrow(seed=seed)
    if part in ("all", "movements"):
        movements()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
