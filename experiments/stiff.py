r"""Stiff and tearing flows ∂ₜρ = ∇·(ρ∇δF/δρ) with the default map and the default settings, by each integrator.

F = ∫V dρ + τ∫ρ log ρ, or ∫ρ^m/(m−1) + ∫V dρ, from N(0, I) unless said: narrow Gaussians (variances 1 and 10⁻² … 10⁻⁴,
also turned in d = 12), porous media that stand against a potential, double wells in d = 1, 2, 10, 50 that tear the law
apart, a ring around a hole, triple wells, sin 5x, |x|, Neal's funnel, a banana. Every row after the first is judged
against a law from elsewhere (`experiments.stiff_references`); a run is *right* if it reaches its end and no row misses
a bound of its case.

    python -m experiments.stiff --case ou-1e-2 sin5 --integrator implicit explicit --seeds 0 1 2
    python -m experiments.stiff --case all --seeds 0 --budget 280      # up to five minutes of one core for each case
    python -m experiments.stiff --references                           # the laws alone, three minutes
    python -m experiments.stiff --show                                 # the table, from results/stiff/table.jsonl

A run is stored as results/stiff/CASE-INTEGRATOR-SEED.h5 and adds a line to results/stiff/table.jsonl; the last line of
the same run counts. It is stopped when its CPU time is used up, or when 300 of its steps were below 10⁻⁶ of the range.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

import pwgf
from experiments.common import RESULTS, row_at, table
from experiments.stiff_references import Banana, Divergence, Gaussians, Judge, Line, Particles, Radial, Wells
from experiments.targets import ou_target
from pwgf import energies, maps, problems
from pwgf.errors import PWGFError
from pwgf.maps import PushForward
from pwgf.measures import Reference
from pwgf.state import Info, State
from pwgf.storage.manifest import parts_of

FOLDER = RESULTS / "stiff"
ROUNDING = 1e-10  # a rise of F on the same samples, over 1 + |F|, that is none
STALL = 300  # steps below 10⁻⁶ of the range after which a run is given up


@dataclass(frozen=True)
class Case:
    """A flow, the law it is judged against, and the bounds by name of error (`folds`: of the fold fraction)."""

    energy: energies.Energy
    judge: Judge
    bounds: dict[str, float]
    reference: Reference
    map: Callable[[int], PushForward] = maps.ResidualMLP
    settings: dict[str, Any] = field(default_factory=dict)


def spaced(end: float, rows: int = 5) -> tuple[float, ...]:
    """0 and `rows` equally spaced times up to the end."""
    return tuple(np.linspace(0, end, rows + 1).tolist())


def cases() -> dict[str, Case]:
    """All cases by name."""
    return {**gaussian_cases(), **porous_cases(), **well_cases(), **line_cases(), **other_cases()}


def gaussian_cases() -> dict[str, Case]:
    """Ornstein–Uhlenbeck flows at condition numbers 10² to 10⁴."""
    turn, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    turned = (turn * torch.logspace(0, -4, 12, dtype=torch.float64)) @ turn.T
    targets = {label: torch.tensor([1.0, float(label)]).double().diag() for label in ("1e-2", "1e-3", "1e-4")}
    targets["rotated"] = 0.5 * (turned + turned.T)
    found = {}
    for name, cov in targets.items():
        problem = problems.OrnsteinUhlenbeck(len(cov), cov=cov, mean=torch.zeros(len(cov)))
        judge = Gaussians(problem, (0.0, 0.1, 0.5, 1.0, 2.0))
        affine = "rotated-affine" if name == "rotated" else f"affine-{name}"
        found[f"ou-{name}"] = Case(problem.energy, judge, {"var": 1e-3}, problem.reference)
        found[f"ou-{affine}"] = Case(problem.energy, judge, {"var": 1e-6}, problem.reference, maps.Affine)
    cov, mean = ou_target(12, 0)
    problem = problems.OrnsteinUhlenbeck(12, cov=cov, mean=mean)
    judge = Divergence(problem, (0.0, 0.9))
    loose = Case(problem.energy, judge, {"sym_kl": 1e-5}, problem.reference, settings={"tolerance": 1e-4})
    return {**found, "ou12-loose": loose}


def porous_cases() -> dict[str, Case]:
    """∂ₜρ = Δρ^m + ∇·(xρ) and ∂ₜρ = Δρ⁴."""

    def bowl(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(-1)

    energy = energies.PorousMedium(2) + energies.Potential(bowl)
    line, long = Line(bowl, spaced(3.0), m=2), Line(lambda x: 0 * x[:, 0], spaced(30.0), m=4, half_width=8.0)
    found = {
        "pme-quad-d1": Case(energy, line, {"l1": 0.01}, pwgf.Gaussian(1)),
        "pme4-d1": Case(energies.PorousMedium(4), long, {"l1": 0.02}, pwgf.Gaussian(1)),
    }
    for d in (2, 5):
        judge = Radial(d, lambda r: 0.5 * r**2, spaced(3.0), m=2)
        found[f"pme-quad-d{d}"] = Case(energy, judge, {"second": 0.02, "w1": 0.02}, pwgf.Gaussian(d))
    return found


def well_cases() -> dict[str, Case]:
    """V = c Σ(x⁴ − 16x² + 5x): mass crosses the barriers at c = .06, hardly any does at .5."""
    found = {}
    for d, times in ((2, (0.0, 0.5, 1.0, 2.0)), (10, (0.0, 0.5, 1.0))):
        problem = problems.StyblinskiTang(d, 0.06)
        bounds = {"energy": 0.005, "var": 0.005}
        found[f"wells-c06-d{d}"] = Case(problem.energy, Wells(problem, times), bounds, problem.reference)
    for d in (2, 10, 50):
        problem = problems.StyblinskiTang(d, 0.5)
        judge, bounds = Wells(problem, (0.0, 0.05, 0.1, 0.16, 0.32, 0.48)), {"energy_share": 0.01, "folds": 0.0}
        found[f"wells-c5-d{d}"] = Case(problem.energy, judge, bounds, problem.reference)
    return found


def line_cases() -> dict[str, Case]:
    """∂ₜρ = ∂ₓ(τ ∂ₓρ + ρV′)."""
    doubles = {
        f"double1d-{100 * tau:02.0f}": (lambda x: (x[:, 0].square() - 1).square(), tau, 2.0, {"l1": 0.01})
        for tau in (0.05, 0.1, 0.2, 0.5)
    }
    flows = {
        **doubles,
        "triple1d": (lambda x: x[:, 0].square() * (x[:, 0].square() - 4).square() / 10, 0.3, 2.0, {"l1": 0.01}),
        "sin5": (lambda x: (5 * x[:, 0]).sin() + x[:, 0].square() / 2, 0.5, 1.0, {"l1": 0.01, "folds": 0.0}),
        "laplace1d": (lambda x: x[:, 0].abs(), 1.0, 2.0, {"l1": 0.02}),
    }
    return {
        name: Case(
            energies.Potential(V) + tau * energies.Entropy(), Line(V, spaced(end), tau=tau), bounds, pwgf.Gaussian(1)
        )
        for name, (V, tau, end, bounds) in flows.items()
    }


def other_cases() -> dict[str, Case]:
    """A ring around a hole, Neal's funnel in d = 10 (scale 2), a banana."""

    def ring(r2: Any) -> Any:
        return (r2 - 4) ** 2 / 8

    energy = energies.Potential(lambda x: ring(x.square().sum(-1))) + 0.25 * energies.Entropy()
    judge = Radial(2, lambda r: ring(r**2), spaced(2.0), tau=0.25, spread=0.5, edge=6.0)
    found = {"ring-hole": Case(energy, judge, {"w1": 0.02}, pwgf.Gaussian(2, cov=0.25))}
    funnel = problems.Funnel(10, scale=2.0, end_time=0.4, num_particles=240_000, dt=0.005)
    banana = Banana(240_000, 0.01, 0)
    for name, problem, times in (("funnel10", funnel, spaced(0.4, 4)), ("banana", banana, spaced(2.0))):
        found[name] = Case(problem.energy, Particles(problem, times), {"mean": 0.02, "cov": 0.02}, problem.reference)
    return found


