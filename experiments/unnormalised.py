"""log Z, effective share and mode weights of unnormalised densities p by `sampling.sample` at default settings.

Gaussians of condition 120 and 10⁶ (d = 12, mean (1, …, 1)) and one of mean (1000, −500) and deviations .01 and 3,
double wells exp(−.06 Σ x⁴ − 16x² + 5x), four modes of weights .1 to .4 at (±3, ±3), two of .97 and .03 that lie 8
apart, a ring exp(−2(|x| − 2)²), a banana x₂ | x₁ ~ N(x₁²/2, 1/4) and Neal's funnel. Exact constants by closed forms
or quadrature in one dimension. The table stands in results/sampling.md.

    python -m experiments.unnormalised                             # seeds 0 to 2: ten minutes
    python -m experiments.unnormalised --names wells-10 funnel-10  # slow ones, seed 0: four minutes
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import tyro
from torch import Tensor

from experiments.common import table
from pwgf import sampling

CENTRES = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]]).double()
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
APART = torch.tensor([[0.0, 0.0], [8.0, 0.0]]).double(), torch.tensor([0.97, 0.03]).double()


def gaussian(dim: int, condition: float) -> tuple[Callable[[Tensor], Tensor], float]:
    """Eigenvalues of the covariance from 1 to 1/condition, equal in ratio, along random axes."""
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)).double())[0]
    variances = torch.logspace(0, -math.log10(condition), dim).double()
    precision = axes @ (1 / variances).diag() @ axes.T
    log_z = 0.5 * dim * math.log(2 * math.pi) + 0.5 * float(variances.log().sum())
    return lambda x: -((x - 1) @ precision * (x - 1)).sum(1) / 2, log_z


def wells(dim: int) -> tuple[Callable[[Tensor], Tensor], float]:
    """A product of double wells."""
    x = torch.linspace(-8, 8, 100_001).double()
    log_z = dim * math.log(torch.trapezoid(torch.exp(-0.06 * (x**4 - 16 * x**2 + 5 * x)), x))
    return lambda x: -0.06 * (x**4 - 16 * x**2 + 5 * x).sum(1), log_z


def far() -> tuple[Callable[[Tensor], Tensor], float]:
    """A Gaussian far from the start, narrow in one coordinate."""
    mean, deviation = torch.tensor([1000.0, -500.0]).double(), torch.tensor([0.01, 3.0]).double()
    return lambda x: -((x - mean) / deviation).square().sum(1) / 2, math.log(2 * math.pi * float(deviation.prod()))


def modes(dim: int, centres: Tensor = CENTRES, shares: Tensor = SHARES) -> tuple[Callable[[Tensor], Tensor], float]:
    """Unit Gaussians at the centres (k,2), in the first two of d coordinates, of weights (k,)."""
    centres = torch.cat([centres, torch.zeros(len(centres), dim - 2).double()], 1)

    def log_density(x: Tensor) -> Tensor:
        return torch.logsumexp(shares.log() - torch.cdist(x, centres).square() / 2, 1)

    return log_density, 0.5 * dim * math.log(2 * math.pi)


def ring() -> tuple[Callable[[Tensor], Tensor], float]:
    """A ring of radius 2."""
    r = torch.linspace(0, 10, 100_001).double()
    log_z = math.log(2 * math.pi * torch.trapezoid(r * torch.exp(-2 * (r - 2) ** 2), r))
    return lambda x: -2 * (x.norm(dim=1) - 2).square(), log_z


def banana() -> tuple[Callable[[Tensor], Tensor], float]:
    """x₁ ~ N(0, 1), x₂ | x₁ ~ N(x₁²/2, 1/4)."""
    return lambda x: -x[:, 0].square() / 2 - 2 * (x[:, 1] - x[:, 0].square() / 2).square(), math.log(math.pi)


def funnel(dim: int) -> tuple[Callable[[Tensor], Tensor], float]:
    """x₁ ~ N(0, 9), the others N(0, e^{x₁})."""

    def log_density(x: Tensor) -> Tensor:
        head, rest = x[:, 0], x[:, 1:]
        return -head.square() / 18 - (rest.square().sum(1) * torch.exp(-head) + (dim - 1) * head) / 2

    return log_density, math.log(3) + 0.5 * dim * math.log(2 * math.pi)


TARGETS = {
    "gaussian-120": (12, gaussian(12, 120)),
    "gaussian-1e6": (12, gaussian(12, 1e6)),
    "gaussian-far": (2, far()),
    "wells-2": (2, wells(2)),
    "modes-2": (2, modes(2)),
    "modes-8": (8, modes(8)),
    "modes-apart": (2, modes(2, *APART)),
    "ring": (2, ring()),
    "banana": (2, banana()),
    "wells-10": (10, wells(10)),
    "funnel-10": (10, funnel(10)),
}
QUICK = ("gaussian-120", "gaussian-1e6", "gaussian-far", "wells-2", "modes-2", "modes-apart", "ring", "banana")


def main(names: tuple[str, ...] = QUICK, seeds: tuple[int, ...] = (0, 1, 2), finish: bool = True) -> None:
    """A table of log Z, KL and CPU seconds.

    Args:
        names: of targets.
        seeds: of flow and samples.
        finish: with natural-gradient steps; without them the flow alone.
    """
    rows = []
    for name in names:
        dim, (log_density, log_z) = TARGETS[name]
        for seed in seeds:
            start = time.process_time()
            found = sampling.sample(log_density, dim, seed=seed, finish=finish, progress=False)
            spent = time.process_time() - start
            error = f"{found.log_z - log_z:.4f} ± {found.log_z_stderr:.4f}"
            line = [
                name,
                str(seed),
                error,
                f"{log_z - found.log_z_bound:.4f}",
                f"{found.ess:.3f}",
                _weights(name, found),
            ]
            rows.append([*line, f"{found.t:g}", str(int(found.run["num_stages"][-1])), f"{spent:.0f}"])
            print(*rows[-1], flush=True)  # as they come
    heads = "target seed log_Z−exact KL effective_share mode_weights,_largest_error t right_sides CPU_s"
    table([head.replace("_", " ") for head in heads.split()], rows)


def _weights(name: str, found: sampling.Sampled) -> str:
    if not name.startswith("modes"):
        return "–"
    centres, shares = APART if name == "modes-apart" else (CENTRES, SHARES)
    mode = torch.cdist(found.x[:, :2], centres).argmin(1)
    share = torch.zeros(len(shares)).double().index_add(0, mode, torch.softmax(found.log_weights, 0))
    return f"{float((share - shares).abs().max()):.4f}"


if __name__ == "__main__":
    tyro.cli(main)
