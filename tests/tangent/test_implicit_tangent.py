"""The system of an implicit step against a second variation built from dense derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pwgf import energies, linalg, maps
from pwgf.energies import Hessian
from pwgf.errors import SolverError
from pwgf.measures import Gaussian, PushedMeasure
from pwgf.tangent import Curvature, ImplicitTangent, Tangent

N, H = 9, 0.3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module(dim: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, dim)).double()


MAPS = {
    "affine": lambda: maps.Affine(2),
    "residual-1": lambda: maps.ResidualMLP(1, width=5),
    "residual-2": lambda: maps.ResidualMLP(2, width=5),
    "residual-3": lambda: maps.ResidualMLP(3, width=4, axis_units=2),
    "ridge": lambda: maps.ConvexRidge(2, width=4),
    "max": lambda: maps.ConvexMax(2, groups=2, size=3),
    "module": lambda: maps.FromModule(module(2), dim=2, residual=True),
}
ENERGIES = {
    "potential-entropy": lambda: energies.Potential(lambda x: x.square().sum(-1).square() / 4) + energies.Entropy(),
    "porous": lambda: energies.PorousMedium(2),
    "interaction": lambda: energies.Interaction(lambda r: r.square().sum(-1).square() / 4),
    "all": lambda: (
        energies.Potential(lambda x: x.square().sum(-1).square() / 4)
        + energies.Interaction(lambda r: r.square().sum(-1))
        + energies.PorousMedium(2)
    ),
}
each_map = pytest.mark.parametrize("map_name", MAPS)
each_energy = pytest.mark.parametrize("energy_name", ENERGIES)


class Case:
    """A map off its start, an energy's form there, and dense J (n,d,p) and ∂_θ∇u (n,d,d,p)."""

    def __init__(self, map_name: str, energy_name: str, n: int = N) -> None:
        self.map, self.n = MAPS[map_name](), n
        d = self.map.dim
        self.theta = self.map.initial() + 0.1 * random(self.map.num_params, seed=2)
        self.z = random(n, d, seed=3)
        rho = PushedMeasure(self.map, Gaussian(d), self.theta, self.z)
        self.form = ENERGIES[energy_name]().hessian(rho).majorant()
        self.inverse = torch.linalg.inv(self.map.jacobian(self.theta, self.z)).detach()
        self.eye = torch.eye(d, dtype=torch.float64).expand(n, d, d)
        jacobian = torch.autograd.functional.jacobian
        self.J = jacobian(lambda t: self.map(t, self.z), self.theta)
        self.gradients = torch.einsum(
            "nacp,ncb->nabp", jacobian(lambda t: self.map.jacobian(t, self.z), self.theta), self.inverse
        )

    def curvature(self, probes: torch.Tensor | None = None, weights: torch.Tensor | None = None) -> Curvature:
        bends = self.form.slope is not None or self.form.divergence is not None
        exact = probes is None
        tangent = Tangent(self.map, self.theta, self.z)
        tangent = tangent if weights is None else tangent.weighted(weights)
        return Curvature(tangent, self.form, self.inverse if bends else None, self.eye if exact else probes, exact)

    def stacked(self, h: float, weights: torch.Tensor | float = 1.0) -> list[torch.Tensor]:
        """Rows by hand, (n,·,p) each: J, √h K^½ J, √h C^½ (J−J̄), √(ha) ∇u, √(hb) div u; J̄ by weights (n,1,1)."""
        form, rows = self.form, [self.J]
        if form.point is not None:
            rows.append(math.sqrt(h) * root(form.point) @ self.J)
        if form.centred is not None:
            rows.append(math.sqrt(h) * root(form.centred) @ (self.J - (weights * self.J).mean(0)))
        if form.slope is not None:
            rows.append((h * form.slope).sqrt()[:, None, None] * self.gradients.flatten(1, 2))
        if form.divergence is not None:
            divergence = self.gradients.diagonal(dim1=1, dim2=2).sum(2).unsqueeze(1)
            rows.append((h * form.divergence).sqrt()[:, None, None] * divergence)
        return rows

    def system(self, h: float) -> torch.Tensor:
        """Ĝ + hH, (p,p)."""
        rows = torch.cat(self.stacked(h), 1).flatten(0, 1)
        return rows.T @ rows / self.n


