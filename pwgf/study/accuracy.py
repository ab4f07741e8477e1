"""How far a run is from the exact law of a problem, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import distances
from ..checks import check_integer, plain_numbers, seeded
from ..errors import ConfigError, NonFiniteError, SolverError
from ..measures import Law
from ..problems import Problem, from_config
from ..run.trajectory import Trajectory
from ..schemes.base import member_config


def problem_of(run: Trajectory) -> Problem | None:
    """The problem that a run was solved for, rebuilt from its file; None when none was recorded.

    Raises:
        ConfigError: the recorded problem is not known to this version.
    """
    config = run.config.get("problem")
    return from_config(config) if config else None


def num_particles(run: Trajectory) -> int | None:
    """How many particles the run's rows hold; None where they hold parameters of maps."""
    return len(run.theta(run.t[0])) // run.reference.dim if run.description.has_particles else None


@plain_numbers
def errors(
    run: Trajectory,
    problem: Problem,
    n: int = 4000,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    num_kl: int | None = None,
) -> dict[str, np.ndarray]:
    """Errors of the rows against the problem's exact law; NaN where a figure is not defined.

    Moments are estimated with z as control variate: with the regression T(z) ≈ Az + b on n samples, whose residual r
    is uncorrelated with z, E T(z) = A E z + b and cov T(z) = A cov(z) Aᵀ + cov r, where the moments of z are known
    exactly. Only the part of the map that is not affine carries sampling noise; for an affine map there is none.

    Cost: per row n evaluations of T and, where there are densities, 2n inverses of T.

    Args:
        run: rows to judge.
        problem: with the run's own reference.
        n: samples of each law, ≥ 2(d + 2); a particle run uses as many as it has, if fewer.
        seed: of these samples.
        rows: positions of the rows to judge, negative ones from the end; None: all.
        num_kl: samples of each law behind `sym_kl`, which takes most of the time; None: n.

    Returns:
        Columns (T,) float64, with one entry per judged row:
        `t`;
        `bures_w2`: W₂ of the Gaussians with the moments of run and law, in units of x, a lower bound of W₂ itself;
        `bures_w2_floor`: its sampling error, half the distance between the estimates from two halves of the sample
            (that of a law known by particles comes on top);
        `mean`: |m − m*|, in units of x; `cov`: |C − C*|/|C*| in the Frobenius norm;
        `sym_kl`: KL + KL in nats (no ½), NaN for particles (of run or law), folded maps, different supports;
        `energy`: F − F*, NaN where either is not known.

    Raises:
        ConfigError: another reference than the problem's, n too small, or rows before the problem's start.

    References:
        M. Gelbrich, On a formula for the L² Wasserstein metric between measures on Euclidean and Hilbert spaces, 1990.
    """
    _check(run, problem, n)
    particles = num_particles(run)
    if particles is not None:
        n = min(n, particles)
    start = problem.exact(float(problem.times[0]))
    z = problem.reference.sample(n, seeded(seed, "errors"))
    has_energy = "energy" in run.names
    found = []
    for k in range(len(run)) if rows is None else rows:
        t = float(run.t[k])
        law, exact_energy = problem.exact(t), problem.exact_energy(t)
        known = run.moments(t) if run.has_density else None  # of all particles, where a law is fitted to them
        row = _moment_errors(z, run.push(t, z).double(), start, law, known)
        row["sym_kl"] = _sym_kl(run, t, law, min(n, num_kl or n), seed)
        row["energy"] = run["energy"][k] - exact_energy if has_energy and exact_energy is not None else math.nan
        found.append({"t": t, **row})
    return {name: np.array([row[name] for row in found], dtype=np.float64) for name in found[0]}


def estimated_error(run: Trajectory) -> tuple[float, float]:
    """Largest estimated error of a row's law, W₂ over the spread √tr cov, and its time; NaN where rows have none.

    Without a known law; from the velocity that the map missed, see `schemes.pwgf.estimate`.
    """
    if "error_estimate" not in run.names:
        return math.nan, math.nan
    share = _in_spreads(run, "error_estimate")
    k = int(np.argmax(np.nan_to_num(share)))
    return float(share[k]), float(run.t[k])


def error_95(run: Trajectory) -> float:
    """The column error_95 at the row where it is largest, in spreads; NaN if not known."""
    if "error_95" not in run.names:
        return math.nan
    return float(np.nan_to_num(_in_spreads(run, "error_95"), nan=-math.inf, posinf=math.inf).max())


def tried_cures(run: Trajectory) -> dict[str, float]:
    """What was tried at the row of the largest estimated error, with the estimate that it gave, relative to the spread.

    Empty where nothing was tried, since the estimate lay below the accuracy asked for.
    """
    cures = {words: name for name, words in run.description.cures.items() if name in run.names}
    if not cures:
        return {}
    k = int(np.argmax(np.nan_to_num(_in_spreads(run, "error_estimate"))))
    found = {words: float(_in_spreads(run, name)[k]) for words, name in cures.items()}
    return {words: share for words, share in found.items() if math.isfinite(share)}


def _in_spreads(run: Trajectory, name: str) -> np.ndarray:
    return run[name] / np.maximum(run["spread"], 1e-300)


def _check(run: Trajectory, problem: Problem, n: int) -> None:
    check_integer(n, "n", "errors", least=2 * (problem.dim + 2))
    ours, theirs = run.config["scheme"]["reference"], member_config(problem.reference)
    if ours != theirs:
        raise ConfigError(
            f"errors(run, problem) needs a run from the problem's own reference, {theirs}; got one from {ours}. "
            "Hand over the problem that the run was solved for."
        )


def _moments(z: Tensor, x: Tensor, start: Law) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d,d) of x = T(z), with the exact moments of z in place of its sample's."""
    with_one = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    fit = torch.linalg.lstsq(with_one, x).solution  # (d+1, d): Aᵀ above b
    rest = x - with_one @ fit
    mean = start.mean() @ fit[:-1] + fit[-1]
    cov = fit[:-1].T @ start.cov() @ fit[:-1] + rest.T @ rest / (len(z) - with_one.shape[1])
    return mean, 0.5 * (cov + cov.T)


def _moment_errors(z: Tensor, x: Tensor, start: Law, law: Law, known: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    mean, cov = _moments(z, x, start) if known is None else known
    half = len(z) // 2
    exact_mean, exact_cov = law.mean(), law.cov()
    halves = [_moments(z[part], x[part], start) for part in (slice(half), slice(half, None))]
    return {
        "bures_w2": float(distances.bures_w2(mean, cov, exact_mean, exact_cov)),
        "bures_w2_floor": 0.5 * float(distances.bures_w2(*halves[0], *halves[1])),
        "mean": float((mean - exact_mean).norm()),
        "cov": float((cov - exact_cov).norm() / exact_cov.norm()),
    }


def _sym_kl(run: Trajectory, t: float, law: Law, n: int, seed: int) -> float:
    """KL + KL, or NaN: particles have no density, folded maps none that is true, and on different supports it is ∞."""
    if not run.description.has_density or not law.has_density:
        return math.nan
    ours = run.at(t)
    if not bool(torch.isfinite(law.log_density(ours.sample(n, seed).double())).all()):
        return math.nan  # found before any inverse is computed
    try:
        value = float(distances.sym_kl(ours, law, n, torch.Generator().manual_seed(seed)))
    except (ConfigError, SolverError, NonFiniteError):
        return math.nan
    return value if math.isfinite(value) else math.nan
