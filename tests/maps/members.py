"""The maps that the contract test is looped over, and parameters at which to test them."""

from __future__ import annotations

import math

import torch
import zuko
from torch import Tensor, nn

from pwgf import maps, measures
from pwgf.maps.convex import ConvexGradient
from pwgf.schemes.jko import QuadraticICNN


def module(dim: int, width: int = 7, scaled: bool = True) -> nn.Module:
    """A smooth module (n,d) → (n,d), always the same one; `scaled` by a LayerNorm's parameters it is not all layers."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        norm = nn.LayerNorm(width, elementwise_affine=scaled)
        return nn.Sequential(nn.Linear(dim, width), nn.Tanh(), norm, nn.Linear(width, dim)).double()


def flow(make, dim: int, **settings) -> nn.Module:
    """A zuko flow with smooth networks, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make(dim, hidden_features=(4,), activation=nn.Tanh, **settings).double()


MEMBERS = {
    "ConvexRidge1-default": lambda: maps.ConvexRidge(1),
    "ConvexRidge3-width5": lambda: maps.ConvexRidge(3, width=5, scale=2.0, gain=0.3, floor=0.01),
    "ConvexMax1-default": lambda: maps.ConvexMax(1),
    "ConvexMax3-groups2": lambda: maps.ConvexMax(3, groups=2, size=3, scale=2.0, gain=0.3, floor=0.01),
    "ConvexMax2-pairs": lambda: maps.ConvexMax(2, groups=3, size=2, sharpness=1.5),
    "Affine1": lambda: maps.Affine(1),
    "Affine3": lambda: maps.Affine(3),
    "ResidualMLP1-default": lambda: maps.ResidualMLP(1),
    "ResidualMLP2-default": lambda: maps.ResidualMLP(2),
    "ResidualMLP3-no-axis": lambda: maps.ResidualMLP(3, width=5, axis_share=0.5, axis_units=0),
    "ResidualMLP3-width1": lambda: maps.ResidualMLP(3, width=1),
    "ResidualMLP3-width5-dense": lambda: maps.ResidualMLP(3, width=5, axis_share=0.0),
    "ResidualMLP2-scale": lambda: maps.ResidualMLP(2, width=9, axis_share=0.5, scale=4.0),
    "ResidualMLP2-depth2": lambda: maps.ResidualMLP(2, width=6, depth=2),
    "ResidualMLP3-depth3": lambda: maps.ResidualMLP(3, width=4, depth=3, axis_share=0.25),
    "NeuralODE1": lambda: maps.NeuralODE(1, width=6),
    "NeuralODE2": lambda: maps.NeuralODE(2, width=5),
    "NeuralODE2-euler": lambda: maps.NeuralODE(2, width=5, num_steps=3, method="euler", scale=2.0),
    "NeuralODE3-rk4": lambda: maps.NeuralODE(3, width=5, num_steps=2, method="rk4", gain=0.3),
    "NeuralODE3-series": lambda: maps.NeuralODE(3, width=4, log_det="series", num_probes=3, num_terms=20),
    "Composed2-flows": lambda: maps.Composed([maps.NeuralODE(2, width=4), maps.NeuralODE(2, width=3, num_steps=1)]),
    "QuadraticICNN1": lambda: QuadraticICNN(1, width=5, rank=1),
    "QuadraticICNN3": lambda: QuadraticICNN(3, width=6, rank=2, gain=2.0, floor=0.01),
    "Composed2": lambda: maps.Composed([maps.Affine(2), maps.ResidualMLP(2, width=6), maps.ConvexRidge(2, width=5)]),
    "Composed3-one-moves": lambda: maps.Composed([maps.Affine(3), maps.ConvexRidge(3, width=5)] * 2, moving=[1]),
    "Standardised2": lambda: maps.Standardised(maps.ResidualMLP(2, width=6), [1.0, -2.0], 2.0),
    "Standardised3-convex": lambda: maps.Standardised(maps.ConvexRidge(3, width=5), [0.0, 0.5, -0.25], 0.125),
    "Layers1": lambda: maps.Layers(maps.ResidualMLP(1, width=5), count=2),
    "Layers2-of-three": lambda: maps.Layers(maps.ResidualMLP(2, width=4, axis_units=3), count=3),
    "Layers3-convex": lambda: maps.Layers(maps.ConvexRidge(3, width=4), count=2),
    "InBox1": lambda: maps.InBox(maps.ResidualMLP(1, width=6), -4.0, 4.0),
    "InBox3-cuts": lambda: maps.InBox(maps.ResidualMLP(3, width=5, depth=2), [-1.0, -2.0, 0.5], [1.5, 3.0, 2.0]),
    "InBox2-convex": lambda: maps.InBox(maps.ConvexRidge(2, width=5), [-5.0, -6.0], 4.0),
    "InBox2-neural": lambda: maps.InBox(maps.NeuralODE(2, width=4), -5.0, 5.0),
    "OnTorus1": lambda: maps.OnTorus(1, 9.0, -4.5),
    "OnTorus2": lambda: maps.OnTorus(2, [8.0, 20.0], [-4.0, -9.0], maps.ResidualMLP(4, width=6)),
    "OnTorus1-convex": lambda: maps.OnTorus(1, 20.0, -10.0, maps.ConvexRidge(2, width=5)),
    "FromModule2": lambda: maps.FromModule(module(2), dim=2),
    "FromModule2-layers": lambda: maps.FromModule(module(2, scaled=False), dim=2, residual=True),
    "FromModule3-residual": lambda: maps.FromModule(module(3), dim=3, residual=True),
    "FromFlow3-coupling": lambda: maps.FromFlow(flow(zuko.flows.RealNVP, 3), dim=3),
    "FromFlow2-autoregressive": lambda: maps.FromFlow(flow(zuko.flows.MAF, 2), dim=2),
    "FromFlow2-spline": lambda: maps.FromFlow(flow(zuko.flows.NSF, 2, bins=2, transforms=1), dim=2),
}


