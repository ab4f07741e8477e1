"""Problems with known answers: each has a reference, an energy, times, and the exact law at every time.

Where there is no formula for that law (`LangevinProblem`), it comes from many particles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, nearest
from ..measures import Law
from .aggregation import Aggregation
from .barenblatt import BarenblattFlow, ConfinedPorousMedium
from .base import Problem
from .double_banana import DoubleBanana
from .funnel import Funnel
from .gaussian_mixture import GaussianMixture
from .harmonic import HarmonicHamiltonian
from .heat_in_box import HeatInBox
from .isothermal_gas import IsothermalGas
from .kuramoto import Kuramoto
from .langevin import LangevinProblem, SampleLaw
from .linear_drift import KineticTrap, LinearDrift
from .moving_trap import MovingTrap
from .newtonian import NewtonianAggregation
from .ornstein_uhlenbeck import OrnsteinUhlenbeck
from .rosenbrock import Rosenbrock
from .styblinski_tang import ProductLaw, StyblinskiTang

__all__ = [
    "Aggregation",
    "BarenblattFlow",
    "ConfinedPorousMedium",
    "DoubleBanana",
    "Funnel",
    "GaussianMixture",
    "HarmonicHamiltonian",
    "HeatInBox",
    "IsothermalGas",
    "KineticTrap",
    "Kuramoto",
    "LangevinProblem",
    "Law",
    "LinearDrift",
    "MovingTrap",
    "NewtonianAggregation",
    "OrnsteinUhlenbeck",
    "Problem",
    "ProductLaw",
    "Rosenbrock",
    "SampleLaw",
    "StyblinskiTang",
    "find",
    "from_config",
    "kind",
    "names",
    "short_names",
]

_DRIVEN = (MovingTrap, LinearDrift, KineticTrap)
_EXACT = (
    OrnsteinUhlenbeck,
    StyblinskiTang,
    BarenblattFlow,
    Aggregation,
    NewtonianAggregation,
    ConfinedPorousMedium,
    HeatInBox,
    Kuramoto,
    HarmonicHamiltonian,
    IsothermalGas,
)
_BY_PARTICLES = (GaussianMixture, Rosenbrock, Funnel, DoubleBanana)
_TABLE: dict[str, type[Problem]] = {cls.__name__: cls for cls in (*_EXACT, *_BY_PARTICLES, *_DRIVEN)}


def names() -> list[str]:
    """Names of all problems.

    Example:
        >>> names()[:4]
        ['OrnsteinUhlenbeck', 'StyblinskiTang', 'BarenblattFlow', 'Aggregation']
    """
    return list(_TABLE)


def short_names() -> dict[str, str]:
    """What the command line calls each problem of `names()`.

    Example:
        >>> list(short_names())[:4]
        ['ornstein-uhlenbeck', 'styblinski-tang', 'barenblatt', 'aggregation']
    """
    return {re.sub(r"(?<!^)(?=[A-Z])", "-", name.removesuffix("Flow")).lower(): name for name in names()}


def find(name: str, call: str, **arguments: Any) -> Problem:
    """The problem of that short or full name.

    Args:
        name: such as "ornstein-uhlenbeck" or "OrnsteinUhlenbeck".
        call: for the message.
        arguments: of its constructor.

    Raises:
        ConfigError: no such problem, or arguments out of range.
    """
    return from_config({"name": kind(name, call).__name__, **arguments})


def kind(name: str, call: str) -> type[Problem]:
    """The class of the problem of that short or full name; `call` is for the message.

    Raises:
        ConfigError: no such problem.
    """
    short = short_names()
    known = {**short, **{full.lower(): full for full in names()}}
    if name.lower() not in known:
        raise ConfigError(
            f"{call} needs one of the problems {', '.join(short)}; got {name!r}.{nearest(name.lower(), short)}"
        )
    return _TABLE[known[name.lower()]]


def from_config(config: Mapping[str, Any]) -> Problem:
    """Builds a problem from its name and arguments, such as the result of `to_config()`.

    Args:
        config: {"name": one of `names()`, further entries: arguments of its constructor}.

    Raises:
        ConfigError: the name is missing or unknown, or an entry is not an argument.

    Example:
        >>> from_config({"name": "StyblinskiTang", "dim": 2, "c": 0.5}).to_config()
        {'name': 'StyblinskiTang', 'dim': 2, 'c': 0.5, 'end_time': 0.24}
    """
    name = str(config.get("name", ""))
    if name not in _TABLE:
        raise ConfigError(
            f"problems.from_config needs one of the names {', '.join(_TABLE)}; got {name!r}." + nearest(name, _TABLE)
        )
    return _TABLE[name].from_config(config)
