"""The names that `import pwgf` offers: none disappears, and none appears unnoticed."""

import pwgf

NAMES = [
    "Barenblatt",
    "ConfigError",
    "Euler",
    "EulerMaruyama",
    "Explicit",
    "FixedStep",
    "Gaussian",
    "Implicit",
    "JKOICNN",
    "NonFiniteError",
    "PWGF",
    "PWGFError",
    "ParallelError",
    "ResumeMismatchError",
    "SWJKO",
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


def test_the_public_names_are_those_listed_here():
    """A new name is added here too; a listed one is never removed (CONTRIBUTING.md)."""
    assert sorted(pwgf.__all__) == sorted(NAMES)


def test_each_public_name_is_there():
    assert [name for name in NAMES if not hasattr(pwgf, name)] == []