def starts_as_identity(map: maps.PushForward) -> bool:
    return not isinstance(map, maps.FromModule) or map.residual


def starts_to_rounding(map: maps.PushForward) -> bool:
    """Whether the identity at the start is a sum that rounds."""
    if isinstance(map, (maps.InBox, maps.Layers, maps.OnTorus)):
        return starts_to_rounding(map.map)
    parts = map.maps if isinstance(map, maps.Composed) else [map]
    return any(isinstance(part, (ConvexGradient, maps.Standardised)) for part in parts)


def potential_for(map):
    """V for a flow of the map: |x|², or on a torus a wave with its periods."""
    if not isinstance(map, maps.OnTorus):
        return lambda x: x.square().sum(-1)
    return lambda x: sum(torch.cos(2 * math.pi * x[:, k] / period) for k, period in enumerate(map.periods))


def reference_for(map: maps.PushForward) -> measures.Reference:
    """A law in the domain of the map."""
    if isinstance(map, maps.InBox):
        return measures.UniformBox(map.lower, map.upper)
    if isinstance(map, maps.OnTorus):
        return measures.UniformBox(map.lower, torch.tensor(map.lower) + torch.tensor(map.periods))
    return measures.Gaussian(map.dim)


def random_theta(map: maps.PushForward, size: float = 0.3, seed: int = 5) -> Tensor:
    """θ₀ plus normal noise of the given size: every block is away from its start."""
    noise = torch.randn(map.num_params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return map.initial(seed) + size * noise


def num_smooth(map: maps.PushForward) -> int:
    """How many of the leading parameters T is differentiated by: all but the places of layers and their number."""
    return map.count * map.map.num_params if isinstance(map, maps.Layers) else map.num_params


def in_domain(map: maps.PushForward, z: Tensor) -> Tensor:
    """z itself; on a torus its representatives in the cell."""
    if not isinstance(map, maps.OnTorus):
        return z
    lower, periods = torch.tensor(map.lower).to(z), torch.tensor(map.periods).to(z)
    return lower + torch.remainder(z - lower, periods)


def points(n: int, dim: int, seed: int = 11) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
