"""A user's own map, reference or energy is known again by its values, when a run is loaded or resumed."""

import numpy as np
import pytest
import torch
from torch import nn

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, ResumeMismatchError
from pwgf.run import solve as solve_module


def spring(x):
    return x.square().sum(-1)


class Net(nn.Module):
    """Two layers with buffers."""

    def __init__(self, seed=0, act=torch.tanh, scale=1.0, order=(0, 1)):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        self.act = act
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("order", torch.tensor(order))

    def forward(self, z):
        return self.last(self.act(self.scale * self.first(z[:, self.order])))


def own(residual=True, **settings):
    return maps.FromModule(Net(**settings), 2, residual=residual)


class Shifted(pwgf.Unnormalised):
    """N(shift, I), up to a factor."""

    def __init__(self, shift=1.0):
        super().__init__(
            lambda z: -0.5 * (z - shift).square().sum(1),
            lambda n, generator: shift + torch.randn(n, 2, generator=generator, dtype=torch.float64),
            2,
        )


def scheme(map=None, reference=None, V=spring, dtype=torch.float64):
    energy = energies.Potential(V) + 0.1 * energies.Entropy()
    few = {"num_samples": 60, "num_eval": 60, "integrator": pwgf.Euler(0.05), "dtype": dtype}
    return pwgf.PWGF(energy, map or own(), reference or pwgf.Gaussian(2), **few)


def solve(path, times=(0, 0.1), *, resume=False, **parts):
    return pwgf.solve(scheme(**parts), times, out=path, progress=False, resume=resume)


OTHERS = {
    "weights": {"seed": 1},
    "activation": {"act": torch.relu},
    "buffer": {"scale": 0.9},
    "permutation": {"order": (1, 0)},
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_another_module_of_the_same_size_is_not_taken_for_the_runs(tmp_path, name, dtype):
    solved = solve(tmp_path / "run.h5", dtype=dtype)
    with pytest.raises(ConfigError, match=r"load\(.*run\.h5'\): T of the map at the same points differs .*weights"):
        pwgf.load(tmp_path / "run.h5", map=own(**OTHERS[name]))
    with pytest.raises(ResumeMismatchError, match=r"T of the map at the same points differs from the stored one"):
        solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True, map=own(**OTHERS[name]), dtype=dtype)
    again = pwgf.load(tmp_path / "run.h5", map=own())
    assert torch.equal(again.sample(0.1, 5), solved.sample(0.1, 5))
    longer = solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True, dtype=dtype)
    assert longer.t.tolist() == [0, 0.1, 0.2]


def test_a_plain_module_is_known_by_its_parameters_alone(tmp_path):
    """Without `residual` θ holds all weights, so those of the module that is handed over do not matter."""
    solved = solve(tmp_path / "run.h5", map=own(residual=False))
    again = pwgf.load(tmp_path / "run.h5", map=own(residual=False, seed=1))
    assert torch.equal(again.sample(0.1, 5), solved.sample(0.1, 5))


def test_another_family_with_as_many_parameters_is_refused(tmp_path):
    solve(tmp_path / "run.h5", map=maps.Affine(2))
    module = maps.FromModule(nn.Linear(2, 2), 2)
    with pytest.raises(ConfigError, match=r"T of the map at the same points differs"):
        pwgf.load(tmp_path / "run.h5", map=module)


def test_another_reference_is_refused(tmp_path):
    solve(tmp_path / "run.h5", map=maps.Affine(2), reference=Shifted())
    with pytest.raises(ConfigError, match=r"log λ of the reference at the same points differs .*the same functions"):
        pwgf.load(tmp_path / "run.h5", reference=Shifted(1.001))
    with pytest.raises(ResumeMismatchError, match=r"log λ of the reference"):
        solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True, map=maps.Affine(2), reference=Shifted(1.001))
    assert len(pwgf.load(tmp_path / "run.h5", reference=Shifted()).sample(0.1, 5)) == 5


def test_another_energy_is_refused(tmp_path):
    solve(tmp_path / "run.h5", map=maps.Affine(2))
    entropy = 0.1 * energies.Entropy()
    with pytest.raises(ConfigError, match=r"the velocity of the energy at the same points differs"):
        pwgf.load(tmp_path / "run.h5", energy=energies.Potential(lambda x: 1.001 * spring(x)) + entropy)
    assert len(pwgf.load(tmp_path / "run.h5", energy=energies.Potential(spring) + entropy)) == 2
    with pytest.raises(ConfigError, match=r"load\(energy=…\) must be the energy .*solved with; got functi"):
        pwgf.load(tmp_path / "run.h5", energy=spring)


def test_an_energy_that_differs_only_away_from_the_samples_is_refused_on_resume(tmp_path):
    solve(tmp_path / "run.h5", map=maps.Affine(2), reference=pwgf.Gaussian(2, cov=1e-4))

    def walled(x):
        return spring(x) + torch.relu(x[:, 0] - 1).square()

    with pytest.raises(ResumeMismatchError, match=r"the velocity of the energy at the same points differs"):
        parts = {"map": maps.Affine(2), "reference": pwgf.Gaussian(2, cov=1e-4), "V": walled}
        solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True, **parts)


def test_an_energy_without_a_value_at_the_points_can_be_stored_and_resumed(tmp_path):
    def positive(x):
        if bool((x < 0).any()):
            raise ValueError("x must be positive")
        return x.square().sum(-1)

    parts = {"map": maps.Affine(2), "reference": pwgf.Gaussian(2, mean=50.0), "V": positive}
    solve(tmp_path / "run.h5", **parts)
    assert len(solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True, **parts)) == 3


@pytest.mark.parametrize("make", ["JKOICNN", "SWJKO", "EulerMaruyama"])
def test_every_scheme_stores_them(tmp_path, make):
    energy, few = energies.Potential(spring), {"num_samples": 50}
    flows = {
        "JKOICNN": lambda: pwgf.JKOICNN(energy, pwgf.Gaussian(2), h=0.1, width=4, num_eval=50, max_iterations=3, **few),
        "SWJKO": lambda: pwgf.SWJKO(energy, own(), pwgf.Gaussian(2), tau=0.1, num_eval=50, max_iterations=3, **few),
        "EulerMaruyama": lambda: pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), dt=0.1, **few),
    }
    pwgf.solve(flows[make](), [0, 0.1], out=tmp_path / "run.h5", progress=False)
    with pwgf.storage.open_record(tmp_path / "run.h5") as record:
        kinds = {"reference", "energy"} | ({"map"} if make != "EulerMaruyama" else set())
        assert {name for name in record.arrays if name.startswith("check/")} == {f"check/{kind}" for kind in kinds}
        assert all(np.isfinite(values).all() for values in record.arrays.values())


def test_an_older_file_without_such_values_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(solve_module, "identity_of", lambda scheme: {})
    solved = solve(tmp_path / "run.h5")
    monkeypatch.undo()
    assert torch.equal(pwgf.load(tmp_path / "run.h5", map=own()).sample(0.1, 5), solved.sample(0.1, 5))
    assert len(solve(tmp_path / "run.h5", (0, 0.1, 0.2), resume=True)) == 3
