"""Driven flows, interacting laws and mobilities against exact laws, at default settings unless said otherwise.

- `trap`: fifty particles in the plane as one law in d = 100, dx_i = −(x_i − β(t)) + ½(x_i − mean) + √(2D) dW with
  β = 2(cos πt, sin πt), D = ¼, from N(β(0), I/16), for one turn: an example of N. Boffi, E. Vanden-Eijnden, Probability
  flow solution of the Fokker–Planck equation, 2023, arXiv 2206.04642. Explicit steps, 300 samples a right side.
- `mckean`: the McKean–Vlasov equation dX = −X − (X − E X) + √2 dW from N(1, I/4), V = W = ½|x|², to t = 1. Laws are
  Gaussian, m = e^{−t}m₀, C′ = −4C + 2I. In d = 100 explicit steps and 500 samples a right side.
- `diffusion`: V = x² on a line, D = 1 + ½ sin 2x or 1 + ½x², in both forms, from N(0, 1) to t = 1, against finite
  volumes.
- `kuramoto`: noisy Kuramoto oscillators below and above the onset 2, against the differential equations of the moments.
- `covariance`: F = KL(·|N(1, Σ)) with mobility="covariance" from N(0, I) to t = 2, C⁻¹ = Σ⁻¹ + e^{−2t}(I − Σ⁻¹), for
  Σ of condition 1 and 10⁶, rotated at random; and without a mobility, for comparison.

    python -m experiments.driven trap         # 2 CPU minutes; mckean 2, diffusion 2, kuramoto 2, covariance 2
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

import pwgf
from experiments.common import table
from pwgf import energies, maps, problems
from pwgf.maps.base import PushForward
from pwgf.oracles.finite_volume import fokker_planck

Row = list[str]


def moments(run: pwgf.Trajectory, t: float, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean and covariance: exact ones of an affine map, else of n samples with matched moments."""
    reference, dim = run.reference, run.reference.dim
    if run.config["scheme"]["map"]["name"] != "Affine":
        x = run.push(t, reference.matched_sample(n, torch.Generator().manual_seed(1)))
        return x.mean(0), torch.cov(x.T, correction=0)
    root = torch.linalg.cholesky(reference.cov())
    ends = run.push(t, reference.mean() + torch.cat([torch.zeros(1, dim, dtype=torch.float64), root.T]))
    A = (ends[1:] - ends[0]).T
    return ends[0], A @ A.T


def solved(scheme: pwgf.PWGF, times: np.ndarray, seed: int = 0) -> tuple[pwgf.Trajectory, float]:
    """The run and its CPU seconds."""
    began = time.process_time()
    run = pwgf.solve(scheme, times, progress=False, seed=seed)
    return run, time.process_time() - began


def trap(seed: int) -> Iterator[Row]:
    """Largest relative errors of the mean and of the trace of the covariance, over four times."""
    identity, dim = torch.eye(2, dtype=torch.float64), 100
    mean = torch.full((50, 50), 1 / 50, dtype=torch.float64)
    A = torch.kron(0.5 * (torch.eye(50, dtype=torch.float64) + mean), identity)

    def centre(t: float) -> Tensor:
        return torch.tensor([2 * math.cos(math.pi * t), 2 * math.sin(math.pi * t)], dtype=torch.float64).repeat(50)

    problem = problems.LinearDrift(A, centre, 0.25, mean=centre(0.0), cov=torch.eye(dim) / 16)
    scheme = pwgf.PWGF(
        problem.energy, maps.Affine(dim), problem.reference, integrator="explicit", num_samples=300, num_eval=1000
    )
    run, cpu = solved(scheme, np.linspace(0, 2, 5), seed)
    errors = []
    for t in run.t[1:]:
        exact, (m, C) = problem.exact(t), moments(run, t)
        far = (m - exact.mean()).norm() / exact.mean().norm()
        errors.append((float(far), abs(float(C.trace() / exact.cov().trace()) - 1)))
    worst = np.max(errors, 0)
    yield [f"{dim}", f"{worst[0]:.1e}", f"{worst[1]:.1e}", f"{int(run['num_stages'][-1])}", f"{cpu:.0f}"]


