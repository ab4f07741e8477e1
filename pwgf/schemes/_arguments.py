"""Checks of what all schemes are made of: an energy, a reference and mostly a map; and a step for their times."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..checks import check_each_sample, private
from ..energies import Energy
from ..energies.base import USER_ERRORS
from ..errors import ConfigError, PWGFError
from ..maps import OnTorus, Standardised
from ..maps.base import PushForward
from ..measures import Cloud, PushedMeasure, Reference, Sampled

_FOR_COORDINATES = 1000  # samples behind the coordinates that the map sees
_FEW = 16  # samples at which a map's second derivative is looked at, and a density looked for its edge
_SMALL = 4.0  # log(typical density / density at the edge) above which an edge is ignored


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


def check_lengths(length: float | None, name: str, times: np.ndarray, call: str) -> None:
    """ConfigError where steps of a fixed length (None: there is none) are lost beside the span of the times."""
    span = float(times[-1] - times[0])
    if length is not None and length < 2 * math.ulp(span) and len(times) > 1:
        raise ConfigError(
            f"{call}({name}=…): steps of {length:.3g} are lost in rounding beside the {span:.3g} from times[0] to "
            f"times[-1]; the run would never end. Give a longer {name}."
        )


def refuse_driven(energy: Energy, call: str) -> None:
    """ConfigError for a scheme that minimises F, where a term depends on time or has no value."""
    for name, _, part in energy.terms():
        if part.time or not part.has_value:
            why = "depends on time" if part.time else "is a velocity without a value"
            raise ConfigError(
                f"{call}(energy=…) minimises F step by step, and its term '{name}' {why}: the flow is driven, and "
                "such steps would not follow it. Use PWGF, or EulerMaruyama."
            )


def in_standard_coordinates(map: PushForward, reference: Reference) -> PushForward:
    """The map, which sees standard coordinates where those of λ are far from them; see `Standardised.about`."""
    z = reference.matched_sample(_FOR_COORDINATES, torch.Generator().manual_seed(0))
    told = isinstance(z, Tensor) and z.shape == (_FOR_COORDINATES, map.dim)  # else `start` reports it
    return Standardised.about(map, z) if told else map


def refuse_jump(reference: Reference, call: str, map: PushForward | None = None) -> None:
    """ConfigError for the reference of an energy that asks for a density, where that jumps at an edge.

    Not so at the walls of a box that the map keeps the mass in.

    Samples see the inside alone: the score there says nothing of what a diffusion does at the jump.
    """
    closed = map is not None and reference.box is not None and map.closes(*reference.box)
    if not closed and (reference.edge == "jump" or (reference.edge == "none" and _jumps(reference, map))):
        name = type(reference).__name__
        walls = ""
        if reference.box is not None:
            walls = "Walls that reflect are maps.InBox(map, lower, upper) with those of the reference. "
        raise ConfigError(
            f"{call}(energy, reference={name}): the energy needs the density of ρ, which jumps at the edge of this "
            f"reference; a diffusion acts there first, and samples inside do not see it. {walls}Start from a smooth "
            "law: Gaussian(dim, mean, cov) of the same moments, or a map fitted to samples (pwgf.fitting.fit) as "
            "theta0; Potential and Interaction need no density."
        )


def _jumps(reference: Reference, map: PushForward | None) -> bool:
    """Whether a user's own density ends where it is not small, on rays through samples; not for a map with walls."""
    try:
        z = reference.sample(_FEW, torch.Generator().manual_seed(0))
        centre = z.mean(0)
        near, far = z, centre + 1e6 * (z - centre)
        if map is not None:
            map.check_domain(far, "PWGF")
        with torch.no_grad():
            typical = float(reference.log_density(private(z)).median())
            ends = reference.log_density(private(far)) == -torch.inf
            for _ in range(60):
                middle = (near + far) / 2
                inside = (reference.log_density(private(middle)) > -torch.inf)[:, None]
                near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
            last, before = (reference.log_density(private(centre + c * (near - centre))) for c in (1.0, 1 - 1e-6))
    except (PWGFError, *USER_ERRORS):  # no value out there
        return False
    return bool((ends & (last > typical - _SMALL) & (before - last < 1)).any())  # a density that vanishes falls on


