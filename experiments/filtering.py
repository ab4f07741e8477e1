r"""Nonlinear filtering: the law of a diffusion in a rippled well given noisy observations; and a linear one in d = 8.

The problem of the JKO-ICNN study (Mokrov et al., 2021, arXiv 2106.00736, §5.4): dX = −V′ dt + √2 dW,
V = sin(2πx)/π + x²/4, X₀ ~ N(0, 1), y_k ~ N(X, 1) at t = .5, 1, …, 4.5, the law wanted at t = 5. Truth: finite volumes.
Symmetric KL (KL + KL, nats) by quadrature on its grid. The study's figures (its figure 6, median of 15): JKO-ICNN .0170
in 13 627 s of a GPU; bootstrap filter of 10 000 and 50 000 particles, by a kernel density estimate, .0128 and .0043.

The linear one: dX = −K(X − b) dt + √2 dW, random K, d = 8, three directions observed; the Kalman filter is
exact there.

    python -m experiments.filtering                 # 15 seeds, 8 minutes of one core, results/filtering/*.h5, *.png
    python -m experiments.filtering --seeds 0 1 --no-linear
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
import tyro
from torch import Tensor

import pwgf
from experiments.common import RESULTS, save, table
from pwgf import filtering, maps

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES, END = [0.5 * (k + 1) for k in range(9)], 5.0
PARTICLES = (10_000, 50_000)


@dataclass(frozen=True)
class Linear:
    """dX = −K(X − b) dt + √2 dW, X₀ ~ N(0, I), y ~ N(HX, R)."""

    K: Tensor
    b: Tensor
    H: Tensor
    R: Tensor

    def model(self) -> filtering.StateSpace:
        """As the filters take it."""
        noise = torch.distributions.MultivariateNormal(torch.zeros(len(self.R), dtype=torch.float64), self.R)
        return filtering.StateSpace(
            potential=lambda x: 0.5 * ((x - self.b) @ self.K * (x - self.b)).sum(-1),
            log_likelihood=lambda y, x: noise.log_prob(y - x @ self.H.T),
            initial=pwgf.Gaussian(len(self.b)),
        )


def rippled() -> filtering.StateSpace:
    """The study's model."""
    return filtering.StateSpace(
        potential=lambda x: (torch.sin(2 * math.pi * x) / math.pi + x.square() / 4).sum(-1),
        log_likelihood=lambda y, x: -(x - y).square().sum(-1) / 2 - 0.5 * math.log(2 * math.pi),
        initial=pwgf.Gaussian(1),
    )


def observe(model: filtering.StateSpace, seed: int) -> list[float]:
    """Observations of one path, by Euler–Maruyama steps of .001."""
    generator = torch.Generator().manual_seed(seed)
    x, seen = model.initial.sample(1, generator), []
    for _ in TIMES:
        for _ in range(500):
            leaf = x.requires_grad_(True)
            (slope,) = torch.autograd.grad(model.potential(leaf).sum(), leaf)
            noise = torch.randn(1, 1, generator=generator, dtype=torch.float64)
            x = (x - 0.001 * slope + math.sqrt(0.002) * noise).detach()
        seen.append(float(x + torch.randn(1, 1, generator=generator, dtype=torch.float64)))
    return seen


def main(seeds: tuple[int, ...] = tuple(range(15)), linear: bool = True) -> None:
    """Two tables, and the laws of the first seed as a picture.

    Args:
        seeds: of path, observations and filters.
        linear: also the linear problem in d = 8.
    """
    (RESULTS / "filtering").mkdir(parents=True, exist_ok=True)
    lines = [_one(seed, draw=seed == seeds[0]) for seed in seeds]
    values = np.array(lines)
    header = ["seed", "pwgf", *(f"{n} particles" for n in PARTICLES), "log evidence − exact"]
    header += ["particles' (last)", "CPU s", *(f"CPU s, {n}" for n in PARTICLES)]
    named = [*zip(map(str, seeds), values, strict=True), ("median", np.median(values, 0))]
    table(header, [[label, *(f"{v:.2g}" for v in line)] for label, line in named])
    if linear:
        _linear()


def _one(seed: int, draw: bool) -> list[float]:
    """Symmetric KLs, evidences and seconds."""
    model = rippled()
    seen = observe(model, seed)
    exact = filtering.finite_volumes(model, TIMES, seen, end=END)
    evidence = _exact_evidence(model, seen)
    start = time.process_time()
    folder = RESULTS / "filtering" / f"rippled-seed{seed}"
    found = filtering.run(model, TIMES, seen, end=END, seed=seed, out=folder, overwrite=True)
    seconds = [time.process_time() - start]
    nodes = torch.from_numpy(exact.grid[exact.density > 1e-12])[:, None]
    curves, scores, clouds = {"pwgf": found.law.log_density(nodes)}, [], []
    for n in PARTICLES:
        start = time.process_time()
        clouds.append(filtering.particles(model, TIMES, seen, end=END, n=n, seed=seed))
        seconds.append(time.process_time() - start)
        curves[f"{n} particles"] = kernel_log_density(clouds[-1].x[:, 0], nodes[:, 0])
    for log_q in curves.values():
        p, step = torch.from_numpy(exact.density[exact.density > 1e-12]), exact.grid[1] - exact.grid[0]
        scores.append(float(((p - log_q.exp()) * (p.log() - log_q)).sum() * step))
    if draw:
        _draw(exact, nodes[:, 0], curves)
    return [*scores, found.log_evidence - evidence, clouds[-1].log_evidence - evidence, *seconds]


