"""What the experiments share: where results go, how a run is scored, how a table is printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pwgf
from pwgf import parallel
from pwgf.problems import Problem
from pwgf.study.accuracy import errors

RESULTS = Path(__file__).resolve().parent.parent / "results"
SCORES = 20_000  # points each way for the symmetric KL


def solved(
    name: str, problem: Problem, scheme: pwgf.PWGF, times: Sequence[float], seed: int, *, again: bool = False
) -> pwgf.Trajectory:
    """The run stored as results/NAME.h5, solved now unless it is there already with the same settings."""
    out = RESULTS / f"{name}.h5"
    return pwgf.solve(scheme, times, out=out, seed=seed, resume=not again, overwrite=again, problem=problem)


def row_at(run: pwgf.Trajectory, t: float) -> int:
    """Position of the row at t."""
    return int(abs(run.t - t).argmin())


def sym_kl(run: pwgf.Trajectory, problem: Problem, t: float) -> float:
    """Symmetric KL (KL + KL) of ρ_t against the exact law, by exact densities on `SCORES` points each way."""
    return float(errors(run, problem, n=SCORES, rows=[row_at(run, t)])["sym_kl"][0])


def samples(run: pwgf.Trajectory, t: float, n: int, matched: bool = False) -> torch.Tensor:
    """n samples of ρ_t (n,d) from fresh reference samples, antithetic and moment-matched if asked for."""
    generator = torch.Generator().manual_seed(12345)
    reference = pwgf.measures.from_config(run.config["scheme"]["reference"])
    z = reference.matched_sample(n, generator) if matched else reference.sample(n, generator)
    return run.push(t, z)


def cost(run: pwgf.Trajectory, t: float) -> str:
    """Right sides and CPU seconds up to t, from the file."""
    k = row_at(run, t)
    return f"{int(run['num_stages'][k])} | {run['cpu_time'][k]:.0f}"


def save(figure: Figure, name: str) -> None:
    """Writes a picture to results/NAME; one process of several does."""
    if parallel.world().rank == 0:
        figure.savefig(RESULTS / name, dpi=150, bbox_inches="tight")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a Markdown table; one process of several does."""
    if parallel.world().rank == 0:
        for line in lines_of(header, rows):
            print(line, flush=True)


def lines_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
