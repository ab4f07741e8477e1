"""Sampling an unnormalised density: constants, weights, whitening, polish, and what is refused."""

import math

import pytest
import torch

from pwgf import Gaussian, maps, problems, sampling
from pwgf.errors import ConfigError, NonFiniteError, ShapeError, SolverError
from pwgf.sampling import hmc, langevin, laplace, sample


def gaussian(x):  # variance 4
    return -x.square().sum(-1) / 8


def test_the_constant_of_a_gaussian():
    found = sample(gaussian, 2, n=4000, progress=False)
    exact = math.log(8 * math.pi)
    assert found.converged and found.ess > 0.95
    assert abs(found.log_z - exact) < 5 * found.log_z_stderr + 1e-3
    assert found.log_z_bound < exact + 5 * found.log_z_bound_stderr
    torch.testing.assert_close(found.cov(), 4 * torch.eye(2).double(), rtol=0.1, atol=0.2)


def test_the_constant_of_a_mixture():
    mixture = problems.GaussianMixture(2, components=3, span=2.0)
    found = sample(mixture.log_target, 2, n=4000, progress=False)
    assert abs(found.log_z) < 5 * found.log_z_stderr + 1e-3
    torch.testing.assert_close(found.mean(), mixture.equilibrium.mean(), rtol=0, atol=0.15)


def test_whitening_takes_scales_and_place_away():
    cov = torch.tensor([[100.0, 0.9], [0.9, 0.01]]).double()
    law = torch.distributions.MultivariateNormal(torch.tensor([30.0, -2.0]).double(), cov)
    found = sample(law.log_prob, 2, n=2000, whiten="laplace", progress=False)
    assert found.converged and found.t <= 0.125 and found.ess > 0.999
    assert abs(found.log_z) < 1e-3
    torch.testing.assert_close(found.scale @ found.scale.T, cov, rtol=1e-6, atol=1e-6)


def test_coordinates_from_elsewhere():
    found = sample(gaussian, 2, n=2000, whiten=(torch.zeros(2).double(), 2 * torch.eye(2).double()), progress=False)
    assert found.t == 0.125 and found.ess > 0.999 and abs(found.log_z - math.log(8 * math.pi)) < 1e-3


def bent(y):
    """x₁ = y₁, x₂ = e^{y₁} y₂."""
    return torch.stack([y[:, 0], y[:, 0].exp() * y[:, 1]], 1), y[:, 0]


def funnel(x):  # x₁ ~ N(0, 1), x₂ | x₁ ~ N(0, e^{2x₁}), integral 2π
    return -x[:, 0].square() / 2 - x[:, 0] - (x[:, 1] * torch.exp(-x[:, 0])).square() / 2


@pytest.mark.parametrize("polish", [0, 5])
def test_bent_coordinates_take_a_funnel_away(polish, caplog):
    found = sample(funnel, 2, n=4000, whiten=bent, polish=polish, progress=False)
    assert found.converged and found.t == 0.125
    assert not caplog.messages  # of the velocity, which is rounding, most is missed
    scaled = torch.stack([found.x[:, 0], found.x[:, 1] * torch.exp(-found.x[:, 0])], 1)
    torch.testing.assert_close(torch.cov(scaled.T), torch.eye(2).double(), rtol=0, atol=0.1)
    if not polish:
        assert found.ess > 0.999 and abs(found.log_z - math.log(2 * math.pi)) < 1e-3
        torch.testing.assert_close(found.log_weights, funnel(found.x) - found.log_density)
    y = found.run.sample(found.t, 10)
    torch.testing.assert_close(found.coordinates(y)[0], bent(y)[0])
    with pytest.raises(ConfigError, match=r"centre and Sampled.scale belong to linear coordinates.*coordinates\(y\)"):
        _ = found.centre
    with pytest.raises(ConfigError, match="linear coordinates"):
        _ = found.scale


def test_a_polish_keeps_the_law_and_voids_its_density():
    found = sample(gaussian, 1, n=2000, polish=30, progress=False)
    assert found.log_weights.isnan().all() and math.isnan(found.log_z) and math.isnan(found.ess)
    assert float(found.x.var()) == pytest.approx(4, rel=0.15)


