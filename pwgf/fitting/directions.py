"""The directions in which a flow is going to bend a law that starts as λ, for the first units of a map."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integer, plain_numbers
from ..energies import Energy
from ..errors import ConfigError
from ..maps import Affine
from ..measures import PushedMeasure, Reference

_NOISE = 1e-12  # of E|v|²: the residual of an affine velocity by rounding


@plain_numbers
def active_directions(
    energy: Energy, reference: Reference, *, num_samples: int = 4000, seed: int = 0, t: float = 0.0
) -> Tensor:
    r"""Rows √w_k e_k (d,d), with w_k, e_k eigenvalues (falling) and eigenvectors of E[r rᵀ], r = v − (its best affine
    fit), v the velocity at λ. Those along which v is affine up to 1e-6 are zero.

    An affine velocity only translates and stretches λ, which most maps of the package can follow from their start. The
    rest often lies in few directions: four for five Gaussians, in any dimension. A map whose first units are aligned
    with these resolves them at once, whereas random directions in d = 32 may miss them until the law has been torn
    wrongly:

        theta0 = map.initial(seed, fitting.active_directions(energy, reference))   # maps.ConvexMax
        scheme = PWGF(energy, map, reference, theta0=theta0)

    Args:
        energy: of the flow.
        reference: λ, the law at the start.
        num_samples: n > d + 1.
        seed: of the samples.
        t: time of the start, for an energy that depends on it.

    Raises:
        ConfigError: an argument out of range, or a velocity that is not finite at λ.

    Example:
        >>> from pwgf import fitting, problems
        >>> problem = problems.GaussianMixture(dim=6, components=3)
        >>> rows = fitting.active_directions(problem.energy, problem.reference)
        >>> (rows.norm(dim=1) > 0).sum().item()  # differences of three centres span a plane
        2

    References:
        Constantine, Dow, Wang, Active subspace methods in theory and practice, 2014 (there from gradients).
    """
    dim = reference.dim
    check_integer(num_samples, "num_samples", "active_directions", least=dim + 2)
    check_integer(seed, "seed", "active_directions", least=0)
    map, z = Affine(dim), reference.sample(num_samples, torch.Generator().manual_seed(seed)).double()
    v = energy.velocity(PushedMeasure(map, reference, map.initial(), z, t=t)).double()
    bad = ~torch.isfinite(v).all(1)
    if bool(bad.any()):
        raise ConfigError(
            f"active_directions: the velocity of {energy.label} is not finite at {int(bad.sum())} of {num_samples} "
            "samples of the reference. The energy must be finite where the flow begins."
        )
    inputs = torch.cat([z, torch.ones_like(z[:, :1])], 1)
    beyond = v - inputs @ torch.linalg.lstsq(inputs, v).solution
    weights, vectors = torch.linalg.eigh(beyond.T @ beyond / num_samples)
    weights[weights < _NOISE * float(v.square().sum(1).mean())] = 0
    return (weights.sqrt() * vectors).T.flip(0)
