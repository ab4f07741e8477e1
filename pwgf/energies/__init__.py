"""Energies F(ρ) that drive a flow. A new one is a subclass of `Energy` in a file here, named in this list."""

from .base import Combination, Energy, Term
from .functional import Functional
from .interaction import Interaction, RadialPolynomial
from .local import Entropy, InternalEnergy, Local, PorousMedium
from .potential import KL, Potential

__all__ = [
    "Combination",
    "Energy",
    "Entropy",
    "Functional",
    "Interaction",
    "InternalEnergy",
    "KL",
    "Local",
    "PorousMedium",
    "Potential",
    "RadialPolynomial",
    "Term",
]
