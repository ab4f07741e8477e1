"""Coordinates in which a density is sampled, and the density in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_float64
from ..energies.base import check_slope, evaluate, on_copies
from ..errors import ConfigError, ShapeError
from .chains import LogDensity
from .laplace import laplace

Coordinates = Callable[[Tensor], tuple[Tensor, Tensor]]  # y (n,d) → x(y) (n,d) and log|det ∂x/∂y| (n,)
_CALL = "sample(log_density=…): log p(x)"
Whiten = str | tuple[Tensor | np.ndarray, Tensor | np.ndarray] | Coordinates | None


class Linear:
    """x = centre + scale·y.

    Args:
        centre: (d,).
        scale: (d,d), invertible.
    """

    def __init__(self, centre: Tensor, scale: Tensor) -> None:
        self.centre = centre.double().cpu()
        self.scale = scale.double().cpu()
        self._constants = Constants(self.centre, self.scale, torch.linalg.slogdet(self.scale)[1])

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        centre, scale, log_volume = self._constants.like(y)
        return centre + y @ scale.T, log_volume.expand(len(y))


def coordinates(log_density: LogDensity, dim: int, whiten: Whiten, device: str) -> Coordinates:
    """The coordinates that `sample(whiten=…)` selects; log p is evaluated on the device."""
    if whiten is None:
        return Linear(torch.zeros(dim), torch.eye(dim))
    if isinstance(whiten, str):
        return Linear(*laplace(log_density, dim, torch.zeros(dim, dtype=torch.float64, device=device)))
    return Linear(*_pair(whiten)) if isinstance(whiten, tuple) else whiten


class Target:
    """log p in the coordinates y: log p(x(y)) + log|det ∂x/∂y|, (n,d) → (n,)."""

    def __init__(self, log_density: LogDensity, coordinates: Coordinates) -> None:
        self.log_density = log_density
        self.coordinates = coordinates

    def __call__(self, y: Tensor) -> Tensor:
        x, log_volume = self.coordinates(y)
        value = self._log_density(x)
        return value + log_volume if isinstance(value, Tensor) else value

    def _log_density(self, x: Tensor) -> Any:
        """log p(x); without a graph where x has none, also when the function differentiates within itself."""
        value = on_copies(self.log_density, (x,))
        return value if not isinstance(value, Tensor) or x.requires_grad else value.detach()

    def check_start(self, y: Tensor) -> None:
        """Refuses coordinates or a log p that are not finite where the flow begins, or of the wrong shape or dtype."""
        with torch.no_grad():
            x = self._checked(y)
            value = evaluate(self.log_density, _CALL, y.shape[:1], x, x)
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            k = int(bad.int().argmax())
            raise ConfigError(
                f"sample(log_density=…): log p is {float(value[k]):g} at {int(bad.sum())} of {len(y)} samples of the "
                f"reference, first at x = {[round(v, 3) for v in x[k].tolist()]:}. The flow needs p > 0 wherever it "
                "goes. Cure: change variables so that the support is the whole space (x = exp(u) for "
                "x > 0, with + u in log p), or give a reference inside the support."
            )
        check_slope(lambda y: evaluate(self, _CALL, y.shape[:1], y, y), y[:64], _CALL)

    def _checked(self, y: Tensor) -> Tensor:
        """x(y), after a check of what the coordinates return."""
        found = self.coordinates(y)
        pair = isinstance(found, tuple) and len(found) == 2
        shapes = (
            [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in found] if pair else []
        )
        if shapes != [tuple(y.shape), (len(y),)]:
            raise ShapeError(
                f"sample(whiten=f): f(y) must return x and log|det ∂x/∂y| of shapes {tuple(y.shape)} and ({len(y)},) "
                f"for y of shape {tuple(y.shape)}; got {shapes or type(found).__name__}."
            )
        x, log_volume = found
        if not bool(torch.isfinite(x).all() and torch.isfinite(log_volume).all()):
            raise ConfigError(
                "sample(whiten=f): f(y) is NaN or infinite at samples of the reference. f must map the whole space."
            )
        return x


def check_whiten(whiten: object, dim: object) -> None:
    """Refuses what `coordinates` cannot use."""
    if isinstance(whiten, tuple):
        pair = _pair(whiten)
        shapes = [tuple(part.shape) for part in pair]
        if shapes != [(dim,), (dim, dim)]:
            raise ShapeError(f"sample(whiten=(m, L)) needs shapes ({dim},) and ({dim}, {dim}); got {shapes}.")
        if not bool(torch.isfinite(torch.linalg.slogdet(pair[1])[1]) and torch.isfinite(pair[0]).all()):
            raise ConfigError("sample(whiten=(m, L)): L is singular or m or L not finite. Give an invertible matrix.")
    elif not (whiten in (None, "auto", "laplace") or callable(whiten)):
        raise ConfigError(
            f"sample(whiten=…) must be 'auto', 'laplace', None, (m, L) or a function y → x, log|det|; got {whiten!r}."
        )


def _pair(whiten: tuple[Any, ...]) -> list[Tensor]:
    """m and L in float64; ConfigError where they are not made of numbers."""
    return [as_float64(part, "sample(whiten=(m, L)) needs a vector and a matrix") for part in whiten]
