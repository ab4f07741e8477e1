"""log Z from both sides: by samples of ρ, and by samples that Markov chains carry from there towards π.

Importance weights p/ρ at samples of ρ know nothing of places where ρ has no samples; chains that preserve π go there.

References:
    C. H. Bennett, Efficient estimation of free energy differences from Monte Carlo data, 1976.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import PWGFError
from .chains import USER_ERRORS, langevin

_log = logging.getLogger("pwgf")
_MOST_CHAINS, _SAMPLES_PER_CHAIN = 1000, 10  # few beside the samples, whose weights between wells they repeat
_FEWEST_CHAINS = 10
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
    """Bennett's estimate; None for fewer than 100 samples, and where p or ρ cannot be evaluated on the way.

    Args:
        target: log p, (n,d) → (n,).
        log_density: log ρ, (n,d) → (n,).
        y: (n,d) samples of ρ.
        log_w: log p − log ρ there, (n,).
        steps: of Metropolis-adjusted Langevin, from a tenth of the samples, at most a thousand, drawn by their weights.
        seed: of the chains.
    """
    count = min(len(y) // _SAMPLES_PER_CHAIN, _MOST_CHAINS)
    if count < _FEWEST_CHAINS:
        return None
    generator = torch.Generator().manual_seed(seed + 7)
    start = torch.multinomial(torch.softmax(log_w, 0).cpu(), count, replacement=True, generator=generator)
    try:
        x = langevin(target, y[start.to(y.device)], steps, seed=seed + 7)
        with torch.no_grad():
            back = target(x).cpu() - log_density(x).cpu()
    except (*USER_ERRORS, PWGFError) as error:  # of log p outside its domain, or of the map's inverse
        _log.info("sample: log Z by importance alone, since a chain met %s: %s", type(error).__name__, error)
        return None
    return None if bool(back.isnan().any()) else bennett(log_w.cpu(), back)


def bennett(forward: Tensor, backward: Tensor) -> Bridged:
    """From log p − log ρ at samples of ρ and at samples of π."""
    n, m = len(forward), len(backward)
    log_z = float(torch.logsumexp(forward, 0)) - math.log(n)
    for _ in range(_ITERATIONS):
        of_rho = logsigmoid(forward - log_z + math.log(m / n))
        of_pi = logsigmoid(log_z - backward - math.log(m / n))
        log_z += float(torch.logsumexp(of_rho, 0) - torch.logsumexp(of_pi, 0))
    shares = [torch.softmax(part, 0) for part in (of_rho, of_pi)]
    variance = sum(len(part) * float(part.var()) for part in shares)
    return Bridged(log_z, math.sqrt(variance), float(backward.mean()) - log_z)
