"""The right side against dense linear algebra: the least-squares form, and the published gradient form."""

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

import pwgf
from pwgf import energies, linalg, maps
from pwgf.errors import ConfigError, NonFiniteError
from pwgf.schemes._guards import finite_velocity
from pwgf.schemes.pwgf.right_side import RightSide

N, DAMPING = 40, 1e-3


def potential(x):
    return (x**4).sum(-1) / 4 - x[..., 0]


def setting(kind):
    """A map away from the identity, with its θ."""
    map = maps.Affine(2) if kind == "affine" else maps.ResidualMLP(2, width=5)
    generator = torch.Generator().manual_seed(1)
    return map, map.initial() + 0.2 * torch.randn(map.num_params, generator=generator, dtype=torch.float64)


def dense_tangent(map, theta, z):
    """J, (n·d, p), by reverse differentiation of every entry of T."""
    return jacrev(lambda q: map(q, z))(theta).reshape(-1, theta.numel())


def dense_score(map, reference, theta, z):
    """∇ log ρ(x) = (∂T)^{−T} ∇_z[log λ − log|det ∂T|], a sample at a time."""

    def log_rho(zi):
        jacobian = jacfwd(lambda y: map(theta, y[None])[0])(zi)
        return reference.log_density(zi[None])[0] - torch.linalg.slogdet(jacobian).logabsdet

    slopes = torch.stack([jacrev(log_rho)(zi) for zi in z])
    jacobians = vmap(jacfwd(lambda y: map(theta, y[None])[0]))(z)
    return torch.linalg.solve(jacobians.transpose(1, 2), slopes.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("kind", ["affine", "residual"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_velocity_form_is_the_dense_damped_least_squares_fit(kind, momentum):
    map, theta = setting(kind)
    reference = pwgf.Gaussian(2)
    energy = energies.Potential(potential) + 0.7 * energies.Entropy()
    scheme = pwgf.PWGF(energy, map, reference, num_samples=N, damping=DAMPING, solver="primal")
    z = reference.sample(N, torch.Generator().manual_seed(5))
    last = momentum * torch.randn(theta.numel(), generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    x = map(theta, z)
    v = -(x**3) + torch.tensor([1.0, 0.0], dtype=torch.float64) - 0.7 * dense_score(map, reference, theta, z)
    tangent = dense_tangent(map, theta, z)
    weight = (DAMPING * tangent.square().sum() / N).sqrt()  # ε tr Ĝ
    along = tangent @ last
    fit = float(along @ v.reshape(-1) / along.square().sum()) if last.any() else 0.0
    prior = min(1.0, max(0.0, fit)) * last  # the multiple of the last rate that fits v best, up to the momentum
    rows = torch.cat([tangent / N**0.5, weight * torch.eye(theta.numel(), dtype=torch.float64)])
    target = torch.cat([v.reshape(-1) / N**0.5, weight * prior])
    expected = torch.linalg.lstsq(rows, target[:, None], driver="gelsd").solution[:, 0]

    found = RightSide(scheme._setup, z, last, 0.0, momentum=1.0, damping=DAMPING)(theta)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)


def dense_gradient_step(map, reference, theta, z, h):
    """One step of the published scheme: θ − h (Ĝ + μI)⁻¹ ∇_θ F, F = mean of V(T) + log λ − log|det ∂T|."""

    def energy(q):
        jacobian = vmap(jacfwd(lambda y: map(q, y[None])[0]))(z)
        entropy = reference.log_density(z) - torch.linalg.slogdet(jacobian).logabsdet
        return (potential(map(q, z)) + 0.7 * entropy).mean()

    gradient = jacrev(energy)(theta)
    tangent = dense_tangent(map, theta, z)
    metric = tangent.T @ tangent / N
    shift = DAMPING * torch.trace(metric) * torch.eye(len(metric), dtype=torch.float64)
    return theta - h * torch.linalg.solve(metric + shift, gradient)


@pytest.mark.parametrize("kind", ["affine", "residual"])
def test_the_gradient_form_with_euler_and_cg_is_the_published_scheme(kind):
    map, theta = setting(kind)
    reference, h = pwgf.Gaussian(2), 0.01
    energy = energies.Potential(potential) + 0.7 * energies.Entropy()
    common = {"num_samples": N, "damping": DAMPING, "momentum": 0.0, "form": "gradient", "integrator": pwgf.Euler(h)}
    for solver, close in (("cg", 5e-3), (linalg.CG(rtol=1e-10), 1e-8)):
        scheme = pwgf.PWGF(energy, map, reference, theta0=theta, solver=solver, **common)
        state = scheme.start()
        z = reference.matched_sample(N, state.generator())
        once = dense_gradient_step(map, reference, theta, z, h)
        after, info = scheme.step(state, 1.0)
        assert info.num_stages == 1
        assert float((after.theta - once).norm()) < close * float((once - theta).norm())
    generator = state.generator()
    reference.matched_sample(N, generator)
    twice = dense_gradient_step(map, reference, once, reference.matched_sample(N, generator), h)
    end, _ = scheme.step(after, 1.0)
    assert float((end.theta - twice).norm()) < 1e-6 * float((twice - theta).norm())


def test_both_forms_agree_without_entropy():
    """∇_θF = −E[Jᵀv] holds sample by sample when F reads no density."""

    class Plain(pwgf.Gaussian):
        """Without the wider samples that the gradient form does not take."""

        def wide_sample(self, n, seed=0):
            return self.matched_sample(n, seed), None

    map, theta = setting("residual")
    common = {"num_samples": N, "damping": DAMPING, "theta0": theta, "integrator": pwgf.Euler(0.01), "solver": "primal"}
    ends = []
    for form in ("velocity", "gradient"):
        scheme = pwgf.PWGF(energies.Potential(potential), map, Plain(2), form=form, **common)
        ends.append(scheme.step(scheme.start(), 1.0)[0].theta)
    assert torch.allclose(*ends, rtol=0, atol=1e-10)


def test_the_displacement_is_the_rms_motion_of_the_samples():
    map, theta = setting("residual")
    scheme = pwgf.PWGF(energies.Potential(potential), map, pwgf.Gaussian(2), num_samples=N)
    z = torch.randn(N, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    side = RightSide(scheme._setup, z, torch.zeros_like(theta), 0.0, momentum=0.0, damping=1e-6)
    side(theta)
    e = 1e-6 * torch.randn(theta.numel(), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = (map(theta + e, z) - map(theta - e, z)).square().sum(1).mean().sqrt() / 2
    assert float(side.displacement(e)) == pytest.approx(float(moved), rel=1e-6)


class Squeeze(torch.nn.Module):
    """(z₁+z₂)·(a₁, a₂): rank one, whatever a."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(2))

    def forward(self, z):
        return z.sum(-1, keepdim=True) * self.a


def test_a_singular_map_is_told_when_the_density_is_needed():
    map = maps.FromModule(Squeeze(), 2)
    for energy in (energies.Entropy(), energies.PorousMedium(2)):
        with pytest.raises(NonFiniteError, match=r"det ∂_zT = 0 at 64 of 64 samples at t = 0.*use maps.ResidualMLP"):
            pwgf.PWGF(energy, map, pwgf.Gaussian(2)).start()
    assert pwgf.PWGF(energies.Potential(potential), map, pwgf.Gaussian(2)).start().t == 0


def test_a_velocity_that_is_not_finite_names_term_time_and_place():
    scheme = pwgf.PWGF(energies.Entropy(), maps.Affine(1), pwgf.Gaussian(1))
    rho = scheme._setup.pushed(maps.Affine(1).initial(), torch.tensor([[1.0], [-1.0]], dtype=torch.float64), 0.5)
    root = energies.Potential(lambda x: x[:, 0].sqrt())
    with pytest.raises(
        NonFiniteError, match=r"'potential' is NaN or infinite at 1 of 2 samples at t = 0\.5, first at x = \(-1\)"
    ):
        finite_velocity(energies.Entropy() + root, rho)


@pytest.mark.parametrize("max_memory", [1e9, 2e4])
def test_results_do_not_depend_on_the_blocks(max_memory):
    def run(**settings):
        energy = energies.Potential(potential) + energies.Entropy()
        scheme = pwgf.PWGF(
            energy, maps.ResidualMLP(2, width=20), pwgf.Gaussian(2), num_samples=60, num_eval=150, **settings
        )
        return pwgf.solve(scheme, [0.0, 0.05], progress=False)

    whole, blocks = run(chunk_size=60), run(max_memory=max_memory)
    for name in ("theta", "energy", "projection_residual", "fold_fraction"):
        assert blocks[name] == pytest.approx(whole[name], rel=1e-7, abs=1e-9)


def test_a_memory_too_small_for_one_sample_is_refused():
    with pytest.raises(
        ConfigError, match=r"PWGF\(max_memory=10\) must hold at least one sample, about .* chunk_size=1"
    ):
        pwgf.PWGF(energies.Entropy(), maps.ResidualMLP(2), pwgf.Gaussian(2), max_memory=10)


class Bent(maps.PushForward):
    """T(z) = a z + ½ z² for z > −a: its slope a + z is small near −a."""

    dim = 1

    def layout(self):
        return [maps.Block("slope", (1,), 0)]

    def initial(self, seed=0):
        return torch.ones(1, dtype=torch.float64)

    def __call__(self, theta, z):
        return theta * z + z**2 / 2


@pytest.mark.parametrize("power", [1, 30])
def test_a_velocity_where_the_map_is_thin_is_limited(power):
    """Among 400 samples, one at a slope of .07 of the median: the score there is that of 1/slope², some 200."""
    z = torch.linspace(-0.2, 1.5, 400, dtype=torch.float64)[:, None]
    z[17] = -0.9
    z[30] = 1.6
    energy = energies.Entropy() + energies.Potential(lambda x: 1e-4 * (x**power).sum(-1))  # fast at the last, not thin
    scheme = pwgf.PWGF(energy, Bent(), pwgf.Gaussian(1))
    side = RightSide(scheme._setup, z, torch.zeros(1).double(), 0.0, momentum=0.0, damping=1e-6)
    found = side._look(Bent().initial())[:, 0]
    slope = 1 + z[:, 0]
    x = z[:, 0] + z[:, 0] ** 2 / 2
    v = z[:, 0] / slope + 1 / slope**2 - 1e-4 * power * x ** (power - 1)
    limit = 5 * float(v.abs().sort().values[:-2].square().mean().sqrt())
    others = torch.arange(400) != 17
    torch.testing.assert_close(found[others], v[others], rtol=1e-9, atol=1e-9)
    assert float(v[17]) > limit if power == 1 else float(v[30].abs()) > limit
    assert float(found[17]) == pytest.approx(min(limit, float(v[17])), rel=1e-9)


def test_velocities_are_not_limited_where_no_density_is_asked_for():
    z = torch.linspace(-0.2, 1.5, 400, dtype=torch.float64)[:, None]
    z[17] = -0.99
    far = energies.Potential(lambda x: 1e3 * (x[:, 0] + 0.45).clamp(max=0).square())
    scheme = pwgf.PWGF(far, Bent(), pwgf.Gaussian(1))
    side = RightSide(scheme._setup, z, torch.zeros(1).double(), 0.0, momentum=0.0, damping=1e-6)
    x = z[:, 0] + z[:, 0] ** 2 / 2
    assert torch.allclose(side._look(Bent().initial())[:, 0], -2e3 * (x + 0.45).clamp(max=0))
