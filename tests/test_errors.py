"""The hierarchy of errors, and hints for misspelt names."""

from __future__ import annotations

import pickle

import pytest

import pwgf
from pwgf import errors

PARENTS = {
    "ConfigError": ("PWGFError", ValueError),
    "ShapeError": ("PWGFError", ValueError),
    "NonFiniteError": ("PWGFError",),
    "SolverError": ("PWGFError",),
    "ParallelError": ("PWGFError",),
    "StorageError": ("PWGFError", OSError),
    "SchemaError": ("StorageError",),
    "ResumeMismatchError": ("PWGFError",),
}


@pytest.mark.parametrize("name", PARENTS)
def test_hierarchy(name):
    error = getattr(errors, name)
    for parent in PARENTS[name]:
        assert issubclass(error, getattr(errors, parent) if isinstance(parent, str) else parent)
    assert getattr(pwgf, name) is error
    assert error.__doc__


def test_every_error_is_one_of_the_package():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert all(issubclass(c, errors.PWGFError) for c in classes)
    assert all(c.__module__ == "pwgf.errors" for c in classes)


@pytest.mark.parametrize("name", [*PARENTS, "PathError"])
def test_messages_survive_the_way_between_processes(name):
    error = getattr(errors, name)("what, expected, got, cure")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == "what, expected, got, cure"
    assert again.run is None


def test_the_rows_so_far_belong_to_one_error_only():
    first, second = errors.SolverError("a"), errors.SolverError("b")
    first.run = "rows"
    assert second.run is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Gausian", " Did you mean 'Gaussian'?"),
        ("barenblat", " Did you mean 'Barenblatt'?"),
        ("xyz", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_nearest(name, hint):
    assert errors.nearest(name, ["Gaussian", "Barenblatt"]) == hint
    assert errors.nearest(name, []) == ""
