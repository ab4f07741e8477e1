"""Push-forward maps T_θ. A new family is one file with a subclass of `PushForward`, listed in `_SHELF`."""

from __future__ import annotations

import re
from typing import Any

from ..errors import ConfigError, nearest
from .affine import Affine
from .base import Block, Layer, Linearisation, PushForward
from .composed import Composed
from .convex_max import ConvexMax
from .convex_ridge import ConvexRidge
from .from_flow import FromFlow
from .from_module import FromModule
from .in_box import InBox
from .layers import Layers
from .neural_ode import NeuralODE
from .on_torus import OnTorus
from .residual import ResidualMLP
from .standardised import Standardised

__all__ = [
    "Affine",
    "Block",
    "Composed",
    "ConvexMax",
    "ConvexRidge",
    "FromFlow",
    "FromModule",
    "InBox",
    "Layer",
    "Layers",
    "Linearisation",
    "NeuralODE",
    "OnTorus",
    "PushForward",
    "ResidualMLP",
    "Standardised",
    "find",
    "from_config",
    "short_names",
]

_SHELF: dict[str, type[PushForward]] = {
    cls.__name__: cls
    for cls in (
        Affine,
        Composed,
        ConvexMax,
        ConvexRidge,
        InBox,
        Layers,
        NeuralODE,
        OnTorus,
        ResidualMLP,
        Standardised,
    )
}


def short_names() -> dict[str, str]:
    """What the command line calls each map that can be rebuilt from a file.

    Example:
        >>> short_names()["convex-ridge"], short_names()["residual"]
        ('ConvexRidge', 'ResidualMLP')
    """
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("MLP")).lower(): name for name in _SHELF}


def find(name: str, call: str) -> type[PushForward]:
    """The class of the map of that short or full name; `call` is for the message.

    Raises:
        ConfigError: no such map.
    """
    short = short_names()
    full = short.get(name, name)
    if full not in _SHELF:
        raise ConfigError(f"{call} needs a map out of {', '.join(short)}; got {name!r}.{nearest(name, short)}")
    return _SHELF[full]


_OF_0_1 = ("CouplingFlow", "GradientICNN")


def from_config(config: dict[str, Any]) -> PushForward:
    """Rebuilds a map from `to_config()`.

    Raises:
        ConfigError: the map is not one of this package; pass it instead.
    """
    settings = dict(config)
    name = settings.pop("name", "")
    if name in _OF_0_1:
        raise ConfigError(
            f"the stored map {name!r} was a family of pwgf 0.1, which reads the file: pip install 'pwgf<0.2'. For new "
            "runs maps.ConvexRidge(dim) cannot fold either, and maps.FromFlow(flow, dim) takes a coupling flow of zuko."
        )
    if name not in _SHELF:
        raise ConfigError(
            f"the stored map {name!r} cannot be rebuilt from the file; pass it: pwgf.load(path, map=…)."
            + nearest(name, _SHELF)
        )
    if name == "Composed":
        settings["maps"] = [from_config(part) for part in settings["maps"]]
    if isinstance(settings.get("map"), dict):
        settings["map"] = from_config(settings["map"])
    if name == "ResidualMLP" and "axis_units" not in settings:  # stored before they existed
        dim, width = settings["dim"], settings.get("width")
        settings.update(axis_units=0, width=max(64, 24 * dim) if width is None else width)
    return _SHELF[name](**settings)
