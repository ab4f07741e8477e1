r"""Bayesian logistic regression: the posterior of weights and log precision by the flow, beside Hamiltonian chains.

P(y|x,w) = 1/(1 + e^{−y w·x}), w|α ~ N(0, I/α), α exponential with rate 100, θ = (w, log α): the model of the JKO-ICNN
study (Mokrov et al., 2021, arXiv 2106.00736, §5.3, table 2), 80 % of the rows for training. The flow of KL(ρ|posterior)
runs to rest (`sampling.sample`) in coordinates in which the posterior is nearly normal
(`LogisticRegression.coordinates`), or from the Laplace approximation. Posterior mean and covariance, weighted by the
exact density, are compared with 256 chains of `sampling.hmc`: largest entry of |Δmean|/σ and of |Δcov|/(σσᵀ), beside
the same for the law that the flow starts from. Accuracy on a split of a few hundred rows varies by some per cent, so
the accuracy of the mode over 20 splits stands beside it.

Where a plane separates the classes (breast_cancer), w has no posterior variance. There mean and covariance are those of
normal scores Φ⁻¹(F(θ_i)), F the distribution function of θ_i along the chains, and the flow, whose weights miss the far
tail, is stopped at t = 1/8; 90 steps of Metropolis-adjusted Langevin follow.

    python -m experiments.bayesian_logistic_regression                          # every set that is there; ten minutes
    python -m experiments.bayesian_logistic_regression --sets pima --intercept
    python -m experiments.bayesian_logistic_regression --sets pima --whiten laplace

Reference chains are kept in results/bayesian_logistic_regression/ and not run again.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
import torch
import tyro

from experiments import datasets
from experiments.common import RESULTS, save, table
from pwgf import maps, sampling
from pwgf.errors import ConfigError
from pwgf.posteriors import LogisticRegression
from pwgf.sampling.coordinates import Target

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = "bayesian_logistic_regression"
PUBLISHED = {  # accuracy and seconds: JKO-ICNN (GPU), SW-JKO
    "twonorm": (".982/10116", ".981/301"),
    "ringnorm": (".740/1971", ".741/83"),
    "ring": (".740/1971", ".741/83"),
    "banana": (".561/1102", ".559/67"),
    "german": (".670/3965", ".680/83"),
    "pima": (".773/7618", ".778/122"),
    "splice": (".835/5091", ".850/114"),
}
SETS = ("twonorm", "ringnorm", "waveform", "breast_cancer", "banana", "german", "pima", "ring", "splice", "covertype")
SAMPLES = 50_000  # of the flow, for its moments
CHAINS = 256
POLISH = 90  # steps of Langevin where the classes can be separated
AFFINE = 40  # dimension from which the map is affine: what bends a posterior is below the noise of more weights there


class Moments(NamedTuple):
    """Of a posterior."""

    mean: torch.Tensor
    cov: torch.Tensor


def main(
    sets: tuple[str, ...] = SETS,
    intercept: bool = False,
    whiten: Literal["coordinates", "laplace"] = "coordinates",
    seed: int = 0,
    steps: int = 1000,
    num_samples: int = 1000,
) -> None:
    """A table, and the marginals of log α as a picture.

    Args:
        sets: names out of `datasets.names()`.
        intercept: adds a column of ones; the study has none.
        whiten: coordinates of the flow.
        seed: of split and flow.
        steps: kept of each reference chain.
        num_samples: samples of a right side.
    """
    (RESULTS / FOLDER).mkdir(parents=True, exist_ok=True)
    rows, marginals = [], {}
    for name in sets:
        try:
            split = datasets.load(name, seed)
        except ConfigError as error:
            print(f"{name} left out: {error}")
            continue
        label = name + ("-intercept" if intercept else "")
        line, marginals[label] = _one(name, label, split, intercept, whiten, seed, steps, num_samples)
        rows.append(line)
    header = ["set", "N", "d", "accuracy", "mode, 20 splits", "log-likelihood", "JKO-ICNN", "SW-JKO", "mean", "cov"]
    header += [
        "mean, start",
        "cov, start",
        "effective share",
        "log Z",
        "t",
        "right sides",
        "CPU s",
        "chains, CPU s",
    ]
    table(header, rows)
    _draw(marginals, f"{FOLDER}/log_alpha{'-intercept' if intercept else ''}.png")


def _one(
    name: str,
    label: str,
    split: datasets.Split,
    intercept: bool,
    whiten: Literal["coordinates", "laplace"],
    seed: int,
    steps: int,
    num_samples: int,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The row of one data set, and its marginals of log α."""
    problem = LogisticRegression(split.X, split.y, intercept=intercept, batch_size=20_000)
    d, start = problem.dim, time.process_time()
    separable = problem.separating_weights() is not None
    found = sampling.sample(
        problem.log_target, d, SAMPLES, whiten=problem.coordinates() if whiten == "coordinates" else whiten,
        map=maps.Affine(d) if d >= AFFINE or separable else None, seed=seed, num_samples=num_samples, num_eval=1000,
        max_time=0.125 if separable else 64.0, finish=not separable, polish=POLISH if separable else 0,
        out=RESULTS / FOLDER / f"{label}.h5", overwrite=True,
    )  # fmt: skip
    seconds = time.process_time() - start
    chains, its_seconds = _reference(problem, f"{label}-split{seed}", steps, separable)
    z = torch.randn(SAMPLES, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at_start, _ = found.coordinates(z)
    even = torch.full((SAMPLES,), 1 / SAMPLES, dtype=torch.float64)
    weights = even if separable else torch.softmax(found.log_weights, 0)
    error = _difference(found.x, weights, chains, separable)
    rough = _difference(at_start, even, chains, separable)
    accuracy = problem.accuracy(found.x[:2000], split.X_test, split.y_test)
    likelihood = problem.mean_log_likelihood(found.x[:2000], split.X_test, split.y_test)
    modes = [_accuracy_of_mode(datasets.load(name, k), intercept) for k in range(20)]
    line = [label + ("*" if separable else ""), f"{len(split.X)}", f"{d}", f"{accuracy:.3f}"]
    line += [f"{np.mean(modes):.3f} ± {np.std(modes):.3f}"]
    line += [f"{likelihood:.3f}", *PUBLISHED.get(name, ("–", "–")), *error, *rough, f"{found.ess:.3f}"]
    line += [f"{found.log_z:.3f} ± {found.log_z_stderr:.3f}", f"{found.t:g}", f"{int(found.run['num_stages'][-1])}"]
    marginal = {"flow": found.x[:, -1].numpy(), "weights": weights.numpy(), "chains": chains[:, -1].numpy()}
    return [*line, f"{seconds:.0f}", f"{its_seconds:.0f}"], marginal


def _reference(problem: LogisticRegression, label: str, steps: int, separable: bool) -> tuple[torch.Tensor, float]:
    """Positions of long chains (n,d), run in the coordinates of the problem and kept in a file.

    A chain that starts far out where the classes are separated takes longer than the run to come back: there they start
    inside and run for twice as long.
    """
    path = RESULTS / FOLDER / f"{label}-chains-{steps}.npz"
    if not path.exists():
        start = time.process_time()
        coordinates = problem.coordinates()
        starts = torch.randn(CHAINS, problem.dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        spread, steps = (0.5, 2 * steps) if separable else (1.5, steps)
        chains = sampling.hmc(Target(problem.log_target, coordinates), spread * starts, steps, seed=8)
        print(
            f"{label}: chains rhat {float(chains.rhat.max()):.4f}, least effective size {float(chains.ess.min()):.0f}"
        )
        np.savez(path, x=coordinates(chains.samples)[0].numpy(), seconds=time.process_time() - start)
    kept = np.load(path)
    return torch.from_numpy(kept["x"]), float(kept["seconds"])


def _difference(x: torch.Tensor, weights: torch.Tensor, chains: torch.Tensor, scored: bool) -> tuple[str, str]:
    """Largest entries of |Δmean|/σ and |Δcov|/(σσᵀ), in per cent; of normal scores by the chains if `scored`."""
    if scored:
        x, chains = _scores(x, chains), _scores(chains, chains)
    ours, exact = _moments(x, weights), _moments(chains, torch.full_like(chains[:, 0], 1 / len(chains)))
    deviation = exact.cov.diagonal().sqrt()
    mean = ((ours.mean - exact.mean) / deviation).abs().max()
    cov = ((ours.cov - exact.cov) / deviation / deviation[:, None]).abs().max()
    return f"{100 * float(mean):.1f} %", f"{100 * float(cov):.1f} %"


def _scores(x: torch.Tensor, chains: torch.Tensor) -> torch.Tensor:
    """Φ⁻¹(F_i(x_i)), F_i the distribution function of coordinate i along the chains."""
    ranks = [torch.searchsorted(one.sort().values, at.contiguous()) for one, at in zip(chains.T, x.T, strict=True)]
    shares = (torch.stack(ranks, 1).double() + 0.5) / (len(chains) + 1)
    return torch.special.ndtri(shares)


def _moments(x: torch.Tensor, weights: torch.Tensor) -> Moments:
    mean = weights @ x
    return Moments(mean, (x - mean).T @ (weights[:, None] * (x - mean)))


def _accuracy_of_mode(split: datasets.Split, intercept: bool) -> float:
    """Of the posterior's mode."""
    problem = LogisticRegression(split.X, split.y, intercept=intercept, batch_size=20_000)
    mode, _ = sampling.laplace(problem.log_target, problem.dim)
    return problem.accuracy(mode[None], split.X_test, split.y_test)


def _draw(marginals: dict[str, dict[str, np.ndarray]], name: str) -> None:
    """Histograms of log α: the chains filled, the flow as a line."""
    columns = min(5, len(marginals))
    lines = -(-len(marginals) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.4 * columns, 2.2 * lines), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(marginals) :]:
        ax.set_axis_off()
    for ax, (label, part) in zip(axes.flat, marginals.items(), strict=False):
        bins = np.linspace(*np.quantile(part["chains"], (0.0005, 0.9995)), 50)
        ax.hist(part["chains"], bins, density=True, color="0.8", label="chains")
        ax.hist(part["flow"], bins, weights=part["weights"], density=True, histtype="step", label="flow")
        ax.set(title=label, xlabel="log α", yticks=[])
    axes[0, 0].legend(fontsize=7)
    save(figure, name)
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
