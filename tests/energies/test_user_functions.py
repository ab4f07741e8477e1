"""Functions of the user's: they hold copies of the solver's tensors, and answer for each sample alone, always alike."""

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.energies.base import check_gradient
from pwgf.errors import ConfigError, ShapeError


def square(x):
    return (x - 1).square().sum(-1)


def moved(x):
    """The same function of a tensor that it moves where it lies."""
    x.data.sub_(1)
    return x.square().sum(-1)


def marked(x):
    """The same function of a tensor that it marks for differentiation."""
    return square(x.requires_grad_())


class Reference(pwgf.Gaussian):
    """A user's subclass whose density moves its points."""

    def log_density(self, z):
        z.data.sub_(1)
        return super().log_density(z + 1)


def from_samples(view):
    view.x.data.sub_(1)
    view.log_density.data.add_(1)
    return view.x.square().sum(-1).mean() + view.log_density.mean() - 1


ENERGIES = {
    "Potential: V\\(x\\)": energies.Potential,
    "KL: log_target\\(x\\)": energies.KL,
    "Local: g\\(x, log_rho\\)": lambda f: energies.Local(lambda x, ell: f(x)),
    "Interaction: W\\(r\\)": energies.Interaction,
}

PAIRS = {
    "V": (energies.Potential(moved), energies.Potential(square)),
    "V that marks": (energies.Potential(marked), energies.Potential(square)),
    "log_target": (energies.KL(lambda x: -moved(x)), energies.KL(lambda x: -square(x))),
    "g": (energies.Local(lambda x, ell: moved(x) + ell), energies.Local(lambda x, ell: square(x) + ell)),
    "W": (energies.Interaction(moved), energies.Interaction(square)),
    "F": (
        energies.Functional(from_samples),
        energies.Functional(lambda rho: square(rho.x).mean() + rho.log_density.mean()),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_function_that_changes_its_points_in_place_changes_nothing_else(name):
    runs = []
    for energy in PAIRS[name]:
        scheme = pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=100, num_eval=200)
        runs.append(pwgf.solve(scheme, [0, 0.1], progress=False))
    for column in ("energy", "theta", "projection_residual"):
        np.testing.assert_allclose(runs[0][column], runs[1][column], rtol=1e-12, atol=1e-12)


def moved_after(x):
    """What the derivative reads is changed where autograd does not see it."""
    value = x.square().sum(-1)
    x.data.sub_(1)
    return value


def partly_detached(x):
    return (x * x.detach()).sum(-1)


@pytest.mark.parametrize("f", [moved_after, partly_detached])
@pytest.mark.parametrize("make", [*ENERGIES.values(), lambda f: energies.Functional(lambda rho: f(rho.x).mean())])
def test_a_gradient_that_is_not_that_of_the_values_is_refused(make, f):
    scheme = pwgf.PWGF(make(f), maps.Affine(2), pwgf.Gaussian(2), num_samples=100)
    with pytest.raises(ConfigError, match=r"a gradient that is not that of its values.* by autograd .*x\.clone\(\)"):
        scheme.start(0)


ROUGH = {
    "kinks": lambda x: (x.abs() + torch.relu(x - 0.1)).sum(-1),
    "steps in the value": lambda x: torch.where(x > 0, 1e3, 0.0).to(x).sum(-1) + square(x),
    "ripples": lambda x: square(x) + 1e-3 * torch.sin(1e6 * x).sum(-1),
    "a large constant": lambda x: 1e18 + square(x),
    "stiff": lambda x: 1e12 * (x.square().sum(-1) - 1).square(),
    "constant": lambda x: 0 * square(x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ROUGH)
@pytest.mark.parametrize("where", [(0.0, 1.0), (1e6, 1e-6), (0.0, 1e-9), (0.0, 1e9)])
def test_rough_functions_have_the_gradient_of_their_values(name, dtype, where):
    mean, spread = where
    x = (mean + spread * torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)
    check_gradient(ROUGH[name], x, "f(x)")


def test_a_function_of_a_domain_is_asked_there_alone():
    """A lognormal law of spread 3 has samples nearer to 0 than a difference along the others would reach."""
    law = torch.distributions.LogNormal(torch.tensor(0.0).double(), torch.tensor(3.0).double())
    x = law.icdf((torch.arange(64).double() + 0.5) / 64)[:, None]
    check_gradient(lambda x: law.log_prob(x).sum(-1), x, "f(x)")
    check_gradient(lambda x: law.log_prob(x).sum(-1), x.float(), "f(x)")


@pytest.mark.parametrize("offset", [1e5, 1e6])
def test_bends_shorter_than_a_difference_are_no_wrong_gradients(offset):
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) + offset
    check_gradient(lambda x: (x - offset).relu().sum(-1), x, "f(x)")
    check_gradient(lambda x: torch.nn.functional.softplus(x - offset).sum(-1), x, "f(x)")


def test_each_coordinate_is_moved_in_its_own_scale():
    scales = torch.tensor([1e5, 1.0, 1e-5])
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * scales
    check_gradient(lambda x: torch.nn.functional.softplus(x / scales).sum(-1), x, "f(x)")
    with pytest.raises(ConfigError, match="a gradient that is not that of its values"):
        check_gradient(lambda x: square(x[:, 1:2]) + (x[:, 2].detach() / scales[2]).exp(), x.double(), "f(x)")


def test_a_function_holds_no_tensor_of_the_solver():
    held = []
    energy = energies.Potential(lambda x: held.append(x) or square(x))
    z = torch.randn(8, 2, dtype=torch.float64)
    theta = maps.Affine(2).initial()
    rho = pwgf.measures.PushedMeasure(maps.Affine(2), pwgf.Gaussian(2), theta, z)
    energy(rho), energy.velocity(rho)
    with torch.no_grad():
        held[0].fill_(7)
    assert torch.equal(rho.x, z)
    assert len({x.data_ptr() for x in held} & {rho.x.data_ptr(), z.data_ptr(), theta.data_ptr()}) == 0


def test_a_density_of_the_reference_that_moves_its_points():
    theta, z = maps.Affine(2).initial(), torch.randn(8, 2, dtype=torch.float64)
    found = pwgf.measures.PushedMeasure(maps.Affine(2), Reference(2), theta, z.clone())
    torch.testing.assert_close(found.log_density, pwgf.Gaussian(2).log_density(z))
    torch.testing.assert_close(found.z, z)
    torch.testing.assert_close(found.score, -z)


def test_a_sampler_may_write_into_its_own_tensor_again():
    buffer = torch.empty(4, 1, dtype=torch.float64)
    reference = pwgf.Unnormalised(
        lambda z: -square(z), lambda n, g: buffer[:n].copy_(torch.randn(n, 1, generator=g)), 1
    )
    one = reference.sample(4, torch.Generator().manual_seed(0))
    before = one.clone()
    reference.sample(4, torch.Generator().manual_seed(1))
    assert torch.equal(one, before)


# ---- of each sample alone, and always alike -------------------------------------------------------------------------


class Count:
    """A function that counts its calls and adds the count."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return square(x) + self.calls


def dropped(x):
    return torch.nn.functional.dropout(x, 0.3).square().sum(-1)


def of_batch(x):
    return square(x) * torch.softmax(x[:, 0], 0)


def centred(x):
    """Constant gradients of the sum, so that the velocity alone would not show it."""
    return square(x) - square(x).mean()


def summed_up(x):
    """The same at x[:k]: only another order shows it."""
    return square(x).cumsum(0)


def by_batch_norm(x):
    return torch.nn.BatchNorm1d(2).double()(x).square().sum(-1)


AGAIN = r"gives other values when it is called again at the same samples, by up to .*module\.eval\(\)"
BESIDE = r"gives a sample other values when other samples stand beside it, by up to .*module\.eval\(\)"
WRONG = {
    "counter": (Count, AGAIN),
    "dropout": (lambda: dropped, AGAIN),
    "softmax": (lambda: of_batch, BESIDE),
    "centred": (lambda: centred, BESIDE),
    "running sum": (lambda: summed_up, BESIDE),
    "batch norm": (lambda: by_batch_norm, BESIDE),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("call", ENERGIES)
def test_functions_that_are_not_of_each_sample_alone_are_refused_at_the_door(call, name):
    make, message = WRONG[name]
    scheme = pwgf.PWGF(0.5 * ENERGIES[call](make()), maps.Affine(2), pwgf.Gaussian(2), num_samples=100)
    with pytest.raises(ConfigError, match=rf"{call} {message}"):
        scheme.start(0)


@pytest.mark.parametrize("name", WRONG)
def test_every_scheme_tries_them(name):
    make, message = WRONG[name]
    energy, reference = energies.Potential(make()), pwgf.Gaussian(2)
    for scheme in (
        pwgf.EulerMaruyama(energy, reference, num_samples=50, dt=0.1),
        pwgf.SWJKO(energy, maps.Affine(2), reference, tau=0.1, num_samples=50),
        pwgf.SWJKO(energy, None, reference, tau=0.1, num_samples=50),
        pwgf.JKOICNN(energy, reference, h=0.1, width=4, num_samples=50),
    ):
        with pytest.raises(ConfigError, match=rf"Potential: V\(x\) {message}"):
            scheme.start(0)


@pytest.mark.parametrize("name", WRONG)
def test_a_density_of_the_reference_is_tried_too(name):
    make, message = WRONG[name]
    f = make()
    reference = pwgf.Unnormalised(lambda z: -f(z), lambda n, g: torch.randn(n, 2, generator=g, dtype=torch.float64), 2)
    scheme = pwgf.PWGF(energies.Entropy(), maps.Affine(2), reference)
    with pytest.raises(ConfigError, match=rf"reference\.log_density\(z\) {message}"):
        scheme.start(0)


def test_a_random_functional_is_refused():
    energy = energies.Functional(lambda rho: dropped(rho.x).mean())
    with pytest.raises(ConfigError, match=rf"Functional: F\(rho\) {AGAIN}"):
        pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2)).start(0)


def test_a_map_that_mixes_samples_is_refused():
    class Centred(maps.Affine):
        def __call__(self, theta, z):
            return super().__call__(theta, z - z.mean(0))

    with pytest.raises(ConfigError, match=rf"map: Centred\(theta, z\) {BESIDE}"):
        pwgf.PWGF(energies.Potential(square), Centred(2), pwgf.Gaussian(2)).start(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_functions_of_each_sample_pass_whatever_their_size(dtype):
    net = torch.nn.Sequential(torch.nn.Linear(2, 300), torch.nn.GELU(), torch.nn.Linear(300, 1)).to(dtype)
    energy = energies.Potential(lambda x: 1e8 * net(x).squeeze(-1) ** 2 + x.square().sum(-1))
    pwgf.PWGF(energy, maps.ResidualMLP(2), pwgf.Gaussian(2), dtype=dtype).start(0)


# ---- functions that differentiate inside themselves ------------------------------------------------------------------


def by_autograd(x):
    """|∇(|x|²/2)|² = |x|² from a derivative inside."""
    (slope,) = torch.autograd.grad(x.square().sum() / 2, x, create_graph=True)
    return slope.square().sum(-1)


@pytest.mark.parametrize("make", [energies.Potential, energies.KL, lambda V: energies.Local(lambda x, ell: V(x) + ell)])
def test_a_function_may_differentiate_inside_itself(make):
    runs = []
    sign = -1 if make is energies.KL else 1
    for V in (lambda x: sign * by_autograd(x), lambda x: sign * x.square().sum(-1)):
        scheme = pwgf.PWGF(make(V), maps.Affine(2), pwgf.Gaussian(2), num_samples=60, num_eval=60)
        runs.append(pwgf.solve(scheme, [0, 0.1], progress=False))
    for column in ("energy", "theta"):
        np.testing.assert_allclose(runs[0][column], runs[1][column], rtol=1e-9, atol=1e-9)


def test_a_derivative_inside_that_is_not_followed_is_told():
    energy = energies.Potential(lambda x: torch.autograd.grad((x**3).sum(), x)[0].sum(-1))
    with pytest.raises(ConfigError, match=r"has no gradient.*needs torch\.autograd\.grad\(…, create_graph=True\)"):
        pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2), num_samples=60).start(0)


@pytest.mark.parametrize(
    ("F", "message"),
    [
        (lambda rho: rho.x.sum(-1), r"got \(60,\)\. Cure: F is one number for all samples, not one a sample: average"),
        (lambda rho: rho.x, r"got \(60, 2\)\. Cure: F is one number .*, not one a coordinate; sum over these by \.sum"),
    ],
)
def test_a_functional_with_a_value_per_sample_is_told_to_average(F, message):
    with pytest.raises(ShapeError, match=rf"must return shape \(\) .*{message}.* by \.mean\(\)"):
        pwgf.PWGF(energies.Functional(F), maps.Affine(2), pwgf.Gaussian(2), num_samples=60).start(0)


def module(activation):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2, 8), activation, torch.nn.Linear(8, 2))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.LeakyReLU(0.3), torch.nn.Hardtanh()])
def test_a_piecewise_linear_map_is_refused_under_an_energy_with_a_density(activation, residual):
    """Its log det is constant between jumps: the score of the pushed law would be that of an affine map."""
    map, few = maps.FromModule(module(activation), 2, residual=residual), {"num_samples": 60, "num_eval": 60}
    message = r"the map, FromModule, is piecewise linear in z, as with nn\.ReLU.* smooth activation"
    free = energies.Potential(square) + energies.Entropy()
    schemes = [pwgf.PWGF(free, map, pwgf.Gaussian(2), **few), pwgf.SWJKO(free, map, pwgf.Gaussian(2), tau=0.1, **few)]
    for scheme in schemes if residual else []:  # without it these modules fold, which is refused first
        with pytest.raises(ConfigError, match=message):
            scheme.start(0)
    pwgf.PWGF(energies.Potential(square), map, pwgf.Gaussian(2), **few).start(0)


@pytest.mark.parametrize(
    "map",
    [
        maps.FromModule(module(torch.nn.SiLU()), 2, residual=True),
        maps.FromModule(torch.nn.Linear(2, 2), 2, residual=True),
        maps.Affine(2),
    ],
    ids=["smooth", "linear", "affine"],
)
def test_smooth_and_affine_maps_are_not_taken_for_piecewise_linear(map):
    pwgf.PWGF(energies.Entropy(), map, pwgf.Gaussian(2), num_samples=60).start(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda energy: pwgf.PWGF(energy, maps.Affine(2), pwgf.Gaussian(2)),
        lambda energy: pwgf.SWJKO(energy, maps.Affine(2), pwgf.Gaussian(2), tau=0.1),
        lambda energy: pwgf.JKOICNN(energy, pwgf.Gaussian(2), h=0.1),
        lambda energy: pwgf.EulerMaruyama(energy, pwgf.Gaussian(2), dt=0.1),
        lambda energy: pwgf.PWHF(energy, maps.Affine(2), pwgf.Gaussian(2), dt=0.1),
    ],
)
def test_every_scheme_refuses_a_negative_temperature(make):
    with pytest.raises(ConfigError, match=r"entropy.* coefficient"):
        make(energies.Potential(square) - 0.5 * energies.Entropy())
