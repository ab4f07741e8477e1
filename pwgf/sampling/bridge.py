"""log Z from both sides: by samples of ρ, and by samples that Markov chains carry from there towards π.

Importance weights p/ρ at samples of ρ know nothing of places where ρ has no samples; chains that preserve π go there.

References:
    C. H. Bennett, Efficient estimation of free energy differences from Monte Carlo data, 1976.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PWGFError
from .chains import langevin

_NUM_CHAINS = 1000
_ITERATIONS = 50  # of the fixed point for log Z, which halves its error or better each time


class Bridged(NamedTuple):
    """log Z with its standard error, and KL(π|ρ) as the chains see it, in nats."""

    log_z: float
    log_z_stderr: float
    kl_backward: float


def bridge(
    target: Callable[[Tensor], Tensor],
    log_density: Callable[[Tensor], Tensor],
    y: Tensor,
    log_w: Tensor,
    steps: int,
    seed: int,
) -> Bridged | None:
    """Bennett's estimate; None where log ρ is not known where the chains go, as beyond a fold.

    Args:
        target: log p, (n,d) → (n,).
        log_density: log ρ, (n,d) → (n,).
        y: (n,d) samples of ρ.
        log_w: log p − log ρ there, (n,).
        steps: of Metropolis-adjusted Langevin, from a thousand samples drawn by their weights.
        seed: of the chains.
    """
    generator = torch.Generator().manual_seed(seed + 7)
    start = torch.multinomial(torch.softmax(log_w, 0).cpu(), _NUM_CHAINS, replacement=True, generator=generator)
    x = langevin(target, y[start.to(y.device)], steps, seed=seed + 7)
    try:
        with torch.no_grad():
            back = (target(x) - log_density(x)).cpu()
    except PWGFError:
        return None
    if not bool(torch.isfinite(back).all()):
        return None
    return _bennett(log_w.cpu(), back)


def _bennett(forward: Tensor, backward: Tensor) -> Bridged:
    """From log p − log ρ at samples of ρ and at samples of π."""
    n, m = len(forward), len(backward)
    log_z = float(torch.logsumexp(forward, 0)) - math.log(n)
    for _ in range(_ITERATIONS):
        of_rho = torch.sigmoid(forward - log_z + math.log(m / n))
        of_pi = torch.sigmoid(log_z - backward - math.log(m / n))
        log_z += float((of_rho.sum() / of_pi.sum()).log())
    variance = sum(float(part.var() / part.mean().square()) / len(part) for part in (of_rho, of_pi))
    return Bridged(log_z, math.sqrt(variance), float(backward.mean()) - log_z)
