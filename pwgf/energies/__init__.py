"""Energies F(ρ) that drive a flow. A new one is a subclass of `Energy` in a file here, named in this list."""

from ._posed import refuse_ill_posed
from .base import Combination, Energy, Term
from .diffusion import Diffusion
from .drift import Drift
from .fisher import FisherInformation
from .functional import Functional
from .hessian import Hessian
from .interaction import Interaction, RadialPolynomial
from .local import Entropy, InternalEnergy, Local, PorousMedium
from .potential import KL, Potential
from .to_samples import MMD, Sinkhorn, SlicedW2

__all__ = [
    "Combination",
    "Diffusion",
    "Drift",
    "Energy",
    "Entropy",
    "FisherInformation",
    "Functional",
    "Hessian",
    "Interaction",
    "InternalEnergy",
    "KL",
    "Local",
    "MMD",
    "PorousMedium",
    "Potential",
    "RadialPolynomial",
    "Sinkhorn",
    "SlicedW2",
    "Term",
    "refuse_ill_posed",
]
