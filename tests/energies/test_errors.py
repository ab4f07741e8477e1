"""A user's function that cannot work is told at the door: which call, what was expected, what came, and the cure."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, PWGFError, ShapeError
from pwgf.measures import Cloud, PushedMeasure
from tests.energies.members import small, square

# Each energy of a user's function of samples, made from one function of a tensor with the sample axis (or pairs) first;
# the name in the message; the shape that its function must return for 12 samples in two dimensions.
OF_POINTS = {
    "Potential": (energies.Potential, r"Potential: V\(x\)", r"\(12,\)"),
    "KL": (energies.KL, r"KL: log_target\(x\)", r"\(12,\)"),
    "Local": (lambda f: energies.Local(lambda x, log_rho: f(x)), r"Local: g\(x, log_rho\)", r"\(12,\)"),
    "Interaction": (energies.Interaction, r"Interaction: W\(r\)", r"\(12, 12\)"),
}
FLOAT32 = torch.ones(2, 2, dtype=torch.float32)
FLOAT64 = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize("kind", OF_POINTS)
@pytest.mark.parametrize("part", ["value", "velocity"])
@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x.square(), ShapeError, r"{call} must return shape {shape} for an input .*; got .*\.sum\(-1\)"),
        (
            lambda x: x.square().sum(-1, keepdim=True),
            ShapeError,
            r"{call} must return shape {shape} .*, 1\).*\.sum\(-1\)",
        ),
        (
            lambda x: x.square().sum(),
            ShapeError,
            r"{call} must return shape {shape} .*; got \(\)\. Cure: return one val",
        ),
        (lambda x: 3.0, ShapeError, r"{call} must return a torch tensor of shape {shape} .*; got float\. Use torch op"),
        (lambda x: None, ShapeError, r"{call} must return a torch tensor of shape {shape} .*; got NoneType"),
        (lambda x: np.ones(len(x)), ShapeError, r"{call} must return a torch tensor of shape {shape} .*; got ndarray"),
        (lambda x: square(x).float(), ConfigError, r"{call} returned torch\.float32 on cpu .*captured\.to\(x\)"),
        (lambda x: square(x) > 1, ConfigError, r"{call} returned torch\.bool on cpu for an input of shape"),
        (
            lambda x: square(x @ FLOAT32),
            ConfigError,
            r"{call} failed on an input of shape .*torch\.float64.*captured\.to",
        ),
        (lambda x: square(x @ torch.eye(3)), ConfigError, r"{call} failed on an input of shape .*RuntimeError"),
        (lambda x: x.nothing(), ConfigError, r"{call} failed on an input of shape .*AttributeError.*nothing"),
        (lambda: 0, ConfigError, r"{call} failed on .*TypeError.*It must be a differentiable torch function"),
        (lambda x: np.sin(x.tolist()) @ x, ConfigError, r"{call} failed on .*\(no NumPy inside\)"),
    ],
)
def test_what_a_function_of_points_must_return(kind, part, f, error, message):
    make, call, shape = OF_POINTS[kind]
    energy = make(f)
    with pytest.raises(error, match=message.format(call=call, shape=shape)):
        energy(small()) if part == "value" else energy.velocity(small())


@pytest.mark.parametrize("kind", OF_POINTS)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: square(x.detach()),
        lambda x: torch.tensor(square(x).tolist(), dtype=x.dtype),
        lambda x: square(x).round(),
        lambda x: torch.sign(x[..., 0]),
        lambda x: (square(x) > 1).to(x),
    ],
)
def test_functions_without_a_gradient(kind, f):
    make, call, _ = OF_POINTS[kind]
    with pytest.raises(
        ConfigError, match=rf"{call} varies with its input but has no gradient.*no \.detach\(\), \.item"
    ):
        make(f).velocity(small())


@pytest.mark.parametrize("kind", OF_POINTS)
def test_numpy_inside(kind):
    make, call, _ = OF_POINTS[kind]
    energy = make(lambda x: torch.from_numpy(x.numpy() ** 2).sum(-1))
    with pytest.raises(
        ConfigError, match=rf"{call} failed on .*numpy\(\) on Tensor that requires grad.*no NumPy inside"
    ):
        energy.velocity(small())


@pytest.mark.parametrize("kind", OF_POINTS)
def test_captured_float64_in_a_float32_run(kind):
    make, call, _ = OF_POINTS[kind]
    rho = small(dtype=torch.float32)
    with pytest.raises(
        ConfigError, match=rf"{call} returned torch\.float64 .*torch\.float32 on cpu.*captured\.to\(x\)"
    ):
        make(lambda x: square(x - FLOAT64)).velocity(rho)
    with pytest.raises(ConfigError, match=rf"{call} failed on an input .*torch\.float32 on cpu.*captured\.to\(x\)"):
        make(lambda x: x @ FLOAT64).velocity(rho)
    assert make(lambda x: square(x - FLOAT64.to(x))).velocity(rho).dtype == torch.float32


@pytest.mark.parametrize("make", [energies.Potential, energies.KL])
def test_a_nan_passes_through_at_its_own_sample_only(make):
    """The scheme names the term and the time; here it must neither vanish nor spread."""
    rho = small()
    bad = rho.x[:, 0] < rho.x[:, 0].median()
    v = make(lambda x: torch.where(x[:, 0] < rho.x[:, 0].median(), math.nan, 1.0) * square(x)).velocity(rho)
    assert torch.equal(v.isnan().any(1), bad)
    assert bool(make(lambda x: square(x) * math.nan)(rho).isnan())


@pytest.mark.parametrize("wrong", [3, None, "x**2", torch.ones(2)])
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (energies.Potential, r"Potential\(V\)"),
        (energies.KL, r"KL\(log_target\)"),
        (energies.Local, r"Local\(g\)"),
        (energies.InternalEnergy, r"InternalEnergy\(U\)"),
        (energies.Interaction, r"Interaction\(W\)"),
        (energies.Functional, r"Functional\(F\)"),
    ],
)
def test_what_is_no_function(make, call, wrong):
    with pytest.raises(ConfigError, match=rf"{call} needs a function of a tensor; got {type(wrong).__name__}"):
        make(wrong)


@pytest.mark.parametrize(
    ("U", "error", "message"),
    [
        (lambda r: r.square().mean(), ShapeError, r"InternalEnergy: U\(rho\) must return shape \(12,\) .*; got \(\)"),
        (lambda r: r[:, None], ShapeError, r"InternalEnergy: U\(rho\) must return shape \(12,\) .*; got \(12, 1\)"),
        (lambda r: 1.0, ShapeError, r"InternalEnergy: U\(rho\) must return a torch tensor .*; got float"),
        (lambda r: r.float(), ConfigError, r"InternalEnergy: U\(rho\) returned torch\.float32"),
        (lambda r: r.nothing, ConfigError, r"InternalEnergy: U\(rho\) failed on .*AttributeError"),
    ],
)
def test_what_an_internal_energy_must_return(U, error, message):
    for use in (energies.InternalEnergy(U), energies.InternalEnergy(U).velocity):
        with pytest.raises(error, match=message):
            use(small())


@pytest.mark.parametrize("m", [1, 1.0, 0, -2.0, math.nan, math.inf, "2", None])
def test_the_exponent_of_the_porous_medium(m):
    with pytest.raises(ConfigError, match=r"PorousMedium\(m\) must be positive and not 1 .*use Entropy\(\)\); got"):
        energies.PorousMedium(m)


@pytest.mark.parametrize(
    ("F", "error", "message"),
    [
        (lambda rho: rho.x, ShapeError, r"Functional: F\(rho\) must return shape \(\) .*; got \(12, 2\)"),
        (lambda rho: rho.log_density, ShapeError, r"Functional: F\(rho\) must return shape \(\) .*; got \(12,\)"),
        (lambda rho: 1.0, ShapeError, r"Functional: F\(rho\) must return a torch tensor .*; got float"),
        (lambda rho: rho.x.mean().float(), ConfigError, r"Functional: F\(rho\) returned torch\.float32"),
        (lambda rho: rho.z.mean(), ConfigError, r"Functional: F\(rho\) failed on .*AttributeError.*'z'"),
        (lambda rho: rho.score.square().mean(), ConfigError, r"F must not read rho\.score: .*Write F with rho\.x and"),
    ],
)
def test_what_a_functional_must_return(F, error, message):
    energy = energies.Functional(F)
    for use in (energy, energy.velocity):
        with pytest.raises(error, match=message):
            use(small())


@pytest.mark.parametrize(
    "F",
    [
        lambda rho: square(rho.x.detach()).mean(),
        lambda rho: rho.log_density.detach().mean(),
        lambda rho: torch.tensor(float(rho.x.detach().mean()), dtype=rho.x.dtype),
    ],
)
def test_a_functional_without_a_gradient(F):
    with pytest.raises(
        ConfigError, match=r"Functional: F\(rho\) varies with the samples .* but has no gradient.*no \.det"
    ):
        energies.Functional(F).velocity(small())


def test_an_error_of_this_package_inside_a_users_function_is_passed_on():
    def f(x):
        raise ShapeError("mine")

    with pytest.raises(ShapeError, match="^mine$"):
        energies.Potential(f)(small())


def test_a_users_mistake_keeps_its_cause():
    with pytest.raises(PWGFError) as caught:
        energies.Potential(lambda x: SimpleNamespace().gone)(small())
    assert isinstance(caught.value.__cause__, AttributeError)


def test_what_a_fisher_information_cannot_do():
    with pytest.raises(ConfigError, match=r"FisherInformation\(sigma=…\) must be a number in \(0, inf\); got 0"):
        energies.FisherInformation(0)
    with pytest.raises(ConfigError, match="particles have no score"):
        energies.FisherInformation()(Cloud(torch.zeros(3, 2)))
    with pytest.raises(ConfigError, match="the velocity needs third derivatives of log ρ, which Cloud does not have"):
        energies.FisherInformation().velocity(Cloud(torch.zeros(3, 2)))
    edged = PushedMeasure(maps.Affine(1), pwgf.UniformBall(1), maps.Affine(1).initial(), torch.zeros(2, 1).double())
    with pytest.raises(ConfigError, match=r"FisherInformation\(\) of a law pushed from UniformBall, which has an edge"):
        energies.FisherInformation().try_functions(edged)