def test_langevin_moves_to_the_target():
    x = langevin(gaussian, torch.zeros(2000, 1).double(), 300, seed=1)
    assert float(x.var()) == pytest.approx(4, rel=0.15)


def test_hamiltonian_chains_keep_a_gaussian_and_tell_how_well():
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double()
    law = torch.distributions.MultivariateNormal(torch.tensor([0.5, -1.0]).double(), cov)
    starts = 3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chains = hmc(law.log_prob, starts, 400, warmup=100)
    x = chains.samples
    assert x.shape == (20_000, 2) and float(chains.rhat.max()) < 1.01 and 0.7 < chains.acceptance < 0.95
    error = (law.variance / chains.ess).sqrt()
    assert bool(((x.mean(0) - law.mean).abs() < 4 * error).all())
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.05)


def test_chains_that_start_on_a_cliff_come_down():
    starts = torch.cat([torch.zeros(31, 1), torch.full((1, 1), 60.0)]).double()
    chains = hmc(lambda x: -x.square().square().sum(-1), starts, 200, warmup=100)
    assert float(chains.x[:, -1].abs().max()) < 3 and float(chains.rhat) < 1.05


def test_chains_that_do_not_mix_are_told():
    def two_wells(x):  # 20 apart: no chain crosses over
        return torch.logsumexp(torch.cat([-(x - 10).square(), -(x + 10).square()], 1) / 2, 1)

    chains = hmc(two_wells, torch.tensor([[10.0], [-10.0], [10.0], [-10.0]]).double(), 100, warmup=50)
    assert float(chains.rhat) > 2 and float(chains.ess) < 10


def test_it_says_when_it_did_not_come_to_rest(caplog):
    found = sample(gaussian, 1, n=100, max_time=0.25, tolerance=1e-6, whiten=None, finish=False, progress=False)
    assert not found.converged
    assert any("sample: KL(ρ|π) is still about" in m and "max_time" in m for m in caplog.messages)


