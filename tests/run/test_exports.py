"""Files for programs without pwgf: samples in other formats, meanings in attributes, the source of functions."""

import csv
import hashlib
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

import pwgf
from pwgf import energies, maps, problems, storage
from pwgf.run.spec import _formula

PROBLEM = problems.OrnsteinUhlenbeck(3)


def well(x):
    """A potential of a user's."""
    return 2 * (x - 3).square().sum(-1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """From a Gaussian, with functions of the user's own."""
    energy = energies.Potential(well) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(3), pwgf.Gaussian(3), num_samples=100, num_eval=100)
    path = tmp_path_factory.mktemp("exports") / "run.h5"
    return pwgf.solve(scheme, [0.0, 0.2, 0.6, 1.0], out=path, progress=False)


def test_netcdf_holds_the_samples_and_what_they_are(run, tmp_path):
    assert run.export(tmp_path / "x.nc", 50, times=[0.1, 1.0], dims=[2, 0], seed=4) == str(tmp_path / "x.nc")
    with xarray.open_dataset(tmp_path / "x.nc", engine="h5netcdf") as data:
        assert data["samples"].dims == ("sample", "dim", "t")
        assert data["dim"].values.tolist() == [2, 0]
        for t in (0.1, 1.0):
            expected = run.sample(t, 50, seed=4)[:, [2, 0]].numpy()
            assert np.array_equal(data["samples"].sel(t=t), expected)
        assert data["samples"].attrs["units"] == "units of x"
        assert json.loads(str(data["config"].values)) == run.config


