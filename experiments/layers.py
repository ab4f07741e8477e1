r"""Flows that tear the law, by one map and by a map in layers: T = S_K ∘ … ∘ S_1, each S_k moving in its own interval.

∂ₜρ = ∇·(ρ∇V) + τΔρ for V = (|x|² − 4)²/8, τ = ¼ (a ring around a hole), the banana x₂ ~ N(x₁²/2, ¼), V = sin 5x + x²/2
with τ = ½, and double wells (x² − 1)² with τ = .1. The velocity is a smooth function of x; where T is steep it is none
of z, and a map fits functions of z. A layer S_k that starts as the identity at t_{k−1} fits functions of x, of the law
that the layers before it have made and that stay as they are. Each interval is a run whose file holds all layers.

    python -m experiments.layers --names ring-hole   # a minute and a half of one core, results/layers/*.h5
    python -m experiments.layers                     # all four; the others have not been run by this command yet

Runs that are there already are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import tyro

import pwgf
from experiments.common import RESULTS, table
from experiments.stiff import Case, cases
from pwgf import maps
from pwgf.maps import PushForward
from pwgf.measures import Reference

CASES = ("ring-hole", "banana", "sin5", "double1d-10")


def with_next_layer(reference: Reference, layers: list[PushForward], thetas: list[torch.Tensor]) -> PushForward:
    """The layers as they are, and one more that moves: `maps.ResidualMLP` in units of the law that they make."""
    z = reference.matched_sample(4000, 0)
    x = maps.Composed(layers, thetas=thetas)(torch.cat(thetas), z) if layers else z
    layer = maps.Standardised.about(maps.ResidualMLP(reference.dim), x)
    return maps.Composed([*layers, layer], moving=[len(layers)], thetas=[*thetas, None])


def by_layers(name: str, case: Case, seed: int) -> list[pwgf.Trajectory]:
    """A run for each interval of the case's times."""
    layers: list[PushForward] = []
    thetas: list[torch.Tensor] = []
    runs = []
    for k, interval in enumerate(pairwise(case.judge.times)):
        map = with_next_layer(case.reference, layers, thetas)
        scheme = pwgf.PWGF(case.energy, map, case.reference, theta0=map.initial(seed))
        runs.append(pwgf.solve(scheme, interval, out=RESULTS / f"layers/{name}-{seed}-{k}.h5", seed=seed, resume=True))
        layers, thetas = [*map.maps], [*thetas, runs[-1].theta(interval[1])]
    return runs


def main(names: Sequence[str] = CASES, seed: int = 0) -> None:
    """A table: errors against the case's law, the run's own estimate, and the work.

    Args:
        names: of `experiments.stiff`.
        seed: of the runs.
    """
    (RESULTS / "layers").mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        case = cases()[name]
        laws, times = case.judge.laws(name), case.judge.times
        scheme = pwgf.PWGF(case.energy, case.map(case.reference.dim), case.reference)
        whole = pwgf.solve(scheme, times, out=RESULTS / f"layers/{name}-{seed}.h5", seed=seed, resume=True)
        for form, runs in (("one map", [whole] * (len(times) - 1)), ("layers", by_layers(name, case, seed))):
            found = [case.judge.errors(run, k + 1, laws) for k, run in enumerate(runs)]
            worst = ", ".join(f"{key} {max(row[key] for row in found):.2g}" for key in found[0])
            each = runs[:1] if form == "one map" else runs
            estimate = max(float((run["error_estimate"] / run["spread"]).max()) for run in each)
            folds = max(float(run["fold_fraction"].max()) for run in each)
            stages, seconds = (sum(float(run[column][-1]) for run in each) for column in ("num_stages", "cpu_time"))
            rows.append(
                [name, form, worst, f"{100 * estimate:.2g} %", f"{folds:.1g}", f"{stages:.0f}", f"{seconds:.0f}"]
            )
    table(["flow", "map", "largest error of a row", "estimate, of the spread", "folds", "right sides", "CPU s"], rows)


if __name__ == "__main__":
    tyro.cli(main)
