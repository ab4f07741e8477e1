r"""Fokker–Planck equations ∂ₜρ = ∇·(ρ∇V) + Δρ from N(0, I): Gaussian targets, and a double well per coordinate.

`ornstein-uhlenbeck`: V = ½(x−b)ᵀΣ⁻¹(x−b) for the targets of the JKO-ICNN study (Mokrov et al., 2021, arXiv 2106.00736,
figure 2): symmetric KL against the exact law at t = .5 and .9, beside the published values of the same targets.
`styblinski-tang`: V = c Σ(x⁴ − 16x² + 5x): energy, variance and mass of the left well against 1-D finite volumes.

    python -m experiments.fokker_planck ornstein-uhlenbeck     # 12 minutes of one core, results/fokker_planck/ou-*.h5
    python -m experiments.fokker_planck high-dimension         # 5 minutes: Gaussian targets in d = 64 and 100
    python -m experiments.fokker_planck styblinski-tang        # 2 minutes, results/fokker_planck/st-*.h5
    python -m experiments.fokker_planck with-particles         # minutes: deep wells in d = 50 by FittedParticles
    python -m experiments.fokker_planck styblinski-tang --c .5 --map convex-ridge \
        --dims 10 50 --times .05 .1 .16 .32 .48                # 7 minutes: deep wells that tear the law apart

Each writes its trajectories and a picture drawn from them, such as ornstein-uhlenbeck.png; runs that are there
already are not repeated.
"""

from __future__ import annotations

import resource
from typing import Literal

import matplotlib
import numpy as np
import torch
import tyro

import pwgf
from experiments.common import cost, row_at, samples, save, solved, sym_kl, table
from experiments.targets import ou_target, published
from pwgf import maps, problems

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES = (0.0, 0.1, 0.5, 0.9)
WELLS = {
    "residual": maps.ResidualMLP,
    "convex-ridge": lambda d: maps.ConvexRidge(d, width=12 * d, axis_share=1),
}
FAMILIES = {
    "residual": maps.ResidualMLP,
    "affine": maps.Affine,
    "ode": maps.NeuralODE,
    "convex-ridge": maps.ConvexRidge,
}


def ornstein_uhlenbeck(
    dims: tuple[int, ...] = (1, 2, 4, 8, 12),
    targets: tuple[int, ...] = (0, 1, 2),
    tolerances: tuple[float, ...] = (1e-4, 1e-5),
    map: Literal["residual", "affine", "ode", "convex-ridge"] = "residual",
    seed: int = 0,
) -> None:
    """Symmetric KL to the exact Gaussian law.

    Args:
        dims: dimensions, 1 to 12.
        targets: numbers of the study's targets, 0 to 14.
        tolerances: rms displacement error per substep, in units of x.
        map: the default residual map, the affine one that holds the exact solution, a neural ODE or a convex ridge map.
        seed: of the runs.
    """
    rows, scores = [], {}
    for d in dims:
        for k in targets:
            cov, mean = ou_target(d, k)
            problem = problems.OrnsteinUhlenbeck(d, cov=cov, mean=mean)
            for tolerance in tolerances:
                scheme = pwgf.PWGF(problem.energy, FAMILIES[map](d), problem.reference, tolerance=tolerance)
                name = f"fokker_planck/ou-{map}-d{d}-target{k}-{tolerance:g}"
                run = solved(name, problem, scheme, TIMES, seed)
                score = {t: sym_kl(run, problem, t) for t in (0.5, 0.9)}
                scores[d, k, tolerance] = score[0.9]
                theirs = published("ICNN_jko", d, 0.9)[k]
                rows.append(
                    [str(d), str(k), map, f"{tolerance:g}", f"{score[0.5]:.1e}", f"{score[0.9]:.1e}", cost(run, 0.9)]
                    + [f"{theirs:.1e}", str(seed)]
                )
    header = ["d", "target", "map", "tolerance", "t = .5", "t = .9", "right sides", "CPU s", "JKO-ICNN, t = .9", "seed"]
    table(header, rows)
    _draw_gaussian(scores, dims, targets, tolerances, map)


def _draw_gaussian(scores: dict, dims: tuple, targets: tuple, tolerances: tuple, map: str) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    theirs = [np.mean([abs(value) for value in published("ICNN_jko", d, 0.9)]) for d in dims]
    axes.semilogy(dims, theirs, "o--", color="0.45", label="JKO-ICNN, as published")
    for tolerance, colour in zip(tolerances, ("#0072B2", "#D55E00", "#009E73"), strict=False):
        ours = [np.mean([scores[d, k, tolerance] for k in targets]) for d in dims]
        axes.semilogy(dims, ours, "o-", color=colour, label=f"pwgf, tolerance {tolerance:g}")
    axes.set(
        xlabel="dimension d", ylabel="symmetric KL at t = 0.9", title="Ornstein–Uhlenbeck: distance to the exact law"
    )
    axes.legend(frameon=False)
    save(figure, f"fokker_planck/ou-{map}.png")


