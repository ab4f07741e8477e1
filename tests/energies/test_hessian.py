"""The second variation of every energy against second differences of its value along a displacement."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pwgf import energies
from pwgf.energies import Hessian
from pwgf.energies.base import Once
from pwgf.energies.hessian import hessian_of
from pwgf.errors import ConfigError
from pwgf.parallel import Shared
from tests.energies.members import NAMES, cloud, member, mixed, quantiles, small

N = 40
SYMMETRIC = torch.tensor([[0.7, 0.3], [0.3, -0.4]], dtype=torch.float64)


def waves(x: Tensor) -> tuple[Tensor, Tensor]:
    """u = ∇φ (n,d) and ∇u (n,d,d) of φ = Σ_k c_k sin(w_k·x + k)."""
    d = x.shape[1]
    w = torch.randn(4, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    c, phase = torch.tensor([0.6, -0.4, 0.3, 0.5], dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    angle = x @ w.T + phase
    u = (c * torch.cos(angle)) @ w
    return u, -torch.einsum("nk,ka,kb->nab", c * torch.sin(angle), w, w)


def sampled(x: Tensor, log_density: Tensor | None = None) -> SimpleNamespace:
    """What an energy reads of a measure."""
    return SimpleNamespace(x=x, log_density=-x.square().sum(-1) / 2 if log_density is None else log_density)


def displaced(rho, s: float) -> SimpleNamespace:
    """(id + su)#ρ on the same samples."""
    u, slopes = waves(rho.x)
    volume = torch.linalg.slogdet(torch.eye(rho.x.shape[1], dtype=torch.float64) + s * slopes).logabsdet
    return sampled(rho.x + s * u, rho.log_density - volume)


def second_difference(value, rho, h: float = 1e-3) -> float:
    """d²/ds² value((id + su)#ρ) at s = 0."""
    return float(value(displaced(rho, h)) - 2 * value(displaced(rho, 0.0)) + value(displaced(rho, -h))) / h**2


def dense_kernel_hessian(W, x: Tensor) -> Tensor:
    """n/(n−1)² Σ_{j≠i} of the even part of ∇²W(x_i − x_j), pair by pair."""
    n = len(x)
    hessian = torch.func.vmap(torch.func.hessian(lambda r: (W(r) + W(-r)) / 2))
    rows = [hessian(x[i] - torch.cat([x[:i], x[i + 1 :]])).mean(0) for i in range(n)]
    return n / (n - 1) * torch.stack(rows)


def attraction(energy, rho) -> Tensor:
    """−∬k dρ dπ of an MMD."""
    r = (rho.x.unsqueeze(1) - energy.y).square().sum(-1)
    return (r.sqrt() if energy.kernel == "energy" else -torch.exp(-r / (2 * energy.bandwidth**2))).mean()


