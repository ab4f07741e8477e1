"""Names, settings, the automatic choice, and what the preconditioner and the restart are for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pwgf.errors import ConfigError
from pwgf.linalg import (
    CG,
    LSMR,
    Auto,
    BlockPCG,
    Primal,
    Solution,
    SubsamplePCG,
    choose,
    get_solver,
)
from pwgf.linalg._conjugate import iterate
from pwgf.linalg._iterations import Iterate
from pwgf.linalg.base import LinearSolver, NormalEquations
from tests.linalg.helpers import DenseTangent, decaying, dense_solution


def random(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "sizes, name",
    [
        (dict(n=1000, d=2, p=326, layered=True), "primal"),
        (dict(n=1000, d=2, p=1222, layered=True), "pcg"),
        (dict(n=1000, d=3, p=984, layered=True, implicit=True), "primal"),
        (dict(n=1000, d=2, p=1222, layered=True, output_share=0.5), "block-pcg"),
        (dict(n=1000, d=50, p=25_000, layered=True, output_share=0.5, implicit=True), "block-pcg"),
        (dict(n=1000, d=2, p=900, layered=False), "primal"),
        (dict(n=1000, d=2, p=1222, layered=False), "lsmr"),
        (dict(n=100_000, d=10, p=2000, layered=False), "lsmr"),
        (dict(n=500, d=2, p=5000, layered=True), "dual"),
        (dict(n=100, d=2, p=422, layered=True), "dual"),
        (dict(n=100, d=2, p=390, layered=True), "primal"),
        (dict(n=100, d=2, p=422, layered=True, has_rhs=True), "primal"),
        (dict(n=1000, d=4, p=700, layered=True), "pcg"),
        (dict(n=200, d=2, p=5000, layered=False), "dual"),
        (dict(n=1000, d=2, p=5000, layered=False), "lsmr"),
        (dict(n=1000, d=10, p=5614, layered=True), "pcg"),
        (dict(n=1000, d=10, p=5614, layered=True, damping=1e-4), "cg"),
        (dict(n=1000, d=50, p=100_000, layered=True), "cg"),
        (dict(n=1000, d=10, p=5614, layered=False), "lsmr"),
        (dict(n=500, d=2, p=5000, layered=True, has_rhs=True), "pcg"),
        (dict(n=1000, d=2, p=5000, layered=False, has_rhs=True), "cg"),
        (dict(n=1000, d=2, p=900, layered=False, has_rhs=True), "primal"),
    ],
)
def test_the_choice(sizes, name):
    assert choose(**sizes).name == name


def test_accuracy_scales_the_tolerances_of_iterations():
    sizes = [dict(d=10, layered=True), dict(d=50, layered=True), dict(d=10, layered=False)]
    for size in sizes:
        loose, tight = (choose(n=1000, p=50_000, accuracy=a, **size) for a in (1.0, 0.1))
        assert tight == dataclasses.replace(loose, rtol=0.1 * loose.rtol)


def test_auto_is_the_chosen_solver():
    tangent, v = decaying(20, 2, 30, decay=3), random(20, 2)
    auto, primal = Auto()(tangent, v, damping=1e-5), Primal()(tangent, v, damping=1e-5)
    assert torch.equal(auto.x, primal.x) and auto[1:] == primal[1:]


@pytest.mark.parametrize("name", ["auto", "primal", "dual", "cg", "block-pcg", "pcg", "lsmr"])
def test_a_name_gives_its_solver(name):
    solver = get_solver(name)
    assert solver.name == name
    assert get_solver(solver) is solver
    assert dataclasses.is_dataclass(solver) and solver.__dataclass_params__.frozen


def test_settings_reach_the_solver():
    assert get_solver("pcg", num_subsample=7, shift=3.0) == SubsamplePCG(num_subsample=7, shift=3.0)


def test_a_users_callable_passes():
    def mine(tangent, v, *, damping, prior=None, rhs=None):
        return Solution(torch.zeros(tangent.p), 0.0, 0.0, 0, True)

    solver, tangent = get_solver(mine), decaying(20, 2, 30, decay=3)
    assert get_solver(solver) is solver
    assert solver.to_config() == {"name": "mine"}
    state = solver.prepare(tangent, 1e-6)
    assert torch.equal(solver.solve(state, random(20, 2)).x, torch.zeros(30))


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(ConfigError, match=r"needs one of \['auto'.*got 'lsmrr'.*Did you mean 'lsmr'\?"):
        get_solver("lsmrr")
    with pytest.raises(
        ConfigError, match=r"knows the settings \['rtol', 'max_iterations', 'mixed'\].*Did you mean 'rtol'\?"
    ):
        get_solver("cg", rtoll=1e-3)
    with pytest.raises(ConfigError, match="takes settings with a name alone.*Put the settings into the solver"):
        get_solver(CG(), rtol=1e-3)
    for wrong in (3, CG):
        with pytest.raises(ConfigError, match=r"needs one of .* or a solver; got .*linalg.CG\(\)"):
            get_solver(wrong)


@pytest.mark.parametrize("make", [CG, LSMR, BlockPCG, SubsamplePCG])
def test_settings_are_checked_at_the_door(make):
    for bad in (0.0, -1.0, float("nan"), float("inf"), "1e-3"):
        with pytest.raises(ConfigError, match=rf"{make.__name__}\(rtol=…\) needs a finite number > 0; got"):
            make(rtol=bad)
    for bad in (0, 2.5):
        with pytest.raises(ConfigError, match=r"\(max_iterations=…\) needs a whole number > 0; got .*Leave it out"):
            make(max_iterations=bad)


def test_the_subset_has_enough_rows_and_samples():
    assert SubsamplePCG().num_preconditioning(n=5000, d=10) == 75
    assert SubsamplePCG().num_preconditioning(n=5000, d=1) == 750
    assert SubsamplePCG().num_preconditioning(n=5000, d=25) == 50
    assert SubsamplePCG().num_preconditioning(n=50, d=2) == 50
    assert SubsamplePCG(num_subsample=400).num_preconditioning(n=5000, d=10) == 150
    assert SubsamplePCG().num_preconditioning(n=5, d=4000) == 1


def test_the_whole_sample_as_preconditioner_is_nearly_a_direct_solve():
    tangent, v = decaying(40, 2, 60, decay=4), random(40, 2)
    solution = SubsamplePCG(rtol=1e-8, num_subsample=40, shift=1.0)(tangent, v, damping=1e-5)
    assert solution.num_products <= 1 + 2 + 2 * 2 + 2 * 3  # b, check, two iterations and three preconditioners


@pytest.mark.parametrize("damping, saving", [(1e-5, 1.5), (1e-6, 1.7), (1e-7, 1.7)])
def test_the_preconditioner_saves_products_on_an_ill_conditioned_tangent(damping, saving):
    """200 samples of a smooth field: random tanh features, whose metric has a fast decaying spectrum."""
    z, W, c = random(200, 2, seed=1), random(300, 2, seed=2), random(300, seed=3)
    h = torch.tanh(z @ W.T + c)
    J = torch.stack([torch.cat([h, 0 * h], 1), torch.cat([0 * h, h], 1)], 1)
    tangent, v = DenseTangent(J), -z * (z.square() - 2)
    truth = tangent.jv(dense_solution(tangent, v, damping))

    def cost_and_error(solver):
        solution = solver(tangent, v, damping=damping)
        assert solution.converged
        return solution.num_products, float((tangent.jv(solution.x) - truth).norm() / truth.norm())

    pcg_cost, pcg_error = cost_and_error(SubsamplePCG(rtol=1e-4, num_subsample=40, mixed=False))
    assert cost_and_error(SubsamplePCG(rtol=1e-4, num_subsample=40, mixed=True))[1] < 1e-2
    cg_cost, cg_error = cost_and_error(CG(rtol=1e-5))
    assert pcg_error < 1e-2 and cg_error < 1e-2
    assert pcg_cost * saving < cg_cost


def test_the_cap_is_confessed():
    tangent, v = decaying(40, 2, 60, decay=4), random(40, 2)
    for solver in (CG(max_iterations=3), LSMR(max_iterations=3)):
        solution = solver(tangent, v, damping=1e-8)
        assert not solution.converged and solution.residual > solver.rtol


def test_a_hopeful_recursion_is_restarted_once_from_where_it_was():
    tangent, v = decaying(10, 2, 15, decay=1), random(10, 2)
    truth = dense_solution(tangent, v, 1e-3)
    starts = []

    def hopeful_once(start):
        starts.append(start)
        return Iterate(truth * 0.5 if len(starts) == 1 else truth, 1e-9, 1, True)

    problem = NormalEquations("test", Primal().prepare(tangent, 1e-3), v, None, None)
    solution = iterate(problem, 1e-6, hopeful_once)
    assert starts[0] is None and torch.equal(starts[1], truth * 0.5) and len(starts) == 2
    assert solution.converged and solution.residual < 1e-6

    always = iterate(problem, 1e-6, lambda start: Iterate(truth * 0.5, 1e-9, 1, True))
    assert not always.converged and always.residual == pytest.approx(0.5)


def test_lsmr_restarts_by_conjugate_gradients(monkeypatch):
    from pwgf.linalg import krylov

    tangent, v = decaying(10, 2, 15, decay=1), random(10, 2)
    wrong = random(15)
    monkeypatch.setattr(krylov, "lsmr", lambda *a, **k: Iterate(wrong, 1e-9, 1, True))
    solution = LSMR(rtol=1e-9)(tangent, v, damping=1e-3)
    assert solution.converged
    assert torch.allclose(solution.x, dense_solution(tangent, v, 1e-3), atol=1e-7)


def test_nearby_solves_build_the_preconditioner_once():
    class Counting(DenseTangent):
        grams = 0

        def gram_dual(self):
            Counting.grams += 1
            return super().gram_dual()

        def to(self, dtype):
            return Counting(self.J.to(dtype), self.layered)

        def subset(self, idx):
            return Counting(self.J[idx], self.layered)

    tangent, v = Counting(decaying(700, 3, 900, decay=3).J), random(700, 3)
    fresh = get_solver("auto")(tangent, v, damping=1e-6)
    assert Counting.grams == 1
    solver, state = get_solver("auto"), None
    for _ in range(3):
        state = solver.prepare(tangent, 1e-6, state)
        assert torch.equal(fresh.x, solver.solve(state, v).x)
    assert Counting.grams == 2  # one for all three


def test_a_users_solver_keeps_what_it_likes():
    class Slow(LinearSolver):
        """The first J of an interval serves all."""

        name = "slow"

        def prepare(self, tangent, damping, last=None, *, has_rhs=False):
            return last or Primal().prepare(tangent, damping)

        def solve(self, state, v, prior=None, rhs=None):
            return Primal().solve(state, v, prior, rhs)

    slow, v = get_solver(Slow()), random(20, 2)
    first, second = decaying(20, 2, 30, decay=3), decaying(20, 2, 30, decay=3, seed=1)
    state = slow.prepare(first, 1e-5)
    assert slow.prepare(second, 1e-5, state) is state
    assert torch.equal(slow(first, v, damping=1e-5).x, slow.solve(slow.prepare(second, 1e-5, state), v).x)
