"""How often the host waits for a device, and how many kernels it starts: upper bounds, measured on a pretended one."""

import pytest
import torch

import pwgf
from pwgf import energies, integrate, maps, posteriors, problems
from pwgf.linalg._iterations import conjugate_gradients, lsmr
from pwgf.maps import NeuralODE
from pwgf.schemes.jko import QuadraticICNN
from pwgf.tangent import Tangent
from tests.pretend_device import DEVICE, PretendedDevice

Y = torch.randn(30, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SMALL = maps.ResidualMLP(2, width=8, axis_units=2)
MODULE = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def double_well():
    potential = energies.Potential(lambda x: (x.square().sum(-1) - 4).square() / 16 + x[:, 0])
    return potential + 0.5 * energies.Entropy()


def right_side(map, energy, n=24):
    """On the device, with its θ; prepared by one call."""
    scheme = pwgf.PWGF(
        energy, map, pwgf.Gaussian(map.dim), num_samples=n, num_eval=24, device=DEVICE, solver="primal", momentum=0.9
    )
    state, generator = scheme.start(), torch.Generator().manual_seed(1)
    z = scheme._draws.samples(n, generator)
    side = scheme._side(scheme._setup, z, state.theta_dot, state.t, generator, None, None)
    side(state.theta)
    return side, state.theta


@pytest.fixture
def device():
    with PretendedDevice() as device:
        yield device


def second_step(scheme, device):
    """The `Info` of the second sampling interval, after which the device has counted that alone."""
    state, _ = scheme.step(scheme.start(), 1.0)
    device.clear()
    return scheme.step(state, 1.0)[1]


def waits(device):
    return sum(device.waits.values())


# ---- waits -----------------------------------------------------------------------------------------------------------


def test_a_right_side_waits_six_times(device):
    """For folds, a finite velocity, the trace, the factor, the norms of the right side and those of the solution."""
    side, theta = right_side(SMALL, double_well())
    device.clear()
    side(theta)
    assert waits(device) <= 6, device.waits
    assert not device.uploads and not device.one_by_one


def test_an_implicit_solve_waits_three_times_and_its_linearisation_nine(device):
    side, theta = right_side(SMALL, double_well())
    device.clear()
    here = side.linearise(theta)
    assert waits(device) <= 9, device.waits
    here.velocity(0.1)
    device.clear()
    here.velocity(0.05)
    assert waits(device) <= 3, device.waits
    assert not device.uploads


@pytest.mark.parametrize(
    "map", [SMALL, maps.ConvexRidge(2, width=8), NeuralODE(2, width=4, num_steps=1)], ids=lambda map: type(map).__name__
)
@pytest.mark.parametrize("integrator, most", [(integrate.Euler(0.01), 14), ("bosh3", 14), ("implicit", 20)])
def test_waits_of_an_interval(map, integrator, most, device):
    """At most so many for each right side, whatever the map; those of implicit steps are solved more than once."""
    scheme = pwgf.PWGF(
        double_well(), map, pwgf.Gaussian(2), num_samples=40, num_eval=40, device=DEVICE, integrator=integrator
    )
    info = second_step(scheme, device)
    assert waits(device) <= most * info.num_stages + 10, device.waits
    assert sum(device.uploads.values()) <= 3 * info.num_stages + 4, device.uploads


@pytest.mark.parametrize("name", ["cg", "lsmr"])
def test_an_iteration_waits_once(name, device):
    J = torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def counted(k):
        settings = {"rtol": 1e-300, "max_iterations": k, "numbers": lambda scalars: scalars.tolist()}
        there = J.to(DEVICE)
        metric, b = there.T @ there, torch.ones(40, dtype=torch.float64, device=DEVICE)
        device.clear()
        if name == "cg":
            end = conjugate_gradients(metric.mv, b, **settings)
        else:
            end = lsmr(there.mv, there.T.mv, there @ b, damp=0.0, **settings)
        assert end.num_iterations == k
        return waits(device)

    assert counted(12) - counted(4) == 8


def test_block_preconditioners_are_inverted_at_once(device):
    scheme = pwgf.PWGF(
        double_well(), maps.ResidualMLP(3, width=8, axis_units=2), pwgf.Gaussian(3), num_samples=40, num_eval=40,
        device=DEVICE, solver="block-pcg", damping=1e-3,
    )  # fmt: skip
    info = second_step(scheme, device)
    assert not device.one_by_one
    around = waits(device) - sum(count for line, count in device.waits.items() if line.endswith(" numbers"))
    assert around <= 14 * info.num_stages + 10, device.waits


@pytest.mark.parametrize("name, each", [("jko", 1), ("sw-jko", 2)])
def test_waits_of_an_inner_iteration(name, each, device):
    """SW-JKO also waits for the share of folded samples."""

    def counted(most):
        settings = {"num_samples": 20, "num_eval": 20, "max_iterations": most, "device": DEVICE}
        if name == "jko":
            scheme = pwgf.JKOICNN(double_well(), pwgf.Gaussian(2), h=0.05, width=4, num_batches=1, **settings)
        else:
            scheme = pwgf.SWJKO(double_well(), maps.Affine(2), pwgf.Gaussian(2), tau=0.05, num_directions=4, **settings)
        state = scheme.start()
        device.clear()
        _, info = scheme.step(state, 0.05)
        return waits(device), info.num_stages

    (few, less), (many, more) = counted(5), counted(9)
    assert many - few == each * (more - less)


def test_waits_of_particles_and_of_a_row(device):
    particles = pwgf.EulerMaruyama(double_well(), pwgf.Gaussian(2), num_samples=30, dt=0.01, device=DEVICE)
    state, _ = particles.step(particles.start(), 1.0)
    device.clear()
    particles.step(state, 1.0)
    assert waits(device) == sum(device.uploads.values()) == 1
    scheme = pwgf.PWGF(
        double_well(), SMALL, pwgf.Gaussian(2), num_samples=100, num_eval=300, device=DEVICE, solver="primal"
    )
    state = scheme.start()
    scheme.measure(state)  # the first sees whether the energy has a value at wider samples
    device.clear()
    scheme.measure(state)
    assert waits(device) <= 9 + 3 + 5, device.waits  # a right side, three blocks, the estimated error


def test_waits_of_an_inverse(device):
    """Newton's method: for the points that are left, for a step that is short enough, and once around."""
    noise = torch.randn(SMALL.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta = (SMALL.initial() + 0.02 * noise).to(DEVICE)
    x = Y.to(DEVICE)
    device.clear()
    z = SMALL.inverse(theta, x)
    assert waits(device) <= 2 * 6 + 3, device.waits
    torch.testing.assert_close(SMALL(theta.held, z.held), Y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["OrnsteinUhlenbeck", "GaussianMixture"])
def test_constants_are_copied_once(name, device):
    problem, map = getattr(problems, name)(2), maps.Affine(2)
    rho = pwgf.measures.PushedMeasure(map, problem.reference, map.initial().to(DEVICE), Y.to(DEVICE))
    problem.energy(rho)
    device.clear()
    problem.energy(rho)
    assert device.kernels and not device.uploads


# ---- kernels ---------------------------------------------------------------------------------------------------------


def kernels(device, f, n):
    """Those of the second call of f(n)()."""
    call = f(n)
    call()
    device.clear()
    call()
    return device.kernels


FAMILIES = {
    "ConvexMax": lambda: maps.ConvexMax(2),
    "ConvexRidge": lambda: maps.ConvexRidge(2),
    "Composed": lambda: maps.Composed([maps.Affine(2), maps.ConvexRidge(2, width=8)]),
    "FromModule": lambda: maps.FromModule(MODULE, 2, residual=True),
    "NeuralODE": lambda: NeuralODE(2, width=4, num_steps=1),
    "QuadraticICNN": lambda: QuadraticICNN(2, 8, 3),
    "ResidualMLP": lambda: maps.ResidualMLP(2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_of_a_right_side_do_not_grow_with_the_samples(name, device):
    def made(n):
        side, theta = right_side(FAMILIES[name](), double_well(), n)
        return lambda: side(theta)

    assert kernels(device, made, 3000) <= kernels(device, made, 300)


@pytest.mark.parametrize("name", ["interaction", "mmd", "sliced"])
def test_kernels_of_pairs_do_not_grow_with_the_samples(name, device):
    energy = {
        "interaction": energies.Interaction(lambda r: -(r.square().sum(-1) + 0.1).log() / 2),
        "mmd": energies.MMD(Y),
        "sliced": energies.SlicedW2(Y, 16),
    }[name]

    def made(n):
        x = torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(DEVICE)
        rho = pwgf.measures.Cloud(x)
        return lambda: (energy.velocity(rho), energy(rho), energy.hessian(rho))

    assert kernels(device, made, 900) <= kernels(device, made, 300)


def test_kernels_of_gram_matrices_do_not_grow_with_the_samples(device):
    def made(n):
        map = maps.ResidualMLP(2, width=64)
        z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)
        tangent = Tangent(map, map.initial().to(DEVICE), z)
        return tangent.gram_primal

    assert kernels(device, made, 3000) <= kernels(device, made, 300)


def test_kernels_of_a_posterior_do_not_grow_with_the_samples(device):
    X = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = posteriors.LogisticRegression(X, (X.sum(1) > 0).int())

    def made(n):
        theta = torch.zeros(n, 3, dtype=torch.float64, device=DEVICE)
        return lambda: problem.log_target(theta)

    assert kernels(device, made, 3000) <= kernels(device, made, 100)