def kernel_log_density(x: Tensor, at: Tensor) -> Tensor:
    """Gaussian kernels of Silverman's width .9·min(σ, IQR/1.34)·n^{−1/5}, (n,), (m,) → (m,); on the line only."""
    quartiles = torch.quantile(x, torch.tensor([0.25, 0.75], dtype=torch.float64))
    width = 0.9 * min(float(x.std()), float(quartiles[1] - quartiles[0]) / 1.34) * len(x) ** -0.2
    parts = [torch.logsumexp(-(part[:, None] - x).square() / (2 * width**2), 1) for part in at.split(200)]
    return torch.cat(parts) - math.log(len(x) * width * math.sqrt(2 * math.pi))


def _exact_evidence(model: filtering.StateSpace, seen: list[float]) -> float:
    """log p(y_1, …, y_K) by finite volumes: each factor from the law predicted for it."""
    total = 0.0
    for k, (t, y) in enumerate(zip(TIMES, seen, strict=True)):
        law = filtering.finite_volumes(model, TIMES[:k], seen[:k], end=t)
        likelihood = model.at(y)(torch.from_numpy(law.grid)[:, None]).exp().numpy()
        total += math.log(law.expectation(likelihood))
    return total


def _draw(exact: object, nodes: Tensor, curves: dict[str, Tensor]) -> None:
    """Densities at the end: exact as an area, the others as lines."""
    figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
    ax.fill_between(exact.grid, exact.density, color="0.85", label="finite volumes")  # type: ignore[attr-defined]
    for label, style in (("pwgf", "-"), (f"{PARTICLES[0]} particles", "--")):
        ax.plot(nodes, curves[label].exp(), style, lw=1.2, label=label)
    ax.set(xlabel="x", ylabel=f"density at t = {END:g}", xlim=(-5, 5))
    ax.legend()
    save(figure, "filtering/laws.png")
    plt.close(figure)


def random_linear(dim: int = 8, seen: int = 3, seed: int = 0) -> tuple[Linear, list[Tensor]]:
    """A linear model and observations of one exact path."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factor = normal(dim, dim)
    eye = torch.eye(dim, dtype=torch.float64)
    system = Linear(factor @ factor.T / dim + 0.3 * eye, normal(dim), normal(seen, dim), 0.5 * torch.eye(seen).double())
    decay, rest = torch.linalg.matrix_exp(-0.5 * system.K), torch.linalg.inv(system.K)
    root = torch.linalg.cholesky(rest - decay @ rest @ decay)
    x, observations = normal(dim), []
    for _ in TIMES:
        x = system.b + decay @ (x - system.b) + root @ normal(dim)
        observations.append(system.H @ x + math.sqrt(0.5) * normal(seen))
    return system, observations


def _linear() -> None:
    """The linear table: largest |Δmean|/σ and |Δcov|/(σσᵀ)."""
    system, seen = random_linear()
    model, d = system.model(), len(system.b)
    mean, cov, evidence = filtering.kalman(
        system.K, system.b, system.H, system.R, torch.zeros(d).double(), torch.eye(d).double(), TIMES, seen, end=END
    )
    deviation, rows = cov.diagonal().sqrt(), []

    def row(label: str, its_mean: Tensor, its_cov: Tensor, its_evidence: float, seconds: float) -> list[str]:
        mean_error = 100 * float(((its_mean - mean) / deviation).abs().max())
        cov_error = 100 * float(((its_cov - cov) / deviation / deviation[:, None]).abs().max())
        return [label, f"{mean_error:.2f} %", f"{cov_error:.2f} %", f"{its_evidence - evidence:+.4f}", f"{seconds:.0f}"]

    for map in (maps.Affine(d), maps.ResidualMLP(d)):
        start = time.process_time()
        found = filtering.run(model, TIMES, seen, end=END, map=map)
        rows.append(row(type(map).__name__, *found.law.moments(), found.log_evidence, time.process_time() - start))
    start = time.process_time()
    cloud = filtering.particles(model, TIMES, seen, end=END, n=PARTICLES[-1])
    moments = cloud.x.mean(0), torch.cov(cloud.x.T)
    rows.append(row(f"{PARTICLES[-1]} particles", *moments, cloud.log_evidence, time.process_time() - start))
    table(["linear, d = 8", "mean", "covariance", "log evidence − exact", "CPU s"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