def mckean(seed: int) -> Iterator[Row]:
    """Largest entry of the errors of mean and covariance."""
    spring = energies.Potential(lambda x: x.square().sum(-1) / 2)
    energy = spring + energies.Interaction(energies.RadialPolynomial(0.5)) + energies.Entropy()
    makers: list[tuple[Callable[[int], PushForward], tuple[int, ...]]] = [
        (maps.Affine, (2, 5, 20, 100)),
        (maps.ResidualMLP, (2, 5)),
    ]
    for make, dims in makers:
        for dim in dims:
            large: dict[str, Any] = (
                {"integrator": "explicit", "num_samples": 500, "num_eval": 1000} if dim == 100 else {}
            )
            scheme = pwgf.PWGF(energy, make(dim), pwgf.Gaussian(dim, mean=1.0, cov=torch.eye(dim) / 4), **large)
            run, cpu = solved(scheme, np.linspace(0, 1, 6), seed)
            worst = [0.0, 0.0]
            for t in run.t[1:]:
                m, C = moments(run, t)
                cov = (0.5 - 0.25 * math.exp(-4 * t)) * torch.eye(dim, dtype=torch.float64)
                worst = [
                    max(worst[0], float((m - math.exp(-t)).abs().max())),
                    max(worst[1], float((C - cov).abs().max())),
                ]
            name = make(dim).to_config()["name"]
            yield [name, f"{dim}", *(f"{e:.1e}" for e in worst), f"{int(run['num_stages'][-1])}", f"{cpu:.0f}"]


def diffusion(seed: int) -> Iterator[Row]:
    """L1 between the densities."""
    grid = np.linspace(-12, 12, 4801)
    points, middle = torch.as_tensor(grid), torch.as_tensor((grid[1:] + grid[:-1]) / 2)
    fields = {
        "1 + ½ sin 2x": lambda x: 1 + 0.5 * torch.sin(2 * x),
        "1 + ½x²": lambda x: 1 + 0.5 * x.square(),
    }
    cases = [(name, form, None) for name in fields for form in energies.diffusion.FORMS]
    for name, form, tolerance in [*cases, ("1 + ½x²", "ito", 1e-3)]:
        D = fields[name]
        potential = grid**2 + (D(points).numpy() if form == "ito" else 0.0)
        start = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
        exact = fokker_planck(grid, potential, start, 1.0, tau=D(middle).numpy())
        energy = energies.Potential(lambda x: x.square().sum(-1))
        energy = energy + energies.Diffusion(lambda x, D=D: D(x[:, 0]), form=form)
        scheme = pwgf.PWGF(energy, maps.ResidualMLP(1), pwgf.Gaussian(1), tolerance=tolerance)
        run, cpu = solved(scheme, np.linspace(0, 1, 2), seed)
        reach = np.abs(grid) <= 8  # beyond it the exact mass is below 1e-9
        found = run.log_density(1.0, points[torch.as_tensor(reach)].unsqueeze(1)).exp().numpy()
        error = np.abs(found - exact[reach]).sum() * (grid[1] - grid[0])
        shown = "default" if tolerance is None else f"{tolerance:g}"
        yield [name, form, shown, f"{error:.1e}", f"{int(run['num_stages'][-1])}", f"{cpu:.0f}"]


def kuramoto(seed: int) -> Iterator[Row]:
    """The order parameter at the end, W₂ to the exact law and its estimate, both over the spread."""
    circle = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1].unsqueeze(1)
    for K in (1.0, 4.0):
        problem = problems.Kuramoto(K=K)
        scheme = pwgf.PWGF(problem.energy, problem.needed_map, problem.reference)
        run, cpu = solved(scheme, problem.times, seed)
        for t in (float(run.t[4]), float(run.t[-1])):
            k = int(np.argmin(abs(run.t - t)))
            density = run.log_density(t, circle).exp()
            order, exact = float((circle[:, 0].cos() * density).sum() / density.sum()), problem.order_parameter(t)
            distance = w2_on_the_line(run.at(t).log_density, problem.exact(t).log_density) / run["spread"][k]
            estimate = run["error_estimate"][k] / run["spread"][k]
            stages = f"{int(run['num_stages'][k])}"
            row = [f"{K:g}", f"{t:g}", f"{order:.4f}", f"{exact:.4f}", f"{distance:.1e}", f"{estimate:.1e}", stages]
            yield [*row, f"{cpu:.0f}" if k else ""]


