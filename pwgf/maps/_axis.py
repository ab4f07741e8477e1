"""Functions of single coordinates: the separable part of a map, with its slopes and its tangent."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Layer

SPREAD = 2.5  # the centres of a coordinate's units lie evenly between ± this, in standard deviations
STEEPNESS = 1.5  # slope of a unit's argument at the start, the same

# A block of parameters (d, 3, m) holds w, c and o of m units per coordinate: φ_k(z_k) = Σ_u o_ku tanh(w_ku z_k + c_ku).


def axis_start(dim: int, units: int, scale: float) -> Tensor:
    """Parameters (d,3,m) with φ = 0 and centres spread over the bulk of a law of the given scale."""
    block = torch.zeros(dim, 3, units, dtype=torch.float64)
    block[:, 0] = STEEPNESS / scale
    block[:, 1] = -STEEPNESS * SPREAD * (2 * (torch.arange(units, dtype=torch.float64) + 0.5) / max(units, 1) - 1)
    return block


def axis_values(block: Tensor, z: Tensor) -> Tensor:
    """φ_k(z_k), (n,d); differentiable."""
    w, c, o = block.unbind(1)
    return (torch.tanh(torch.addcmul(c, z.unsqueeze(2), w)) * o).sum(2)


def axis_slopes(block: Tensor, z: Tensor) -> Tensor:
    """φ′_k(z_k), (n,d); differentiable."""
    w, c, o = block.unbind(1)
    return ((1 - torch.tanh(torch.addcmul(c, z.unsqueeze(2), w)).square()) * (w * o)).sum(2)


def axis_slopes_and_bends(block: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """φ′_k(z_k) and φ″_k(z_k), (n,d) each."""
    w, c, o = block.unbind(1)
    h = torch.tanh(torch.addcmul(c, z.unsqueeze(2), w))
    slope = (1 - h.square()).mul_(w * o)
    return slope.sum(2), slope.mul_(h).mul_(-2 * w).sum(2)


def axis_features(block: Tensor, z: Tensor, weight: float = 1.0) -> Tensor:
    """∂φ_k(z_k)/∂(w, c, o)_k, (d, 3m, n), times weight: elsewhere row k of the tangent is zero."""
    w, c, o = (part.unsqueeze(2) for part in block.unbind(1))
    points = z.T.unsqueeze(1)
    h = torch.tanh(torch.addcmul(c, points, w))
    slope = (1 - h.square()).mul_(weight * o)
    return torch.cat([slope * points, slope, weight * h], 1)


def axis_slope_features(block: Tensor, z: Tensor, xi: Tensor, weight: float = 1.0) -> Tensor:
    """∂(φ′_k(z_k)ξ_k)/∂(w, c, o)_k, (d, 3m, n), times weight."""
    w, c, o = (part.unsqueeze(2) for part in block.unbind(1))
    points, along = z.T.unsqueeze(1), weight * xi.T.unsqueeze(1)
    h = torch.tanh(torch.addcmul(c, points, w))
    slope = (1 - h.square()).mul_(along)
    bend = (o * w) * (-2 * h * slope)
    return torch.cat([(o * slope).addcmul_(bend, points), bend, w * slope], 1)


def axis_layers(offset: int, features: Tensor) -> list[Layer]:
    """The factors of the tangent, a layer for each coordinate."""
    d, width, n = features.shape
    units = torch.eye(d, dtype=features.dtype, device=features.device).unsqueeze(2)
    return [Layer(offset + k * width, (1, width), features[k].T, units[k].expand(n, d, 1), output=k) for k in range(d)]
