"""Whether an energy has a flow forward in time."""

from __future__ import annotations

from ..errors import ConfigError
from .base import Energy
from .diffusion import Diffusion
from .fisher import FisherInformation
from .local import Entropy, InternalEnergy, Local, PorousMedium
from .potential import KL

_ROUNDING = 1e-12  # relative size of the remainder of coefficients that cancel


def refuse_ill_posed(energy: Energy) -> None:
    """Refuses a sum in which a diffusion enters with the wrong sign.

    The coefficients of `Entropy` and `KL` are added, as are those of `PorousMedium` with the same exponent. A negative
    multiple of a `PorousMedium` is accepted where another diffusion has a positive coefficient: then the sign depends
    on the density.

    Raises:
        ConfigError: the sum of a kind is negative.
    """
    heat, porous = list[float](), dict[float, list[float]]()
    balanced, fisher = False, 0.0
    for term in energy.terms():
        if isinstance(term.energy, (Entropy, KL)):
            heat.append(term.coefficient)
        elif isinstance(term.energy, Diffusion):
            _check_diffusion(term.coefficient)
            balanced = True
        elif isinstance(term.energy, FisherInformation):
            fisher += term.coefficient
        elif isinstance(term.energy, PorousMedium):
            porous.setdefault(term.energy.m, []).append(term.coefficient)
        elif isinstance(term.energy, (InternalEnergy, Local)):
            balanced = True
    if _negative(heat):
        raise ConfigError(
            f"entropy enters with coefficient {sum(heat):g} < 0, which is the backward heat equation and has no "
            "solution for t > 0; write temperature * Entropy() with temperature >= 0."
        )
    if fisher < 0:
        raise ConfigError(
            f"FisherInformation enters with coefficient {fisher:g} < 0, which is a backward diffusion of fourth order "
            "and has no solution for t > 0; write it with a coefficient >= 0."
        )
    balanced = balanced or sum(heat) > 0 or any(sum(found) > 0 for found in porous.values())
    for m, found in porous.items():
        if _negative(found) and not balanced:
            raise ConfigError(
                f"PorousMedium({m:g}) enters with coefficient {sum(found):g} < 0, which is a backward diffusion and "
                "has no solution for t > 0; write strength * PorousMedium(m) with strength >= 0."
            )


def _negative(coefficients: list[float]) -> bool:
    return sum(coefficients) < -_ROUNDING * sum(map(abs, coefficients))


def _check_diffusion(coefficient: float) -> None:
    if coefficient < 0:
        raise ConfigError(
            f"a Diffusion enters with coefficient {coefficient:g} < 0, which is a diffusion backwards in time and has "
            "no solution; write Diffusion(D) with D ≥ 0."
        )
