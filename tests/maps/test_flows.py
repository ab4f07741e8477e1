"""Neural ODEs and zuko flows: what the contract test does not see."""

from __future__ import annotations

import sys

import pytest
import torch
import zuko
from torch import nn
from torch.distributions import MultivariateNormal
from torchdiffeq import odeint

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, ShapeError, SolverError
from pwgf.measures import PushedMeasure
from tests.maps.members import flow, points, random_theta


def test_far_from_the_start_the_density_is_that_of_the_dense_determinant():
    map = maps.NeuralODE(2, width=8)
    theta, z = random_theta(map, 0.5), points(20, map.dim)
    x, lam = map(theta, z), MultivariateNormal(torch.zeros(map.dim).double(), torch.eye(map.dim).double())
    rho = PushedMeasure(map, pwgf.Gaussian(map.dim), theta, z)
    dense = torch.linalg.slogdet(map.jacobian(theta, z)).logabsdet
    torch.testing.assert_close(rho.log_density, lam.log_prob(z) - dense, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(map.inverse(theta, x), z, rtol=1e-8, atol=1e-8)


def test_without_zuko_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ConfigError, match=r'needs the package zuko, which is not installed.*install "pwgf\[flows\]"'):
        maps.FromFlow(None, 2)


def test_a_singular_affine_part_is_a_solver_error():
    map = maps.NeuralODE(2)
    theta = map.initial()
    map.unpack(theta)[0].zero_()
    with pytest.raises(SolverError, match=r"NeuralODE\.inverse: the matrix A in θ is singular.*smaller tolerance"):
        map.inverse(theta, points(3, 2))
    with pytest.raises(ShapeError, match=r"NeuralODE\.inverse\(theta, x\): x must have shape \(n, 2\), .*got \(4, 3\)"):
        map.inverse(theta, torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["CouplingFlow", "GradientICNN"])
def test_families_of_version_0_1_are_named(name):
    with pytest.raises(ConfigError, match=rf"stored map '{name}' was a family of pwgf 0\.1.*'pwgf<0\.2'.*FromFlow"):
        maps.from_config({"name": name, "dim": 2})


# ---- neural ODEs ----------------------------------------------------------------------------------------------------


def bent(method, num_steps, **settings):
    """A neural ODE far from the identity, whose coarse steps are no good approximation of the continuous flow."""
    map = maps.NeuralODE(2, width=8, method=method, num_steps=num_steps, gain=1.0, **settings)
    theta = random_theta(map, 0.4)
    map.unpack(theta)[0].copy_(torch.eye(2, 3))
    return map, theta


