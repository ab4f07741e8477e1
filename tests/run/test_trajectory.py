"""Runs read back: measures at any time, columns, files, a user's own map, dtypes."""

import logging
import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import Reference
from pwgf.problems import OrnsteinUhlenbeck
from pwgf.run.memory import Memory
from pwgf.run.trajectory import Trajectory

TIMES = np.linspace(0, 1, 6)


def spring(x):
    return 2 * (x - 1).square().sum(-1)


def solve(times=TIMES, map=None, seed=0, out=None, **settings):
    settings = {"num_samples": 100, "num_eval": 200, **settings}
    energy = energies.Potential(spring) + energies.Entropy()
    scheme = pwgf.PWGF(energy, map or maps.Affine(2), pwgf.Gaussian(2), **settings)
    return pwgf.solve(scheme, times, out=out, seed=seed, progress=False)


@pytest.fixture(scope="module")
def run():
    return solve()


# ---- the measure ----------------------------------------------------------------------------------------------------


def test_sample_is_push_of_the_reference(run):
    z = pwgf.Gaussian(2).sample(20, torch.Generator().manual_seed(5))
    assert torch.equal(run.sample(0.4, 20, seed=5), run.push(0.4, z))


def test_equal_seeds_couple_times_and_runs(run):
    """On equal z the samples move by the flow's own displacement, not by sampling noise."""
    early, late = run.sample(0.4, 2000), run.sample(0.4001, 2000)
    assert 0 < float((late - early).abs().max()) < 1e-2
    assert float((run.sample(0.4, 2000) - solve(seed=1).sample(0.4, 2000)).abs().max()) < 1e-3
    assert float((run.sample(0.4, 2000, seed=1) - early).abs().max()) > 0.1


def test_a_time_close_to_a_row_is_that_row(run):
    assert torch.equal(run.theta(0.4 + 0.9e-6), torch.from_numpy(run["theta"][2]))
    assert torch.equal(run.theta(-0.9e-6), torch.from_numpy(run["theta"][0]))
    assert not torch.equal(run.theta(0.4 + 2e-6), run.theta(0.4))


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, math.inf])
def test_a_time_outside_the_run_is_refused(run, t):
    for call in (run.theta, lambda t: run.sample(t, 3), lambda t: run.log_density(t, torch.zeros(1, 2))):
        with pytest.raises(ConfigError, match=r"lies outside the run, which goes from 0 to 1\. Give a t within it"):
            call(t)


def test_times_of_every_kind(run):
    expected = run.sample(0.4, 3)
    for t in (np.float64(0.4), np.float32(0.4), torch.tensor(0.4), torch.tensor(0.4, dtype=torch.float64)):
        assert torch.equal(run.sample(t, 3), expected)
    with pytest.raises(ConfigError, match="need a number for t; got None"):
        run.sample(None, 3)


def test_density_and_score_at_a_row_are_those_of_the_affine_map(run):
    w = run.theta(0.4).view(2, 3)
    law = torch.distributions.MultivariateNormal(w[:, 2], w[:, :2] @ w[:, :2].T)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(run.log_density(0.4, x), law.log_prob(x))
    leaf = x.clone().requires_grad_(True)
    (score,) = torch.autograd.grad(law.log_prob(leaf).sum(), leaf)
    assert torch.allclose(run.score(0.4, x), score)


def test_density_of_a_network_is_consistent_with_its_samples():
    """∫ρ f = E f(T(z)) for a function f, by a grid in one dimension."""
    energy = energies.Potential(lambda x: (x**4).sum(-1) / 4) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.ResidualMLP(1, width=16), pwgf.Gaussian(1), num_samples=200, num_eval=200)
    run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
    grid = torch.linspace(-3.5, 3.5, 701, dtype=torch.float64)[:, None]
    density = run.log_density(0.1, grid).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=1e-3)
    second = float(torch.trapezoid(density * grid[:, 0] ** 2, grid[:, 0]))
    x = run.sample(0.1, 100_000)
    assert second == pytest.approx(float(x.square().mean()), abs=5 * float(x.square().std()) / 100_000**0.5)