class Watch(logging.Handler):
    """Stops a run that is over budget or has stalled, counts rises of the energy, and keeps what the log says."""

    def __init__(self, end: float, budget: float) -> None:
        super().__init__(logging.WARNING)
        self.end, self.budget, self.began = end, budget, time.process_time()
        self.short, self.rises, self.largest, self.said = 0, 0, 0.0, []  # type: ignore[var-annotated]

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message."""
        self.said.append(record.getMessage())

    def __call__(self, state: State, info: Info) -> bool:
        """Whether to stop."""
        change, energy = (info.values.get(name, math.nan) for name in ("energy_change", "energy"))
        rise = change / (1 + abs(energy))
        if rise > ROUNDING:
            self.rises, self.largest = self.rises + 1, max(self.largest, rise)
        self.short += info.dt < 1e-6 * self.end
        return self.cpu > self.budget or self.short > STALL

    @property
    def cpu(self) -> float:
        """Seconds since the start."""
        return time.process_time() - self.began


def solve(name: str, case: Case, seed: int, integrator: str, budget: float) -> dict[str, Any]:
    """One run, stored and judged: a line of the table."""

    def scheme() -> pwgf.PWGF:
        map = case.map(case.reference.dim)
        return pwgf.PWGF(case.energy, map, case.reference, integrator=integrator, **case.settings)

    out = FOLDER / f"{name}-{integrator}-{seed}.h5"
    return {"case": name, "integrator": integrator, **attempt(name, case, scheme, out, seed, budget)}


def attempt(
    name: str, case: Case, scheme: Callable[[], pwgf.PWGF], out: Path, seed: int, budget: float
) -> dict[str, Any]:
    """One run of a scheme, stored at `out` and judged."""
    times = case.judge.times
    out.unlink(missing_ok=True)  # a run that fails before its first row must not be judged by an older one
    shutil.rmtree(parts_of(str(out)), ignore_errors=True)
    watch, error, log = Watch(times[-1], budget), None, logging.getLogger("pwgf")
    log.addHandler(watch)
    try:
        pwgf.solve(scheme(), times, out=out, seed=seed, overwrite=True, progress=False, callbacks=[watch])
    except PWGFError as reason:
        error = f"{type(reason).__name__}: {reason}"
    finally:
        cpu = watch.cpu
        log.removeHandler(watch)
    line = {
        "seed": seed, "cpu": round(cpu, 2), "end": times[-1], "stalled": watch.short > STALL, "rises": watch.rises,
        "largest_rise": watch.largest, "bounds": case.bounds, "error": error, "warned": watch.said,
    }  # fmt: skip
    return {**line, **judged(name, case, out)}


def judged(name: str, case: Case, out: Path) -> dict[str, Any]:
    """What the rows in the file say; a run that failed before its first row has none."""
    try:
        run = pwgf.load(out)
    except PWGFError:
        return {"reached": 0.0, "done": False, "right": False, "rows": [], "worst": {}}
    laws, rows = case.judge.laws(name), []
    for k, t in enumerate(case.judge.times):
        stored = row_at(run, t)
        if k > 0 and abs(run.t[stored] - t) < 1e-9 * case.judge.times[-1]:
            spread = run["spread"][stored]
            own = {"folds": run["fold_fraction"][stored], "estimate": run["error_estimate"][stored] / spread}
            own["error_95"] = run["error_95"][stored] / spread
            own = {column: float(value) for column, value in own.items()}
            rows.append({"t": t, **case.judge.errors(run, k, laws), **own})
    done = bool(run.t[-1] >= case.judge.times[-1])
    worst = {name: max((row[name] for row in rows), key=_size) for name in rows[0] if name != "t"} if rows else {}
    counters = {name: int(run[name][-1]) for name in run.names if name.startswith("num_")}
    return {
        "reached": float(run.t[-1]), "done": done, "rows": rows, "worst": worst, **counters,
        "right": done and all(worst[name] <= bound for name, bound in case.bounds.items()),
        "fold_fraction": float(run["fold_fraction"].max()),
        "projection_residual": float(run["projection_residual"].max()),
    }  # fmt: skip


def _size(error: float) -> float:
    return math.inf if math.isnan(error) else error


def tell(line: dict[str, Any]) -> str:
    """A line of the table as a line to read."""
    verdict = "right" if line["right"] else "WRONG" if line["done"] else "STALLED" if line["stalled"] else "STOPPED"
    errors = ", ".join(f"{name} {value:.2g}{_bound(line, name)}" for name, value in line["worst"].items())
    counts = ", ".join(f"{line.get(f'num_{name}', 0)} {name}" for name in ("stages", "products", "rejected"))
    text = (
        f"{line['case']} {line['integrator']} seed {line['seed']}: {verdict} at t = {line['reached']:.4g} of "
        f"{line['end']:g}, {line['cpu']:.0f} s, {counts}; {errors or 'no rows'}; folds "
        f"{line.get('fold_fraction', 0):.2g}, residual {line.get('projection_residual', math.nan):.2g}, "
        f"{line['rises']} rises up to {line['largest_rise']:.1e}"
    )
    return text + (f"; {line['error'][:160]}" if line["error"] else "")


def _bound(line: dict[str, Any], name: str) -> str:
    return f" (≤ {line['bounds'][name]:g})" if name in line["bounds"] else ""


def print_table() -> None:
    """Medians and worst figures over seeds, a row per case and integrator."""
    lines = [json.loads(text) for text in (FOLDER / "table.jsonl").read_text().splitlines()]
    latest = {(line["case"], line["integrator"], line["seed"]): line for line in lines}
    groups: dict[tuple[str, str], list[dict]] = {}
    for name in cases():
        for (case, integrator, _), line in sorted(latest.items()):
            if case == name:
                groups.setdefault((case, integrator), []).append(line)
    header = ["case", "integrator", "right", "done", "least t", "CPU s", "stages", "rejected", "worst error"]
    table([*header, "folds", "residual", "rises", "largest"], (_summary(*key, runs) for key, runs in groups.items()))


def _summary(case: str, integrator: str, runs: Sequence[dict]) -> list[str]:
    def worst(name: str) -> float:
        return max((run.get(name, 0) for run in runs), key=_size)

    errors = []
    for name, bound in runs[0]["bounds"].items():
        found = max((run["worst"].get(name, math.nan) for run in runs), key=_size)
        errors.append(f"{name} {found:.1e} (≤ {bound:g})")
    middle = [f"{median(run.get(name, 0) for run in runs):.0f}" for name in ("cpu", "num_stages", "num_rejected")]
    counts = [f"{sum(run[name] for run in runs)}/{len(runs)}" for name in ("right", "done")]
    tail = [f"{worst('fold_fraction'):.1g}", f"{worst('projection_residual'):.2g}", f"{worst('rises')}"]
    reached = f"{min(run['reached'] for run in runs):.3g}"
    return [case, integrator, *counts, reached, *middle, ", ".join(errors), *tail, f"{worst('largest_rise'):.0e}"]


def main(
    case: tuple[str, ...] = ("all",),
    integrator: tuple[str, ...] = ("auto",),
    seeds: tuple[int, ...] = (0,),
    budget: float = 280.0,
    references: bool = False,
    show: bool = False,
) -> None:
    """Runs cases and prints a line each.

    Args:
        case: names of cases, or all.
        integrator: auto, implicit, explicit.
        seeds: of the runs.
        budget: CPU seconds of a run.
        references: only compute what the cases are judged against.
        show: only print the table of the runs so far.
    """
    known = cases()
    names = tuple(known) if "all" in case else case
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if show:
        return print_table()
    for name in names:
        if references:
            began = time.process_time()
            known[name].judge.laws(name)
            print(f"{name}: {time.process_time() - began:.1f} s", flush=True)
            continue
        for how in integrator:
            for seed in seeds:
                line = solve(name, known[name], seed, how, budget)
                with open(FOLDER / "table.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
                print(tell(line), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
