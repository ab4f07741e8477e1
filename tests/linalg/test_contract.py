"""One contract for every solver, on matrices of every kind; the truth is dense algebra in float64."""

from __future__ import annotations

import pytest
import torch

from pwgf.errors import ConfigError, NonFiniteError, ShapeError
from pwgf.linalg import CG, LSMR, Auto, BlockPCG, Dual, Primal, SubsamplePCG
from tests.linalg.helpers import DenseTangent, decaying, dense_solution

SOLVERS = [
    Auto(),
    Primal(),
    Dual(),
    CG(rtol=1e-10),
    LSMR(rtol=1e-10),
    SubsamplePCG(rtol=1e-10, num_subsample=5),
    BlockPCG(rtol=1e-10),
]
FREE = [s for s in SOLVERS if s.name not in ("dual", "lsmr")]  # those that take a free right side


def random(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_deficient() -> DenseTangent:
    return DenseTangent((random(60, 6, seed=1) @ random(6, 25, seed=2)).reshape(20, 3, 25))


def with_repeated_columns() -> DenseTangent:
    return DenseTangent(torch.cat([random(20, 3, 10), random(20, 3, 10), torch.zeros(20, 3, 4)], -1).double())


def in_blocks() -> DenseTangent:
    """Eight parameters move one coordinate each, five move both."""
    J = random(30, 2, 13)
    J[:, 0, 4:8] = 0
    J[:, 1, :4] = 0
    return DenseTangent(J)


MATRICES = {
    "tall": DenseTangent(random(30, 3, 12)),
    "wide (n·d < p)": DenseTangent(random(6, 2, 40)),
    "a block for each coordinate": in_blocks(),
    "one sample": DenseTangent(random(1, 3, 7)),
    "one parameter": DenseTangent(random(10, 2, 1)),
    "rank-deficient": rank_deficient(),
    "repeated and zero columns": with_repeated_columns(),
    "decaying": decaying(20, 2, 30, decay=3),
    "badly scaled": DenseTangent(1e-9 * random(20, 2, 15)),
}

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
each_free = pytest.mark.parametrize("solver", FREE, ids=lambda s: s.name)
each_matrix = pytest.mark.parametrize("tangent", MATRICES.values(), ids=MATRICES.keys())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@each_solver
@each_matrix
@pytest.mark.parametrize("with_prior", [False, True])
def test_equals_the_dense_solution_and_reports_it_truly(solver, tangent, with_prior):
    v = random(tangent.n, tangent.d, seed=3)
    prior = random(tangent.p, seed=4) * (1.0 / float(tangent.J.abs().max())) if with_prior else None
    damping = 1e-4
    before = tangent.num_products
    solution = solver(tangent, v, damping=damping, prior=prior)
    truth = dense_solution(tangent, v, damping, prior)
    assert relative(solution.x, truth) < 1e-6
    assert solution.converged
    spent = tangent.num_products - before
    assert solution.num_products >= spent if isinstance(solver, SubsamplePCG) else solution.num_products == spent

    J, n = tangent.matrix, tangent.n
    centre = torch.zeros(tangent.p, dtype=torch.float64) if prior is None else prior
    G = J.T @ J / n
    b = J.T @ v.reshape(-1) / n - G @ centre
    y = solution.x - centre
    residual = (b - G @ y - damping * torch.trace(G) * y).norm() / b.norm()
    assert solution.residual == pytest.approx(float(residual), abs=1e-12)
    assert solution.fit == pytest.approx(float((J @ solution.x - v.reshape(-1)).square().sum() / v.square().sum()))


@each_free
@each_matrix
@pytest.mark.parametrize("with_prior", [False, True])
def test_a_free_right_side(solver, tangent, with_prior):
    scale = float(tangent.trace())
    rhs, v = random(tangent.p, seed=5) * scale, random(tangent.n, tangent.d, seed=3)
    prior = random(tangent.p, seed=4) if with_prior else None
    solution = solver(tangent, v, damping=1e-3, prior=prior, rhs=rhs)
    assert relative(solution.x, dense_solution(tangent, v, 1e-3, prior, rhs)) < 1e-6
    assert solution.converged


@each_solver
@each_matrix
def test_a_prior_that_solves_it_is_returned_without_iterating(solver, tangent):
    prior = random(tangent.p, seed=4)
    solution = solver(tangent, tangent.jv(prior), damping=1e-6, prior=prior)
    assert torch.equal(solution.x, prior)
    assert solution.residual == 0.0 and solution.fit == 0.0 and solution.converged
    assert solution.num_products == 2


@each_solver
def test_a_least_squares_prior_is_returned_up_to_rounding(solver):
    tangent, v = MATRICES["tall"], random(30, 3, seed=3)
    prior = torch.linalg.lstsq(tangent.matrix, v.reshape(-1)).solution
    solution = solver(tangent, v, damping=1e-6, prior=prior)
    assert torch.equal(solution.x, prior) and solution.num_products == 2
    assert solution.fit == pytest.approx(float((tangent.jv(prior) - v).square().sum() / v.square().sum()))


@each_solver
@pytest.mark.parametrize("apart", [1e-10, 1e-12, 1e-14])
def test_a_prior_that_nearly_solves_it_leaves_a_difference_within_rounding(solver, apart):
    """b is then a small difference, whose relative residual rounding keeps above any tolerance."""
    tangent, prior = MATRICES["tall"], random(12, seed=4)
    v = tangent.jv(prior) + apart * random(30, 3, seed=3)
    solution = solver(tangent, v, damping=1e-6, prior=prior)
    assert solution.converged
    assert relative(solution.x, dense_solution(tangent, v, 1e-6, prior)) < 1e-13


@each_solver
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
def test_scaling_the_right_side_scales_the_answer(solver, scale):
    tangent, v = MATRICES["decaying"], random(20, 2, seed=3)
    one, other = solver(tangent, v, damping=1e-4), solver(tangent, scale * v, damping=1e-4)
    assert relative(other.x / scale, one.x) < 1e-7
    assert abs(other.num_products - one.num_products) <= 4
    assert other.fit == pytest.approx(one.fit)


@each_solver
@each_matrix
def test_no_velocity_and_no_prior_give_zero(solver, tangent):
    solution = solver(tangent, torch.zeros(tangent.n, tangent.d, dtype=torch.float64), damping=1e-6)
    assert not solution.x.any()
    assert solution[1:3] == (0.0, 0.0) and solution.converged


@each_solver
def test_no_velocity_pulls_the_prior_towards_zero(solver):
    tangent, prior = MATRICES["tall"], random(12, seed=4)
    v = torch.zeros(30, 3, dtype=torch.float64)
    solution = solver(tangent, v, damping=1e-2, prior=prior)
    assert relative(solution.x, dense_solution(tangent, v, 1e-2, prior)) < 1e-7
    assert solution.fit == 0.0


@each_solver
def test_a_tangent_that_vanishes_gives_the_prior(solver):
    tangent, prior = DenseTangent(torch.zeros(4, 2, 5, dtype=torch.float64)), random(5)
    solution = solver(tangent, random(4, 2), damping=1e-6, prior=prior)
    assert torch.equal(solution.x, prior) and solution.fit == 1.0


@pytest.mark.parametrize("solver", [Primal(), Dual(), LSMR(rtol=1e-12)], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["rank-deficient", "repeated and zero columns", "wide (n·d < p)", "one sample"])
def test_without_damping_the_nearest_least_squares_solution(solver, name):
    tangent = MATRICES[name]
    v, prior = random(tangent.n, tangent.d, seed=3), random(tangent.p, seed=4)
    truth = prior + torch.linalg.pinv(tangent.matrix, rtol=1e-10) @ (v.reshape(-1) - tangent.matrix @ prior)
    solution = solver(tangent, v, damping=0.0, prior=prior)
    assert relative(solution.x, truth) < 1e-6
    assert solution.converged


@pytest.mark.parametrize("solver", [CG(rtol=1e-9), SubsamplePCG(rtol=1e-9)], ids=lambda s: s.name)
def test_without_damping_iterations_reach_the_same_displacement(solver):
    tangent, v = MATRICES["rank-deficient"], random(20, 3, seed=3)
    truth = dense_solution(tangent, v, 0.0)
    assert relative(tangent.jv(solver(tangent, v, damping=0.0).x), tangent.jv(truth)) < 1e-6


def test_an_unreachable_right_side_is_confessed():
    tangent, v = MATRICES["rank-deficient"], random(20, 3, seed=3)
    rhs = random(25, seed=5)
    basis = torch.linalg.svd(tangent.matrix).Vh[6:]
    outside = float((basis @ rhs).norm() / rhs.norm())
    for solver in (Primal(), CG(max_iterations=60)):
        solution = solver(tangent, v, damping=0.0, rhs=rhs)
        assert not solution.converged
        assert torch.isfinite(solution.x).all()
        if solver.name != "cg":  # conjugate gradients do not find the least-squares solution
            assert solution.residual == pytest.approx(outside, rel=1e-6)


@pytest.mark.parametrize("damping, allowed", [(1e-4, 1e-3), (1e-6, 5e-3), (1e-7, 2e-2)])
@pytest.mark.parametrize(
    "solver",
    [Primal(), Dual(), CG(), LSMR(), SubsamplePCG(rtol=1e-4, num_subsample=25)],
    ids=lambda s: s.name,
)
def test_float32_follows_float64(solver, damping, allowed):
    double = decaying(60, 3, 120, decay=5)
    v = random(60, 3, seed=3) * 0.2 + double.jv(random(120, seed=4))
    single = DenseTangent(double.J.float())
    solution = solver(single, v.float(), damping=damping)
    assert solution.x.dtype == torch.float32
    truth = dense_solution(double, v, damping)
    assert relative(double.jv(solution.x.double()), double.jv(truth)) < allowed
    assert solution.converged


@each_solver
def test_operands_that_alias_are_left_alone(solver):
    class Identity(DenseTangent):  # J = I: Jη and Jᵀu are views of their arguments
        def jv(self, eta):
            return eta.reshape(1, -1)

        def jtu(self, u):
            return u.reshape(-1)

    tangent = Identity(torch.eye(4, dtype=torch.float64).reshape(1, 4, 4))
    v, prior = random(1, 4), random(4, seed=8)
    v_before, prior_before = v.clone(), prior.clone()
    solution = solver(tangent, v, damping=0.25, prior=prior)  # μ = 1: halfway between prior and v
    assert torch.allclose(solution.x, (v.reshape(-1) + prior) / 2)
    assert torch.equal(v, v_before) and torch.equal(prior, prior_before)


@each_solver
def test_equal_inputs_give_equal_bits(solver):
    tangent, v = MATRICES["decaying"], random(20, 2, seed=3)
    assert torch.equal(solver(tangent, v, damping=1e-5).x, solver(tangent, v, damping=1e-5).x)


@each_solver
@pytest.mark.parametrize("bad", [-1e-6, float("nan"), float("inf")])
def test_damping_must_be_finite_and_not_negative(solver, bad):
    with pytest.raises(ConfigError, match=r"damping=….*finite number ≥ 0; got .*Give damping=1e-6"):
        solver(MATRICES["tall"], random(30, 3), damping=bad)


@each_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_terms_are_named(solver, bad):
    tangent, v, prior = MATRICES["tall"], random(30, 3), random(12)
    wrong = v.clone()
    wrong[3, 1] = bad
    with pytest.raises(NonFiniteError, match=r"the right side v is NaN or infinite.*\(a\).*\(b\).*\(c\)"):
        solver(tangent, wrong, damping=1e-6)
    with pytest.raises(NonFiniteError, match="the prior is NaN"):
        solver(tangent, v, damping=1e-6, prior=prior * bad)
    with pytest.raises(NonFiniteError, match="the trace of the metric is NaN"):
        solver(DenseTangent(tangent.J * bad), v, damping=1e-6)


@each_free
def test_a_non_finite_free_right_side_is_named(solver):
    with pytest.raises(NonFiniteError, match="the right side rhs is NaN"):
        solver(MATRICES["tall"], random(30, 3), damping=1e-6, rhs=torch.full((12,), torch.nan, dtype=torch.float64))


class Breaking(DenseTangent):
    """Products turn NaN after `after` of them; so do the Grams."""

    after = 0

    def jv(self, eta):
        return super().jv(eta) * (torch.nan if self.num_products >= self.after else 1.0)

    def gram_dual(self):
        return super().gram_dual() * torch.nan

    def gram_primal(self):
        return super().gram_primal() * torch.nan


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("solver", [CG(), LSMR()], ids=lambda s: s.name)
def test_a_product_that_breaks_is_named(solver, after):
    tangent = Breaking(MATRICES["decaying"].J)
    tangent.after = after
    with pytest.raises(NonFiniteError, match="the tangent product is NaN or infinite"):
        solver(tangent, random(20, 2), damping=1e-6)


@pytest.mark.parametrize("solver", [Primal(), Dual(), SubsamplePCG(mixed=False)], ids=lambda s: s.name)
def test_a_gram_matrix_that_breaks_is_named(solver):
    tangent = Breaking(MATRICES["decaying"].J)
    tangent.subset = lambda idx: tangent  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="the Gram matrix is NaN or infinite"):
        solver(tangent, random(20, 2), damping=1e-6)


