"""Schemes: ways to move a measure in time. A new one is a file here that follows `Scheme`, listed in `replay`."""

from __future__ import annotations

from typing import Any

from .. import measures
from ..checks import DTYPES
from ..errors import ConfigError, SchemaError
from ..maps.base import PushForward
from ..maps.convex import ConvexGradient
from ..measures import Reference
from .base import MapReplay, Replay, Row, Scheme
from .jko import JKOICNN, JKOReplay
from .jko.replay import stored_map
from .particles import EulerMaruyama, ParticleReplay
from .pwgf import PWGF
from .swjko import SWJKO

__all__ = [
    "JKOICNN",
    "PWGF",
    "SWJKO",
    "EulerMaruyama",
    "JKOReplay",
    "MapReplay",
    "ParticleReplay",
    "Replay",
    "Row",
    "Scheme",
    "replay",
]


def replay(config: dict[str, Any], *, map: PushForward | None = None, reference: Reference | None = None) -> Replay:
    """What reads the rows of a stored run back as measures, from the scheme's `to_config()`.

    Args:
        config: as stored.
        map, reference: stand in for a user's own, which cannot be rebuilt from the file.

    Raises:
        ConfigError: a user's own map or reference is needed and was not given.
        SchemaError: the scheme is not known to this version.
    """
    reference = reference if reference is not None else measures.from_config(config["reference"])
    dtype = DTYPES[config["dtype"]]
    if config["name"] == "PWGF" or (config["name"] == "SWJKO" and "map" in config):
        return MapReplay(map if map is not None else stored_map(config["map"]), reference, dtype)
    if config["name"] == "JKOICNN":
        family = map if map is not None else stored_map(config["map"])
        if not isinstance(family, ConvexGradient):
            raise ConfigError(
                f"this run needs its own family of convex gradients, {config['map']['name']}, to be read; got "
                f"{type(family).__name__}. Hand over the map that the run was solved with."
            )
        return JKOReplay(family, reference, dtype)
    if config["name"] in ("EulerMaruyama", "SWJKO"):
        return ParticleReplay(reference, dtype)
    raise SchemaError(
        f"the file was written by scheme {config['name']!r}, which this version of pwgf does not know; update pwgf."
    )
