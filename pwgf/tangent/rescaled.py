"""The tangent of a map in other coordinates of x, for metrics of velocities other than E|·|²."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..maps.base import Layer, Linearisation, PushForward

Root = Tensor | Callable[[Tensor], Tensor]


class Rescaled:
    """R⁻¹JP in place of J: the tangent of a map in coordinates y = R⁻¹x, in which velocities are fitted.

    P makes coordinates ζ of the rates, η = Pζ, in which the problem stays as it is when x is mapped linearly and R with
    it, so that the damping of |ζ|² means the same whatever the condition of R. Matrices whose outputs are the
    coordinates of T (shifts, affine parts, last layers) have their rows in y, that is P = R; matrices that move one
    coordinate x_k are divided by |R⁻¹e_k|; for all others, and where J has no layers, P is the identity. So it is, too,
    for an R that differs between samples.

    Args:
        map: T.
        root: R, lower triangular, (d,d); or a function of x (n,d) that gives (n,d,d).
    """

    def __init__(self, map: PushForward, root: Root) -> None:
        self.map, self._root, self.dim = map, root, map.dim
        self._outputs: dict[int, tuple[int, int]] = {}  # offset: shape
        self._singles: dict[int, tuple[int, float]] = {}  # offset: length, scale
        if isinstance(root, Tensor):
            self._find_parts(inside(root, torch.eye(self.dim, dtype=root.dtype, device=root.device)))

    def _find_parts(self, inverse: Tensor) -> None:
        theta = self.map.initial().to(inverse)
        layers = self.map.linearise(theta, theta.new_zeros(1, self.dim)).layers
        found = [] if layers is None else layers()
        inner = {layer.offset for layer in found if layer.g is not None or layer.transposed}
        self._outputs = {layer.offset: layer.shape for layer in found if layer.offset not in inner}
        scales = (1 / inverse.norm(dim=0)).tolist()
        for layer in found:
            if layer.output is not None:
                self._singles[layer.offset] = math.prod(layer.shape), scales[layer.output]

    def rates(self, zeta: Tensor) -> Tensor:
        """η = Pζ, (…,p)."""
        return self._by_parts(zeta, lambda root, block: root @ block, lambda scale: scale)

    def coordinates(self, eta: Tensor) -> Tensor:
        """ζ = P⁻¹η, (…,p)."""
        return self._by_parts(eta, lambda root, block: inside(root, block), lambda scale: 1 / scale)

    def _by_parts(
        self, eta: Tensor, on_outputs: Callable[[Tensor, Tensor], Tensor], on_singles: Callable[[float], float]
    ) -> Tensor:
        if not isinstance(self._root, Tensor):
            return eta
        found, root = eta.clone(), self._root.to(eta)
        for offset, (d, m) in self._outputs.items():
            block = slice(offset, offset + d * m)
            found[..., block] = on_outputs(root, eta[..., block].unflatten(-1, (d, m))).flatten(-2)
        for offset, (m, scale) in self._singles.items():
            found[..., offset : offset + m] *= on_singles(scale)
        return found

    def _at(self, theta: Tensor, z: Tensor) -> Tensor:
        """R for the samples z."""
        root = self._root if isinstance(self._root, Tensor) else self._root(self.map(theta, z).detach())
        return root.to(z)

    def _rescaled(self, own: Linearisation, root: Tensor) -> Linearisation:
        """R⁻¹JP from J. R⁻¹R, formed, would be the identity to rounding only: those matrices keep their layers."""
        inverse, layers = inside(root, torch.eye(self.dim, dtype=root.dtype, device=root.device)), own.layers
        if layers is None:
            return Linearisation(
                lambda zeta: _times(inverse, own.jv(self.rates(zeta))),
                lambda u: self._pulled(own.jtu(_times(inverse.mT, u))),
            )

        def rescaled(layer: Layer) -> Layer:
            if layer.offset in self._outputs:
                return layer
            scale = self._singles.get(layer.offset, (0, 1.0))[1]
            g = inverse.expand(len(layer.a), -1, -1) if layer.g is None else inverse @ (scale * layer.g)
            return layer._replace(g=g, output=None)

        @cache
        def outputs() -> list[Layer]:
            return [layer for layer in layers() if layer.offset in self._outputs] if self._outputs else []

        def others(eta: Tensor) -> Tensor:
            return self._by_parts(eta, lambda _, block: torch.zeros_like(block), lambda scale: scale)

        def jv(zeta: Tensor) -> Tensor:
            return sum((layer.push(zeta) for layer in outputs()), _times(inverse, own.jv(others(zeta))))

        def jtu(u: Tensor) -> Tensor:
            total = others(own.jtu(_times(inverse.mT, u)))
            for layer in outputs():
                total[layer.offset : layer.offset + math.prod(layer.shape)] += layer.pull(u).flatten()
            return total

        return Linearisation(jv, jtu, lambda: [rescaled(layer) for layer in layers()], None, own.repeats)

    def _pulled(self, gradient: Tensor) -> Tensor:
        """Pᵀ of a gradient in η, (…,p)."""
        return self._by_parts(gradient, lambda root, block: root.mT @ block, lambda scale: scale)

    def _rows(self, rows: Tensor, root: Tensor) -> Tensor:
        return self._pulled(inside(root, rows))

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """R⁻¹JP at (θ, z)."""
        return self._rescaled(self.map.linearise(theta, z), self._at(theta, z))

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """The same as rows, (n,d,p)."""
        return self._rows(self.map.tangent_rows(theta, z), self._at(theta, z))

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """∂_θ(∂_zR⁻¹T·ξ) P for one R; that of T itself where R differs between samples."""
        own = self.map.linearise_slope(theta, z, xi)
        return self._rescaled(own, self._root.to(z)) if isinstance(self._root, Tensor) else own

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """The same as rows, (n,d,p)."""
        rows = self.map.slope_rows(theta, z, xi)
        return self._rows(rows, self._root.to(z)) if isinstance(self._root, Tensor) else rows


def inside(root: Tensor, columns: Tensor) -> Tensor:
    """R⁻¹ times columns (…,d,c) for lower R (d,d) or (n,d,d)."""
    return torch.linalg.solve_triangular(root, columns, upper=False)


def _times(matrices: Tensor, u: Tensor) -> Tensor:
    """Matrices (d,d) or (n,d,d) times u (n,d)."""
    return (matrices @ u.unsqueeze(2)).squeeze(2)
