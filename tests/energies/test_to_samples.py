"""Energies towards samples against direct sums, `distances` and closed forms; what they refuse."""

import math
import sys

import pytest
import torch

import pwgf
from pwgf import distances, energies, maps
from pwgf.errors import ConfigError, ShapeError
from pwgf.measures import PushedMeasure
from pwgf.parallel import Group
from tests.energies.members import cloud, measure, small


def points(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(x):
    """A measure whose samples are x."""
    return PushedMeasure(maps.Affine(x.shape[1]), pwgf.Gaussian(x.shape[1]), maps.Affine(x.shape[1]).initial(), x)


@pytest.mark.parametrize("dim", [1, 3])
def test_half_the_energy_distance_up_to_the_pairs_left_out(dim):
    x, y = points(20, dim), points(31, dim, 1)
    within_x = float(torch.cdist(x, x).sum()) / (20 * 19)
    within_y = float(torch.cdist(y, y).sum()) / (31 * 30)
    expected = float(torch.cdist(x, y).mean()) - within_x / 2 - within_y / 2
    assert float(energies.MMD(y)(at(x))) == pytest.approx(expected, rel=1e-7)
    biased = float(distances.energy_distance(x, y)) / 2
    assert biased - expected == pytest.approx(within_x / 40 + within_y / 62, rel=1e-6)


def test_the_gaussian_kernel_and_its_bandwidth():
    x, y = points(20, 3), points(31, 3, 1)
    energy = energies.MMD(y, "gaussian")
    assert energy.bandwidth == pytest.approx(float(torch.pdist(y).median()))
    k = lambda a, b: (-torch.cdist(a, b).square() / (2 * energy.bandwidth**2)).exp()  # noqa: E731
    own = (k(x, x).sum() - 20) / (20 * 19) / 2 + (k(y, y).sum() - 31) / (31 * 30) / 2
    assert float(energy(at(x))) == pytest.approx(float(own - k(x, y).mean()), rel=1e-7)


def test_sorting_in_one_dimension_gives_what_pairs_give_in_two():
    x, y = points(40, 1), points(25, 1, 1)
    flat = torch.nn.functional.pad
    line, plane = energies.MMD(y), energies.MMD(flat(y, (0, 1)))
    torch.testing.assert_close(line(at(x)), plane(at(flat(x, (0, 1)))))
    torch.testing.assert_close(line.velocity(at(x)), plane.velocity(at(flat(x, (0, 1))))[:, :1])


def test_blocks_do_not_change_it(monkeypatch):
    energy, rho = energies.MMD(cloud(2)), at(points(50, 2))
    value, v = energy(rho), energy.velocity(rho)
    monkeypatch.setattr("pwgf.energies.to_samples._BLOCK", 100)
    torch.testing.assert_close(energy(rho), value)
    torch.testing.assert_close(energy.velocity(rho), v)


@pytest.mark.parametrize("m", [20, 31, 7])
def test_sliced_is_half_the_distance_along_its_directions(m):
    x, y = points(20, 3), points(m, 3, 1)
    energy = energies.SlicedW2(y, 10)
    expected = distances.sliced_w2(x, y, directions=energy._directions) / 2
    torch.testing.assert_close(energy(at(x)), expected)
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(distances.sliced_w2(leaf, y, directions=energy._directions) / 2, leaf)
    torch.testing.assert_close(energy.velocity(at(x)), -20 * slope)


def test_directions_are_frames():
    directions = energies.SlicedW2(points(5, 4), 12)._directions
    for frame in directions.split(4):
        torch.testing.assert_close(frame @ frame.T, torch.eye(4).double())


def test_sinkhorn_tends_to_half_of_w2():
    x, y = points(60, 2), 0.5 + 1.5 * points(60, 2, 1)
    value = float(energies.Sinkhorn(y, blur=0.02, scaling=0.98)(at(x)))
    assert value == pytest.approx(float(distances.w2(x, y)) / 2, rel=0.02)


@pytest.mark.parametrize("make", [energies.MMD, energies.SlicedW2, lambda y: energies.Sinkhorn(y, scaling=0.5)])
def test_no_velocity_where_the_laws_agree(make):
    y = points(400, 2)
    far, near = make(y).velocity(at(points(400, 2) + 3)), make(y).velocity(at(y))
    assert float(near.square().mean()) < 0.01 * float(far.square().mean())
    assert bool((far.mean(0) < -0.2).all())  # back towards the samples


def test_a_flow_finds_a_gaussian():
    y = torch.tensor([1.0, -1.0]).double() + points(2000, 2) @ torch.tensor([[1.5, 0.0], [0.8, 0.5]]).double()
    scheme = pwgf.PWGF(energies.SlicedW2(y, 32), maps.Affine(2), pwgf.Gaussian(2), num_samples=2000)
    run = pwgf.solve(scheme, [0.0, 12.0], progress=False)
    x = run.sample(12.0, 20_000)
    torch.testing.assert_close(x.mean(0), y.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), torch.cov(y.T), rtol=0, atol=0.1)
    assert run["energy"][-1] < 0.01 * run["energy"][0]


