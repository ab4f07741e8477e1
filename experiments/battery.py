r"""Thirteen flows ∂ₜρ = ∇·(ρ∇δF/δρ) at default settings: right or wrong, and do wrong ones warn?

F = ∫V dρ + τ∫ρ log ρ with |x|, sin 5x + x²/2 (τ = .5), ½x² + 5000y², (|x|² − 4)²/8 around a hole (τ = .25), and
Σ log cosh x_i in d = 20; KL to a banana, four Gaussians of unequal weights, Neal's funnel in d = 10; porous media
∫ρ² + ½∫x² dρ and ⅓∫ρ⁴; x⁴/4 − x²/2 with ½∬½(x−y)² below the critical temperature (τ = .2); ½∬(½|x−y|² + 1/|x−y|) in
d = 3; and ∫ρ log ρ from a uniform ball, whose edge has no velocity and which must be refused.

    python -m experiments.battery --problem all --seeds 0 1 2    # eight minutes of one core a seed, five for the laws
    python -m experiments.battery --problem sin5 --map plain     # maps.ResidualMLP alone, without layers
    python -m experiments.battery --show                         # the table so far

A run is *right* if it reaches its end and every row after the first differs from an independent law by less than 1 % of
the scale of each error (`experiments.battery_references`; 2 % in L1), or by no more than the noise of particles. Each
row's `error_95` is set against what was measured. A line is added to results/battery/table.jsonl; the last one of
a run counts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import tyro
from scipy.special import gammainc

import pwgf
from experiments import stiff
from experiments.battery_references import ALLOWED, Images, MeanField, Sampled, product, radial
from experiments.common import RESULTS, table
from experiments.stiff import Case, spaced
from experiments.stiff_references import Line
from pwgf import energies, maps, problems
from pwgf.oracles.langevin import LangevinParticles

FOLDER = RESULTS / "battery"
LINE = {"w2": ALLOWED, "l1": 2 * ALLOWED}
IMAGES = {"sliced": ALLOWED, "obs": ALLOWED}
SAMPLED = {"share": 1.0}


def cases() -> dict[str, Case]:
    """All problems by name."""
    return {**line_cases(), **image_cases(), **sampled_cases()}


def line_cases() -> dict[str, Case]:
    """d = 1, by finite volumes."""
    known = stiff.cases()
    found = {name: known[name] for name in ("laplace1d", "sin5")}
    found["pme2_quad_1d"] = replace(known["pme-quad-d1"], judge=replace(known["pme-quad-d1"].judge, times=spaced(5.0)))
    found["pme4_1d_long"] = known["pme4-d1"]

    def well(x: torch.Tensor) -> torch.Tensor:
        return 0.25 * x[:, 0] ** 4 - 0.5 * x[:, 0] ** 2

    energy = energies.Potential(well) + energies.Interaction(lambda r: 0.5 * r.square().sum(-1))
    judge = MeanField(well, spaced(10.0), tau=0.2, half_width=5.0, mean=0.3, spread=math.sqrt(0.5))
    start = pwgf.Gaussian(1, mean=0.3, cov=0.5)
    found["dawson_below"] = Case(energy + 0.2 * energies.Entropy(), judge, LINE, start)
    return {name: replace(case, bounds=LINE) for name, case in found.items()}


def image_cases() -> dict[str, Case]:
    """Exact maps: two time scales, a ring, a sum of log cosh, a Coulomb gas."""
    stiffness = np.array([1.0, 1e4])
    wide, gas = pwgf.Gaussian(2, cov=4.0), pwgf.Gaussian(3)

    def shrunk(z: np.ndarray, k: int, laws: dict[str, np.ndarray]) -> np.ndarray:
        decay = np.exp(-2 * stiffness * spaced(1.0)[k])
        return z * np.sqrt(decay + (1 - decay) / (4 * stiffness))

    def spread(z: np.ndarray, k: int, laws: dict[str, np.ndarray]) -> np.ndarray:
        cube, mass = np.linalg.norm(z, axis=1) ** 3, gammainc(1.5, 0.5 * np.square(z).sum(1))
        return z * np.cbrt((mass + (cube - mass) * math.exp(-3 * spaced(2.0)[k])) / cube)[:, None]

    bowl = energies.Potential(lambda x: 0.5 * x[:, 0].square() + 5000 * x[:, 1].square())
    hills = energies.Potential(lambda x: x.cosh().log().sum(-1))
    coulomb = energies.Interaction(lambda r: 0.5 * r.square().sum(-1) + 1 / r.norm(dim=-1))
    flows = {
        "ou_two_scales": (bowl + energies.Entropy(), Images(wide, spaced(1.0), shrunk)),
        "ring_hole": ((ring := stiff.cases()["ring-hole"]).energy, radial(ring.judge)),
        "logcosh20": (
            hills + energies.Entropy(),
            product(Line(lambda x: x[:, 0].cosh().log(), spaced(2.0), tau=1.0), 20),
        ),
        "coulomb3d": (coulomb, Images(gas, spaced(2.0), spread)),
    }
    return {name: Case(energy, judge, IMAGES, judge.reference) for name, (energy, judge) in flows.items()}


def sampled_cases() -> dict[str, Case]:
    """Laws known by particles."""
    known, found = stiff.cases(), {}
    for name, bend in (("banana", lambda x: x[:, 1] - 0.5 * x[:, 0] ** 2), ("funnel10", None)):
        judge = known[name].judge
        own = bend and (lambda x, bend=bend: np.stack([bend(x), bend(x) ** 2], 1))
        moved = Sampled(known[name].reference, judge.times, lambda t, law=judge.problem.exact: law(t).particles, own)
        found[name] = replace(known[name], judge=moved, bounds=SAMPLED)
    corners = [[3.0, 3.0]] * 4 + [[-3.0, 3.0]] * 3 + [[-3.0, -3.0]] * 2 + [[3.0, -3.0]]  # weights .4, .3, .2, .1
    target, start = problems.GaussianMixture(2, centres=corners), pwgf.Gaussian(2, cov=4.0)
    langevin = LangevinParticles(
        "mix4", target.log_target, start, 800_000, 0.01, 0, start=0.0, curvature=target.curvature
    )

    def quadrants(x: np.ndarray) -> np.ndarray:
        right, up = x[:, 0] > 0, x[:, 1] > 0
        return np.stack([right & up, ~right & up, ~right & ~up], 1).astype(float)

    found["mix4"] = Case(target.energy, Sampled(start, spaced(2.0), langevin.at, quadrants), SAMPLED, start)
    ball = pwgf.UniformBall(2)

    def heated(t: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        x = ball.sample(200_000, generator).double()
        return x + math.sqrt(2 * t) * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    found["heat_ball"] = Case(energies.Entropy(), Sampled(ball, spaced(0.5), heated), SAMPLED, ball)
    return found


def solve(name: str, seed: int = 0, map: str = "suited", budget: float = 150.0) -> dict[str, Any]:
    """One run, stored and judged: a line of the table."""
    case = cases()[name]
    FOLDER.mkdir(parents=True, exist_ok=True)

    def scheme() -> pwgf.PWGF:
        own = {"map": maps.ResidualMLP(case.reference.dim)} if map == "plain" else {}
        return pwgf.PWGF.suited(case.energy, case.reference, np.array(case.judge.times), **own)

    out = FOLDER / f"{name}-{map}-{seed}.h5"
    line = {"problem": name, "map": map, **stiff.attempt(f"battery-{name}", case, scheme, out, seed, budget)}
    return {**line, "verdict": verdict(line), "said": said(line)}


def missed(line: dict[str, Any], row: dict[str, float]) -> float:
    """The largest error of a row over its bound."""
    return max((row[name] / bound for name, bound in line["bounds"].items()), key=lambda x: (math.isnan(x), x))


def verdict(line: dict[str, Any]) -> str:
    """right, WRONG, stopped (before its end) or refused (at the door)."""
    if not line["rows"] and (line["error"] or "").startswith("ConfigError"):
        return "refused"
    return "right" if line["right"] else "WRONG" if line["done"] else "stopped"


def said(line: dict[str, Any]) -> str:
    """Whether it gave any warning: silent (wrong, none), warned (wrong), false alarm (right), or –."""
    wrong = any(not missed(line, row) <= 1 for row in line["rows"])
    if wrong:
        return "warned" if line["warned"] or line["error"] else "silent"
    return "false alarm" if line["warned"] and line["done"] else "warned" if line["warned"] else "–"


def worst_row(line: dict[str, Any]) -> dict[str, float]:
    """The row that misses its bounds most."""
    return max(line["rows"], key=lambda row: missed(line, row), default={})


def as_row(line: dict[str, Any]) -> list[str]:
    """A line of the table: errors and `error_95` at the worst row."""
    row = worst_row(line)
    errors = ", ".join(f"{name} {row[name]:.2g}" for name in ("w2", "l1", "sliced", "obs") if name in row)
    above = f"{row['error_95']:.2g}" if row else "–"
    reached = f"{line['reached']:.3g} of {line['end']:g}"
    counts = [f"{line['cpu']:.0f}", str(line.get("num_stages", 0))]
    known = [line["problem"], str(line["seed"]), line["verdict"]]
    return [*known, errors or "–", above, line["said"], reached, *counts]


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """All runs, counts of verdicts, and how often `error_95` was above the error."""
    header = ["problem", "seed", "verdict", "worst row", "error_95", "warnings", "t", "CPU s", "right sides"]
    table(header, (as_row(line) for line in lines))
    for key in ("verdict", "said"):
        found = Counter(line[key] for line in lines)
        print(", ".join(f"{count} {word}" for word, count in found.items() if word != "–"))
    rows = [row for line in lines for row in line["rows"] if "w2" in row]
    if rows:
        ratio = median(row["error_95"] / row["w2"] for row in rows)
        above = sum(row["w2"] < row["error_95"] for row in rows)
        print(f"error_95 above w2 in {above} of {len(rows)} rows; median of error_95 over w2 {ratio:.2g}")


def main(
    problem: tuple[str, ...] = ("all",),
    seeds: tuple[int, ...] = (0,),
    map: Literal["suited", "plain"] = "suited",
    budget: float = 150.0,
    show: bool = False,
) -> None:
    """Runs problems and prints the table of all runs with this map.

    Args:
        problem: names of problems, or all.
        seeds: of the runs.
        map: suited (in layers for d = 2 and 3) or plain (`maps.ResidualMLP`).
        budget: CPU seconds of a run.
        show: only print the table of the runs so far.
    """
    known = cases()
    names = tuple(known) if "all" in problem else problem
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    lines = FOLDER / "table.jsonl"
    for seed in () if show else seeds:
        for name in names:
            line = solve(name, seed, map, budget)
            with open(lines, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(" | ".join([*as_row(line), *line["warned"], line["error"] or ""]), flush=True)
    latest = {(line["problem"], line["seed"]): line for line in _read(lines) if line["map"] == map}
    print_table(
        [latest[name, seed] for name in known for seed in sorted({key[1] for key in latest}) if (name, seed) in latest]
    )


def _read(lines: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in lines.read_text().splitlines()] if lines.exists() else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
