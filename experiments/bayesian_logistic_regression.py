r"""Bayesian logistic regression: the posterior of weights and log precision by the flow, beside Hamiltonian chains.

P(y|x,w) = 1/(1 + e^{−y w·x}), w|α ~ N(0, I/α), α exponential with rate 100, θ = (w, log α): the model of the JKO-ICNN
study (Mokrov et al., 2021, arXiv 2106.00736, §5.3, table 2), 80 % of the rows for training. The flow of KL(ρ|posterior)
starts at the Laplace approximation and runs to rest (`sampling.sample`). Posterior mean and covariance, weighted by the
exact density, are compared with 64 chains of `sampling.hmc`: largest entry of |Δmean|/σ and of |Δcov|/(σσᵀ), beside the
same for the Laplace approximation. Accuracy on a split of a few hundred rows varies by some per cent, so the accuracy
of the mode over 20 splits stands beside it.

    python -m experiments.bayesian_logistic_regression                          # every set that is there; ten minutes
    python -m experiments.bayesian_logistic_regression --sets pima --intercept

Reference chains are kept in results/bayesian_logistic_regression/ and not run again.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import tyro

from experiments.common import RESULTS, save, table
from pwgf import maps, sampling
from pwgf.errors import ConfigError
from pwgf.problems import LogisticRegression, datasets

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
CHAINS = 64
AFFINE = 40  # dimension from which the map is affine: what bends a posterior is below the noise of more weights there


class Moments(NamedTuple):
    """Of a posterior."""

    mean: torch.Tensor
    cov: torch.Tensor


def main(
    sets: tuple[str, ...] = SETS, intercept: bool = False, seed: int = 0, steps: int = 3000, num_samples: int = 1000
) -> None:
    """A table, and the marginals of log α as a picture.

    Args:
        sets: names out of `datasets.names()`.
        intercept: adds a column of ones; the study has none.
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
        line, marginals[label] = _one(name, label, split, intercept, seed, steps, num_samples)
        rows.append(line)
    header = ["set", "N", "d", "accuracy", "mode, 20 splits", "log-likelihood", "JKO-ICNN", "SW-JKO", "mean", "cov"]
    header += [
        "mean, Laplace",
        "cov, Laplace",
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
    name: str, label: str, split: datasets.Split, intercept: bool, seed: int, steps: int, num_samples: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The row of one data set, and its marginals of log α."""
    problem = LogisticRegression(split.X, split.y, intercept=intercept, batch_size=20_000)
    d, start = problem.dim, time.process_time()
    found = sampling.sample(
        problem.log_target, d, SAMPLES, whiten="laplace", map=maps.Affine(d) if d >= AFFINE else None, seed=seed,
        num_samples=num_samples, num_eval=1000, out=RESULTS / FOLDER / f"{label}.h5", overwrite=True,
    )  # fmt: skip
    seconds = time.process_time() - start
    chains, its_seconds = _reference(problem, label, steps)
    exact = Moments(chains.mean(0), torch.cov(chains.T))
    ours = Moments(found.mean(), found.cov())
    laplace = Moments(found.centre, found.scale @ found.scale.T)
    error, rough = _difference(ours, exact), _difference(laplace, exact)
    accuracy = problem.accuracy(found.x[:2000], split.X_test, split.y_test)
    likelihood = problem.mean_log_likelihood(found.x[:2000], split.X_test, split.y_test)
    modes = [_accuracy_of_mode(datasets.load(name, k), intercept) for k in range(20)]
    line = [label, f"{len(split.X)}", f"{d}", f"{accuracy:.3f}", f"{np.mean(modes):.3f} ± {np.std(modes):.3f}"]
    line += [f"{likelihood:.3f}", *PUBLISHED.get(name, ("–", "–")), *error, *rough, f"{found.ess:.3f}"]
    line += [f"{found.log_z:.3f} ± {found.log_z_stderr:.3f}", f"{found.t:g}", f"{int(found.run['num_stages'][-1])}"]
    weights = torch.softmax(found.log_weights, 0)
    marginal = {"flow": found.x[:, -1].numpy(), "weights": weights.numpy(), "chains": chains[:, -1].numpy()}
    return [*line, f"{seconds:.0f}", f"{its_seconds:.0f}"], marginal


def _reference(problem: LogisticRegression, label: str, steps: int) -> tuple[torch.Tensor, float]:
    """Positions of long chains (n,d), run in the coordinates of the Laplace approximation and kept in a file."""
    path = RESULTS / FOLDER / f"{label}-chains-{steps}.npz"
    if not path.exists():
        start = time.process_time()
        mode, scale = sampling.laplace(problem.log_target, problem.dim)
        starts = 2 * torch.randn(CHAINS, problem.dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        chains = sampling.hmc(lambda y: problem.log_target(mode + y @ scale.T), starts, steps, seed=8)
        print(
            f"{label}: chains rhat {float(chains.rhat.max()):.4f}, least effective size {float(chains.ess.min()):.0f}"
        )
        np.savez(path, x=(mode + chains.samples @ scale.T).numpy(), seconds=time.process_time() - start)
    kept = np.load(path)
    return torch.from_numpy(kept["x"]), float(kept["seconds"])


def _difference(one: Moments, exact: Moments) -> tuple[str, str]:
    """Largest entries of |Δmean|/σ and |Δcov|/(σσᵀ), in per cent."""
    deviation = exact.cov.diagonal().sqrt()
    mean = ((one.mean - exact.mean) / deviation).abs().max()
    cov = ((one.cov - exact.cov) / deviation / deviation[:, None]).abs().max()
    return f"{100 * float(mean):.1f} %", f"{100 * float(cov):.1f} %"


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