def root(matrices: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT


def assert_near(found: torch.Tensor, expected: torch.Tensor, rel: float = 1e-9) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= rel * (float(expected.norm()) + 1e-12)


def test_the_cases_have_every_part_of_a_form():
    parts = [
        {name for name in ("point", "centred", "slope", "divergence") if getattr(form, name) is not None}
        for form in (Case("affine", energy).form for energy in ENERGIES)
    ]
    assert parts == [{"point", "slope"}, {"slope", "divergence"}, {"centred"}, set.union(*parts)]


@each_energy
@each_map
def test_the_rows_are_those_stacked_by_hand(map_name, energy_name):
    """Sample by sample their Gram matrix is; the rows themselves are one of its many roots."""
    case = Case(map_name, energy_name)
    system = ImplicitTangent(case.curvature(), H)
    rows = system.dense().view(case.n, system.d, -1)
    by_hand = torch.cat(case.stacked(H), 1)
    assert_near(rows.mT @ rows, by_hand.mT @ by_hand)


@each_energy
@each_map
def test_products_and_gram_matrices_agree_with_the_rows(map_name, energy_name):
    case = Case(map_name, energy_name)
    system = ImplicitTangent(case.curvature(), H)
    rows, eta, r = system.dense(), random(system.p, seed=5), random(case.n, system.d, seed=6)
    assert_near(system.jv(eta).reshape(-1), rows @ eta)
    assert_near(system.jtu(r), rows.T @ r.reshape(-1))
    assert_near(system.gram_primal(), case.system(H))
    assert_near(system.gram_dual(), rows @ rows.T)
    assert float(system.trace()) == pytest.approx(float(case.J.square().sum()) / case.n, rel=1e-10)
    v = random(case.n, case.map.dim, seed=7)
    assert_near(system.jtu(system.right_side(v)), torch.einsum("ndp,nd->p", case.J, v))


@each_energy
@each_map
def test_weights_multiply_the_equations_of_each_sample(map_name, energy_name):
    case, weights = Case(map_name, energy_name), torch.linspace(0.2, 1.8, N, dtype=torch.float64)
    system = ImplicitTangent(case.curvature(weights=weights), H)
    by_sample = weights.view(-1, 1, 1)
    rows = (by_sample.sqrt() * torch.cat(case.stacked(H, by_sample), 1)).flatten(0, 1)
    assert_near(system.gram_primal(), rows.T @ rows / N)
    dense, index = system.dense(), torch.arange(3)
    assert_near(system.gram_dual(), dense @ dense.T)
    subset = system.subset(index)
    assert_near(subset.tangent.dense(), system.tangent.dense()[: 3 * case.map.dim])
    assert_near(subset.dense().T @ subset.dense() / 3, subset.gram_primal())
    eta = random(system.p, seed=5)
    assert_near(system.jv(eta).reshape(-1), dense @ eta)
    assert_near(eta @ (system.gram_primal() - system.curvature.gram[0]) @ eta, H * system.curvature.quadratic(eta))
    v = random(N, case.map.dim, seed=7)
    rhs = system.right_side(weights.sqrt().unsqueeze(1) * v)
    assert_near(system.jtu(rhs), torch.einsum("n,ndp,nd->p", weights, case.J, v))
    if system.layered:
        blocks, whole = system.output_blocks(), rows.T @ rows / N
        assert_near(blocks.gram(H), torch.stack([whole[index][:, index] for index in blocks.places]))


@each_energy
@each_map
def test_output_blocks_are_those_of_the_system(map_name, energy_name):
    """Of parameters whose rows of J vanish but for one coordinate's."""
    case = Case(map_name, energy_name)
    system = ImplicitTangent(case.curvature(), H)
    if not system.layered:
        assert system.output_share == 0.0
        return
    blocks, whole = system.output_blocks(), case.system(H)
    for k, index in enumerate(blocks.places):
        others = [j for j in range(case.map.dim) if j != k]
        assert float(case.J[:, others][:, :, index].abs().sum()) == 0
        assert_near(blocks.gram(H)[k], whole[index][:, index])
    assert system.output_share == pytest.approx(blocks.places.numel() / case.map.num_params)
    assert system.output_share > {"affine": 0.99, "residual": 0.4}.get(map_name.split("-")[0], 0)


def test_blocks_of_each_coordinate_save_products_where_the_potential_tears():
    """Against plain conjugate gradients at equal error, on the default map of a torn law in d = 3."""
    generator = torch.Generator().manual_seed(0)
    map, z = maps.ResidualMLP(3), torch.randn(300, 3, dtype=torch.float64, generator=generator)
    theta = map.initial() + 0.03 * torch.randn(map.num_params, dtype=torch.float64, generator=generator)
    energy = energies.Potential(lambda x: (x.square() - 4).square().sum(-1)) + energies.Entropy()
    rho = PushedMeasure(map, Gaussian(3), theta, z)
    inverse = torch.linalg.inv(map.jacobian(theta, z)).detach()
    signs = torch.randint(0, 2, (300, 1, 3), generator=generator).double() * 2 - 1
    curvature = Curvature(Tangent(map, theta, z), energy.hessian(rho).majorant(), inverse, signs, False)
    system = ImplicitTangent(curvature, 0.05)
    right = system.right_side(energy.velocity(rho).detach())
    truth = system.tangent.jv(linalg.Primal()(system, right, damping=1e-6).x)

    def found(solver):
        solution = solver(system, right, damping=1e-6)
        assert solution.converged
        return solution.num_products, float((system.tangent.jv(solution.x) - truth).norm() / truth.norm())

    blocks, plain = found(linalg.BlockPCG(rtol=1e-3, mixed=False)), found(linalg.CG(rtol=1e-4))
    assert blocks[1] < min(2e-3, plain[1])
    assert 3 * blocks[0] < plain[0]


@each_energy
@each_map
def test_the_quadratic_form_is_the_energys(map_name, energy_name):
    """Hess F(u, ∇u), with ∇u = ∂_z(Jη)(∂_zT)⁻¹ by central differences."""
    case, step = Case(map_name, energy_name), 1e-5
    eta = random(case.map.num_params, seed=5)
    ahead, behind = (case.map.jacobian(case.theta + s * step * eta, case.z).detach() for s in (1, -1))
    expected = case.form(case.J @ eta, (ahead - behind) / (2 * step) @ case.inverse)
    assert float(case.curvature().quadratic(eta)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("energy_name", ["potential-entropy", "porous"])
@pytest.mark.parametrize("map_name", ["residual-2", "residual-3"])
def test_random_probes_are_right_on_average(map_name, energy_name):
    """But for the square of an average: (w·∇u w)² exceeds (div u)² by Σ_{a<b} (∂_a u_b + ∂_b u_a)² on average."""
    case = Case(map_name, energy_name)
    eta = random(case.map.num_params, seed=5)
    exact = float(case.curvature().quadratic(eta))
    if case.form.divergence is not None:
        gradient = case.gradients @ eta
        shear = (gradient + gradient.mT).triu(1).square().sum((1, 2))
        exact += float((case.form.divergence * shear).mean())
    generator, found = torch.Generator().manual_seed(8), []
    for _ in range(400):
        signs = torch.randint(0, 2, (case.n, 1, case.map.dim), generator=generator).double() * 2 - 1
        found.append(float(case.curvature(signs).quadratic(eta)))
    found = torch.tensor(found, dtype=torch.float64)
    assert float(found.std()) > 0
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / 400**0.5


SOLVERS = [
    linalg.Primal(),
    linalg.Dual(),
    linalg.BlockPCG(rtol=1e-10),
    linalg.SubsamplePCG(rtol=1e-10, num_subsample=5),
    linalg.CG(rtol=1e-10),
    linalg.LSMR(rtol=1e-10),
]


@each_energy
@each_map
def test_all_solvers_give_one_solution(map_name, energy_name):
    case, damping = Case(map_name, energy_name), 1e-3
    system, v = ImplicitTangent(case.curvature(), H), random(N, MAPS[map_name]().dim, seed=7)
    prior = 0.1 * random(system.p, seed=8)
    shift = damping * float(system.trace()) * torch.eye(system.p, dtype=torch.float64)
    right = torch.einsum("ndp,nd->p", case.J, v) / case.n + shift @ prior
    expected = torch.linalg.solve(case.system(H) + shift, right)
    for solver in SOLVERS:
        found = solver(system, system.right_side(v), damping=damping, prior=prior)
        assert found.converged, solver.name
        assert float((found.x - expected).norm()) < 1e-6 * float(expected.norm()), solver.name


@pytest.mark.parametrize("map_name", ["residual-2", "module"])
def test_a_subset_is_the_system_of_its_samples(map_name):
    case, index = Case(map_name, "all"), torch.tensor([6, 1, 2])
    form = Hessian(*(getattr(case.form, name)[index] for name in ("point", "centred", "slope", "divergence")))
    tangent = Tangent(case.map, case.theta, case.z[index])
    whole, part = case.curvature(), Curvature(tangent, form, case.inverse[index], case.eye[index], True)
    whole.gram  # noqa: B018 - what is cached of the whole must not be taken for the part's
    found = ImplicitTangent(whole, H).subset(index)
    assert_near(found.dense(), ImplicitTangent(part, H).dense())
    assert_near(found.gram_primal(), ImplicitTangent(part, H).gram_primal())
    assert_near(found.gram_dual(), ImplicitTangent(part, H).gram_dual())


@pytest.mark.parametrize("map_name", ["residual-2", "module"])
def test_another_precision(map_name):
    case = Case(map_name, "all")
    system, eta = ImplicitTangent(case.curvature(), H), random(case.map.num_params, seed=5)
    single = system.to(torch.float32)
    assert single.dtype == single.jv(eta.float()).dtype == torch.float32
    assert_near(single.jv(eta.float()).double(), system.jv(eta), rel=1e-3)
    assert_near(single.gram_primal().double(), system.gram_primal(), rel=1e-3)


def test_a_concave_interaction_has_no_second_variation_left_in_any_precision():
    """C = 0 after the majorant; C of rank one has rounding below zero in single precision."""
    map, z = maps.Affine(2), random(5, 2, seed=3)
    flat = torch.zeros(5, 2, 2, dtype=torch.float64)
    for centred in (flat, 1e6 * (z.unsqueeze(2) @ z.unsqueeze(1))):
        for dtype in (torch.float32, torch.float64):
            tangent = Tangent(map, map.initial().to(dtype), z.to(dtype))
            system = ImplicitTangent(Curvature(tangent, Hessian(centred=centred.to(dtype)), None, None, True), 0.1)
            J = tangent.dense().double().view(5, 2, -1)
            bent = J - J.mean(0)
            expected = (J.mT @ J + 0.1 * bent.mT @ centred @ bent).mean(0)
            assert_near(system.gram_primal().double(), expected, rel=1e-4)
            rows = system.dense().double()
            assert_near(rows.T @ rows / 5, expected, rel=1e-3)


def test_a_second_variation_beyond_rounding_is_a_solver_error():
    """Here a form that no majorant has made positive: the step is rejected, the run goes on."""
    map, z = maps.Affine(2), random(5, 2, seed=3)
    point = -1e20 * torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    curvature = Curvature(Tangent(map, map.initial(), z), Hessian(point=point), None, None, True)
    with pytest.raises(SolverError, match="beyond rounding"):
        ImplicitTangent(curvature, 0.1)


def test_without_a_step_it_is_the_tangent_itself():
    case = Case("residual-2", "all")
    system = ImplicitTangent(case.curvature(), 0.0)
    assert_near(system.gram_primal(), case.system(0.0))


@pytest.mark.parametrize("num_samples", [9, 2000])
def test_the_gram_matrix_does_not_depend_on_how_its_samples_are_blocked(num_samples):
    """Many samples make several blocks, which must not tear the directions of a sample apart."""
    case = Case("residual-3", "all", n=9)
    repeats = num_samples // 9
    curvature = case.curvature()
    many = curvature.subset(torch.arange(9).repeat(repeats))
    assert_near(ImplicitTangent(many, H).gram_primal(), ImplicitTangent(curvature, H).gram_primal())


def test_the_spread_is_how_much_larger_the_rows_are_than_those_of_the_tangent():
    case = Case("residual-2", "potential-entropy")
    plain = float(torch.trace(case.system(0.0)))
    assert ImplicitTangent(case.curvature(), 0.0).spread == pytest.approx(1.0)
    for h in (1.0, 1e4):
        found = ImplicitTangent(case.curvature(), h).spread
        assert found == pytest.approx(float(torch.trace(case.system(h))) / plain, rel=0.6)