@each_solver
def test_shapes_and_dtypes_are_checked(solver):
    tangent, v = MATRICES["tall"], random(30, 3)
    with pytest.raises(ShapeError, match=r"right side v needs shape \(30, 3\) .*got \(90,\).*Reshape it"):
        solver(tangent, v.reshape(-1), damping=1e-6)
    with pytest.raises(ShapeError, match=r"the prior needs shape \(12,\)"):
        solver(tangent, v, damping=1e-6, prior=random(11))
    with pytest.raises(ShapeError, match=r"dtype torch.float64; got .*torch.float32. .*\.to\(tangent.dtype\)"):
        solver(tangent, v.float(), damping=1e-6)


@pytest.mark.parametrize("solver", [Dual(), LSMR()], ids=lambda s: s.name)
def test_solvers_in_the_range_refuse_a_free_right_side(solver):
    with pytest.raises(ConfigError, match=r"needs a right side in range.*'primal' or 'cg'"):
        solver(MATRICES["tall"], random(30, 3), damping=1e-6, rhs=random(12))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_solver
def test_on_cuda(solver):
    tangent, v, prior = MATRICES["decaying"], random(20, 2, seed=3), random(30, seed=4)
    on_gpu = solver(DenseTangent(tangent.J.cuda()), v.cuda(), damping=1e-4, prior=prior.cuda())
    assert on_gpu.x.device.type == "cuda"
    assert relative(on_gpu.x.cpu(), dense_solution(tangent, v, 1e-4, prior)) < 1e-6


