"""Maps that displace z by what another map does to bounded features of it, as in a box and on a torus."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Block, Layer, Linearisation, PushForward

Weights = list[Tensor]
"""(n,d) each: the rate of T_i is Σ_m w_m,i·ḣ_{md+i}, of the displacement h (n, md)."""


class Displaced(PushForward):
    """T_θ(z) = G(z, h) with the displacement h = M_θ(f) − f of the features f = f(z), for a map M; G(z, 0) = z.

    Where M is the identity, so is T. A subclass gives f, G, their derivatives, and `own_coordinates`: features have the
    same size for all laws.

    Args:
        map: M, of m·d coordinates, m features for each coordinate of z.
    """

    map: PushForward
    own_coordinates = True

    @abstractmethod
    def features(self, z: Tensor) -> Tensor:
        """f(z), (n, md)."""

    @abstractmethod
    def features_along(self, z: Tensor, xi: Tensor) -> Tensor:
        """The derivative of f along ξ (n,d), (n, md)."""

    @abstractmethod
    def displaced(self, z: Tensor, h: Tensor) -> Tensor:
        """G(z, h), (n,d)."""

    @abstractmethod
    def weights(self, z: Tensor, h: Tensor) -> Weights:
        """∂G/∂h."""

    @abstractmethod
    def weights_along(self, z: Tensor, h: Tensor, jacobian: Tensor, xi: Tensor) -> Weights:
        """The derivatives of the weights along ξ, of T with this ∂_zT (n,d,d)."""

    def check_of_map(self, dim: int, call: str) -> None:
        """ConfigError unless `map` is one, of this dimension."""
        if not isinstance(self.map, PushForward):
            raise ConfigError(f"{call}: map must be one from pwgf.maps; got {type(self.map).__name__}.")
        if self.map.dim != dim:
            raise ConfigError(f"{call}: map must have dim = {dim}; got {self.map.dim}. Make one of that dimension.")

    def displacement(self, theta: Tensor, z: Tensor) -> Tensor:
        """h at z, (n, md)."""
        f = self.features(z)
        return self.map(theta, f) - f

    @property
    def numbers_per_sample(self) -> int:
        """That of M, and Jacobians."""
        return self.map.numbers_per_sample + 4 * self.dim**2

    def layout(self) -> list[Block]:
        """That of M."""
        return self.map.layout()

    def initial(self, *arguments: Any, **named: Any) -> Tensor:
        """That of M."""
        return self.map.initial(*arguments, **named)

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """G(z, h)."""
        return self.displaced(z, self.displacement(theta, z))

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """That of M at the features, times ∂G/∂h."""
        theta, z = theta.detach(), z.detach()
        weights = [w.detach() for w in self.weights(z, self.displacement(theta, z).detach())]
        return _times(weights, self.map.linearise(theta, self.features(z)))

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """Those of M at the features, times ∂G/∂h."""
        theta, z = theta.detach(), z.detach()
        weights = self.weights(z, self.displacement(theta, z))
        return _times_rows(weights, self.map.tangent_rows(theta, self.features(z)))

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """∂_ξ(∂G/∂h·J_M) = (∂_ξ∂G/∂h)·J_M + ∂G/∂h·∂_ξJ_M, with J_M and its slopes at the features."""
        theta, z = theta.detach(), z.detach()
        rates, weights = self._weights_and_rates(theta, z, xi)
        f = self.features(z)
        own = _times(rates, self.map.linearise(theta, f))
        slope = _times(weights, self.map.linearise_slope(theta, f, self.features_along(z, xi)))
        layers = None
        if own.layers is not None and slope.layers is not None:
            of_own, of_slope = own.layers, slope.layers

            def layers() -> list[Layer]:
                return of_own() + of_slope()

        return Linearisation(
            lambda eta: own.jv(eta) + slope.jv(eta), lambda u: own.jtu(u) + slope.jtu(u), layers, repeats=True
        )

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """The same from the rows of M."""
        theta, z = theta.detach(), z.detach()
        rates, weights = self._weights_and_rates(theta, z, xi)
        f, along = self.features(z), self.features_along(z, xi)
        return _times_rows(rates, self.map.tangent_rows(theta, f)) + _times_rows(
            weights, self.map.slope_rows(theta, f, along)
        )

    def _weights_and_rates(self, theta: Tensor, z: Tensor, xi: Tensor) -> tuple[Weights, Weights]:
        h = self.displacement(theta, z).detach()
        rates = self.weights_along(z, h, self.jacobian(theta, z).detach(), xi)
        return rates, self.weights(z, h)


def _times(weights: Weights, own: Linearisation) -> Linearisation:
    """The linearisation of Σ_m w_m∘h_m from that of h."""

    def jv(eta: Tensor) -> Tensor:
        parts = own.jv(eta).chunk(len(weights), 1)
        return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)

    def jtu(u: Tensor) -> Tensor:
        return own.jtu(torch.cat([w * u for w in weights], 1))

    layers = own.layers
    return Linearisation(
        jv,
        jtu,
        None if layers is None else lambda: [new for layer in layers() for new in _times_layer(weights, layer)],
        repeats=own.repeats,
    )


def _times_rows(weights: Weights, rows: Tensor) -> Tensor:
    parts = rows.chunk(len(weights), 1)
    return torch.stack([w.unsqueeze(2) * part for w, part in zip(weights, parts, strict=True)]).sum(0)


def _times_layer(weights: Weights, layer: Layer) -> list[Layer]:
    """The layer of h as layers of x; rows of a matrix that move one coordinate each remain such rows."""
    n, d = weights[0].shape
    if layer.output is not None:
        return [_single(weights, layer, layer.output, layer.offset)]
    if layer.g is None and not layer.transposed:
        width = layer.shape[1]
        return [_single(weights, layer, k, layer.offset + k * width) for k in range(layer.shape[0])]
    parts = layer.outputs(len(weights) * d).chunk(len(weights), 1)
    g = torch.stack([w.unsqueeze(2) * part for w, part in zip(weights, parts, strict=True)]).sum(0)
    return [layer._replace(g=g)]


def _single(weights: Weights, layer: Layer, k: int, offset: int) -> Layer:
    """A row that moves h_k alone, as one that moves x_{k mod d} alone."""
    n, d = weights[0].shape
    unit = torch.eye(d, dtype=layer.a.dtype, device=layer.a.device)[k % d]
    a = layer.a * weights[k // d][:, k % d, None]
    return Layer(offset, (1, layer.shape[1]), a, unit.view(1, d, 1).expand(n, d, 1), output=k % d)


def refuse_beyond(
    beyond: Tensor, z: Tensor, lower: Tensor, upper: Tensor, call: str, where: str, consequence: str
) -> None:
    """ConfigError that names a sample z (n,d) for which a coordinate is `beyond` (n,d)."""
    rows = beyond.any(1)
    if not bool(rows.any()):
        return
    row = int(rows.double().argmax())
    k = int(beyond[row].double().argmax())
    raise ConfigError(
        f"{call} needs a reference whose samples lie in {where}; {int(rows.sum())} of {len(z)} do not, first z = "
        f"{[round(v, 6) for v in z[row, :4].tolist()]}, whose coordinate {k} is outside [{float(lower[k]):g}, "
        f"{float(upper[k]):g}]. Mass would {consequence}. Take a reference inside, such as pwgf.UniformBox(lower, "
        "upper), or a larger one of these."
    )
