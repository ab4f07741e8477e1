"""Densities of one and two coordinates of a law, on a grid: by its formula where there is one, else from samples."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..errors import ConfigError, SolverError
from ..measures import Law

_CELLS = 1024  # in which samples of one coordinate are counted
_CELLS_2D = 200  # along each of two coordinates
_UNKNOWN = (ConfigError, SolverError)  # particles, or a map without an inverse there


Grid = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Points (m,) along each of two axes, and a density (m,m) there, the second axis along the rows."""


def drawn(law: Law, n: int, seed: int) -> torch.Tensor:
    """Up to n samples (m,d) float64 in random order, none twice.

    Particles are drawn with replacement beyond their number, and the width of a kernel would follow the repeats.
    """
    x = law.sample(n, seed).double()
    first = np.unique(x.numpy(), axis=0, return_index=True)[1]
    return x if len(first) == n else x[np.sort(first)]


def marginal(law: Law, x: torch.Tensor, k: int, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (m,) between the limits and the density of coordinate k there, (m,).

    By `log_density` of a law on the line; else of its samples x (n,d), smoothed.
    """
    if law.dim == 1:
        points = torch.linspace(float(limits[0]), float(limits[1]), 400, dtype=torch.float64)
        try:
            return points.numpy(), law.log_density(points[:, None]).double().exp().numpy()
        except _UNKNOWN:
            pass
    return smoothed(x[:, k].numpy(), limits)


def joint(law: Law, x: torch.Tensor, pair: list[int], limits: np.ndarray) -> Grid:
    """The joint density of two coordinates between limits (2,2).

    By `log_density` of a law in the plane; else of its samples x (n,d), smoothed.
    """
    if law.dim == 2:
        axes = [torch.linspace(float(low), float(high), 80, dtype=torch.float64) for low, high in limits]
        grid = torch.cartesian_prod(*axes)
        ordered = grid if pair == [0, 1] else grid.flip(1)
        try:
            values = law.log_density(ordered).double().exp().view(80, 80).T.numpy()
            return axes[0].numpy(), axes[1].numpy(), values
        except _UNKNOWN:
            pass
    return smoothed_2d(x[:, pair].numpy(), limits)


def smoothed(x: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and density there of samples x (n,), by a Gaussian kernel whose width `bandwidth` gives."""
    from scipy.fft import dct, idct  # noqa: PLC0415

    low, high = _widened(limits)
    counts, edges = np.histogram(x, bins=_CELLS, range=(low, high))
    inside = max(int(counts.sum()), 1)
    coefficients = dct(counts / (len(x) * (high - low) / _CELLS), norm="ortho")
    width = _bandwidth(counts / inside, inside)
    density = idct(coefficients * np.exp(-0.5 * (np.pi * np.arange(_CELLS) * width) ** 2), norm="ortho")
    points = (edges[1:] + edges[:-1]) / 2
    shown = (points >= limits[0]) & (points <= limits[1])
    return points[shown], density[shown].clip(0)


def smoothed_2d(x: np.ndarray, limits: np.ndarray) -> Grid:
    """Density of samples x (n,2), by a product of Gaussian kernels."""
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415

    counts, *edges = np.histogram2d(x[:, 0], x[:, 1], bins=_CELLS_2D, range=[tuple(ends) for ends in limits])
    area = math.prod(float(ends[1] - ends[0]) for ends in limits) / _CELLS_2D**2
    widths = []
    for values, ends in zip(x.T, limits, strict=True):
        along, _ = np.histogram(values, bins=_CELLS, range=tuple(ends))
        inside = max(int(along.sum()), 1)
        widths.append(_bandwidth(along / inside, inside) * inside ** (1 / 5 - 1 / 6) * _CELLS_2D)
    density = gaussian_filter(counts / (len(x) * area), widths, mode="constant")
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    return centres[0], centres[1], density.T


def levels(density: np.ndarray, masses: tuple[float, ...] = (0.95, 0.5)) -> list[float]:
    """Levels, rising, above which the smallest regions with these shares of the mass on the grid lie."""
    ordered = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(ordered) / max(float(ordered.sum()), 1e-300)
    places = np.minimum(np.searchsorted(mass, masses), len(mass) - 1)
    return sorted(set(ordered[places].tolist()))


def _widened(limits: np.ndarray) -> tuple[float, float]:
    """The limits with a margin, so that no kernel is cut off where something is shown."""
    margin = 0.15 * float(limits[1] - limits[0])
    return float(limits[0]) - margin, float(limits[1]) + margin


def _bandwidth(shares: np.ndarray, n: int) -> float:
    """Width of the kernel, relative to the range, from the shares of n samples in its cells; many modes are no problem.

    That of Botev, Grotowski and Kroese, *Kernel density estimation via diffusion*, 2010, arXiv 1011.2602; where their
    equation has no root, as for samples at a few points, a hundredth of the range.
    """
    from scipy.fft import dct  # noqa: PLC0415
    from scipy.optimize import brentq  # noqa: PLC0415

    squares = np.arange(1, len(shares), dtype=float) ** 2
    energy = (dct(shares)[1:] / 2) ** 2

    def norm(order: int, time: float) -> float:
        powers = squares**order * energy * np.exp(-squares * math.pi**2 * time)
        return 2 * math.pi ** (2 * order) * float(powers.sum())

    def excess(time: float) -> float:
        value = norm(7, time)
        for order in range(6, 1, -1):
            odd = math.prod(range(1, 2 * order, 2)) / math.sqrt(2 * math.pi)
            factor = (1 + 0.5 ** (order + 0.5)) / 3
            value = norm(order, (2 * factor * odd / (n * value)) ** (2 / (3 + 2 * order)))
        return time - (2 * n * math.sqrt(math.pi) * value) ** (-2 / 5)

    try:
        return math.sqrt(brentq(excess, 1e-9, 0.1))
    except (ValueError, ZeroDivisionError):
        return 0.01
