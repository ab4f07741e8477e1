"""Schemes: ways to move a measure in time. A new one is a file here that follows `Scheme`, listed in `SCHEMES`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import measures
from ..checks import DTYPES
from ..errors import ConfigError, nearest
from ..maps.base import PushForward
from ..maps.convex import ConvexGradient
from ..measures import Reference
from .base import Answers, Description, MapReplay, Replay, Row, Scheme, Watch, ask
from .fitted import FittedParticles, FittedReplay
from .jko import JKOICNN, JKOReplay
from .jko.replay import stored_map
from .particles import EulerMaruyama, ParticleReplay
from .pwgf import PWGF
from .pwhf import PWHF
from .swjko import SWJKO

__all__ = [
    "JKOICNN",
    "PWGF",
    "PWHF",
    "SCHEMES",
    "SWJKO",
    "Answers",
    "Description",
    "EulerMaruyama",
    "FittedParticles",
    "FittedReplay",
    "JKOReplay",
    "MapReplay",
    "ParticleReplay",
    "Replay",
    "Row",
    "Scheme",
    "Watch",
    "ask",
    "description",
    "find",
    "names_for",
    "replay",
    "suited",
]

SCHEMES: dict[str, Any] = {
    "pwgf": PWGF, "jko-icnn": JKOICNN, "sw-jko": SWJKO, "particles": EulerMaruyama, "fitted-particles": FittedParticles,
    "pwhf": PWHF,
}  # fmt: skip
"""Classes by the names that the command line and comparisons give them.

Each has a class method `suited(energy, reference, times, **settings)`: one that is ready for rows at these times, at
default settings but for those given; `dt`, where it is none of the constructor's, is the length of a step.
"""

_OF_PARTICLES: dict[str, type[ParticleReplay]] = {kind.ROWS: kind for kind in (ParticleReplay, FittedReplay)}
READ_AS = ("map", "chain", *_OF_PARTICLES)
"""What rows of θ are that can be read as measures without their scheme."""


def names_for(flow: str) -> list[str]:
    """Names of the classes that follow this flow of an energy, "gradient" or "Hamiltonian".

    Example:
        >>> names_for("Hamiltonian")
        ['pwhf']
    """
    return [name for name, kind in SCHEMES.items() if kind.flow == flow]


def find(name: str, call: str) -> Any:
    """The class of that name; ConfigError where there is none."""
    if name not in SCHEMES:
        raise ConfigError(f"{call} needs a scheme out of {', '.join(SCHEMES)}; got {name!r}.{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def suited(kind: Any, problem: Any, times: np.ndarray, call: str, **settings: Any) -> Scheme:
    """The scheme of this class for a problem: by the map that the problem needs, where there is one.

    Args:
        kind: out of `SCHEMES`.
        problem: with `energy`, `reference` and `needed_map`.
        times: of the rows.
        call: for the message.
        settings: of `suited`.

    Raises:
        ConfigError: the problem needs a map, and the scheme has none, or another is given.
    """
    needed = problem.needed_map
    if needed is not None:
        if "map" in settings or "map" not in inspect.signature(kind).parameters:
            raise ConfigError(
                f"{call}: {problem.name} takes place in a box or on a circle, which only its own map, "
                f"{type(needed).__name__}, knows: other maps and particles would carry mass through the walls. Solve "
                "it by a scheme of maps, such as pwgf, and give no map."
            )
        settings["map"] = needed
    scheme: Scheme = kind.suited(problem.energy, problem.reference, times, **settings)
    return scheme


def description(config: Mapping[str, Any]) -> Description:
    """What the scheme of a run says of itself, from the run's config; version 0.1 stored the scheme's settings only."""
    if "description" in config:
        return Description.from_config(config["description"])
    scheme = config["scheme"]
    known = {kind.__name__: kind for kind in SCHEMES.values()}
    kind = known.get(scheme["name"])
    return kind.described(scheme) if kind is not None else Description(scheme["name"])


def replay(config: Mapping[str, Any], *, map: PushForward | None = None, reference: Reference | None = None) -> Replay:
    """What reads the rows of a stored run back as measures.

    Args:
        config: of the run.
        map, reference: stand in for a user's own, which cannot be rebuilt from the file.

    Raises:
        ConfigError: a user's own map or reference is needed and was not given, or only the scheme itself reads its
            rows.
    """
    scheme, told = config["scheme"], description(config)
    if told.rows not in READ_AS:
        raise ConfigError(
            f"the rows of scheme {told.name!r} can only be read as measures by the scheme itself, in the process that "
            "solved; from the file come its columns, such as run['theta']. Let it inherit the reading from "
            "pwgf.schemes.MapReplay, ParticleReplay, FittedReplay or JKOReplay."
        )
    reference = reference if reference is not None else measures.from_config(scheme["reference"])
    dtype = DTYPES[scheme["dtype"]]
    if told.rows in _OF_PARTICLES:
        return _OF_PARTICLES[told.rows](reference, dtype)
    family = map if map is not None else stored_map(scheme["map"])
    if told.rows == "map":
        return MapReplay(family, reference, dtype)
    if not isinstance(family, ConvexGradient):
        raise ConfigError(
            f"this run needs its own family of convex gradients, {scheme['map']['name']}, to be read; got "
            f"{type(family).__name__}. Hand over the map that the run was solved with."
        )
    return JKOReplay(family, reference, dtype)
