"""Samples in the file of their run: loaded in another process, summarised by their weights, and read by ArviZ."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import pwgf
from pwgf import cli, maps, sampling, storage
from pwgf.errors import ConfigError, SchemaError
from pwgf.sampling import Sampled, Summary
from tests.storage.forging import forge, set_value

NAMES = ["height", "log width"]


def gaussian(x):  # N((0, 3), diag(4, 1)), integral 4π
    return -x[:, 0].square() / 8 - (x[:, 1] - 3).square() / 2


def bent(y):
    """x₁ = y₁, x₂ = e^{y₁} y₂."""
    return torch.stack([y[:, 0], y[:, 0].exp() * y[:, 1]], 1), y[:, 0]


def funnel(x):
    return -x[:, 0].square() / 2 - x[:, 0] - (x[:, 1] * torch.exp(-x[:, 0])).square() / 2


def sample(log_density=gaussian, **options):
    settings = {"map": maps.Affine(2), "num_samples": 200, "num_eval": 200, "progress": False, **options}
    return sampling.sample(log_density, 2, 2000, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """In linear coordinates, with names."""
    path = tmp_path_factory.mktemp("stored") / "posterior.h5"
    return sample(whiten="laplace", names=NAMES, out=path)


def assert_equal(one, other):
    """All that is stored, to the bit; NaN equals NaN."""
    for field in dataclasses.fields(Sampled):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name not in ("run", "coordinates"):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)
    np.testing.assert_array_equal(one.run["theta"], other.run["theta"])


def test_what_was_returned_is_loaded(made):
    found = sampling.load(made.run.path)
    assert_equal(found, made)
    y = made.run.sample(made.t, 5)
    torch.testing.assert_close(found.coordinates(y)[0], made.coordinates(y)[0], rtol=0, atol=0)
    assert torch.equal(found.centre, made.centre) and torch.equal(found.scale, made.scale)
    assert repr(found) == repr(made) and repr(found).startswith("Sampled(2000 samples, d = 2, log Z = 2.531 ±")


def test_another_process_needs_nothing_of_the_first(made):
    code = (
        "from pwgf import sampling\nimport sys\nfound = sampling.load(sys.argv[1])\n"
        "print(found.x[:3].tolist() + [found.mean().tolist(), [found.log_z, found.ess], list(found.names)])"
    )
    done = subprocess.run([sys.executable, "-c", code, made.run.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [*made.x[:3].tolist(), made.mean().tolist(), [made.log_z, made.ess], NAMES]
    assert json.loads(done.stdout.replace("'", '"')) == expected


def test_the_file_says_what_was_sampled(made):
    with storage.open_record(made.run.path) as record:
        assert "test_stored.gaussian" in "".join(record.provenance["sources"])
        about = json.loads(record.result["about"])
    assert about["names"] == NAMES and about["coordinates"] == "linear" and about["tolerance"] == 1e-2
    with xarray.open_dataset(made.run.path, engine="h5netcdf", group="result") as data:
        assert data["x"].dims == ("draw", "dim") and data["log_weights"].dims == ("draw",)
        assert data["x"].attrs["units"] == "units of x" and data["log_z"].attrs["long_name"] == "log Z"
        np.testing.assert_array_equal(data["x"], made.x)
        assert float(data["log_z"]) == made.log_z
        generic = storage.meaning("result/unknown").description
        assert [name for name in data.data_vars if data[name].attrs["description"] == generic] == []


@pytest.mark.parametrize("polish", [0, 3])
def test_coordinates_of_the_users_own(tmp_path, polish):
    path = tmp_path / "funnel.h5"
    made = sample(funnel, whiten=bent, polish=polish, out=path)
    found = sampling.load(path)
    assert_equal(found, made)
    y = found.run.sample(found.t, 3)
    with pytest.raises(ConfigError, match=r"needs the function .*test_stored\.bent.*sampling\.load\(.*whiten=…\)"):
        found.coordinates(y)
    torch.testing.assert_close(sampling.load(path, whiten=bent).coordinates(y)[0], bent(y)[0])
    for other in (lambda y: (2 * y, y[:, 0]), lambda y: y):
        with pytest.raises(ConfigError, match="does not take the stored y to their samples x"):
            sampling.load(path, whiten=other)


class Own(maps.Affine):
    """A map that no file can rebuild."""


def test_samples_are_there_without_the_users_map(tmp_path):
    made = sample(map=Own(2), out=tmp_path / "run.h5")
    found = sampling.load(made.run.path)
    assert torch.equal(found.x, made.x)
    with pytest.raises(ConfigError, match="Own"):
        found.run.sample(0.0, 3)
    assert sampling.load(made.run.path, map=Own(2)).run.sample(0.0, 3).shape == (3, 2)


def test_a_call_stopped_before_the_samples_are_stored_is_made_up_for(made, tmp_path, monkeypatch):
    path = tmp_path / "run.h5"

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(storage, "set_result", stop)
        with pytest.raises(KeyboardInterrupt):
            sample(whiten="laplace", names=NAMES, out=path)
    with pytest.raises(
        ConfigError, match=r"expected the file of sampling\.sample.*this run holds nothing of it.*resume=True"
    ):
        sampling.load(path)
    assert_equal(sample(whiten="laplace", names=NAMES, out=path, resume=True), made)
    assert_equal(sampling.load(path), made)


def test_a_longer_flow_has_samples_of_its_own_end(tmp_path, caplog):
    path = tmp_path / "run.h5"
    slow = {"tolerance": 1e-9, "whiten": None, "finish": False}
    early = sample(out=path, max_time=0.25, **slow)
    later = sample(out=path, max_time=0.5, **slow, resume=True)
    assert (early.t, later.t) == (0.25, 0.5) and not later.converged
    assert_equal(sampling.load(path), later)


DAMAGES = [
    ("x", None, r"its samples are damaged \(KeyError"),
    ("x", np.zeros((3, 3)), "have other sizes than belong together"),
    ("log_weights", np.zeros(7), "have other sizes than belong together"),
    ("y", np.zeros((2, 2)), "have other sizes than belong together"),
    ("log_z", "much", r"its samples are damaged \(ValueError"),
    ("about", "{", r"its result is damaged \("),
    ("about", json.dumps({"kind": "sampling.sample", "names": 3}), r"its samples are damaged \(TypeError"),
    (
        "about",
        json.dumps(
            {"kind": "sampling.sample", "names": ["a", "\x1b[31mb"], "converged": True, "coordinates": "linear"}
        ),
        "names that cannot be printed",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), DAMAGES)
def test_damaged_samples_are_refused(made, tmp_path, name, value, message):
    path = tmp_path / "run.h5"
    path.write_bytes(Path(made.run.path).read_bytes())

    def change(file):
        del file[f"result/{name}"]
        if value is not None:
            set_value(file, f"result/{name}", value)

    forge(path, change)
    with pytest.raises(SchemaError, match=message):
        sampling.load(path)


def weighted(n=4000, names=("x0",)):
    """Samples of N(0, 1) with the weights of N(1, 1); E[w]²/E[w²] = e⁻¹."""
    x = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_density = -x[:, 0].square() / 2 - math.log(2 * math.pi) / 2
    log_w = x[:, 0] - 0.5
    w = torch.softmax(log_w, 0)
    ess = float(1 / (n * w.square().sum()))
    return Sampled(x, log_density, log_w, 0.0, 0.0, 0.0, 0.0, ess, True, 1.0, None, None, None, names)


def test_the_summary_is_that_of_the_weighted_samples():
    found = weighted(100_000)
    summary = found.summary()
    assert isinstance(summary, Summary) and summary.names == ("x0",)
    figures = [float(getattr(summary, name)[0]) for name in ("mean", "sd", "q05", "q50", "q95")]
    assert figures == pytest.approx([1, 1, 1 - 1.6449, 1, 1 + 1.6449], abs=0.03)
    # Var x / E_ρ[w²(x − 1)²] with ρ = N(0, 1): w² ρ = e N(2, 1), so E = e (1 + 1)
    assert summary.ess[0] == pytest.approx(100_000 / (2 * math.e), rel=0.1)
    assert summary.mean[0] == pytest.approx(float(found.mean()), rel=1e-12)


def test_without_weights_it_is_that_of_the_samples(made):
    found = dataclasses.replace(made, log_weights=torch.full_like(made.log_weights, math.nan))
    summary, x = found.summary(), made.x.numpy()
    np.testing.assert_allclose(summary.mean, x.mean(0))
    np.testing.assert_allclose(summary.sd, x.std(0))
    quantiles = np.quantile(x, [0.05, 0.5, 0.95], axis=0, method="hazen")
    np.testing.assert_allclose([summary.q05, summary.q50, summary.q95], quantiles)
    np.testing.assert_allclose(summary.ess, 2000)


def test_it_prints_as_a_table(made):
    lines = repr(made.summary()).splitlines()
    assert lines[0].split() == ["mean", "sd", "5%", "50%", "95%", "ess"]
    assert [line[:9].strip() for line in lines[1:]] == NAMES and len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("names", [["a"], ["a", "a"], "ab", ["a", 1], ["a", ""], ["a", "\x1b[31mb"], ["a", "b\n"]])
def test_names_are_one_for_each_coordinate(names):
    with pytest.raises(
        ConfigError, match="needs 2 different names, one for each coordinate, in printable letters; got"
    ):
        sample(names=names)


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # of ArviZ to newer matplotlibs
def test_arviz_summarises_a_file(made):
    import arviz  # its warning of its own next version is not ours

    found = sampling.load(made.run.path)
    table = arviz.summary(found.to_arviz(), round_to="none")
    assert list(table.index) == NAMES
    error = 5 * table["mcse_mean"]
    assert bool((abs(table["mean"] - [0, 3]) < error).all())
    assert list(table["sd"]) == pytest.approx([2, 1], rel=0.1)
    assert bool((table["ess_bulk"] > 1000).all()) and bool((table["r_hat"] < 1.02).all())
    traces = arviz.plot_trace(found.to_arviz(), backend_kwargs={"figsize": (4, 4)})
    assert [axes.get_title() for axes in traces[:, 0]] == NAMES and len(traces[0, 1].lines) == 4  # chains
    lp = found.to_arviz().sample_stats["lp"].values.ravel()
    x = np.stack([found.to_arviz().posterior[name].values.ravel() for name in NAMES], 1)
    np.testing.assert_allclose(lp, gaussian(torch.from_numpy(x)), rtol=1e-9)


def test_arviz_gets_as_many_samples_as_are_effective():
    import arviz

    found = weighted()
    data = found.to_arviz(seed=1)
    assert data.posterior["x"].shape == (4, round(found.ess * 4000) // 4, 1)
    table = arviz.summary(data, round_to="none")
    assert list(table.index) == ["x[0]"]
    assert float(table["mean"].iloc[0]) == pytest.approx(1, abs=0.12)  # 1500 of them
    assert float(table["ess_bulk"].iloc[0]) == pytest.approx(found.ess * 4000, rel=0.25)
    np.testing.assert_array_equal(data.posterior["x"], found.to_arviz(seed=1).posterior["x"])


def test_a_missing_arviz_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ConfigError, match=r"to_arviz\(\) needs ArviZ: pip install 'pwgf\[arviz\]'"):
        made.to_arviz()


def test_a_run_of_solve_has_no_samples(tmp_path):
    scheme = pwgf.PWGF(pwgf.energies.Entropy(), maps.Affine(1), pwgf.Gaussian(1), num_samples=20, num_eval=20)
    pwgf.solve(scheme, [0.0, 0.1], out=tmp_path / "run.h5", progress=False)
    with pytest.raises(ConfigError, match="this run holds nothing of it"):
        sampling.load(tmp_path / "run.h5")


def test_the_command_line_tells_the_constant(made, capsys):
    assert cli.main(["info", made.run.path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Result, sampling.sample: ")]
    assert f"log_z {made.log_z:.4g}" in line and "ess 1" in line
    assert cli.main(["info", made.run.path, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["log_z"] == made.log_z and result["about"]["names"] == NAMES
