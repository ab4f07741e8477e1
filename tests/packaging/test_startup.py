"""What starting takes: libraries that nothing has asked for yet are not imported, in a fresh process."""

import json
import subprocess
import sys

import pytest

import pwgf

HEAVY = ["torchdiffeq", "scipy", "matplotlib", "xarray", "pandas", "zuko", "geomloss", "ot", "sklearn"]
"""The first two are imported by the first step or sample that needs them, the others only by those who use them."""


def loaded(code: str) -> set[str]:
    """Top-level names of the modules in a fresh process after it ran the code."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=300)
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_the_check_sees_an_import():
    assert "torchdiffeq" in loaded("import pwgf, torchdiffeq")


def test_the_whole_package_imports_no_heavy_library():
    names = loaded("from pwgf import *")
    assert {"torch", "h5py", "numpy"} <= names
    assert names.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["compare", "--help"], ["sweep", "--help"], ["run", "--dims", "2"]],
    ids=" ".join,
)
def test_help_and_misspelt_options_need_no_torch(arguments):
    names = loaded(
        f"import contextlib\nfrom pwgf import cli\nwith contextlib.suppress(SystemExit):\n    cli.main({arguments!r})"
    )
    assert "tyro" in names
    assert names.isdisjoint(["torch", "numpy", "h5py", *HEAVY])


def test_a_name_is_imported_when_first_used_and_kept():
    code = "import sys, pwgf\nassert 'torch' not in sys.modules\npwgf.PWGF\nassert 'PWGF' in vars(pwgf)"
    assert "torch" in loaded(code)


def test_parts_of_the_package_are_attributes():
    assert pwgf.measures.Gaussian is pwgf.Gaussian
    assert pwgf.plots.__name__ == "pwgf.plots"


@pytest.mark.parametrize("name", ["PWGFs", "__main__", "__wrapped__", "_missing"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'pwgf' has no attribute '{name}'"):
        getattr(pwgf, name)


def test_dir_lists_names_that_were_not_used_yet():
    code = "import pwgf\nassert set(pwgf.__all__) <= set(dir(pwgf))\nassert 'solve' not in vars(pwgf)"
    assert "torch" not in loaded(code)
