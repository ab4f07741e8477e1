"""The benchmarks run, in sizes that take seconds, and measure against the truth; never how quick anything is."""

import math

import pytest
import torch

growth = pytest.importorskip("benchmarks.growth", reason="the benchmarks are not part of this installation")

from benchmarks import alternatives, common, compiled, device, peers, processes, products, runs, solves  # noqa: E402
from pwgf import linalg, maps, problems  # noqa: E402


@pytest.mark.parametrize(
    "module", [products, solves, growth, runs, device, compiled], ids=lambda module: module.__name__
)
def test_a_tiny_version_prints_whole_tables(module, capsys, monkeypatch):
    monkeypatch.setattr(common, "GEMM_SIZE", 64)
    module.main(module.TINY)
    lines = capsys.readouterr().out.splitlines()
    starts = [k for k, line in enumerate(lines) if line.startswith("|---")]
    assert starts
    for start in starts:
        header = lines[start - 1]
        body = [line for line in lines[start + 1 :] if line.startswith("|")]
        assert body
        assert body[0].count("|") == header.count("|")
    assert "nan" not in "\n".join(lines)


def test_processes_prints_a_line_per_case(capsys):
    processes.main([(20, "pcg"), (30, "cg")], turns=1)
    assert capsys.readouterr().out.count("d=10, n=") == 2


def test_a_growth_exponent_is_that_of_a_power_law():
    sizes = [10.0, 30.0, 100.0, 1000.0]
    assert common.exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)


def test_in_turn_times_each_call_and_counts_only_its_own_seconds():
    calls = {"none": 0, "many": 0}

    def work(name, size):
        calls[name] += 1
        return torch.randn(size, size) @ torch.randn(size, size)

    found = common.in_turn({"none": lambda: work("none", 2), "many": lambda: work("many", 200)}, turns=2, least=0.001)
    assert set(found) == {"none", "many"} and all(0 < seconds < math.inf for seconds in found.values())
    assert min(calls.values()) >= 3  # one that warms up, one a turn


def test_the_reference_of_the_solves_is_the_dense_minimiser():
    """x* comes from tight conjugate gradients; Cholesky of the metric, formed from rows of J, gives the same."""
    system = solves.System(common.off_start(maps.ResidualMLP(2, width=10)), n=40, damping=1e-4)
    J = system.tangent.dense()
    metric = J.T @ J / 40
    shift = 1e-4 * metric.trace() * torch.eye(len(metric), dtype=J.dtype)
    pull = J.T @ (system.v.reshape(-1) - J @ system.prior) / 40
    exact = system.prior + torch.linalg.solve(metric + shift, pull)
    assert system.error(exact) < 1e-7


def test_the_loosest_tolerance_meets_the_level_and_the_next_looser_one_does_not():
    system = solves.System(common.off_start(maps.ResidualMLP(2, width=10)), n=40, damping=1e-6)
    found = system.loosest(lambda rtol: linalg.CG(rtol=rtol), 1e-4)
    looser = linalg.CG(rtol=found.rtol * 10**0.25)
    assert system.error(system.solve(found).x) <= 1e-4 < system.error(system.solve(looser).x)


def test_a_solver_that_takes_too_long_is_left_out():
    system = solves.System(common.off_start(maps.ResidualMLP(2, width=10)), n=40, damping=1e-6)
    assert system.loosest(lambda rtol: linalg.CG(rtol=rtol), 1e-4, limit=0.0) is None


def test_products_are_of_the_same_function_for_all_modules():
    """Modules with and without findable layers differ in how J is formed alone."""
    with_layers, without = products.linear_layers(3, 5, 2), products.PlainMLP(3, 5, 2)
    linears = [part for part in with_layers if hasattr(part, "weight")]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, without.weights, without.biases, strict=True):
            weight.copy_(linear.weight)
            bias.copy_(linear.bias)
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(with_layers(z), without(z), atol=1e-6)
    one, other = maps.FromModule(with_layers, 3), maps.FromModule(without, 3)
    zd = z.double()
    assert one.linearise(one.initial(), zd).layers is not None
    assert other.linearise(other.initial(), zd).layers is None


def test_peers_give_medians_of_errors_and_name_what_is_left_out(monkeypatch, capsys):
    def method(name, needs, errors):
        return peers.Method(name, needs, lambda seed: lambda: peers.Answer({"log Z": errors[seed]}, 10.0 * seed))

    methods = [method("ours", "", [3e-2, 1e-2, 2e-2]), method("theirs", "not_a_module", [0.0] * 3)]
    monkeypatch.setitem(peers.PROBLEMS, "of a test", lambda sizes: methods)
    ((problem, name, errors, _, _),) = peers.rows("of a test", peers.FULL)
    assert (problem, name, errors) == ("of a test", "ours", "log Z 2.0e-02")
    assert "theirs left out: the module not_a_module is not installed" in capsys.readouterr().out


def test_peers_print_a_table(capsys):
    peers.main(peers.TINY, only=("wells-d50",))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| wells-d50")]
    assert [line.split(" | ")[1] for line in lines] == ["pwgf, fitted particles", "numpy"]
    assert all("variance, %" in line for line in lines)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_finite_volumes_of_the_alternatives_solve_the_equation(dim):
    problem = problems.OrnsteinUhlenbeck(dim, cov=0.5 * torch.eye(dim), mean=torch.zeros(dim))
    axis = torch.linspace(-6, 6, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    found = alternatives.finite_volumes(lambda x: (x**2).sum(-1), axis.numpy(), dim, 0.3)
    exact = problem.exact(0.3).log_density(grid).exp()
    assert float((torch.from_numpy(found) - exact).abs().max() / exact.max()) < 0.01


def test_the_particles_of_the_alternatives_have_the_variance_of_the_law():
    x = alternatives.euler_maruyama(lambda x: 2 * x, 20_000, 3, 0.3, seed=0)
    assert x.var() == pytest.approx(0.5 + 0.5 * math.exp(-1.2), rel=0.02)


def test_the_spline_flow_of_the_alternatives_finds_a_gaussian():
    log_w = alternatives.spline_flow(lambda x: -x.square().sum(-1) / 2, 2, 30, 2000, seed=0)
    assert float(torch.logsumexp(log_w, 0)) - math.log(2000) == pytest.approx(math.log(2 * math.pi), abs=0.2)
