"""The package as a stranger has it: a wheel in a fresh environment outside the checkout, and what an index offers.

`make test` runs this where a package index answers; elsewhere these tests are skipped.
"""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
README_EXAMPLE = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)[1]
NO_BUILDS_AT_HAND = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
TORCH_ONLY = "ignore::DeprecationWarning:torch.jit._script"  # torch.func's own call of what torch deprecates


def called(*command, cwd, **environment):
    """The finished process; its words are in the failure of whoever checks the status."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    outside |= {"PWGF_PROGRESS": "0", "PYTHONIOENCODING": "utf-8", **environment}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=outside, capture_output=True, encoding="utf-8", check=False)


def succeeded(*command, cwd, **environment):
    done = called(*command, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder outside the checkout, where a package index answers."""
    here = tmp_path_factory.mktemp("stranger")
    asked = called(sys.executable, "-m", "pip", "index", "versions", "tyro", "--timeout=10", "--retries=1", cwd=here)
    if asked.returncode:
        pytest.skip(f"no package index answers: {asked.stderr.strip().splitlines()[-1]}")
    return here


@pytest.fixture(scope="module")
def wheel(folder):
    """Built from a copy, as setuptools would put into it what an earlier build left in the checkout."""
    leftovers = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "*.h5"
    )
    shutil.copytree(ROOT, folder / "source", ignore=leftovers)
    succeeded(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", "dist", "./source", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(folder, wheel):
    """Of a fresh environment with the wheel, its dependencies and a type checker."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    succeeded(python, "-m", "pip", "install", "-c", CONSTRAINTS, wheel, "mypy", cwd=folder)
    return python.parent


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pwgf").rglob("*.py")}
    assert names == sources | {"pwgf/py.typed"}


def test_the_first_example_of_the_readme_runs_without_a_warning(folder, bin_folder):
    (folder / "example.py").write_text(f"{README_EXAMPLE}\nprint(pwgf.__file__)\n", encoding="utf-8")
    said = succeeded(bin_folder / "python", "-W", "error", "-W", TORCH_ONLY, "example.py", cwd=folder)
    assert str(folder / "env") in said.splitlines()[-1]
    assert (folder / "results" / "own.h5").is_file()


def test_commands_run_and_a_figure_names_its_extra(folder, bin_folder):
    tiny = "--dim 1 --map affine --num-samples 100 --num-eval 200 --num-rows 3 --end-time 0.2 --out ou.h5"
    said = succeeded(bin_folder / "pwgf", "run", "ornstein-uhlenbeck", *tiny.split(), cwd=folder)
    assert "Written to ou.h5" in said
    assert "ou.h5: complete" in succeeded(bin_folder / "pwgf", "info", "ou.h5", cwd=folder)
    figure = called(bin_folder / "pwgf", "plot", "ou.h5", cwd=folder)
    assert figure.returncode == 2
    assert "drawing needs matplotlib" in figure.stderr and "pip install 'pwgf[plot]'" in figure.stderr


def test_the_first_page_is_followed_outside_the_checkout(folder, bin_folder):
    """After the last test that does without matplotlib."""
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    script, later = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    (folder / "valley.py").write_text(script, encoding="utf-8")
    (folder / "later.py").write_text(later, encoding="utf-8")
    python = bin_folder / "python"
    succeeded(python, "-m", "pip", "install", "-c", CONSTRAINTS, "matplotlib", cwd=folder)
    succeeded(python, "-W", "error", "-W", TORCH_ONLY, "valley.py", cwd=folder)
    assert "Verdict: good" in succeeded(bin_folder / "pwgf", "info", "valley.h5", cwd=folder)
    succeeded(python, "-W", "error", "-W", TORCH_ONLY, "later.py", cwd=folder)
    assert (folder / "valley.png").stat().st_size > 0 and (folder / "density.png").stat().st_size > 0


USERS_SCRIPT = """
import torch
import pwgf
from pwgf import energies, maps


def potential(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1) / 2


scheme = pwgf.PWGF(energies.Potential(potential) + energies.Entropy(), maps.Affine(dim=2), pwgf.Gaussian(dim=2))
run = pwgf.solve(scheme, times=[0.0, 0.5, 1.0])
end: torch.Tensor = run.sample(t=1.0, n=10)
reveal_type(run)
reveal_type(pwgf.load("run.h5").at(0.5))
"""


def test_a_type_checker_knows_the_package(folder, bin_folder):
    (folder / "user.py").write_text(USERS_SCRIPT, encoding="utf-8")
    said = succeeded(bin_folder / "mypy", "--strict", "user.py", cwd=folder)
    assert 'Revealed type is "pwgf.run.trajectory.Trajectory"' in said
    assert 'Revealed type is "pwgf.run.trajectory.RunLaw"' in said
    assert "Success: no issues found" in said


def test_a_type_checker_reports_a_misspelt_name(folder, bin_folder):
    (folder / "misspelt.py").write_text("import pwgf\npwgf.solves\npwgf.Gaussian(dimension=2)\n", encoding="utf-8")
    found = called(bin_folder / "mypy", "--strict", "misspelt.py", cwd=folder)
    assert found.returncode == 1
    assert 'Module has no attribute "solves"' in found.stdout
    assert 'Unexpected keyword argument "dimension" for "Gaussian"' in found.stdout


@pytest.fixture(scope="module")
def resolve(folder):
    """A dry run of a recent pip from the index alone; `fast-deps` reads the metadata without the gigabytes of CUDA."""
    venv.create(folder / "pip", with_pip=True)
    python = folder / "pip" / "bin" / "python"
    succeeded(python, "-m", "pip", "install", "--upgrade", "pip", cwd=folder)
    index_alone = {name: "" for name in NO_BUILDS_AT_HAND} | {"PIP_CONFIG_FILE": os.devnull}

    def would_install(*arguments):
        dry = ("--dry-run", "--ignore-installed", "--no-cache-dir", "--use-feature=fast-deps")
        said = succeeded(python, "-m", "pip", "install", *dry, *arguments, cwd=ROOT, **index_alone)
        return re.search(r"^Would install (.*)$", said, re.MULTILINE)[1].split()

    return would_install


def pinned(name):
    return re.search(rf"^{name}==(.*)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[1]


def test_the_commands_of_the_readme_resolve_from_the_index_alone(resolve):
    """`make demo` and `make test` install the same environment."""
    planned = succeeded("make", "--dry-run", "--always-make", ".venv/.installed", cwd=ROOT)
    arguments = shlex.split(re.search(r"-m pip install --quiet (.*)", planned)[1])
    found = resolve(*arguments)
    assert {f"{name}-{pinned(name)}" for name in ("torch", "numpy", "scipy", "pytest", "mypy")} <= set(found)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pins_exist_for_every_promised_python(python, resolve, folder):
    setup_cfg = configparser.ConfigParser()
    setup_cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    names = " ".join(wanted).split()
    other = ("--python-version", python, "--only-binary", ":all:", "--target", folder / "target")
    found = resolve("-c", CONSTRAINTS, *other, *names)
    assert {f"{name}-{pinned(name)}" for name in ("torch", "numpy", "scipy")} <= set(found)
