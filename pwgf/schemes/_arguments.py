"""Checks of what all schemes are made of: an energy, a reference and mostly a map."""

from __future__ import annotations

import torch

from ..energies import Energy
from ..errors import ConfigError
from ..maps.base import PushForward
from ..measures import Reference


def check_law(energy: Energy, reference: Reference, call: str) -> None:
    """ConfigError unless both are of the right kind."""
    if not isinstance(energy, Energy):
        hint = " Wrap a potential: energies.Potential(V)." if callable(energy) else ""
        raise ConfigError(f"{call}(energy=…) must be an energy from pwgf.energies; got {type(energy).__name__}.{hint}")
    if not isinstance(reference, Reference):
        raise ConfigError(
            f"{call}(reference=…) must be a measures.Reference, such as pwgf.Gaussian(dim); got "
            f"{type(reference).__name__}. A class of your own derives from it and gives dim, sample and log_density."
        )


def check_map(map: PushForward, reference: Reference, call: str) -> None:
    """ConfigError unless map is one, of the reference's dimension."""
    if not isinstance(map, PushForward):
        hint = " Wrap a module: maps.FromModule(module, dim)." if isinstance(map, torch.nn.Module) else ""
        raise ConfigError(f"{call}(map=…) must be a map from pwgf.maps; got {type(map).__name__}.{hint}")
    if map.dim != reference.dim:
        raise ConfigError(
            f"{call}: map and reference must have the same dimension; got map.dim = {map.dim} and reference.dim = "
            f"{reference.dim}."
        )
