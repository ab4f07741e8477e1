"""Beside what packages give a user already: error and CPU seconds of this package and of plain alternatives, in turns.

    pip install -c constraints.txt -e ".[peers]"        # zuko, numpyro, py-pde
    pip install particles==0.3                          # for `filtering`; it has no wheels
    python -m benchmarks.peers                          # half an hour of one core
    python -m benchmarks.peers --only wells-d50 filtering

Each method answers the same question with seeds 0, 1 and 2, in turns, so that a busy machine slows all alike; error
and CPU seconds are medians. Seconds are of the answer alone, without imports and without measuring its error, but with
what a package compiles for it. A package that is not installed leaves out its rows and is named.

- `gaussian-d12`, `wells-d2`: log Z and KL(ρ|π) of an unnormalised density. zuko: a neural spline flow by reverse KL,
  1000 steps of Adam on 1000 samples.
- `twonorm`: a posterior in d = 21 (experiments.bayesian_logistic_regression). numpyro: NUTS, 500 + 2000 steps of one
  chain.
- `density-d1`, `density-d2`: ∫|ρ − ρ*|/2 of a double well at t = .5. scipy: finite volumes by a matrix exponential;
  py-pde: finite differences.
- `wells-d50`: wells of 32 kT in d = 50 at t = .48: the variance. numpy: Euler–Maruyama with 10 000 particles.
- `filtering`: the rippled well of experiments.filtering: mean and evidence. particles: a bootstrap filter of 10 000.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

import pwgf
from benchmarks import alternatives
from benchmarks.common import heading, short
from experiments import datasets
from experiments.common import table
from experiments.filtering import END, TIMES, observe, rippled
from pwgf import filtering, maps, problems, sampling
from pwgf.posteriors import LogisticRegression


class Answer(NamedTuple):
    """What a method found: its errors by the names of their columns, and effective samples where it draws some."""

    errors: Mapping[str, float]
    effective: float = math.nan


class Method(NamedTuple):
    """`solve(seed)` is timed and returns a function that measures the answer; `needs` is a module, or empty."""

    name: str
    needs: str
    solve: Callable[[int], Callable[[], Answer]]


class Sizes(NamedTuple):
    """Adam steps of zuko, steps of NUTS, samples, particles, nodes along an axis, dimension of the deep wells, data
    points, steps of the chains behind the reference, seeds."""

    adam: int = 1000
    nuts: int = 2000
    samples: int = 50_000
    particles: int = 10_000
    nodes: int = 200
    dim: int = 50
    data: int = 5920
    reference: int = 250
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Sizes()
TINY = Sizes(adam=2, nuts=20, samples=200, particles=200, nodes=40, dim=2, data=50, reference=4, seeds=(0,))


def densities(name: str, dim: int, target: Callable[[Tensor], Tensor], log_z: float, sizes: Sizes) -> list[Method]:
    """log Z and KL(ρ|π) of an unnormalised density."""

    def answer(found_log_z: float, mean_log_w: float) -> Answer:
        return Answer({"log Z": abs(found_log_z - log_z), "KL": log_z - mean_log_w})

    def ours(seed: int) -> Callable[[], Answer]:
        found = sampling.sample(target, dim, min(sizes.samples, 10_000), seed=seed, progress=False)
        return lambda: answer(found.log_z, found.log_z_bound)

    def zuko(seed: int) -> Callable[[], Answer]:
        log_w = alternatives.spline_flow(target, dim, sizes.adam, min(sizes.samples, 10_000), seed)
        weighed = float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))
        return lambda: answer(weighed, float(log_w.mean()))

    return [Method("pwgf", "", ours), Method("zuko", "zuko", zuko)]


def gaussian(sizes: Sizes) -> list[Method]:
    """N(1, Σ), eigenvalues of Σ from .1 to 12, turned at random."""
    dim = 12
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    variances = torch.logspace(-1, math.log10(12), dim, dtype=torch.float64)
    precision = turn @ torch.diag(1 / variances) @ turn.T

    def target(x: Tensor) -> Tensor:
        centred = x - 1
        return -0.5 * (centred @ precision.to(x) * centred).sum(-1)

    log_z = 0.5 * float((2 * math.pi * variances).log().sum())
    return densities("gaussian-d12", dim, target, log_z, sizes)


def wells(sizes: Sizes) -> list[Method]:
    """exp(−V), V the double wells of Styblinski and Tang with c = .06."""
    problem = problems.StyblinskiTang(2, c=0.06)
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    one = float(torch.logsumexp(-problem.potential(grid[:, None]), 0)) + math.log(24 / 20_000)
    return densities("wells-d2", 2, lambda x: -problem.potential(x), 2 * one, sizes)


def posterior(sizes: Sizes) -> list[Method]:
    """Bayesian logistic regression; the mean beside that of long Hamiltonian chains, in standard deviations."""
    split = datasets.load("twonorm", 0)
    X, y = split.X[: sizes.data], split.y[: sizes.data]
    problem = LogisticRegression(X, y)
    coordinates = problem.coordinates()
    starts = torch.randn(128, problem.dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    inner = sampling.coordinates.Target(problem.log_target, coordinates)
    chains = coordinates(sampling.hmc(inner, 1.5 * starts, sizes.reference, seed=8).samples)[0]

    def answer(mean: Tensor, effective: float) -> Answer:
        return Answer({"mean": float(((mean - chains.mean(0)) / chains.std(0)).abs().max())}, effective)

    def ours(seed: int) -> Callable[[], Answer]:
        again = LogisticRegression(X, y)  # its coordinates are part of the work
        found = sampling.sample(
            again.log_target, problem.dim, sizes.samples, whiten=again.coordinates(), seed=seed, progress=False
        )
        return lambda: answer(found.mean(), found.ess * len(found.x))

    def nuts(seed: int) -> Callable[[], Answer]:
        draws, effective = alternatives.nuts(X.numpy(), y.numpy(), sizes.nuts, seed)
        return lambda: answer(torch.from_numpy(draws).mean(0), effective)

    return [Method("pwgf", "", ours), Method("numpyro", "numpyro", nuts)]


def density(dim: int, sizes: Sizes) -> list[Method]:
    """The law of double wells at t = .5 on a grid over [−6, 6]ᵈ."""
    problem, t = problems.StyblinskiTang(dim, c=0.06), 0.5
    axis = torch.linspace(-6, 6, sizes.nodes, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    exact, cell = problem.exact(t).log_density(grid).exp(), float(axis[1] - axis[0]) ** dim

    def answer(values: Tensor) -> Answer:
        return Answer({"L¹/2": 0.5 * float((values - exact).abs().sum()) * cell})

    def ours(seed: int) -> Callable[[], Answer]:
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(dim), problem.reference)
        run = pwgf.solve(scheme, [0.0, t], seed=seed, progress=False)
        return lambda: answer(run.log_density(t, grid).exp())

    def fitted(seed: int) -> Callable[[], Answer]:
        run = pwgf.solve(
            pwgf.FittedParticles(problem.energy, problem.reference, num_samples=sizes.particles), [0.0, t], seed=seed,
            progress=False,
        )  # fmt: skip
        return lambda: answer(run.log_density(t, grid).exp())

    def on_grid(solve: Callable[..., np.ndarray]) -> Callable[[int], Callable[[], Answer]]:
        def solved(seed: int) -> Callable[[], Answer]:
            values = solve(lambda x: problem.potential(torch.from_numpy(x)).numpy(), axis.numpy(), dim, t)
            return lambda: answer(torch.from_numpy(values))

        return solved

    return [
        Method("pwgf", "", ours),
        Method("pwgf, fitted particles", "", fitted),
        Method("scipy", "", on_grid(alternatives.finite_volumes)),
        Method("py-pde", "pde", on_grid(alternatives.finite_differences)),
    ]


def deep_wells(sizes: Sizes) -> list[Method]:
    """Variance of a coordinate, averaged over all; KL(exact|ρ) where there is a density."""
    problem, t = problems.StyblinskiTang(sizes.dim, c=0.5), 0.48
    law, exact = problem.marginal(t), problem.exact(t)
    at = exact.sample(min(sizes.samples, 10_000), 99)

    def answer(mean: float, variance: float, kl: float = math.nan) -> Answer:
        off = abs(mean - law.mean) / math.sqrt(law.var)
        return Answer({"variance, %": 100 * abs(variance / law.var - 1), "mean, % of σ": 100 * off, "KL": kl})

    def ours(seed: int) -> Callable[[], Answer]:
        scheme = pwgf.FittedParticles(problem.energy, problem.reference, num_samples=sizes.particles)
        found = pwgf.solve(scheme, [0.0, t], seed=seed, progress=False).at(t)
        kl = float((exact.log_density(at) - found.log_density(at)).mean())
        return lambda: answer(float(found.mean().mean()), float(found.cov().diagonal().mean()), kl)

    def plain(seed: int) -> Callable[[], Answer]:
        x = alternatives.euler_maruyama(lambda x: 0.5 * (4 * x**3 - 32 * x + 5), sizes.particles, sizes.dim, t, seed)
        return lambda: answer(float(x.mean()), float(x.var(0).mean()))

    return [Method("pwgf, fitted particles", "", ours), Method("numpy", "", plain)]


def filters(sizes: Sizes) -> list[Method]:
    """Mean of the law at t = 5 in its standard deviations, and the evidence, against finite volumes."""
    model, seen, exact = rippled(), {}, {}
    for seed in sizes.seeds:
        seen[seed] = observe(model, seed)
        grid = filtering.finite_volumes(model, TIMES, seen[seed], end=END)
        mean = float((grid.grid * grid.density).sum() / grid.density.sum())
        square = float(((grid.grid - mean) ** 2 * grid.density).sum() / grid.density.sum())
        exact[seed] = mean, math.sqrt(square), _evidence(model, seen[seed])

    def answer(seed: int, mean: float, evidence: float) -> Answer:
        m, deviation, log_z = exact[seed]
        return Answer({"mean": abs(mean - m) / deviation, "log evidence": abs(evidence - log_z)})

    def ours(seed: int) -> Callable[[], Answer]:
        found = filtering.run(model, TIMES, seen[seed], end=END, seed=seed)
        return lambda: answer(seed, float(found.law.mean()), found.log_evidence)

    def bootstrap(seed: int) -> Callable[[], Answer]:
        mean, evidence = alternatives.bootstrap_filter(seen[seed], END, sizes.particles, seed)
        return lambda: answer(seed, mean, evidence)

    return [Method("pwgf", "", ours), Method("particles", "particles", bootstrap)]


def _evidence(model: filtering.StateSpace, seen: Sequence[float]) -> float:
    from experiments.filtering import _exact_evidence  # noqa: PLC0415

    return _exact_evidence(model, list(seen))


PROBLEMS: dict[str, Callable[[Sizes], list[Method]]] = {
    "gaussian-d12": gaussian,
    "wells-d2": wells,
    "twonorm": posterior,
    "density-d1": lambda sizes: density(1, sizes),
    "density-d2": lambda sizes: density(2, sizes),
    "wells-d50": deep_wells,
    "filtering": filters,
}


def rows(name: str, sizes: Sizes) -> Iterator[list[str]]:
    """A line for each method of a problem: medians over the seeds, which are run in turns."""
    methods = [method for method in PROBLEMS[name](sizes) if _installed(method)]
    found: dict[str, list[tuple[Answer, float]]] = {method.name: [] for method in methods}
    for seed in sizes.seeds:
        for method in methods:
            began = time.process_time()
            measure = method.solve(seed)
            seconds = time.process_time() - began
            found[method.name].append((measure(), seconds))
    for method, answers in found.items():
        columns = answers[0][0].errors
        errors = {key: statistics.median(answer.errors[key] for answer, _ in answers) for key in columns}
        rate = statistics.median(answer.effective / seconds for answer, seconds in answers)
        told = "; ".join(f"{key} {value:.1e}" for key, value in errors.items() if not math.isnan(value))
        took = statistics.median(seconds for _, seconds in answers)
        yield [name, method, told, short(rate), short(took)]


def _installed(method: Method) -> bool:
    if method.needs and find_spec(method.needs) is None:
        print(f"{method.name} left out: the module {method.needs} is not installed (pip install 'pwgf[peers]').")
        return False
    if method.needs:
        import_module(method.needs)
    return True


def main(sizes: tyro.conf.Suppress[Sizes] = FULL, only: tuple[str, ...] = tuple(PROBLEMS)) -> None:
    """One table.

    Args:
        sizes: of the problems and of what is spent on them.
        only: names of problems.
    """
    heading("Beside the alternatives")
    lines = [line for name in only for line in rows(name, sizes)]
    table(["problem", "method", "error", "effective samples per CPU s", "CPU s"], lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
