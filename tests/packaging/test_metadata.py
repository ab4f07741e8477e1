"""The files that installers and publishers read: they agree with each other and with what is promised."""

import configparser
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import pwgf

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def requirements(lines):
    """Requirements by name, of text with one a line and comments."""
    wanted = [line.partition("#")[0].strip() for line in lines.splitlines()]
    found = [Requirement(line) for line in wanted if line]
    return {requirement.name.lower(): requirement for requirement in found}


def exact(requirement):
    """The version of `name==version`."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def lowest(requirement):
    """The version of `name>=version`."""
    (specifier,) = requirement.specifier
    assert specifier.operator == ">="
    return Version(specifier.version)


def extras(setup_cfg):
    return {name: requirements(lines) for name, lines in setup_cfg["options.extras_require"].items()}


def test_floors_are_the_promised_ones(setup_cfg):
    promised = requirements(setup_cfg["options"]["install_requires"]) | extras(setup_cfg)["test"]
    floors = requirements(text("floors.txt"))
    assert {name: exact(pin) for name, pin in floors.items()} == {
        name: lowest(promise) for name, promise in promised.items()
    }


def test_tests_install_what_the_other_extras_promise(setup_cfg):
    """So the floors of those extras are run too."""
    promised = extras(setup_cfg)
    for extra in ("plot", "xarray", "eval", "flows", "data", "arviz"):
        assert promised[extra].items() <= promised["test"].items()


def test_each_dependency_is_pinned_within_its_promise(setup_cfg):
    pins = requirements(text("constraints.txt"))
    every = [requirements(setup_cfg["options"]["install_requires"]), *extras(setup_cfg).values()]
    for promised in every:
        for name, promise in promised.items():
            assert promise.specifier.contains(exact(pins[name]))


def test_classifiers_and_tools_agree_with_the_promised_python(setup_cfg):
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"])
    oldest = SpecifierSet(setup_cfg["options"]["python_requires"])
    assert oldest.contains(named[0]) and not oldest.contains(f"3.{int(named[0].partition('.')[2]) - 1}")
    assert named == [f"3.{minor}" for minor in range(11, 14)]
    tools = tomllib.loads(text("pyproject.toml"))["tool"]
    assert tools["ruff"]["target-version"] == f"py{named[0].replace('.', '')}"
    assert tools["mypy"]["python_version"] == named[0]
    assert f"OLDEST ?= python{named[0]}" in text("Makefile")


def test_one_version():
    assert re.search(r"^version: (.*)$", text("CITATION.cff"), re.MULTILINE)[1] == pwgf.__version__
    upcoming = re.search(r"^## \[Unreleased\]: (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert upcoming is None or Version(pwgf.__version__).release[:2] == Version(upcoming[1]).release[:2]


@pytest.fixture
def description(monkeypatch):
    """What a package index shows: the arguments of setup.py."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return given["long_description"]


def test_the_description_has_no_picture_and_no_link_into_the_repository(description):
    assert "![" not in description
    targets = re.findall(r"\]\(([^)\s]+)\)", description)
    assert targets and [target for target in targets if not target.startswith("https://")] == []


def test_the_description_is_the_readme_otherwise(description):
    words = [line for line in text("README.md").splitlines() if line and "](" not in line]
    assert len(words) > 50
    assert [line for line in words if line not in description.splitlines()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".github/workflows/ci.yml", ".ci/run"])
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", text(page), re.MULTILINE))
    assert named and named <= targets
