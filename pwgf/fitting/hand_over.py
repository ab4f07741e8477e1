"""The law of a run at one time, transferred to another map: a larger one, or one of another family."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_integer, check_theta0, plain_numbers, seeded
from ..errors import ConfigError, NonFiniteError
from ..linalg import get_solver
from ..maps.base import PushForward
from ..measures import Reference
from ..run.trajectory import Trajectory
from ..shown import fields_as_table
from ..tangent import Tangent


class Reparametrised(NamedTuple):
    """A law transferred to another map.

    Args:
        theta: (p,) float64.
        error: E|T_new − T_old|²/E|x − E x|² on fresh samples.
        iterations: Gauss–Newton steps tried.
    """

    theta: Tensor
    error: float
    iterations: int

    def _repr_html_(self) -> str:
        return fields_as_table(self)


@plain_numbers
def reparametrise(
    run: Trajectory,
    t: float,
    new_map: PushForward,
    *,
    theta0: Tensor | None = None,
    num_samples: int | None = None,
    num_eval: int = 10_000,
    max_iterations: int = 50,
    seed: int = 0,
) -> Reparametrised:
    r"""θ of another map with the law of a run at time t: min_θ E_z|T_θ(z) − T_old(z)|².

    Levenberg–Marquardt with the tangent and the solvers of the flow: each step solves
    min_η |Jη − (T_old − T_θ)|²/n + ε tr(Ĝ)|η|². It is accepted if the misfit decreases, and ε is then divided by ten;
    otherwise it is tried again with ten times the ε. Continue with

        PWGF(energy, new_map, reference, theta0=found.theta) and solve(scheme, times=[t, …]).

    Cost: a tangent and a linear solve per iteration.

    Args:
        run: of a scheme with a map; `pwgf.load` reads one.
        t: a time of the run.
        new_map: of the same dimension; larger, or of another family.
        theta0: start (p,); None means `new_map.initial(seed)`.
        num_samples: n, samples of the fit; None means 2000, or enough that n·d ≥ 4p.
        num_eval: fresh samples on which the error is measured.
        max_iterations: steps tried at most.
        seed: of samples and θ₀.

    Returns:
        θ and its error; √error is the distance of the two maps in units of the spread of the law, an upper bound on
        that of the laws.

    Raises:
        ConfigError: a run of particles (fit their samples), another dimension, or an argument out of range.
        NonFiniteError: the new map gives NaN or infinity at its start.

    Example:
        >>> import pwgf
        >>> from pwgf import fitting, maps, problems
        >>> problem = problems.OrnsteinUhlenbeck(1)
        >>> scheme = pwgf.PWGF(problem.energy, maps.Affine(1), problem.reference, num_samples=50, num_eval=50)
        >>> run = pwgf.solve(scheme, [0.0, 0.1], progress=False)
        >>> fitting.reparametrise(run, 0.1, maps.ResidualMLP(1, width=4)).error < 1e-12
        True
    """
    reference = _check_takeover(run, new_map, num_samples, num_eval, max_iterations)
    start = check_theta0(theta0, new_map.num_params, "reparametrise")
    theta = (new_map.initial(seed) if start is None else start).double().cpu()
    n = num_samples or max(2000, math.ceil(4 * new_map.num_params / new_map.dim))
    generator = seeded(seed, "reparametrise")
    z, fresh = reference.sample(n, generator), reference.sample(num_eval, generator)
    theta, tried = regress(new_map, theta, z, run.push(t, z).double(), max_iterations, call="reparametrise")
    fresh_x = run.push(t, fresh).double()
    error = _mean_square(fresh_x - _at(new_map, theta, fresh)) / _mean_square(fresh_x - fresh_x.mean(0))
    return Reparametrised(theta, error, tried)


def regress(
    map: PushForward,
    theta: Tensor,
    z: Tensor,
    x: Tensor,
    max_iterations: int = 50,
    *,
    tolerance: float = 1e-28,
    least_damping: float = 1e-14,
    call: str = "regress",
) -> tuple[Tensor, int]:
    """θ with T_θ(z_i) ≈ x_i in least squares, by Levenberg–Marquardt with the tangent and the solvers of the flow.

    Args:
        map: T.
        theta: start (p,).
        z, x: (n,d) points and their targets, float64.
        max_iterations: steps tried at most.
        tolerance: it ends where the mean square misfit is below this share of the spread of x.
        least_damping: the smallest ε; larger values keep θ near its start where the points do not determine it.
        call: for the message.

    Returns:
        θ (p,) and the number of steps tried.

    Raises:
        NonFiniteError: the map gives NaN or infinity at its start.
    """
    solver, damping = get_solver("auto"), 1e-6
    spread = _mean_square(x - x.mean(0))
    missing = x - _at(map, theta, z)
    size, tried, small = _mean_square(missing), 0, 0
    if not math.isfinite(size):
        raise NonFiniteError(
            f"{call}: the new map gives NaN or infinite samples at its start. Leave theta0 out, or take another."
        )
    while tried < max_iterations and size > tolerance * spread and damping < 1e6 and small < 3:
        tried += 1
        trial = theta + solver(Tangent(map, theta, z), missing, damping=damping).x
        left = x - _at(map, trial, z)
        there = _mean_square(left)
        if there < size:
            small = small + 1 if there > 0.99 * size else 0
            theta, missing, size, damping = trial, left, there, max(damping / 10, least_damping)
        else:  # also where it is not finite
            damping *= 10
    return theta, tried


def _at(map: PushForward, theta: Tensor, z: Tensor) -> Tensor:
    with torch.no_grad():
        return map(theta, z)


def _mean_square(x: Tensor) -> float:
    return float(x.square().sum(1).mean())


def _check_takeover(
    run: Trajectory, new_map: PushForward, num_samples: int | None, num_eval: int, max_iterations: int
) -> Reference:
    """The reference of the run; ConfigError where its law cannot go over to the new map."""
    if not isinstance(run, Trajectory):
        raise ConfigError(f"reparametrise(run, …) needs a Trajectory, from solve or load; got {type(run).__name__}.")
    if "map" not in run.config["scheme"]:
        raise ConfigError(
            "reparametrise(run, …): this run holds particles and has no map. Fit their samples: "
            "fitting.fit(map, reference, run.sample(t, n))."
        )
    if not isinstance(new_map, PushForward):
        raise ConfigError(f"reparametrise(new_map=…) must be a map from pwgf.maps; got {type(new_map).__name__}.")
    if num_samples is not None:
        check_integer(num_samples, "num_samples", "reparametrise")
    check_integer(num_eval, "num_eval", "reparametrise", least=2)
    check_integer(max_iterations, "max_iterations", "reparametrise")
    if new_map.dim != run.reference.dim:
        raise ConfigError(
            f"reparametrise(new_map=…) must have the dimension of the run, {run.reference.dim}; got {new_map.dim}."
        )
    return run.reference