def test_it_ends_when_the_map_can_do_no_more(caplog):
    found = sample(lambda x: -(x.square().sum(-1) - 4).square() / 4, 1, n=2000, map=maps.Affine(1), progress=False)
    assert not found.converged and found.t < 64
    assert any("is still about" in m and "natural-gradient" in m and "a larger map" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample(lambda x: -x.square(), 2), ShapeError, r"log p\(x\) must return shape \(1000,\).*sum over"),
        (
            lambda: sample(lambda x: torch.where(x[:, 0] > 0, -x[:, 0], -math.inf), 2),
            ConfigError,
            r"log p is -inf at \d+ of 1000 samples of the reference.*change variables",
        ),
        (lambda: sample(lambda x: x[:, 0], 1, progress=False), SolverError, r"F fell without bound.*finite integral"),
        (
            lambda: sample(gaussian, 2, whiten="pca"),
            ConfigError,
            r"must be 'auto', 'laplace', None, \(m, L\) or a function.*; got 'pca'",
        ),
        (
            lambda: sample(gaussian, 2, whiten=(torch.zeros(2), torch.ones(2))),
            ShapeError,
            r"shapes \(2,\) and \(2, 2\); got \[\(2,\), \(2,\)\]",
        ),
        (lambda: sample(gaussian, 2, whiten=(torch.zeros(2), torch.ones(2, 2))), ConfigError, "L is singular"),
        (
            lambda: sample(gaussian, 1, whiten=([0.0], [["a"]])),
            ConfigError,
            r"a vector and a matrix.*not made of numbers",
        ),
        (lambda: sample(gaussian, 1, whiten=([math.nan], [[1.0]])), ConfigError, "not finite"),
        (lambda: sample(gaussian, 2, seed=0.5), ConfigError, r"sample\(seed=…\) must be an integer in \[0, 2⁶³\)"),
        (lambda: hmc(gaussian, torch.zeros(2, 2), seed=-1), ConfigError, r"hmc\(seed=…\) must be an integer"),
        (lambda: sample(lambda x: (x[:, 0] > 0).long(), 2), ConfigError, r"log p\(x\) returned torch.int64"),
        (
            lambda: sample(lambda x: -(x[:, 1] ** 2), 1),
            ConfigError,
            r"log p\(x\) failed on .*IndexError: index 1 is out",
        ),
        (lambda: sample(lambda x: gaussian(x.detach()), 2), ConfigError, r"log p\(x\) varies .* but has no gradient"),
        (
            lambda: sample(gaussian, 2, whiten=lambda y: y),
            ShapeError,
            r"whiten=f\): f\(y\) must return x and log.*\(1000, 2\) and \(1000,\).*got Tensor",
        ),
        (
            lambda: sample(gaussian, 2, whiten=lambda y: (y, y)),
            ShapeError,
            r"got \[\(1000, 2\), \(1000, 2\)\]",
        ),
        (
            lambda: sample(gaussian, 2, whiten=lambda y: (y.log(), y[:, 0])),
            ConfigError,
            "NaN or infinite at samples of the reference. f must map the whole space",
        ),
        (lambda: sample(3, 2), ConfigError, r"must be a function \(n,d\) → \(n,\); got int"),
        (lambda: sample(gaussian, 2, tolerance=0), ConfigError, r"tolerance"),
        (lambda: sample(gaussian, 2, polish=-1), ConfigError, r"polish"),
        (lambda: sample(gaussian, 2, bridge=-1), ConfigError, r"sample\(bridge=…\) must be an integer ≥ 0; got -1"),
        (lambda: hmc(gaussian, torch.zeros(1, 2)), ShapeError, r"m ≥ 2 chains; got \(1, 2\)"),
        (lambda: hmc(3, torch.zeros(2, 2)), ConfigError, r"hmc\(log_density=…\) must be a function"),
        (lambda: hmc(gaussian, torch.zeros(2, 2), 1), ConfigError, "steps"),
        (lambda: hmc(lambda x: x.log().sum(-1), -torch.ones(2, 2)), NonFiniteError, "not finite at 2 of 2 starts"),
        (lambda: laplace(lambda x: x[:, 0] ** 3, 1), ConfigError, r"no mode of log p was found"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


class OnceOnly(torch.autograd.Function):
    """−|x|²/2 with a gradient outside the graph, whose derivative autograd takes to be zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach())
        return -x.square().sum(-1) / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, weight):
        return -weight.unsqueeze(-1) * ctx.saved_tensors[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # met by torch.compile
@pytest.mark.parametrize(
    "log_density", [OnceOnly.apply, torch.compile(gaussian, backend="aot_eager")], ids=["function", "compiled"]
)
def test_a_log_density_without_second_derivatives_has_no_laplace(log_density):
    """There is a mode at 0; what is missing is the Hessian there."""
    with pytest.raises(ConfigError, match=r"needs second derivatives of log p.* once only: .*torch\.compile.*whiten"):
        sample(log_density, 2, whiten="laplace", progress=False)


@pytest.mark.parametrize("whiten", [None, "laplace"])
def test_a_log_density_that_differentiates_within_itself(whiten):
    """log p = −|∇|x|²|²/32 = −|x|²/8."""

    def log_density(x):
        (gradient,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
        return -gradient.square().sum(-1) / 32

    found = sample(log_density, 1, n=1000, map=maps.Affine(1), whiten=whiten, progress=False, num_eval=200)
    assert found.log_z == pytest.approx(0.5 * math.log(8 * math.pi), abs=5e-3)


def test_a_reference_far_from_standard_coordinates():
    """The map then sees coordinates of its own; densities and weights are those of its law all the same."""
    reference = Gaussian(1, mean=300.0, cov=0.01)
    found = sample(
        lambda x: -(x - 300.1).square().sum(-1) / 0.08, 1, n=4000, map=maps.Affine(1), reference=reference,
        progress=False, num_eval=200, max_time=1.0,
    )  # fmt: skip
    assert found.converged
    assert found.log_z == pytest.approx(0.5 * math.log(0.08 * math.pi), abs=5e-3)


def test_it_is_reached_from_the_package():
    import pwgf

    assert pwgf.sampling is sampling