def high_dimension(dims: tuple[int, ...] = (64, 100), tolerance: float = 1e-3, seed: int = 0) -> None:
    """Symmetric KL at t = 1 for targets N((1, …, 1), Σ), Σ = I/4 or a rotated diag(1, …, d)/10.

    Args:
        dims: dimensions.
        tolerance: rms displacement error per substep, in units of x.
        seed: of the runs; the rotation is that of seed 0.
    """
    rows = []
    for d in dims:
        q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        rotated = (q * torch.arange(1, d + 1).double() / 10) @ q.T
        for name, cov in (("I/4", torch.eye(d).double() / 4), ("rotated", (rotated + rotated.T) / 2)):
            problem = problems.OrnsteinUhlenbeck(d, cov=cov, mean=torch.ones(d))
            map = maps.ResidualMLP(d, width=64, gain=0.03, axis_gain=0.03)
            scheme = pwgf.PWGF(problem.energy, map, problem.reference, tolerance=tolerance)
            run = solved(f"fokker_planck/high-d{d}-{name[0]}", problem, scheme, (0.0, 1.0), seed)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB, of the process so far
            score = sym_kl(run, problem, 1.0)
            rows.append([str(d), name, str(map.num_params), f"{score:.1e}", cost(run, 1.0), f"{memory:.1f}", str(seed)])
    table(["d", "Σ", "p", "symmetric KL", "right sides", "CPU s", "peak memory so far, GB", "seed"], rows)


def styblinski_tang(
    dims: tuple[int, ...] = (2, 10),
    c: float = 0.06,
    times: tuple[float, ...] = (0.25, 0.5, 1.0),
    map: Literal["residual", "convex-ridge"] = "residual",
    seed: int = 0,
) -> None:
    """Energy per dimension, variance and left mass against finite volumes.

    Args:
        dims: dimensions.
        c: depth of the wells.
        times: rows.
        map: the default residual map, or a convex ridge function on single coordinates, which cannot fold.
        seed: of the runs.
    """
    rows = []
    for d in dims:
        problem = problems.StyblinskiTang(d, c=c)
        num_eval = 100_000 if d <= 10 else 20_000
        scheme = pwgf.PWGF(problem.energy, WELLS[map](d), problem.reference, num_eval=num_eval)
        run = solved(f"fokker_planck/st-{map}-d{d}-c{c:g}-seed{seed}", problem, scheme, (0.0, *times), seed)
        for t in times:
            x, law = samples(run, t, num_eval), problem.marginal(t)
            exact = problem.exact_energy(t) / d
            energy = run["energy"][row_at(run, t)] / d - exact
            variance = float(x.var(0).mean()) / float(law.var) - 1
            left = float((x < 0.157).double().mean()) - float(law.probability_below(0.157))
            folds = run["fold_fraction"][: row_at(run, t) + 1].max()
            rows.append(
                [map, str(d), f"{t:g}", f"{energy:+.4f}", f"{100 * energy / abs(exact):+.2f} %"]
                + [f"{100 * variance:+.2f} %", f"{left:+.4f}", f"{folds:g}", cost(run, t), str(seed)]
            )
    header = [
        "map",
        "d",
        "t",
        "F/d − exact",
        "of F",
        "variance",
        "P(x < .157) − exact",
        "folds",
        "right sides",
        "CPU s",
    ]
    table([*header, "seed"], rows)


def with_particles(
    dim: int = 50,
    c: float = 0.5,
    times: tuple[float, ...] = (0.05, 0.1, 0.16, 0.32, 0.48),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Particles and a density fitted to them: moments and energy against finite volumes, KL(exact|ρ) on 10 000 samples.

    Args:
        dim: d.
        c: depth of the wells.
        times: rows.
        seeds: of the runs.
    """
    problem, rows = problems.StyblinskiTang(dim, c=c), []
    for seed in seeds:
        run = pwgf.solve(
            pwgf.FittedParticles(problem.energy, problem.reference), (0.0, *times), seed=seed, problem=problem,
            progress=False,
        )  # fmt: skip
        for t in times:
            law, exact, at = run.at(t), problem.exact(t), problem.marginal(t)
            mean = float(law.mean().mean() - at.mean) / at.var**0.5
            variance = float(law.cov().diagonal().mean()) / at.var - 1
            energy = run["energy"][row_at(run, t)] / problem.exact_energy(t) - 1
            x = exact.sample(10_000, seed + 100)
            kl = float((exact.log_density(x) - law.log_density(x)).mean())
            rows.append(
                [
                    str(dim),
                    f"{t:g}",
                    f"{100 * mean:+.3f} %",
                    f"{100 * variance:+.3f} %",
                    f"{-100 * energy:+.3f} %",
                    f"{kl:.3f}",
                ]
                + [cost(run, t), str(seed)]
            )
    table(["d", "t", "mean, of σ", "variance", "F, of |F|", "KL, nats", "right sides", "CPU s", "seed"], rows)


if __name__ == "__main__":
    commands = {
        "ornstein-uhlenbeck": ornstein_uhlenbeck,
        "high-dimension": high_dimension,
        "styblinski-tang": styblinski_tang,
        "with-particles": with_particles,
    }
    tyro.extras.subcommand_cli_from_dict(commands)
