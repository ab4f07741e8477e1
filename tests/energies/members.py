"""The energies that the contract tests are looped over, and pushed measures on deterministic quadrature points.

The points z are tensor products of equally spaced quantiles of N(0, 1). Averages over them are midpoint rules in the
quantile s, spectrally accurate for integrands that vanish with all derivatives at s = 0 and 1; a field u that decays
like exp(−3|x|²) makes every integrand of a first variation such a one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pwgf import energies, maps
from pwgf.measures import Gaussian, PushedMeasure


def square(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def mixed(x: Tensor, log_rho: Tensor) -> Tensor:
    """Depends on x and ℓ together, nonlinearly in both."""
    return (1 + square(x)) * log_rho + torch.sin(x[..., 0]) * log_rho.square() + torch.exp(0.5 * log_rho) * x[..., -1]


def with_local_terms(rho) -> Tensor:
    """A mean of local terms plus a product of means of functions of x."""
    return mixed(rho.x, rho.log_density).mean() + torch.sin(rho.x).mean() * square(rho.x).mean()


def cloud(dim: int, m: int = 30) -> Tensor:
    """Samples to draw the measure to."""
    return 0.5 + 1.5 * torch.randn(m, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


MEMBERS = {
    "potential": lambda: energies.Potential(lambda x: square(x) ** 2 / 4 - torch.cos(x).sum(-1)),
    "kl": lambda: energies.KL(lambda x: -0.7 * square(x - 1) + 0.1 * torch.sin(3 * x).sum(-1)),
    "entropy": lambda: energies.Entropy(),
    "internal-square": lambda: energies.InternalEnergy(lambda r: r.square()),
    "internal-mixed": lambda: energies.InternalEnergy(lambda r: r * torch.log1p(r) + r**1.5),
    "porous-2": lambda: energies.PorousMedium(2),
    "porous-3.5": lambda: energies.PorousMedium(3.5),
    "fast-diffusion": lambda: energies.PorousMedium(0.8),
    "fisher": lambda: energies.FisherInformation(1.2),
    "fisher-in-a-sum": lambda: energies.Potential(square) + energies.FisherInformation(),
    "local-mixed": lambda: energies.Local(mixed),
    "local-of-x": lambda: energies.Local(lambda x, log_rho: square(x)),
    "local-of-density": lambda: energies.Local(lambda x, log_rho: log_rho.square()),
    "interaction": lambda: energies.Interaction(lambda r: square(r) ** 2 / 4 - square(r) / 2),
    "interaction-by-moments": lambda: energies.Interaction(energies.RadialPolynomial(quadratic=-0.5, quartic=0.25)),
    "interaction-asymmetric": lambda: energies.Interaction(lambda r: square(r) + (r**3).sum(-1) + r[..., 0]),
    "interaction-distance": lambda: energies.Interaction(lambda r: torch.linalg.vector_norm(r, dim=-1)),
    "interaction-logarithm": lambda: energies.Interaction(lambda r: -torch.log(torch.linalg.vector_norm(r, dim=-1))),
    "functional-local": lambda: energies.Functional(lambda rho: mixed(rho.x, rho.log_density).mean()),
    "functional-of-x": lambda: energies.Functional(
        lambda rho: rho.x.var(0, correction=0).sum() + torch.tanh(rho.x.mean()) ** 2
    ),
    "functional-product": lambda: energies.Functional(lambda rho: torch.sin(rho.x).mean() * square(rho.x).mean()),
    "functional-both": lambda: energies.Functional(with_local_terms),
    "sum": lambda: (
        energies.Potential(square) + 0.5 * energies.Entropy() - 0.3 * energies.Interaction(lambda r: square(r) ** 2)
    ),
}

OF_DIMENSION = {  # energies that know the dimension of the flow
    "mmd-energy": lambda dim: energies.MMD(cloud(dim)),
    "mmd-gaussian": lambda dim: energies.MMD(cloud(dim), "gaussian", bandwidth=1.3),
    "sliced": lambda dim: energies.SlicedW2(cloud(dim), 7),
    "sinkhorn": lambda dim: energies.Sinkhorn(cloud(dim), blur=0.5, scaling=0.998),
}
WITHOUT_VALUE = {
    "drift": lambda: energies.Drift(lambda x: torch.sin(x.roll(1, -1)) - x),
    "diffusion": lambda: energies.Diffusion(lambda x: 1 + x.square()),
    "diffusion-ito": lambda: energies.Diffusion(lambda x: 1 + square(x), form="ito"),
    "driven-sum": lambda: 2.0 * energies.Drift(lambda x: -x) + 0.5 * energies.Diffusion(lambda x: torch.exp(x[..., 0])),
}
NAMES = [*MEMBERS, *OF_DIMENSION, *WITHOUT_VALUE]
PRECISION = {"sinkhorn": 3e-3}  # of the velocity as a derivative: what the annealing leaves; 1e-5 for all others


def member(name: str, dim: int = 2) -> energies.Energy:
    """The energy of that name, for measures in so many dimensions."""
    return OF_DIMENSION[name](dim) if name in OF_DIMENSION else {**MEMBERS, **WITHOUT_VALUE}[name]()


def field(x: Tensor) -> Tensor:
    """A smooth vector field u that decays like exp(−3|x|²), off the centre so that nothing cancels by symmetry."""
    wave = torch.stack([1 + torch.cos(k + x.sum(-1)) + 0.5 * x[..., k] for k in range(x.shape[-1])], dim=-1)
    return wave * torch.exp(-3 * square(x - 0.5)).unsqueeze(-1)


def bend(z: Tensor) -> Tensor:
    """A fixed diffeomorphism, so that the measures are no Gaussians."""
    return 1.1 * z + 0.2 * torch.tanh(2 * z.roll(1, -1)) + 0.1


@dataclass(frozen=True)
class Along(maps.PushForward):
    """T_ε = (id + εu) ∘ bend with the single parameter θ = ε."""

    dim: int

    def layout(self):
        return maps.base.blocks([("epsilon", (1,))])

    def initial(self, seed=0):
        return torch.zeros(1, dtype=torch.float64)

    def __call__(self, theta, z):
        y = bend(z)
        return y + theta * field(y)


def quantiles(per_axis: int, dim: int) -> Tensor:
    s = (torch.arange(per_axis, dtype=torch.float64) + 0.5) / per_axis
    line = torch.special.ndtri(s)
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim)


def points_for(name: str, dim: int) -> Tensor:
    """Enough points for the quadrature; few for a mere interaction, whose sampled identity holds on any points."""
    return quantiles(
        {1: 200, 2: 12}[dim] if name.startswith("interaction") or name not in MEMBERS else {1: 1500, 2: 44}[dim], dim
    )


def measure(dim: int, epsilon: float | Tensor = 0.0, z: Tensor | None = None, **settings) -> PushedMeasure:
    theta = epsilon if isinstance(epsilon, Tensor) else torch.tensor([epsilon], dtype=torch.float64)
    z = quantiles({1: 1500, 2: 44}[dim], dim) if z is None else z
    return PushedMeasure(Along(dim), Gaussian(dim), theta, z, **settings)


def small(n: int = 12, dim: int = 2, dtype: torch.dtype = torch.float64) -> PushedMeasure:
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return measure(dim, torch.zeros(1, dtype=dtype), z.to(dtype))