def cross_term(rho) -> float:
    """−2E[(u·g_xℓ)∇·u] of the member that depends on x and ℓ together."""
    x, ell = rho.x.clone().requires_grad_(), rho.log_density.clone().requires_grad_()
    (by_ell,) = torch.autograd.grad(mixed(x, ell).sum(), ell, create_graph=True)
    (by_both,) = torch.autograd.grad(by_ell.sum(), x)
    u, slopes = waves(rho.x)
    return float(-2 * ((u * by_both).sum(1) * slopes.diagonal(dim1=1, dim2=2).sum(1)).mean())


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_form_is_the_second_derivative_of_the_value(name, dim):
    """Exactly, or to the part and within the factor that the docstring names."""
    energy, rho, kind = member(name, dim), small(N, dim), name.split("-")[0]
    form = energy.hessian(rho)
    value = float(form(*waves(rho.x)))
    if name in ("interaction-asymmetric",) or kind in ("potential", "kl", "entropy", "internal", "porous", "fast"):
        assert value == pytest.approx(second_difference(energy, rho), rel=1e-5)
    elif kind == "local":
        cross = cross_term(rho) if name == "local-mixed" else 0.0
        assert value + cross == pytest.approx(second_difference(energy, rho), rel=1e-5)
    elif kind == "sliced":  # piecewise quadratic: a short step, within which no projections change places
        assert value == pytest.approx(second_difference(energy, rho, 1e-5), rel=1e-4)
    elif kind == "sinkhorn":
        assert second_difference(energy, rho, 0.05) < 1.05 * value
    elif name == "mmd-energy" and dim == 1:
        assert (form.point, form.explicit) == (None, ("mmd",))
    elif kind == "mmd":
        assert value == pytest.approx(second_difference(lambda moved: attraction(energy, moved), rho), rel=1e-5)
    elif kind == "interaction":
        torch.testing.assert_close(form.centred, dense_kernel_hessian(energy.W, rho.x), rtol=1e-9, atol=1e-12)
        if name == "interaction-distance":  # convex
            assert -1e-6 < second_difference(energy, rho) <= 2 * value + 1e-6
    elif kind == "functional":
        assert (value, form.explicit) == (0.0, ("functional",))
    elif kind == "fisher":
        assert form.explicit == ("fisher",)
    elif name == "drift":  # no value, but minus the change of the velocity along u
        (u, _), h = waves(rho.x), 1e-5
        change = (energy.b(rho.x + h * u) - energy.b(rho.x - h * u)) / (2 * h)
        assert value == pytest.approx(-float((u * change).sum(1).mean()), rel=1e-6)
    elif kind == "diffusion":  # E a|∇u|² with the largest eigenvalue a of D
        largest = energy.D(rho.x).reshape(N, -1).amax(1)
        assert value == pytest.approx(float((largest * waves(rho.x)[1].square().sum((1, 2))).mean()), rel=1e-9)
    else:
        assert name in ("sum", "driven-sum")
        parts = sum(float(t.coefficient * t.energy.hessian(rho)(*waves(rho.x))) for t in energy.terms())
        assert value == pytest.approx(parts, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_majorant_is_positive_and_no_smaller(name):
    form = member(name).hessian(small(N))
    above = form.majorant()
    assert above.explicit == form.explicit
    for field in ("point", "centred", "slope", "divergence"):
        signed, clipped = getattr(form, field), getattr(above, field)
        assert (signed is None) == (clipped is None)
        if signed is not None and signed.ndim == 1:
            assert torch.equal(clipped, signed.clamp(min=0))
        elif signed is not None:
            scale = float(signed.abs().max())
            assert float(torch.linalg.eigvalsh(clipped).min()) >= -1e-13 * scale
            assert float(torch.linalg.eigvalsh(clipped - signed).min()) >= -1e-13 * scale


@pytest.mark.parametrize("name", [name for name in NAMES if not member(name).pairwise])
def test_samples_count_one_by_one(name):
    energy, rho = member(name), small(N)
    whole = energy.hessian(rho)
    parts = [energy.hessian(sampled(rho.x[i], rho.log_density[i])) for i in (slice(0, 15), slice(15, N))]
    for field in ("point", "slope", "divergence"):
        if getattr(whole, field) is not None:
            together = torch.cat([getattr(part, field) for part in parts])
            torch.testing.assert_close(together, getattr(whole, field), rtol=1e-12, atol=1e-12)


def test_linear_displacements_of_a_gaussian():
    """u = Bx moves N(0, I) to a Gaussian whose energies are closed forms in s."""
    x = quantiles(44, 2)
    rho = sampled(x, torch.distributions.Normal(0, 1).log_prob(x).sum(-1))
    B, square, trace = SYMMETRIC, float((SYMMETRIC @ SYMMETRIC).trace()), float(SYMMETRIC.trace())
    u, slopes = x @ B, B.expand(len(x), 2, 2)
    assert float(energies.Entropy().hessian(rho)(u, slopes)) == pytest.approx(square)  # of −log det(I + sB)
    for m in (2.0, 3.0):  # ∫ρ^m = m^{−d/2} (2π)^{−d(m−1)/2}; its multiple det(I + sB)^{−(m−1)}/(m−1)
        expected = (square + (m - 1) * trace**2) / m / (2 * torch.pi) ** (m - 1)
        assert float(energies.PorousMedium(m).hessian(rho)(u, slopes)) == pytest.approx(expected, rel=2e-3)
    A = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)  # E ½x·Ax = ½tr A(I + sB)² where E xxᵀ = I
    rho = sampled(x / x.square().mean(0).sqrt())
    u = rho.x @ B
    potential = energies.Potential(lambda x: ((x @ A) * x).sum(-1) / 2).hessian(rho)
    torch.testing.assert_close(potential.point, A.expand(len(x), 2, 2))
    assert float(potential(u, slopes)) == pytest.approx(float((A @ B @ B).trace()))
    target = energies.KL(lambda x: -((x @ A) * x).sum(-1) / 2).hessian(rho)
    assert float(target(u, slopes)) == pytest.approx(float((A @ B @ B).trace()) + square)


