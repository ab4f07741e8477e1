"""Wasserstein gradient flows in any dimension, without a grid.

A flow moves a measure. A *reference measure* λ is pushed by a *map* T_θ to ρ_θ. An *energy* F(ρ) pulls: its *velocity*
is v = −∇ δF/δρ at the samples. The *tangent* J = ∂_θT says which velocities the parameters can follow. A *linear solve*
picks θ̇ = argmin E|J θ̇ − v|². An *integrator* takes the step, a *scheme* is all of that together, a *trajectory*
remembers it.
"""

from . import distances, energies, filtering, fitting, integrate, linalg, maps, posteriors, problems, sampling
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
from .integrate import Euler, Explicit, FixedStep, Implicit
from .measures import Barenblatt, Gaussian, UniformBall, Unnormalised
from .run.loop import evolve
from .run.solve import solve
from .run.trajectory import Trajectory, load
from .schemes import JKOICNN, PWGF, SWJKO, EulerMaruyama

__all__ = [
    "JKOICNN",
    "PWGF",
    "SWJKO",
    "Barenblatt",
    "ConfigError",
    "Euler",
    "EulerMaruyama",
    "Explicit",
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