def test_particles_follow_them():
    run = pwgf.solve(
        pwgf.EulerMaruyama(energies.MMD(cloud(1) + 4), pwgf.Gaussian(1), num_samples=200, dt=0.1), [0.0, 40.0],
        progress=False,
    )  # fmt: skip
    assert float(run.sample(40.0, 200).mean()) == pytest.approx(float(cloud(1).mean()) + 4, abs=0.3)


def test_the_checksum_tells_samples_apart():
    one, other = energies.MMD(cloud(2)).to_config(), energies.MMD(cloud(2) + 1e-9).to_config()
    assert one["y"]["shape"] == [30, 2] and one["y"]["sha256"] != other["y"]["sha256"]
    assert one == energies.MMD(cloud(2)).to_config()


def test_a_second_derivative_is_refused():
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = energies.MMD(cloud(2))(measure(2, theta, small().z))
    (slope,) = torch.autograd.grad(value, theta, create_graph=True)
    with pytest.raises(ConfigError, match="MMD can be differentiated once"):
        slope.sum().backward()


class _Half(Group):
    """The second of two processes; `whole` stands for what the other would send."""

    def __init__(self, whole):
        super().__init__(1, 2, "cpu")
        self.whole = whole

    def gather_rows(self, values):
        return self.whole

    def sum(self, value):
        raise AssertionError("not needed: every process has all samples")


@pytest.mark.parametrize("make", [energies.MMD, energies.SlicedW2, lambda y: energies.Sinkhorn(y, scaling=0.5)])
def test_processes_share_the_samples_out(make):
    x, energy = points(11, 2), make(cloud(2))
    map = maps.Affine(2)
    half = PushedMeasure(map, pwgf.Gaussian(2), map.initial(), x, group=_Half(x))
    torch.testing.assert_close(energy(half), energy(at(x)))
    torch.testing.assert_close(energy.velocity(half), energy.velocity(at(x))[half.own])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: energies.MMD(3), ShapeError, r"MMD\(y\) needs floating-point samples of shape \(m, d\).*got int"),
        (lambda: energies.MMD(torch.ones(5)), ShapeError, r"got \(5,\), torch.float32"),
        (lambda: energies.SlicedW2(torch.ones(5, 2).long()), ShapeError, r"got \(5, 2\), torch.int64"),
        (lambda: energies.MMD(torch.full((3, 2), math.nan)), ConfigError, "3 of 3 samples are NaN"),
        (lambda: energies.MMD(cloud(2), "gausian"), ConfigError, "Did you mean 'gaussian'"),
        (lambda: energies.MMD(cloud(2), "gaussian", bandwidth=0), ConfigError, "bandwidth.*positive length"),
        (lambda: energies.MMD(torch.ones(9, 2), "gaussian"), ConfigError, "bandwidth.*positive length"),
        (lambda: energies.SlicedW2(cloud(2), 0), ConfigError, r"num_directions=…\) must be an integer ≥ 1; got 0"),
        (lambda: energies.SlicedW2(cloud(2), seed=-1), ConfigError, "seed"),
        (lambda: energies.Sinkhorn(cloud(2), blur=0), ConfigError, "blur"),
        (lambda: energies.Sinkhorn(cloud(2), scaling=1), ConfigError, "scaling.*between 0 and 1"),
        (lambda: energies.MMD(cloud(3)).velocity(small()), ShapeError, "y has dimension 3, the flow's samples 2"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "geomloss", None)
    with pytest.raises(ConfigError, match=r'pip install "pwgf\[eval\]", or use SlicedW2'):
        energies.Sinkhorn(cloud(2))
