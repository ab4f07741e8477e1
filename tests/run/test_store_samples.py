"""`store_samples`: rows hold samples of their laws, for programs that know nothing of pwgf, and files open as trees."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

import pwgf
from pwgf import cli, energies, maps, problems, schemes, storage
from tests.storage.forging import forge, set_value

PROBLEM = problems.OrnsteinUhlenbeck(2)
TIMES = [0.0, 0.05, 0.1]


def scheme_of(name):
    kind, times = schemes.find(name, "test"), np.array(TIMES)
    step = {"jko-icnn": {"dt": 0.05}, "particles": {"dt": 0.01}}.get(name, {})
    return kind.suited(PROBLEM.energy, PROBLEM.reference, times, num_samples=60, **step)


def solved(name="pwgf", out=None, **options):
    return pwgf.solve(scheme_of(name), TIMES, out=out, progress=False, store_samples=40, **options)


@pytest.mark.parametrize("name", ["pwgf", "particles", "jko-icnn"])
def test_rows_hold_the_samples_that_the_run_gives(tmp_path, name):
    run = solved(name, tmp_path / "run.h5")
    found = pwgf.load(run.path)
    assert found["samples"].shape == (3, 40, 2) and "samples" in found.names
    for k, t in enumerate(found.t):
        np.testing.assert_array_equal(found["samples"][k], found.sample(t, 40).numpy())
    np.testing.assert_array_equal(solved(name)["samples"], found["samples"])  # in memory
    assert found.config["store_samples"] == 40 and found.to_xarray()["samples"].dims == ("t", "sample", "dim")


@pytest.mark.parametrize("name", ["pwgf", "jko-icnn"])
def test_a_stopped_run_goes_on_with_them_to_the_bit(tmp_path, name):
    whole, path = solved(name), tmp_path / "run.h5"
    solved(name, path, max_steps=1)
    assert len(pwgf.load(path)) < 3
    run = solved(name, path, resume=True)
    np.testing.assert_array_equal(run["samples"], whole["samples"])
    np.testing.assert_array_equal(run["theta"], whole["theta"])
    with pytest.raises(pwgf.ResumeMismatchError, match="store_samples: stored 40, now 41"):
        pwgf.solve(scheme_of(name), TIMES, out=path, progress=False, store_samples=41, resume=True)


def test_a_number_of_samples_is_asked_for():
    with pytest.raises(pwgf.ConfigError, match="store_samples.* must be an integer ≥ 1; got 0"):
        pwgf.solve(scheme_of("pwgf"), TIMES, store_samples=0)


def test_rows_that_only_their_scheme_reads_hold_none():
    class Own:
        """A scheme without `push`."""

        def __getattr__(self, name):
            if name == "push":
                raise AttributeError(name)
            return getattr(scheme_of("pwgf"), name)

    with pytest.raises(pwgf.ConfigError, match=r"store_samples=9\) needs a scheme with a method push.*Own has none"):
        pwgf.solve(Own(), TIMES, store_samples=9, progress=False)


def test_a_damaged_chunk_of_samples_is_found(tmp_path):
    path = solved(out=tmp_path / "run.h5").path
    with h5py.File(path) as file:
        assert file["samples"].chunks == (1, 40, 2)
        place = file["samples"].id.get_chunk_info(1).byte_offset
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\xff")
    health = storage.examine(path)
    assert health.rows == 1 and any("samples" in problem for problem in health.problems)
    saved = storage.salvage(path, tmp_path / "saved.h5")
    np.testing.assert_array_equal(
        pwgf.load(tmp_path / "saved.h5")["samples"], solved()["samples"][: saved.rows]
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 40, 3), (2, 40, 2), (3, 80), (3,)])
def test_samples_of_another_shape_than_the_rows_are_refused(tmp_path, shape):
    path = solved(out=tmp_path / "run.h5").path
    forge(path, lambda file: set_value(file, "samples", np.zeros(shape)))
    with pytest.raises(pwgf.SchemaError, match="'samples' is float64 .* where float64 .* was expected"):
        pwgf.load(path)


def test_every_row_has_samples_or_none_has(tmp_path):
    header = storage.Header({}, [], {}, dim=2, num_params=1)
    row = {"theta": np.ones(1), "theta_dot": np.ones(1), "samples": np.zeros((5, 2))}
    with storage.Writer.create(tmp_path / "run.h5", header) as writer:
        writer.append({"t": 0.0, **row}, {"dt": 0.1})
        with pytest.raises(pwgf.ConfigError, match=r"in every row; missing \['samples'\]"):
            writer.append({"t": 1.0, "theta": np.ones(1), "theta_dot": np.ones(1)}, {"dt": 0.1})
        with pytest.raises(pwgf.ShapeError, match=r"needs shape \(5, 2\) at 'samples'; got \(4, 2\)"):
            writer.append({"t": 1.0, **row, "samples": np.zeros((4, 2))}, {"dt": 0.1})
        writer.append({"t": 1.0, **row}, {"dt": 0.1})
    with storage.open_record(tmp_path / "run.h5") as record:
        assert record.shapes["samples"] == (5, 2) and record.names == ("t",)
        assert [batch["samples"].shape for batch in record.iter_rows(batch=1)] == [(1, 5, 2)] * 2


def test_the_command_line_stores_them_too(tmp_path, capsys):
    path = tmp_path / "run.h5"
    options = "--map affine --end-time 0.1 --num-rows 2 --num-samples 60 --num-eval 60 --store-samples 7"
    assert cli.main(["run", "ornstein-uhlenbeck", *options.split(), "--out", str(path)]) == 0
    assert pwgf.load(path)["samples"].shape == (2, 7, 2) and str(path) in capsys.readouterr().out


MARGINALS = """
import sys, xarray
from matplotlib.figure import Figure
data = xarray.open_dataset("run.h5", engine="h5netcdf")
axes = Figure().subplots()
for t in [0.0, 0.2, 0.6, 1.0]:
    axes.hist(data.samples.sel(t=t, dim=0), bins=30, density=True, histtype="step", label=f"t = {t:g}")
