"""The targets of the JKO-ICNN study, Gaussians and mixtures of them, and the figures it published for them.

References:
    P. Mokrov, A. Korotin, L. Li, A. Genevay, J. Solomon, E. Burnaev, Large-Scale Wasserstein Gradient Flows, 2021,
    arXiv 2106.00736. The files and their columns are described in `experiments/data/README.md`.
"""

from __future__ import annotations

import csv
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parent / "data"
NUM_TARGETS = 15


def ou_target(dim: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Target number `index` (0 … 14) of dimension `dim` (1 … 12): covariance (dim, dim) and mean (dim,)."""
    with np.load(DATA / "ou_targets.npz", allow_pickle=False) as targets:
        if f"cov_{dim}" not in targets or not 0 <= index < NUM_TARGETS:
            raise ValueError(f"ou_target(dim={dim}, index={index}): there are targets 0 … 14 of dimensions 1 … 12.")
        return targets[f"cov_{dim}"][index], targets[f"mean_{dim}"][index]


def methods() -> list[str]:
    """Names of the methods with published figures."""
    return list(dict.fromkeys(row["method"] for row in _rows("ou_published_symkl.csv")))


def published(method: str, dim: int, t: float) -> list[float]:
    """Published symmetric KL (KL + KL) of a method in dimension `dim` at t ∈ {.1, .5, .9, 1}, one value per target."""
    for row in _rows("ou_published_symkl.csv"):
        if row["method"] == method and int(row["dim"]) == dim and abs(float(row["t"]) - t) < 1e-9:
            return [float(row[f"target_{i}"]) for i in range(NUM_TARGETS)]
    raise ValueError(f"published({method!r}, {dim}, {t}): nothing published; methods {methods()}, t .1, .5, .9, 1.")


def published_seconds(method: str, dim: int) -> float:
    """Published seconds of a method for the run to t = 1 in dimension `dim`, on the study's own hardware."""
    for row in _rows("ou_published_seconds.csv"):
        if row["method"] == method and int(row["dim"]) == dim:
            return float(row["train_seconds_to_t1"])
    raise ValueError(f"published_seconds({method!r}, {dim}): nothing published; methods {methods()}.")


def mixture_centres(dim: int, index: int) -> torch.Tensor:
    """Centres (k, dim) of the study's mixture number `index` (0 … 4) in dimension `dim`, from the study's seed."""
    row = mixture_published(dim)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{row['key']}@{dim}@{index}pytorch".encode()))
    return (10 * torch.rand(int(row["components"]), dim, generator=generator) - 5).double()


def mixture_published(dim: int) -> dict[str, str]:
    """The study's row for mixtures in dimension `dim`: number and key of the centres, mean figures of five targets."""
    found = {int(row["dim"]): row for row in _rows("mixtures_published.csv")}
    if dim not in found:
        raise ValueError(
            f"mixture_published({dim}): the study has mixtures in dimensions {', '.join(map(str, found))}."
        )
    return found[dim]


def _rows(name: str) -> list[dict[str, str]]:
    with open(DATA / name, newline="") as file:
        return list(csv.DictReader(file))