def test_tensors_come_back_detached_on_the_cpu_in_the_dtype_of_the_run(run):
    single = solve([0.0, 0.2], dtype=torch.float32)
    x = torch.zeros(3, 2, requires_grad=True)
    for each, dtype in ((run, torch.float64), (single, torch.float32)):
        t = each.t[-1] / 2
        measures = (each.sample(t, 4), each.push(t, x), each.log_density(t, x), each.score(t, x))
        for value in (*measures, each.theta(t), each.state().theta):
            assert value.dtype == dtype
            assert value.device.type == "cpu"
            assert not value.requires_grad
    assert np.allclose(single.sample(0.2, 100), run.sample(0.2, 100), atol=1e-2)
    assert single["theta"].dtype == np.float64  # columns are float64 always


@pytest.mark.parametrize("x", [torch.zeros(2), torch.zeros(3, 3)])
def test_points_of_the_wrong_shape(run, x):
    with pytest.raises(ShapeError, match=r"z must have shape \(n, 2\), a row per sample; got"):
        run.push(0.4, x)
    with pytest.raises(ShapeError, match=r"x must have shape \(n, 2\)"):
        run.log_density(0.4, x)


@pytest.mark.parametrize("seed", ["a", None, 1.5, -1, True])
def test_a_bad_seed_of_a_sample(run, seed):
    with pytest.raises(
        ConfigError, match=r"run\.sample\(seed=…\) must .*\[0, 2⁶³\) or a torch\.Generator; got .*seed=0"
    ):
        run.sample(0.4, 3, seed=seed)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_a_bad_number_of_samples(run, n):
    with pytest.raises(ConfigError, match=r"run\.sample\(n=…\) must be an integer ≥ 1"):
        run.sample(0.4, n)


# ---- between rows ---------------------------------------------------------------------------------------------------


def exact_rows(times):
    """Rows of the exact affine solution of an Ornstein–Uhlenbeck flow in one dimension, N(0,1) → N(1, ¼)."""
    memory = Memory({"scheme": {"dtype": "float64", "tolerance": 1e-4}})
    for t in times:
        decay = math.exp(-4 * t)
        s = math.sqrt(0.25 + 0.75 * decay**2)
        theta, theta_dot = np.array([s, 1 - decay]), np.array([-3 * decay**2 / s, 4 * decay])
        memory.append({"t": float(t), "theta": theta, "theta_dot": theta_dot, "energy": 0.0}, {})
    return Trajectory(memory, pwgf.schemes.MapReplay(maps.Affine(1), pwgf.Gaussian(1)))


def interpolation_error(h):
    run = exact_rows(np.arange(0, 1 + h / 2, h))
    errors = []
    for t in np.linspace(0, 1, 57):
        decay = math.exp(-4 * t)
        exact = torch.tensor([math.sqrt(0.25 + 0.75 * decay**2), 1 - decay], dtype=torch.float64)
        errors.append(float((run.theta(t) - exact).norm()))
    return max(errors)


def test_interpolation_is_of_fourth_order():
    assert math.log2(interpolation_error(0.05) / interpolation_error(0.025)) == pytest.approx(4, abs=0.3)


def test_interpolation_of_a_solved_run():
    """Between stored rows the law is as good as at them."""
    problem = OrnsteinUhlenbeck(1, cov=0.25 * torch.eye(1), mean=[1.0])
    scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=200, num_eval=100)
    run = pwgf.solve(scheme, np.linspace(0, 1, 21), progress=False)
    s, b = run.theta(0.375).tolist()
    law = problem.exact(0.375)
    assert b == pytest.approx(float(law.mean()), abs=1e-3)
    assert s**2 == pytest.approx(float(law.cov()), abs=1e-3)


