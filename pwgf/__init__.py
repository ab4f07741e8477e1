"""Wasserstein gradient flows in any dimension, without a grid.

A flow moves a measure. A *reference measure* λ is pushed by a *map* T_θ to ρ_θ. An *energy* F(ρ) pulls: its *velocity*
is v = −∇ δF/δρ at the samples. The *tangent* J = ∂_θT says which velocities the parameters can follow. A *linear solve*
picks θ̇ = argmin E|J θ̇ − v|². An *integrator* takes the step, a *scheme* is all of that together, a *trajectory*
remembers it.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    ConfigError,
    NonFiniteError,
    ParallelError,
    PWGFError,
    ResumeMismatchError,
    SchemaError,
    ShapeError,
    SolverError,
    StorageError,
)

if TYPE_CHECKING:
    from . import distances, energies, filtering, fitting, integrate, linalg, maps, posteriors, problems, sampling
    from .integrate import Euler, Explicit, FixedStep, Implicit
    from .measures import Barenblatt, Gaussian, UniformBall, UniformBox, Unnormalised
    from .run.loop import evolve
    from .run.solve import solve
    from .run.trajectory import Trajectory, load
    from .schemes import JKOICNN, PWGF, PWHF, SWJKO, EulerMaruyama, FittedParticles

__all__ = [
    "JKOICNN",
    "PWGF",
    "PWHF",
    "SWJKO",
    "Barenblatt",
    "ConfigError",
    "Euler",
    "EulerMaruyama",
    "Explicit",
    "FittedParticles",
    "FixedStep",
    "Gaussian",
    "Implicit",
    "NonFiniteError",
    "PWGFError",
    "ParallelError",
    "ResumeMismatchError",
    "SchemaError",
    "ShapeError",
    "SolverError",
    "StorageError",
    "Trajectory",
    "UniformBall",
    "UniformBox",
    "Unnormalised",
    "__version__",
    "distances",
    "energies",
    "evolve",
    "filtering",
    "fitting",
    "integrate",
    "linalg",
    "load",
    "maps",
    "posteriors",
    "problems",
    "sampling",
    "solve",
]

_HOMES = {
    "integrate": ("Euler", "Explicit", "FixedStep", "Implicit"),
    "measures": ("Barenblatt", "Gaussian", "UniformBall", "UniformBox", "Unnormalised"),
    "run.loop": ("evolve",),
    "run.solve": ("solve",),
    "run.trajectory": ("Trajectory", "load"),
    "schemes": ("EulerMaruyama", "FittedParticles", "JKOICNN", "PWGF", "PWHF", "SWJKO"),
}
"""Where the names above are defined that are neither errors nor parts of the package."""

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this function finds

    def __getattr__(name: str) -> object:
        """A name of the package, or a part such as `pwgf.maps`; imported when first used, as torch takes a second."""
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is not None:
            value = getattr(import_module(f"{__name__}.{home}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            value = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