@pytest.mark.parametrize(("method", "num_steps"), [("euler", 4), ("midpoint", 2), ("rk4", 2)])
def test_the_inverse_undoes_the_steps_where_reverse_time_does_not(method, num_steps):
    map, theta = bent(method, num_steps)
    z = points(50, 2)
    x = map(theta, z)
    act = map.acting(theta)
    back = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    reverse = odeint(lambda t, y: map._slope(act, t, y)[0], x, back, method=method)[-1]
    assert float((reverse - z).abs().max()) > 1e-4
    torch.testing.assert_close(map.inverse(theta, x), z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_steps_are_those_of_torchdiffeq(method):
    map, theta = bent(method, 3)
    z, act, times = points(20, 2), map.acting(theta), torch.linspace(0, 1, 4, dtype=torch.float64)
    theirs = odeint(lambda t, y: map._slope(act, t, y)[0], z, times, method=method)[-1]
    torch.testing.assert_close(map(theta, z), theirs, rtol=1e-13, atol=1e-13)


def test_many_steps_follow_the_continuous_flow():
    """d = 1 with a constant field: f = gain (W_out tanh(bias) + c) does not depend on y or t, T(z) = z + f."""
    map = maps.NeuralODE(1, width=3, gain=0.5)
    theta = map.initial()
    _, hidden, out = map.unpack(theta)
    hidden.zero_()
    hidden[:, -1], out[:] = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([[1.0, 2.0, -0.5, 0.7]])
    speed = 0.5 * (torch.tanh(hidden[:, -1]) @ out[0, :3] + 0.7)
    z = points(5, 1)
    torch.testing.assert_close(map(theta, z), z + speed)
    map, theta = bent("rk4", 64)
    z, times, act = points(5, 2), torch.tensor([0.0, 1.0], dtype=torch.float64), map.acting(theta)
    fine = odeint(lambda t, y: map._slope(act, t, y)[0], z, times, method="dopri5", rtol=1e-12, atol=1e-12)[-1]
    torch.testing.assert_close(map(theta, z), fine, rtol=1e-8, atol=1e-8)


def test_the_series_is_unbiased_over_the_probes():
    """z-test: the mean over 225 probe seeds against the exact log det, per sample; |z| < 4 for all of them."""
    settings = {"width": 8, "num_steps": 1, "method": "euler", "gain": 0.1}
    dense = maps.NeuralODE(6, **settings, log_det="dense")
    theta, x = random_theta(dense, 0.3), points(4, 6)
    exact = dense.log_abs_det(theta, x)
    family = [
        maps.NeuralODE(6, **settings, log_det="series", num_probes=2, num_terms=10, probe_seed=s) for s in range(225)
    ]
    values = torch.stack([map.log_abs_det(theta, x) for map in family])
    spread = values.std(0)
    assert bool((spread > 1e-3).all())  # two probes of six do not see everything
    z = (values.mean(0) - exact) / (spread / 15)
    assert float(z.abs().max()) < 4
    shifted = (values.mean(0) + spread / 3 - exact) / (spread / 15)  # the test can fail
    assert float(shifted.abs().min()) > 2


def test_the_series_with_all_probes_is_exact_and_serves_high_dimension():
    dense, series = (maps.NeuralODE(40, width=6, log_det=kind, num_probes=40, num_terms=25) for kind in ("dense", None))
    theta, z = random_theta(dense, 0.05), points(5, 40)
    assert series.log_det == "series"
    assert maps.NeuralODE(32).log_det == "dense"
    torch.testing.assert_close(series.log_abs_det(theta, z), dense.log_abs_det(theta, z), rtol=1e-9, atol=1e-9)
    one, other = (map.push_score(theta, z, -z) for map in (series, dense))
    torch.testing.assert_close(one.score, other.score, rtol=1e-8, atol=1e-8)
    assert torch.equal(one.det_sign, other.det_sign)


def test_the_probes_are_frozen():
    map = maps.NeuralODE(6, width=5, log_det="series", num_probes=2)
    theta, z = random_theta(map, 0.1), points(8, 6)
    whole = map.log_abs_det(theta, z)
    assert torch.equal(whole, map.log_abs_det(theta, z))
    torch.testing.assert_close(
        torch.cat([map.log_abs_det(theta, part) for part in z.split(3)]), whole, rtol=1e-12, atol=0
    )
    torch.testing.assert_close(map.probes(z).T @ map.probes(z), torch.eye(2, dtype=torch.float64))


def test_steps_that_are_too_long_for_the_series_are_told():
    map, theta = bent("euler", 1, log_det="series")
    map.unpack(theta)[2].mul_(5)
    with pytest.raises(
        SolverError, match=r"series for log det does not settle at .*num_steps or num_terms, or log_det="
    ):
        map.log_abs_det(theta, points(30, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": True}, r"NeuralODE\(dim, width, num_steps\): dim must be an integer ≥ 1; got True"),
        ({"width": 0}, r"NeuralODE\(width=…\) must be an integer ≥ 1; got 0"),
        ({"num_steps": 0.5}, r"NeuralODE\(num_steps=…\) must be an integer ≥ 1; got 0\.5"),
        ({"num_probes": 0}, r"NeuralODE\(num_probes=…\) must be an integer ≥ 1; got 0"),
        ({"num_terms": None}, r"NeuralODE\(num_terms=…\) must be an integer ≥ 1; got None"),
        ({"probe_seed": -1}, r"NeuralODE\(probe_seed=…\) must be an integer ≥ 0; got -1"),
        (
            {"method": "rk5"},
            r"method=…\) must be one of \['euler', 'midpoint', 'rk4'\]; got 'rk5'\. Did you mean 'rk4'",
        ),
        ({"log_det": "exact"}, r"NeuralODE\(log_det=…\) must be one of \['dense', 'series'\]; got 'exact'"),
        ({"axis_share": 2}, r"NeuralODE\(axis_share=…\) must lie in \[0, 1\]; got 2"),
        ({"scale": -1}, r"NeuralODE\(scale=…\) must be positive and finite; got -1"),
        ({"gain": 0}, r"NeuralODE\(gain=…\) must be positive and finite; got 0"),
    ],
)
def test_settings_of_the_neural_ode(settings, message):
    with pytest.raises(ConfigError, match=message):
        maps.NeuralODE(**{"dim": 2, **settings})


# ---- zuko flows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [zuko.flows.RealNVP, zuko.flows.MAF, zuko.flows.NSF])
def test_a_zuko_flow_starts_at_its_own_measure(make):
    """The map draws what the flow draws, and its density and score are those of flow().log_prob."""
    given = flow(make, 2)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    map = maps.FromFlow(given, dim=2)
    rho = PushedMeasure(map, pwgf.Gaussian(2), map.initial(), points(6, 2))
    torch.testing.assert_close(rho.x, given().transform.inv(points(6, 2)), rtol=0, atol=1e-12)
    x = rho.x.detach().requires_grad_(True)
    log_prob = given().log_prob(x)
    torch.testing.assert_close(rho.log_density, log_prob.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rho.score, torch.autograd.grad(log_prob.sum(), x)[0], rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert map.to_config()["name"] == "FromFlow"


def test_a_flow_that_draws_by_bisection():
    """J from the transform against zuko's own derivative of the bisection, which is good to its accuracy, 1e-6."""
    given = flow(zuko.flows.BPF, 2, degree=4, transforms=1)
    map = maps.FromFlow(given, 2)
    theta, z = map.initial(), points(5, 2)
    J = torch.autograd.functional.jacobian(lambda q: map(q, z), theta)
    linear, eta, u = map.linearise(theta, z), points(1, map.num_params, 1)[0], points(5, 2, 2)
    torch.testing.assert_close(linear.jv(eta), J @ eta, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((linear.jv(eta) * u).sum(), eta @ linear.jtu(u), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(map.tangent_rows(theta, z), J, rtol=1e-4, atol=1e-4)
    rho = PushedMeasure(map, pwgf.Gaussian(2), theta, z)
    x = rho.x.detach().requires_grad_(True)
    log_prob = given().log_prob(x)
    torch.testing.assert_close(rho.log_density, log_prob.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rho.score, torch.autograd.grad(log_prob.sum(), x)[0], rtol=1e-4, atol=1e-4)
    slopes = torch.autograd.functional.jacobian(lambda q: map(theta, q), z).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(map.jacobian(theta, z), slopes, rtol=1e-4, atol=1e-4)


def frozen_flow():
    given = flow(zuko.flows.RealNVP, 2)
    next(given.parameters()).requires_grad_(False)
    return given


def only_buffers():
    shift = zuko.lazy.UnconditionalTransform(zuko.transforms.AdditiveTransform, torch.ones(2), buffer=True)
    return zuko.lazy.Flow(shift, zuko.flows.RealNVP(2).base)


def with_dropout():
    given = flow(zuko.flows.RealNVP, 2)
    given.transform.transforms[0].hyper.append(nn.Dropout())
    return given


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Linear(2, 2),
            ConfigError,
            r"FromFlow\(flow, dim\): flow must be a zuko flow.*got Linear.*FromModu",
        ),
        (lambda: zuko.flows.GMM(2), ConfigError, r"flow must be a zuko flow, a law with a transform; got GMM"),
        (frozen_flow, ConfigError, r"FromFlow: parameter 'transform.*' is frozen \(requires_grad=False\)"),
        (only_buffers, ConfigError, r"FromFlow: the module has no parameters.*Buffers are constants"),
        (with_dropout, ConfigError, r"FromFlow: transform\..* is a Dropout, which makes T depend on .*chance"),
        (lambda: flow(zuko.flows.RealNVP, 3), ShapeError, r"FromFlow\(flow, dim=2\): the module failed .*\(2, 2\)"),
        (lambda: flow(zuko.flows.NSF, 2, context=1), ShapeError, r"FromFlow\(flow, dim=2\): the module failed on"),
        (
            lambda: flow(zuko.flows.SOSPF, 2),
            ConfigError,
            r"FromFlow\(flow, dim=2\): Jη cannot be computed .*disagree.*SOSPF.*use maps\.NeuralODE",
        ),
    ],
)
def test_flows_that_are_no_map(make, error, message):
    with pytest.raises(error, match=message):
        maps.FromFlow(make(), dim=2)


class Wrong(zuko.transforms.AdditiveTransform):
    """A shift whose log det is an estimate."""

    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y) + 0.1


def test_a_flow_whose_log_det_is_not_that_of_its_map():
    given = zuko.lazy.Flow(zuko.lazy.UnconditionalTransform(Wrong, torch.ones(2)), zuko.flows.RealNVP(2).base)
    with pytest.raises(ConfigError, match=r"the flow's log det misses that of its own map by .*use maps\.NeuralODE"):
        maps.FromFlow(given, 2)


def test_a_zuko_flow_follows_a_gaussian_flow():
    """RealNVP under V = |x − 1|²/2 and temperature 1 from its own start: the energy falls at every row."""
    given = flow(zuko.flows.RealNVP, 2)
    energy = energies.Potential(lambda x: (x - 1).square().sum(1) / 2) + energies.Entropy()
    scheme = pwgf.PWGF(energy, maps.FromFlow(given, 2), pwgf.Gaussian(2), num_samples=60, num_eval=500, tolerance=0.05)
    run = pwgf.solve(scheme, [0.0, 0.1, 0.2], progress=False)
    assert bool((torch.from_numpy(run["energy"]).diff() < 0).all())