def test_sparse_rows_warn_once_a_gap(caplog):
    run = exact_rows([0.0, 0.3, 0.6, 0.9])
    with caplog.at_level(logging.WARNING, "pwgf"):
        run.sample(0.3, 3)
        assert not caplog.messages  # a row is no interpolation
        run.sample(0.4, 3)
        run.sample(0.5, 3)
    assert len(caplog.messages) == 1
    assert "between rows t = 0.3 and 0.6" in caplog.messages[0]
    assert "store rows more densely" in caplog.messages[0]
    estimate = float(caplog.messages[0].split("about ")[1].split(" ")[0])
    exact, found = exact_rows([0.45]).theta(0.45), run.theta(0.45)
    assert estimate / 20 < float((exact - found).norm()) < 20 * estimate  # the estimate is of the right size


def test_dense_rows_do_not_warn(caplog):
    run = exact_rows(np.linspace(0, 1, 41))
    with caplog.at_level(logging.WARNING, "pwgf"):
        run.sample(0.512, 3)
    assert not caplog.messages


# ---- columns --------------------------------------------------------------------------------------------------------


def test_columns_are_float64_arrays_with_a_row_each(run):
    assert len(run) == 6
    for name in run.names:
        assert run[name].dtype == np.float64
        assert len(run[name]) == 6
    assert run["theta"].shape == run["theta_dot"].shape == (6, 6)
    assert "6 rows, t = 0 … 1" in repr(run)


@pytest.mark.parametrize("stored", [False, True])
def test_columns_and_times_are_the_callers_own(tmp_path, stored):
    run = solve(TIMES[:3], out=tmp_path / "run.h5" if stored else None)
    for array in (run.t, run["t"], run["energy"], run["theta"]):
        before = run.sample(0.05, 5), run["energy"].copy(), run["theta"].copy()
        array *= 2
        assert torch.equal(run.sample(0.05, 5), before[0])
        assert np.array_equal(run["energy"], before[1]) and np.array_equal(run["theta"], before[2])


def test_an_unknown_column_names_the_nearest(run):
    with pytest.raises(ConfigError, match=r"run\['energi'\]: no such column\. Did you mean 'energy'\?.*theta_dot"):
        run["energi"]


def test_rows_in_batches(run):
    batches = list(run.iter_rows(batch=4))
    assert [len(batch["t"]) for batch in batches] == [4, 2]
    for name in run.names:
        assert np.array_equal(np.concatenate([batch[name] for batch in batches]), run[name], equal_nan=True)


@pytest.mark.parametrize("batch", [0, -1, 2.5, None])
def test_a_bad_batch(run, batch):
    with pytest.raises(ConfigError, match=r"run\.iter_rows\(batch=…\) must be an integer ≥ 1; got"):
        run.iter_rows(batch)


def test_rows_are_read_when_they_are_asked_for(tmp_path, run, monkeypatch):
    """Opening a file and reading columns and one time touches no more of θ than the rows about that time."""
    solve(out=tmp_path / "run.h5")
    rows_read, vectors = [], pwgf.storage.pieces.Piece.vectors
    monkeypatch.setattr(
        pwgf.storage.pieces.Piece,
        "vectors",
        lambda self, name, start, stop: rows_read.extend(range(start, stop)) or vectors(self, name, start, stop),
    )
    loaded = pwgf.load(tmp_path / "run.h5")
    assert np.array_equal(loaded["energy"], run["energy"]) and loaded.state().t == 1.0
    assert not rows_read
    loaded.theta(0.5)
    assert set(rows_read) == {2, 3}
    batches = list(loaded.iter_rows(batch=4))
    assert [len(batch["t"]) for batch in batches] == [4, 2]
    assert np.array_equal(np.concatenate([batch["theta"] for batch in batches]), run["theta"])