@pytest.mark.parametrize("W", [lambda r: 1.5 * r.square().sum(-1), energies.RadialPolynomial(quadratic=1.5)])
def test_a_quadratic_interaction_is_exact_for_any_number_of_samples(W):
    energy = energies.Interaction(W)
    for n in (2, 7, 150):
        rho = small(n)
        form = energy.hessian(rho)(*waves(rho.x))
        assert float(form) == pytest.approx(second_difference(energy, rho), rel=1e-5)


def test_partners_stand_in_for_all_pairs():
    """64 partners of 500 are a sample of them; moments take all."""
    kernel, x = energies.RadialPolynomial(quadratic=-0.5, quartic=0.25), small(500).x
    all_pairs = energies.Interaction(kernel).hessian(sampled(x)).centred
    partners = energies.Interaction(lambda r: kernel(r)).hessian(sampled(x)).centred
    torch.testing.assert_close(all_pairs[:3], dense_kernel_hessian(kernel, x)[:3])
    error = float((partners - all_pairs).norm() / all_pairs.norm())
    assert 0 < error < 0.2
    assert float((partners.mean(0) - all_pairs.mean(0)).norm() / all_pairs.mean(0).norm()) < 0.05


def test_only_the_part_in_the_graph_is_not_taken_for_the_whole():
    for once in (Roundabout, Outside):
        potential = energies.Potential(lambda x, f=once.apply: 0.01 * f(x) + torch.sin(x).sum(-1))
        assert potential.hessian(small()).explicit == ("potential",)


def test_flat_and_linear_functions_have_no_curvature():
    rho = small(N)
    zero = torch.zeros(N, 2, 2, dtype=torch.float64)
    for V in (lambda x: x.sum(-1), lambda x: torch.zeros_like(x[:, 0]), lambda x: x.abs().sum(-1)):
        form = energies.Potential(V).hessian(rho)
        assert torch.equal(form.point, zero)
        assert form.explicit == ()
    assert torch.equal(energies.Potential(lambda x: torch.relu(x).sum(-1)).hessian(rho).point, zero)
    assert torch.equal(energies.Interaction(lambda r: r[..., 0]).hessian(rho).centred, zero)
    nothing = energies.Local(lambda x, log_rho: torch.zeros_like(log_rho)).hessian(rho)
    assert float(nothing(*waves(rho.x))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 50])
def test_the_majorant_keeps_the_positive_part_of_every_matrix(d, dtype):
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(30, d, d, generator=generator, dtype=torch.float64).to(dtype)
    indefinite, definite, low_rank = root + root.mT, root @ root.mT, root[:, :, :1] @ root[:, :, :1].mT
    matrices = torch.cat([indefinite, definite, low_rank, torch.zeros_like(root)])
    found = Hessian(point=matrices, centred=-matrices).majorant()
    exact = matrices.double()
    values, vectors = torch.linalg.eigh(exact)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype] * d
    for field, sign in ((found.point, 1), (found.centred, -1)):
        expected = (vectors * (sign * values).clamp(min=0).unsqueeze(1)) @ vectors.mT
        assert field.dtype == dtype
        torch.testing.assert_close(field.double(), expected, rtol=0, atol=tolerance)
    if d > 1:
        torch.testing.assert_close(found.point[30:60], definite, rtol=1e-6, atol=0)


