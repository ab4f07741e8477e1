r"""Flows that tear the law, by one map and by a map that grows in layers, T = S_K ∘ … ∘ S_1 (`maps.Layers`).

∂ₜρ = ∇·(ρ∇V) + τΔρ for V = (|x|² − 4)²/8, τ = ¼ (a ring around a hole), and the wells of `experiments.stiff` with
c = .5 in d = 2. The velocity is a smooth function of x; where T is steep it is none of z, and a map fits functions of
z. A layer that begins as the identity fits functions of the x of that time.

    python -m experiments.layers --names ring-hole   # one minute of one core, results/layers/*.h5
    python -m experiments.layers                     # both, about five minutes

Runs that are there already are not repeated. The table is in results/stiff.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import tyro

import pwgf
from experiments.common import RESULTS, table
from experiments.stiff import cases
from pwgf import maps

CASES = ("ring-hole", "wells-c5-d2")


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
        plain = case.map(case.reference.dim)
        for form, map in (("one-map", plain), ("layers", maps.Layers(plain))):
            out = RESULTS / f"layers/{name}-{form}-{seed}.h5"
            scheme = pwgf.PWGF(case.energy, map, case.reference)
            run = pwgf.solve(scheme, times, out=out, seed=seed, resume=True)
            found = [case.judge.errors(run, k, laws) for k in range(1, len(run))]
            worst = ", ".join(f"{key} {max(row[key] for row in found):.2g}" for key in found[0])
            estimate = float((run["error_estimate"] / run["spread"]).max())
            begun = f"{map.begun(run.theta(times[-1]))}" if isinstance(map, maps.Layers) else "1"
            work = [f"{run[column][-1]:.0f}" for column in ("num_stages", "cpu_time")]
            rows.append([name, begun, worst, f"{100 * estimate:.2g} %", f"{run['fold_fraction'].max():.1g}", *work])
    table(
        ["flow", "layers", "largest error of a row", "estimate, of the spread", "folds", "right sides", "CPU s"], rows
    )


if __name__ == "__main__":
    tyro.cli(main)
