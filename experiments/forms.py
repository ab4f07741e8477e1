"""Velocity form against gradient form: why the right side is a least-squares fit of v and not a gradient of sampled F.

Both are the same equation in the continuum, −Ĝ†∇_θF = argmin E|Jη − v|². On n samples with an entropy they differ: the
sampled ∇_θ log det lies partly outside range(Jᵀ), and the small eigenvalues of the metric blow that part up. Shown for
the 2-D Ornstein–Uhlenbeck flow with V = 2|x − 3|² to T = .5 (Jin et al., 2024, arXiv 2404.19133, use the gradient form
with forward Euler and MINRES): Bures–W₂ error (the root) at T, for Euler h = .01 and Runge–Kutta 4 h = .05 at several
dampings; and a correlated Gaussian in d = 10.

    python -m experiments.forms                # about 4 minutes, results/forms/*.h5
"""

from __future__ import annotations

import numpy as np
import torch
import tyro
from scipy.sparse.linalg import LinearOperator, minres

import pwgf
from experiments.common import RESULTS, table
from pwgf import linalg, maps, problems
from pwgf.study.accuracy import errors


def _error(name: str, problem: problems.OrnsteinUhlenbeck, t: float, seed: int, **settings) -> list[str]:
    """Bures–W₂ error at t, right sides and CPU seconds of one run; how it failed where it did."""
    d = problem.dim
    scheme = pwgf.PWGF(
        problem.energy, maps.ResidualMLP(d, width=64), problem.reference, momentum=0.0, num_eval=2000, **settings
    )
    out = RESULTS / f"forms/{name}.h5"
    try:
        run = pwgf.solve(scheme, (0.0, t), out=out, seed=seed, overwrite=True, problem=problem)
    except (pwgf.SolverError, pwgf.NonFiniteError):
        return ["diverged", "–", "–", "–"]
    found = errors(run, problem, n=20_000, rows=[-1])
    residual = run["projection_residual"][-1]
    return [
        f"{found['bures_w2'][0]:.1e}",
        f"{residual:.1e}",
        str(int(run["num_stages"][-1])),
        f"{run['cpu_time'][-1]:.0f}",
    ]


class MINRES(linalg.EquationSolver):
    """The published solver: MINRES to a relative residual of 1e-3 in at most 200 iterations."""

    name = "minres"

    def answer(self, problem, state) -> linalg.Solution:
        shape = (state.tangent.p, state.tangent.p)
        metric = LinearOperator(shape, lambda y: problem.matvec(torch.from_numpy(y)).numpy(), dtype=np.float64)
        found, info = minres(metric, problem.b.numpy(), rtol=1e-3, maxiter=200)
        y = torch.from_numpy(found)
        return problem.solution(y, problem.check(y), info == 0)


def forms(seed: int = 0) -> None:
    """The table of both forms.

    Args:
        seed: of the runs.
    """
    rows = []
    plane = problems.OrnsteinUhlenbeck(2)
    for damping in (1e-4, 1e-6, 1e-8):
        for form, solver in (("gradient", "primal"), ("velocity", "primal")):
            for integrator in (pwgf.Euler(0.01), pwgf.FixedStep("rk4", 0.05)):
                words = f"{integrator.method} {integrator.dt:g}"
                name = f"d2-{form}-{integrator.method}-{damping:g}"
                settings = dict(form=form, integrator=integrator, damping=damping, solver=solver)
                rows.append(["2", form, words, f"{damping:g}", *_error(name, plane, 0.5, seed, **settings)])
    paper = dict(form="gradient", integrator=pwgf.Euler(0.01), damping=1e-6, solver=MINRES())
    rows.append(["2", "gradient, MINRES 1e-3", "euler 0.01", "1e-06", *_error("d2-paper", plane, 0.5, seed, **paper)])
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(10, 10)) / np.sqrt(10)
    ten = problems.OrnsteinUhlenbeck(10, cov=factor @ factor.T + 0.2 * np.eye(10), mean=np.ones(10))
    for form in ("gradient", "velocity"):
        settings = dict(form=form, integrator=pwgf.FixedStep("rk4", 0.05), damping=1e-6, solver="primal")
        rows.append(["10", form, "rk4 0.05", "1e-06", *_error(f"d10-{form}", ten, 1.0, seed, **settings)])
    table(["d", "form", "method", "damping", "Bures–W₂", "fresh residual", "right sides", "CPU s"], rows)


if __name__ == "__main__":
    tyro.cli(forms)
