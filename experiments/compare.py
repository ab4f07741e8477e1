"""The same flows through every scheme: parameterised flow, minimising movements, particles, beside published curves.

`ornstein-uhlenbeck`: the target Gaussians of the JKO-ICNN study (Mokrov et al., 2021, arXiv 2106.00736), with the
values that it published for them. `stationary`: SW-JKO run long, 80 steps of .1·d, which is the published step without
the factor d of the sliced distance (Bonet et al., 2022, arXiv 2110.10972). `ring`: aggregation in the plane.

    python -m experiments.compare ornstein-uhlenbeck    # results/compare/ou.h5 and ou.png
    python -m experiments.compare stationary            # results/compare/stationary.h5
    python -m experiments.compare ring                  # results/compare/ring.h5

Runs are kept in results/compare/ and not repeated.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import tyro

import pwgf
from experiments.common import RESULTS, save, table
from experiments.targets import ou_target, published, published_seconds
from pwgf import maps, problems
from pwgf.plots import compare as compare_plots
from pwgf.study.compare import NUMBERS, TEXTS, Comparison, Entry, Make, compare, named

FOLDER = RESULTS / "compare"
_PUBLISHED = "JKO-ICNN, published"


def ornstein_uhlenbeck(
    dims: tuple[int, ...] = (2, 6, 12),
    targets: tuple[int, ...] = (0, 1, 2),
    methods: tuple[str, ...] = ("pwgf", "jko-icnn", "sw-jko", "particles"),
    times: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9),
    seed: int = 0,
) -> None:
    """Errors at each time, medians over the targets.

    Args:
        dims: dimensions, 1 to 12.
        targets: numbers of the study's targets, 0 to 14.
        methods: names that `pwgf compare` knows.
        times: stored and scored; published are .1, .5, .9 and 1.
        seed: of the runs.
    """
    makes = named(methods)
    if "jko-icnn" in makes:
        makes["jko-icnn"] = _study_step
    found = compare(
        [_target(d, k) for d in dims for k in targets], makes, times=times, seeds=(seed,), out=FOLDER / "ou.h5",
        overwrite=True, runs=FOLDER / "ou", tell=print,
    )  # fmt: skip
    whole = Comparison([*found.entries, *_theirs(dims, targets, times)], found.config)
    whole.save(FOLDER / "ou.h5")
    print(*whole.lines(), sep="\n")
    save(compare_plots.draw(Comparison.load(FOLDER / "ou.h5")), "compare/ou.png")


def _study_step(problem: problems.Problem, times: np.ndarray) -> pwgf.JKOICNN:
    return pwgf.JKOICNN(problem.energy, problem.reference, h=0.05, dtype=torch.float32)


def _target(d: int, k: int) -> problems.OrnsteinUhlenbeck:
    cov, mean = ou_target(d, k)
    return problems.OrnsteinUhlenbeck(d, cov=cov, mean=mean)


def _theirs(dims: tuple[int, ...], targets: tuple[int, ...], times: tuple[float, ...]) -> list[Entry]:
    """Published symmetric KL of the same targets; its seconds, of a GPU, are told in words alone."""
    entries: list[Entry] = []
    for d in dims:
        for k, target in enumerate(targets):
            for t in (t for t in times if any(abs(t - known) < 1e-9 for known in (0.1, 0.5, 0.9, 1.0))):
                entry: Entry = {**dict.fromkeys(NUMBERS, math.nan), **dict.fromkeys(TEXTS, "")}
                entry.update(method=_PUBLISHED, kind="published", dim=float(d), variant=float(k), t=t, failed=0.0)
                entry["sym_kl"] = published("ICNN_jko", d, t)[target]
                entry["message"] = f"{published_seconds('ICNN_jko', d):.0f} s to t = 1 on the study's GPU"
                entries.append(entry)
    return entries


def stationary(
    dims: tuple[int, ...] = (2, 10), targets: tuple[int, ...] = (0, 1, 2), steps: int = 80, seed: int = 0
) -> None:
    """SW-JKO after many steps of .1·d, against the exact law, by exact densities.

    Args:
        dims: dimensions; published are 10^-2.29 for d = 2 and 10^-1.47 for d = 10, on other random Gaussians.
        targets: numbers of the JKO-ICNN study's targets, 0 to 14.
        steps: of each run.
        seed: of the runs.
    """

    def affine(problem: problems.Problem, times: np.ndarray) -> pwgf.SWJKO:
        return pwgf.SWJKO(problem.energy, maps.Affine(problem.dim), problem.reference, tau=0.1 * problem.dim)

    def residual(problem: problems.Problem, times: np.ndarray) -> pwgf.SWJKO:
        return pwgf.SWJKO(problem.energy, maps.ResidualMLP(problem.dim), problem.reference, tau=0.1 * problem.dim)

    makes: dict[str, Make] = {"sw-jko, affine": affine, "sw-jko, residual": residual}
    entries: list[Entry] = []
    for d in dims:
        members, times = [_target(d, k) for k in targets], (0.0, 0.1 * d * steps)
        found = compare(members, makes, times=times, seeds=(seed,), runs=FOLDER / "stationary", tell=print)
        entries += found.entries
    whole = Comparison(entries, {"targets": targets, "steps": steps})
    whole.save(FOLDER / "stationary.h5")
    print(*whole.lines(), sep="\n")


def ring(seeds: tuple[int, ...] = (0, 1, 2), end_time: float = 10.0) -> None:
    """Radius and energy of the ring that an aggregation in the plane ends on: 1/√3 and −1/12.

    Args:
        seeds: of the runs.
        end_time: in units of t; the exact law from N(0, I) is still a little off the limit there.
    """
    problem, times = problems.Aggregation(2), np.linspace(0.0, end_time, 5)
    rows = []
    for method, make in named(("pwgf", "sw-jko", "sw-jko-particles", "particles")).items():
        for seed in seeds:
            out = FOLDER / f"ring/{method}-seed{seed}.h5"
            try:
                run = pwgf.solve(make(problem, times), times, out=out, seed=seed, resume=True, problem=problem)
            except pwgf.PWGFError as error:
                rows.append([method, f"failed: {error}", "", "", "", "", str(seed)])
                continue
            x = run.sample(end_time, 1000)
            radius = (x - x.mean(0)).norm(dim=1)
            rows.append(
                [method, f"{float(radius.mean()):.5f}", f"{float(radius.std()):.5f}", f"{run['energy'][-1]:.6f}"]
                + [f"{run['num_stages'][-1]:.0f}", f"{run['cpu_time'][-1]:.0f}", str(seed)]
            )
    exact = problem.exact_energy(end_time)
    rows.append(
        ["exact law", f"{math.sqrt(float(problem.exact(end_time).cov().trace())):.5f} (rms)", "", f"{exact:.6f}"]
    )
    rows[-1] += ["", "", ""]
    rows.append(["limit", f"{1 / math.sqrt(3):.5f}", "0", f"{-1 / 12:.6f}", "", "", ""])
    table(["method", "mean radius", "its spread", "F", "work", "CPU s", "seed"], rows)


if __name__ == "__main__":
    commands = {"ornstein-uhlenbeck": ornstein_uhlenbeck, "stationary": stationary, "ring": ring}
    tyro.extras.subcommand_cli_from_dict(commands)