axes.figure.savefig("marginals.png")
"""
"""Marginal densities at four times, in a program that does not know pwgf."""


def well(x):
    return 2 * (x - 3).square().sum(-1)


def test_marginals_are_drawn_from_the_run_itself_without_pwgf(tmp_path):
    assert len(MARGINALS.strip().splitlines()) <= 8
    scheme = pwgf.PWGF(energies.Potential(well) + energies.Entropy(), maps.Affine(3), pwgf.Gaussian(3), num_samples=100)
    pwgf.solve(scheme, [0.0, 0.2, 0.6, 1.0], out=tmp_path / "run.h5", store_samples=1000, progress=False)
    says = 'print(data.samples.mean("sample").sel(dim=0).values.tolist())\nassert "pwgf" not in sys.modules'
    command = [sys.executable, "-c", MARGINALS + says]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # x' = −4(x − 3): the mean is 3 (1 − exp(−4t)); 1000 samples with variance ≤ 1
    assert json.loads(done.stdout) == pytest.approx(3 * (1 - np.exp([-0.0, -0.8, -2.4, -4.0])), abs=0.13)
    assert (tmp_path / "marginals.png").stat().st_size > 0


def test_every_array_of_a_file_names_its_axes(tmp_path):
    """As netCDF asks: each axis has one scale, and no dataset in a group is called like an axis of the rows."""
    path = solved(out=tmp_path / "run.h5").path
    with h5py.File(path) as file:
        items = {}
        file.visititems(lambda name, item: items.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        unnamed = [n for n, x in items.items() if not x.is_scale and [len(axis) for axis in x.dims] != [1] * x.ndim]
        axes = [name for name, item in items.items() if "/" not in name and item.is_scale]
        assert unnamed == [] and sorted(axes) == ["dim", "param", "sample", "t"]
        assert [name for name in items if "/" in name and name.rpartition("/")[2] in axes] == []


@pytest.mark.skipif(not hasattr(xarray, "open_datatree"), reason="xarray before 2024.10 has no trees")
def test_a_file_opens_as_a_tree(tmp_path):
    run = solved(out=tmp_path / "run.h5")
    with xarray.open_datatree(run.path, engine="h5netcdf") as tree:  # the tests make errors of warnings
        assert set(tree.children) == {"arrays", "provenance", "restart"}
        np.testing.assert_array_equal(tree["samples"], run["samples"])
        np.testing.assert_array_equal(tree["restart/theta"], run.state().theta)
        assert tree["restart/theta"].dims == ("param",) and float(tree["restart/time"]) == 0.1


def test_a_state_of_version_0_1_goes_on(tmp_path):
    """There the time of the state was called t, like the axis of the rows."""
    path, longer = solved(out=tmp_path / "run.h5").path, [*TIMES, 0.15]

    def as_before(file):
        set_value(file, "restart/t", np.asarray(file["restart/time"][()]))
        file["restart/t"].attrs["number"] = 1
        del file["restart/time"]

    Path(tmp_path / "copy.h5").write_bytes(Path(path).read_bytes())
    forge(path, as_before)
    runs = [
        pwgf.solve(scheme_of("pwgf"), longer, out=out, store_samples=40, resume=True, progress=False)
        for out in (path, tmp_path / "copy.h5")
    ]
    np.testing.assert_array_equal(runs[0]["theta"], runs[1]["theta"])
    assert len(runs[0]) == 4