def test_the_majorant_of_diagonal_matrices_is_diagonal():
    diagonal = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    matrices = torch.diag_embed(diagonal)
    form = Hessian(point=matrices, slope=torch.tensor([1.0, -1.0]), divergence=torch.tensor([-3.0, 2.0]))
    above = form.majorant()
    assert torch.equal(above.point, torch.diag_embed(diagonal.clamp(min=0)))
    assert above.slope.tolist() == [1, 0]
    assert above.divergence.tolist() == [0, 2]
    assert torch.equal(matrices, torch.diag_embed(diagonal))  # its own tensors are left alone


def test_clipping_comes_after_the_sum():
    """A concave term is outweighed by a convex one, and minus a concave one is convex."""
    well, rho = energies.Potential(lambda x: x.square().sum(-1)), small(N)
    hill = energies.Potential(lambda x: -0.75 * x.square().sum(-1))
    eye = torch.eye(2, dtype=torch.float64).expand(N, 2, 2)
    torch.testing.assert_close((well + hill).hessian(rho).majorant().point, 0.5 * eye)
    torch.testing.assert_close((-hill).hessian(rho).majorant().point, 1.5 * eye)
    assert float(hill.hessian(rho).majorant().point.abs().max()) == 0
    both = 2 * well + 0.5 * energies.Entropy() - energies.PorousMedium(0.8)
    form = both.hessian(rho)
    torch.testing.assert_close(form.divergence, 0.2 * torch.exp(-0.2 * rho.log_density))
    torch.testing.assert_close(form.slope, 0.5 - torch.exp(-0.2 * rho.log_density))


def test_sums_and_multiples_of_forms():
    one = Hessian(slope=torch.tensor([1.0, 2.0]), explicit=("a",))
    other = Hessian(slope=torch.tensor([3.0, 4.0]), divergence=torch.tensor([1.0, 1.0]), explicit=("b",))
    total = one + 2 * other
    assert total.slope.tolist() == [7, 10]
    assert total.divergence.tolist() == [2, 2]
    assert total.explicit == ("a", "b")
    assert (total.point, total.centred) == (None, None)
    with pytest.raises(TypeError):
        one + 1.0
    with pytest.raises(TypeError):
        one * "2"


class Roundabout(torch.autograd.Function):
    """½|x|² with a gradient that torch cannot follow."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(-1) / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor):
        return factor.unsqueeze(-1) * ctx.saved_tensors[0]


class KnownGradient(Roundabout):
    """½|x|² whose gradient refuses a second derivative."""

    @staticmethod
    def backward(ctx, factor):
        return factor.unsqueeze(-1) * Once.apply(ctx.saved_tensors[0], ctx.saved_tensors[0], "once only")


class Outside(Roundabout):
    """½|x|² whose gradient is computed outside torch."""

    @staticmethod
    def backward(ctx, factor):
        return factor.detach().unsqueeze(-1) * torch.from_numpy(ctx.saved_tensors[0].detach().numpy().copy())


@pytest.mark.parametrize("once", [Roundabout, KnownGradient, Outside])
def test_an_energy_that_can_be_differentiated_once_is_explicit(once):
    rho = small()
    potential = energies.Potential(once.apply)
    torch.testing.assert_close(potential.velocity(rho), -rho.x)
    form = potential.hessian(rho)
    assert (form.point, form.explicit) == (None, ("potential",))
    target = energies.KL(lambda x: -once.apply(x)).hessian(rho)
    assert (target.point, target.explicit) == (None, ("kl",))
    assert torch.equal(target.slope, torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("once", [Roundabout, KnownGradient, Outside])
def test_kernels_and_local_energies_that_can_be_differentiated_once_are_explicit(once):
    assert energies.Interaction(once.apply).hessian(small()).explicit == ("interaction",)
    assert energies.Local(lambda x, log_rho: once.apply(x) * log_rho).hessian(small()).explicit == ("local",)


def test_samples_without_a_finite_second_derivative_are_left_out_and_counted():
    x = small().x.clone()
    x[4] = 0.0
    x[7, 0] = 0.0
    potential = energies.Potential(lambda x: x.abs().pow(1.5).sum(-1))
    form = (energies.Entropy() + potential).hessian(sampled(x))
    assert form.explicit == ("potential (not finite at 2 of 12 samples)",)
    assert float(form.point[[4, 7]].abs().max()) == 0
    rest = [i for i in range(12) if i not in (4, 7)]
    torch.testing.assert_close(form.point[rest], torch.diag_embed(0.75 * x[rest].abs().rsqrt()))
    x[3] = x[2]
    distance = energies.Interaction(lambda r: torch.linalg.vector_norm(r, dim=-1) ** 1.5).hessian(sampled(x))
    assert distance.explicit == ("interaction (not finite at 2 of 12 samples)",)


def test_vacuum_has_no_pressure():
    log_density = torch.tensor([0.0, -1000.0, -torch.inf], dtype=torch.float64)
    rho = sampled(torch.zeros(3, 2, dtype=torch.float64), log_density)
    form = energies.PorousMedium(2).hessian(rho)
    assert form.slope.tolist() == form.divergence.tolist() == [1, 0, 0]
    assert form.explicit == ()
    fast = energies.PorousMedium(0.5).hessian(rho)
    assert fast.explicit == ("porousmedium (not finite at 1 of 3 samples)",)
    assert bool(torch.isfinite(fast.slope).all())


class Mine(energies.Energy):
    """A user's energy that says nothing of its second variation."""

    def __call__(self, rho):
        return rho.x.square().mean()

    def velocity(self, rho):
        return -2 * rho.x