def w2_on_the_line(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor]) -> float:
    """W₂ of two densities on [−π, π], both even, by their quantile functions."""
    grid = np.linspace(-math.pi, math.pi, 8001)
    levels = (np.arange(200_000) + 0.5) / 200_000
    quantiles = []
    for log_density in (one, other):
        density = log_density(torch.as_tensor(grid).unsqueeze(1)).exp().numpy()
        mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        quantiles.append(np.interp(levels, mass / mass[-1], grid))
    return float(np.sqrt(((quantiles[0] - quantiles[1]) ** 2).mean()))


def covariance(seed: int) -> Iterator[Row]:
    """The largest deviation of the covariance, in units of the exact one."""
    cases: list[tuple[int, Callable[[int], PushForward], float, float, str | None]] = [
        (2, maps.Affine, 1e-3, 1e-3, "covariance"),
        (2, maps.Affine, 1e-3, 1e3, "covariance"),
        (2, maps.Affine, 1e-3, 1e3, None),
        (2, maps.ResidualMLP, 1e-3, 1e-3, "covariance"),
        (2, maps.ResidualMLP, 1e-3, 1e3, "covariance"),
        (12, maps.Affine, 1e-3, 1e-3, "covariance"),
        (12, maps.Affine, 1e-3, 1e3, "covariance"),
        (12, maps.Affine, 1e-3, 1e3, None),
    ]
    for dim, make, low, high, mobility in cases:
        noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        turn = torch.linalg.qr(noise)[0]
        cov = turn @ torch.logspace(math.log10(low), math.log10(high), dim, dtype=torch.float64).diag() @ turn.T
        P = torch.linalg.inv(cov)
        energy = energies.Potential(lambda x, P=P: ((x - 1) @ P.to(x) * (x - 1)).sum(-1) / 2) + energies.Entropy()
        scheme = pwgf.PWGF(energy, make(dim), pwgf.Gaussian(dim), mobility=mobility)
        run, cpu = solved(scheme, np.linspace(0, 2, 5), seed)
        identity = torch.eye(dim, dtype=torch.float64)
        rates, basis = torch.linalg.eigh(P)
        plain = basis @ (1 / rates + torch.exp(-4 * rates) * (1 - 1 / rates)).diag() @ basis.T
        exact = torch.linalg.inv(P + math.exp(-4) * (identity - P)) if mobility else plain
        root = torch.linalg.cholesky(torch.linalg.inv(exact))
        error = float((root.T @ moments(run, 2.0)[1] @ root - identity).abs().max())
        name, stages = make(dim).to_config()["name"], f"{int(run['num_stages'][-1])}"
        yield [f"{dim}", name, f"{high / low:.0e}", str(mobility), f"{error:.1e}", stages, f"{cpu:.0f}"]


PARTS = {
    "trap": (trap, ["d", "mean", "trace of the covariance", "right sides", "CPU s"]),
    "mckean": (mckean, ["map", "d", "mean", "covariance", "right sides", "CPU s"]),
    "diffusion": (diffusion, ["D", "form", "tolerance", "L1", "right sides", "CPU s"]),
    "kuramoto": (
        kuramoto,
        ["K/τ", "t", "r", "exact r", "W₂ / spread", "estimate / spread", "right sides", "CPU s of the run"],
    ),
    "covariance": (covariance, ["d", "map", "condition", "mobility", "covariance", "right sides", "CPU s"]),
}


def main(part: tyro.conf.Positional[str], seed: int = 0) -> None:
    """Prints the table of a part.

    Args:
        part: trap, mckean, diffusion, kuramoto or covariance.
        seed: of the samples.
    """
    make, header = PARTS[part]
    table(header, make(seed))


if __name__ == "__main__":
    tyro.cli(main)
