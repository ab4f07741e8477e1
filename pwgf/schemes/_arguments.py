"""Checks of what all schemes are made of: an energy, a reference and mostly a map."""

from __future__ import annotations

import torch

from ..checks import check_each_sample, private
from ..energies import Energy
from ..errors import ConfigError
from ..maps.base import PushForward
from ..measures import PushedMeasure, Reference, Sampled


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


def refuse_jump(reference: Reference, call: str) -> None:
    """ConfigError for the reference of an energy that asks for a density, where that jumps at an edge.

    Samples see the inside alone: the score there says nothing of what a diffusion does at the jump.
    """
    if reference.edge == "jump":
        name = type(reference).__name__
        raise ConfigError(
            f"{call}(energy, reference={name}): the energy needs the density of ρ, which jumps at the edge of this "
            "reference; a diffusion acts there first, and samples inside do not see it. Start from a smooth law: "
            "Gaussian(dim, mean, cov) of the same moments, or a map fitted to samples (pwgf.fitting.fit) as "
            "theta0; Potential and Interaction need no density."
        )


def try_functions(energy: Energy, rho: Sampled) -> None:
    """Tries the user's functions at ρ's samples: those of the energy, λ's density and the map.

    Raises:
        ConfigError: one is random, keeps a state, or mixes samples.
        ShapeError: one returns another shape.
    """
    if isinstance(rho, PushedMeasure):
        theta, z = rho.theta.detach(), rho.z.detach()
        check_each_sample(lambda z: rho.reference.log_density(private(z)), [z], "reference.log_density(z)")
        check_each_sample(lambda z: rho.map(theta, private(z)), [z], f"map: {type(rho.map).__name__}(theta, z)")
    energy.try_functions(rho)


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