def test_unknown_terms_are_named_as_in_the_sum():
    form = (Mine() + energies.Entropy() + 2 * Mine() + energies.Functional(lambda rho: rho.x.mean())).hessian(small())
    assert form.explicit == ("mine", "mine_2", "functional")
    assert form.slope is not None
    assert Mine().hessian(small()).explicit == ("mine",)


def test_a_lack_of_memory_is_not_taken_for_a_missing_derivative():
    def fields():
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        hessian_of("potential", Shared(3), fields)


def test_a_function_that_fails_still_says_so():
    with pytest.raises(ConfigError, match="Potential: V.x. failed"):
        energies.Potential(lambda x: x @ torch.ones(7, 7)).hessian(small())


WELL = energies.Potential(lambda x: x.square().sum(-1))


@pytest.mark.parametrize(
    "energy",
    [
        -0.5 * energies.Entropy(),
        WELL - energies.Entropy(),
        WELL - 2 * energies.KL(lambda x: -x.square().sum(-1)) + energies.Entropy(),
        energies.PorousMedium(2) - energies.Entropy(),
    ],
)
def test_backward_heat_is_refused(energy):
    with pytest.raises(ConfigError, match=r"entropy enters with coefficient -\d.*backward heat .*temperature >= 0"):
        energies.refuse_ill_posed(energy)


@pytest.mark.parametrize(
    "energy", [-0.5 * energies.PorousMedium(2), WELL + energies.PorousMedium(3) - 1.5 * energies.PorousMedium(3)]
)
def test_backward_porous_media_are_refused(energy):
    with pytest.raises(ConfigError, match=r"PorousMedium\([23]\) enters with coefficient -0.5 < 0.*backward diffusion"):
        energies.refuse_ill_posed(energy)


@pytest.mark.parametrize(
    "energy",
    [
        WELL,
        -1 * WELL,
        0.0 * energies.Entropy(),
        energies.Entropy() - 0.5 * energies.KL(lambda x: x.sum(-1)),
        (0.1 + 0.2) * energies.Entropy() - 0.3 * energies.Entropy(),
        0.3 * energies.Entropy() - (0.1 + 0.2) * energies.Entropy(),
        energies.Entropy() - 0.1 * energies.PorousMedium(2),
        energies.PorousMedium(3) - 0.1 * energies.PorousMedium(2),
        energies.InternalEnergy(lambda r: r**3) - 0.1 * energies.PorousMedium(2),
        -1 * energies.MMD(cloud(2)),
    ],
)
def test_other_signs_pass(energy):
    energies.refuse_ill_posed(energy)