def test_to_xarray(run):
    data = run.to_xarray()
    assert data["t"].values.tolist() == run.t.tolist()
    assert np.array_equal(data["theta"].values, run["theta"])
    assert np.array_equal(data["energy"].sel(t=1.0), run["energy"][-1])
    assert set(data.data_vars) == set(run.names) - {"t"}


def test_the_state_continues_the_run(run):
    energy = energies.Potential(spring) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=100, num_eval=200)
    state = run.state()
    assert state.t == 1.0
    (after, _), *_ = pwgf.evolve(scheme, state, [1.01])
    assert after.counters["num_steps"] == state.counters["num_steps"] + 1


# ---- files ----------------------------------------------------------------------------------------------------------


def test_load_reads_what_solve_gave(tmp_path, run):
    solve(out=tmp_path / "run.h5")
    loaded = pwgf.load(tmp_path / "run.h5")
    assert torch.equal(loaded.sample(0.33, 10), run.sample(0.33, 10))
    assert np.array_equal(loaded["energy"], run["energy"])
    assert loaded.config == run.config
    assert loaded.path == str(tmp_path / "run.h5")
    assert torch.equal(loaded.state().rng, run.state().rng)


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def test_a_users_own_map_is_needed_for_measures_only(tmp_path):
    own = maps.FromModule(module(), 2, residual=True)
    solved = solve([0.0, 0.05], own, out=tmp_path / "run.h5")
    loaded = pwgf.load(tmp_path / "run.h5")
    assert np.array_equal(loaded["energy"], solved["energy"])
    assert np.array_equal(loaded["theta"], solved["theta"])
    assert torch.equal(loaded.theta(0.02), solved.theta(0.02))
    with pytest.raises(ConfigError, match=r"stored map 'FromModule' cannot be rebuilt.*pwgf\.load\(path, map=…\)"):
        loaded.sample(0.05, 3)
    with pytest.raises(ConfigError, match="pwgf.load"):
        loaded.log_density(0.05, torch.zeros(1, 2))
    again = pwgf.load(tmp_path / "run.h5", map=maps.FromModule(module(), 2, residual=True))
    assert torch.equal(again.sample(0.05, 3), solved.sample(0.05, 3))


class Shifted(Reference):
    """A user's own reference: N(1, I)."""

    dim = 2

    def sample(self, n, seed=0):
        return 1 + torch.randn(n, 2, generator=seed, dtype=torch.float64)

    def log_density(self, z):
        return -0.5 * (z - 1).square().sum(1) - math.log(2 * math.pi)


def test_a_users_own_reference_is_needed_for_measures_only(tmp_path):
    scheme = pwgf.PWGF(energies.Potential(spring), maps.Affine(2), Shifted(), num_samples=50, num_eval=50)
    solved = pwgf.solve(scheme, [0.0, 0.1], out=tmp_path / "run.h5", progress=False)
    loaded = pwgf.load(tmp_path / "run.h5")
    assert np.array_equal(loaded["theta"], solved["theta"])
    with pytest.raises(ConfigError, match=r"pwgf\.load\(path, reference=…\)"):
        loaded.sample(0.1, 3)
    again = pwgf.load(tmp_path / "run.h5", reference=Shifted())
    assert torch.equal(again.sample(0.1, 3), solved.sample(0.1, 3))


def test_particles_are_read_back_from_a_file(tmp_path):
    energy = energies.Potential(spring) + energies.Entropy()
    scheme = pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), num_samples=30, dt=0.05)
    solved = pwgf.solve(scheme, [0.0, 0.1], out=tmp_path / "run.h5", progress=False)
    loaded = pwgf.load(tmp_path / "run.h5")
    assert torch.equal(loaded.sample(0.1, 10), solved.sample(0.1, 10))
    with pytest.raises(ConfigError, match=r"no density; solve with pwgf\.PWGF"):
        loaded.log_density(0.1, torch.zeros(1, 2))