def refuse_kinks(map: PushForward, theta: Tensor, z: Tensor, call: str) -> None:
    """ConfigError for the map of an energy that asks for a density, where it is piecewise linear in z.

    Then ∂_zT differs between samples z (n,d) though its derivative is zero at all, near θ (at θ₀ it may be constant).
    """
    noise = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(theta)
    with torch.enable_grad():
        leaf = z[:_FEW].detach().requires_grad_(True)
        jacobian = map.jacobian(theta + 0.01 * (1 + theta.abs()) * noise, leaf)
        weights = torch.arange(1.0, 1 + jacobian.numel()).to(jacobian).view_as(jacobian)
        bend = None
        if jacobian.requires_grad:
            bend = torch.autograd.grad((weights * jacobian).sum(), leaf, allow_unused=True)[0]
    varies = float((jacobian - jacobian[:1]).detach().abs().max()) > 1e-6 * float(jacobian.detach().abs().max())
    if varies and (bend is None or not bool(bend.any())):
        raise ConfigError(
            f"{call}(energy, map): this energy needs the density of ρ, and the map, {type(map).__name__}, is piecewise "
            "linear in z, as with nn.ReLU: its second derivative is 0 at all samples, and log|det ∂_zT| jumps where "
            "none lies, so the score would be wrong. Use a smooth activation, such as nn.Tanh, nn.SiLU or "
            "nn.Softplus; or an energy without a density, such as Potential and Interaction."
        )


def try_functions(energy: Energy, rho: Sampled) -> None:
    """Tries the user's functions at ρ's samples: those of the energy, λ's density and the map.

    Raises:
        ConfigError: one is random, keeps a state, or mixes samples, or has not the periods of the map.
        ShapeError: one returns another shape.
    """
    if isinstance(rho, PushedMeasure):
        theta, z = rho.theta.detach(), rho.z.detach()
        check_each_sample(lambda z: rho.reference.log_density(private(z)), [z], "reference.log_density(z)")
        check_each_sample(lambda z: rho.map(theta, private(z)), [z], f"map: {type(rho.map).__name__}(theta, z)")
    energy.try_functions(rho)
    if isinstance(rho, PushedMeasure) and isinstance(rho.map, OnTorus):
        _check_periods(energy, rho.x.detach(), rho.map.wound(rho.x.detach()), rho.t)


def _check_periods(energy: Energy, x: Tensor, wound: Tensor, t: float | None) -> None:
    """ConfigError where a term's velocity differs between x and the same points of the torus, (n,d) each."""
    for name, _, part in energy.terms():
        try:
            once, again = (part.velocity(Cloud(at, t)) for at in (x, wound))
        except ConfigError:  # it reads the density, which has the periods
            continue
        apart, size = float((once - again).abs().max()), float(once.abs().max())
        if apart > 1e3 * torch.finfo(x.dtype).eps ** 0.75 * (1 + size):
            raise ConfigError(
                f"the energy term '{name}' has not the periods of maps.OnTorus: its velocity at x and at x + period "
                f"differs by up to {apart:.2g}, though they are one point of the torus. Write it as a function of "
                "cosines and sines, or of x wrapped into the cell: lower + (x - lower) % period."
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


def even_step(times: np.ndarray, share: float = 0.05) -> float:
    """The longest step that divides the smallest gap of `times` and is at most a share of their span.

    Example:
        >>> even_step(np.array([0.0, 0.1, 0.5, 1.0]))
        0.05
    """
    gap, longest = float(np.diff(times).min()), share * float(times[-1] - times[0])
    return gap / math.ceil(gap / longest * (1 - 1e-9))