@pytest.mark.parametrize("make", [CG, SubsamplePCG])
def test_single_precision_inside_keeps_the_result_double(make):
    tangent, v = decaying(60, 3, 120, decay=3), random(60, 3, seed=3)
    truth = tangent.jv(dense_solution(tangent, v, 1e-6))
    solution = make(rtol=1e-5, mixed=True)(tangent, v, damping=1e-6)
    assert solution.x.dtype == torch.float64 and solution.converged and solution.residual <= 1e-4
    assert relative(tangent.jv(solution.x), truth) < 1e-3


@pytest.mark.parametrize("make", [CG, SubsamplePCG])
def test_where_single_precision_falls_short_double_goes_on(make):
    class Rough(DenseTangent):  # its copy in single precision is wrong by a few per cent
        def to(self, dtype):
            return DenseTangent((self.J * (1 + 0.03 * random(*self.J.shape, seed=9))).to(dtype))

    tangent, v = Rough(decaying(60, 3, 120, decay=2).J), random(60, 3, seed=3)
    truth = tangent.jv(dense_solution(tangent, v, 1e-5))
    solution = make(rtol=1e-5, mixed=True)(tangent, v, damping=1e-5)
    assert solution.converged
    assert relative(tangent.jv(solution.x), truth) < 1e-3
