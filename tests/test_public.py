"""The names that `import pwgf` offers: none disappears, and none appears unnoticed."""

import ast
from pathlib import Path

import pwgf

NAMES = [
    "Barenblatt",
    "ConfigError",
    "Euler",
    "EulerMaruyama",
    "Explicit",
    "FittedParticles",
    "FixedStep",
    "Gaussian",
    "Implicit",
    "JKOICNN",
    "NonFiniteError",
    "PWGF",
    "PWGFError",
    "PWHF",
    "ParallelError",
    "ResumeMismatchError",
    "SWJKO",
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


def test_the_public_names_are_those_listed_here():
    """A new name is added here too; a listed one is never removed (CONTRIBUTING.md)."""
    assert sorted(pwgf.__all__) == sorted(NAMES)


def test_each_public_name_is_there():
    assert [name for name in NAMES if not hasattr(pwgf, name)] == []


def test_type_checkers_find_each_name_where_it_is_imported_from():
    tree = ast.parse(Path(pwgf.__file__).read_text(encoding="utf-8"))
    for_checkers = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {node.module: tuple(alias.name for alias in node.names) for node in for_checkers.body if node.module}
    assert {module: tuple(sorted(names)) for module, names in homes.items()} == {
        module: tuple(sorted(names)) for module, names in pwgf._HOMES.items()
    }