def test_csv_has_a_row_for_each_sample_and_time(run, tmp_path):
    run.export(tmp_path / "x.csv", 4, times=[0.0, 0.6])
    with open(tmp_path / "x.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["t", "sample", "x0", "x1", "x2"]
    values = np.array(rows, dtype=float)
    assert values[:, 1].tolist() == [0, 1, 2, 3] * 2
    assert np.array_equal(values[4:, 2:], run.sample(0.6, 4).numpy())  # every digit


@pytest.mark.parametrize(("ending", "library"), [("parquet", "pyarrow"), ("zarr", "zarr"), ("nc", "h5netcdf")])
def test_a_missing_library_is_named(run, tmp_path, monkeypatch, ending, library):
    real = importlib.util.find_spec
    monkeypatch.setattr("pwgf.run.exports.find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(pwgf.ConfigError, match=rf"x\.{ending}'\) needs {library}, which is not installed: pip install"):
        run.export(tmp_path / f"x.{ending}")


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(
        pwgf.ConfigError, match=r"must end in \.nc, \.csv, \.parquet, \.zarr\. Give e\.g\. 'samples\.nc'"
    ):
        run.export(run.path)
    with pytest.raises(pwgf.ConfigError, match="needs coordinates 0 to 2 of a law in d = 3; got 3"):
        run.export(tmp_path / "x.nc", dims=3)
    with pytest.raises(pwgf.ConfigError, match="needs times of the run, from 0 to 1; got 1.5"):
        run.export(tmp_path / "x.nc", times=[1.5])
    with pytest.raises(pwgf.ConfigError, match="n=….* must be an integer ≥ 1; got 0"):
        run.export(tmp_path / "x.nc", 0)
    with pytest.raises(pwgf.errors.PathError, match="cannot write there.*Make the folder first"):
        run.export(tmp_path / "no" / "x.csv", 2)


READS = """
import h5py, numpy as np, sys
from matplotlib.figure import Figure
with h5py.File("x.nc") as file:
    x, t = file["samples"][:], file["t"][:]
axes = Figure().subplots()
for k in range(4):
    axes.hist(x[:, 0, k], bins=30, density=True, histtype="step", label=f"t = {t[k]:g}")
"""


def test_marginals_are_drawn_without_pwgf(run, tmp_path):
    """In eight lines, from what was exported."""
    assert len(READS.strip().splitlines()) <= 8
    run.export(tmp_path / "x.nc", 2000)
    says = 'axes.figure.savefig("x.png")\nprint(x.shape, x[:, 0].mean(0).tolist(), "pwgf" in sys.modules)'
    command = [sys.executable, "-c", READS + says]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(2000, 3, 4)") and done.stdout.endswith("False\n")
    means = json.loads(done.stdout[done.stdout.index("[") : done.stdout.index("]") + 1])
    # x' = −4(x − 3): the mean is 3 (1 − exp(−4t)); 2000 samples with variance ≤ 1
    assert means == pytest.approx(3 * (1 - np.exp(-4 * run.t)), abs=0.1)
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.parametrize("parts", [False, True])
def test_a_run_is_never_replaced_by_its_export_or_picture(run, tmp_path, parts):
    path = tmp_path / "run.csv"
    shutil.copy(run.path, path)
    if parts:
        path.unlink()
        (tmp_path / "run.csv.parts").mkdir()
    with pytest.raises(pwgf.errors.PathError, match=r"run\.export\(path=.*: a run of pwgf lies at .*would be replaced"):
        run.export(path)
    assert path.exists() != parts
    picture = tmp_path / "run.gif"
    shutil.copy(run.path, picture)
    with pytest.raises(pwgf.errors.PathError, match=r"run\.animate\(path=…\): a run of pwgf lies at"):
        run.animate(picture)
    shutil.copy(run.path, tmp_path / "run.png")
    with pytest.raises(pwgf.errors.PathError, match=r"plots\.save\(out=…\): a run of pwgf lies at"):
        pwgf.plots.save(run, tmp_path / "run.png")


def test_the_home_folder_is_meant_by_a_tilde(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run.export("~/x.csv", n=2) == "~/x.csv" and (tmp_path / "x.csv").exists()


def test_a_missing_xarray_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(pwgf.ConfigError, match=r"to_xarray\(\) needs xarray: pip install 'pwgf\[xarray\]'"):
        run.to_xarray()


def test_every_dataset_of_a_file_says_what_it_is(run):
    with h5py.File(run.path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        assert {"t", "theta", "energy", "energy_entropy", "restart/theta", "provenance/host"} <= set(found)
        assert [name for name, item in found.items() if not {"long_name", "description"} <= set(item.attrs)] == []
        assert [name for name in run.names if "units" not in file[name].attrs] == []
        assert "packed" in file.attrs and file.attrs["packed"] >= file.attrs["created"]
    with xarray.open_dataset(run.path, engine="h5netcdf") as data:
        assert data["energy"].attrs["long_name"] == "energy F" and data["wall_time"].attrs["units"] == "s"
    assert run.to_xarray()["energy"].attrs["units"] == "units of F"


@pytest.mark.parametrize("name", sorted(pwgf.schemes.SCHEMES))
def test_the_columns_of_every_scheme_have_a_meaning(name):
    problem = problems.Aggregation(1)
    kind = pwgf.schemes.find(name, "test")
    scheme = kind.suited(problem.energy, problem.reference, np.array([0.0, 0.01]), num_samples=50)
    row = scheme.measure(scheme.start(0))
    known = [n for n in row if storage.meaning(n).description == "a column of the scheme's own"]
    assert known == []


def test_the_file_tells_the_formula_of_the_map_and_what_made_it(run):
    told = run.config["description"]
    assert told["formula"] == inspect.getdoc(maps.Affine).partition("\n\n")[0].replace("\n", " ")
    outer, inner = maps.Standardised(maps.Affine(1), [1.0], 2.0), inspect.getdoc(maps.Affine).partition("\n\n")[0]
    assert _formula(outer).startswith("T_θ(z) = centre + spread·M_θ") and _formula(outer).endswith(f"M: {inner}")
    with storage.open_record(run.path) as record:
        made_with = record.provenance
    git = ["git", "-C", str(Path(pwgf.__file__).parent), "rev-parse", "HEAD"]
    known = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert made_with["pwgf_commit"] == known and made_with["argv"] == sys.argv


def test_the_source_of_the_users_functions_is_in_the_file(run):
    with storage.open_record(run.path) as record:
        sources = record.provenance["sources"]
    (name,) = sources
    assert name.endswith("test_exports.well")
    assert sources[name]["source"].startswith("def well(x):") and "(x - 3)" in sources[name]["source"]
    assert sources[name]["sha256"] == hashlib.sha256(sources[name]["source"].encode()).hexdigest()
