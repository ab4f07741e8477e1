"""The filter by flows: the law is a pushed measure, moved between observations and fitted at each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import fitting, sampling
from ..checks import check_device, check_integer, check_seed, memory_told, private, seeded
from ..distances import divergence
from ..energies.base import check_slope
from ..errors import ConfigError, SolverError
from ..maps import PushForward, ResidualMLP
from ..measures import PushedLaw, PushedMeasure, Reference
from ..oracles._observations import check_observation, schedule
from ..run.solve import solve
from ..run.trajectory import Trajectory
from ..schemes import PWGF
from ..schemes._arguments import in_standard_coordinates
from .found import Filtered, Updated
from .model import StateSpace, weighted_moments
from .stored import flow_path, store, store_table

_PILOT_SAMPLES = 4000  # whose weighted moments give the start of an update
_EFFECTIVE_PER_COORDINATE = 20  # effective ones of them that are enough
_TAIL_FACTOR = 1.6  # by which a sixth of the points of the least squares lie further out
_FIT_TOLERANCE = 1e-8  # mean square misfit, as a share of the spread, at which the least squares stop
_CHUNK = 2000
_POOR_FIT = 10.0  # KL of the fit beside the tolerance of the flow: a warning

_log = logging.getLogger("pwgf")


@memory_told("filtering.run", "fewer num_samples, a smaller map")
def run(
    model: StateSpace,
    times: Sequence[float],
    observations: Sequence[Any],
    *,
    end: float | None = None,
    map: PushForward | None = None,
    update_settings: dict[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> Filtered:
    """The law of X_t given all observations up to t, at the times of the observations and at the end.

    Between observations ρ follows the Fokker–Planck equation of the model (`predict`); at each, Bayes' rule is applied
    (`update`). All laws are pushed from one λ = `model.initial` by one map, so the cost does not grow with time.

    Args:
        model: dynamics, likelihood and initial law.
        times: of the observations, increasing, > 0.
        observations: as many y as times, each as `model.log_likelihood` takes it.
        end: the last time; None means that of the last observation.
        map: T; None means `ResidualMLP(dim)`.
        update_settings: of `update`.
        out: folder for the flows, flow-000.h5, …, each with the update at its end, and for a table of them,
            filter.h5; `filtering.load(out)` reads all of it. None keeps them in memory.
        resume: continue at the flow that was stopped; the updates are computed again.
        overwrite: replace existing flows.
        seed: of all randomness.
        progress: as in `solve`.
        settings: of `PWGF` between observations.

    Raises:
        ConfigError, ShapeError: arguments that cannot work, an observation that has zero likelihood everywhere.
        NonFiniteError, SolverError: from a flow.

    Example:
        >>> from pwgf import Gaussian, filtering
        >>> from pwgf.maps import Affine
        >>> model = filtering.StateSpace(
        ...     lambda x: x.square().sum(-1) / 2, lambda y, x: -(x - y).square().sum(-1) / 2, Gaussian(1)
        ... )
        >>> found = filtering.run(model, [0.5], [1.0], map=Affine(1), progress=False)
        >>> mean, cov = found.law.moments()
        >>> abs(float(mean) - 0.5) < 0.01 and abs(float(cov) - 0.5) < 0.01
        True

    References:
        P. Mokrov et al., Large-Scale Wasserstein Gradient Flows, 2021, arXiv 2106.00736, §5.4.
    """
    if not isinstance(model, StateSpace):
        raise ConfigError(f"filtering.run(model, …) needs a StateSpace; got {type(model).__name__}.")
    at, end = schedule(times, observations, end)
    seed = check_seed(seed, "filtering.run")
    map = ResidualMLP(model.dim) if map is None else map
    map = in_standard_coordinates(map, model.initial)
    law = PushedLaw(map, model.initial, map.initial(seed).double())
    predicted: list[PushedLaw] = []
    updates: list[Updated] = []
    runs: list[Trajectory] = []
    now = 0.0

    def move(law: PushedLaw, to: float) -> PushedLaw:
        """The law after a flow, which must be the stored one before the update ahead of it replaces a stored one."""
        path = None if out is None else flow_path(out, len(runs))
        there: dict[str, Any] = {"start": now, "out": path, "resume": resume, "overwrite": overwrite}
        law, flow = predict(model, law, to - now, **there, seed=seed + len(runs), progress=progress, **settings)
        if updates:
            store(runs[-1], updates[-1])
        runs.append(flow)
        return law

    for t, y in zip(at, observations, strict=True):
        predicted.append(move(law, t))
        now = t
        chosen = {"seed": seed + len(runs), **(update_settings or {})}
        updates.append(_taken_in(len(updates), predicted[-1], model.at(y), t, chosen))
        law = updates[-1].law
    if end > now:
        law = move(law, end)
    elif updates:
        store(runs[-1], updates[-1])
    found = Filtered(at, predicted, updates, end, law, runs)
    store_table(out, found)
    return found


def _taken_in(k: int, law: PushedLaw, log_likelihood: Any, t: float, settings: dict[str, Any]) -> Updated:
    """The update by observation k; an error names that."""
    try:
        return update(law, log_likelihood, t=t, **settings)
    except SolverError as error:
        raise SolverError(f"filtering.run: observation {k}, of t = {t:g}, was not taken in: {error}") from error


def predict(
    model: StateSpace,
    law: PushedLaw,
    duration: float,
    *,
    start: float = 0.0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> tuple[PushedLaw, Trajectory]:
    """The law after the given duration without an observation, and the flow there.

    Args:
        model: dynamics.
        law: at the start.
        duration: > 0, in units of t.
        start: the time at the start, for dynamics that depend on it; all other flows begin at 0.
        out, resume, overwrite, seed, progress: as in `solve`.
        settings: of `PWGF`.
    """
    scheme = PWGF(model.energy, law.map, law.reference, theta0=law.theta, **settings)
    to: dict[str, Any] = {"out": out, "resume": resume, "overwrite": overwrite}
    begin = start if model.energy.time else 0.0
    flow = solve(scheme, [begin, begin + duration], **to, seed=seed, progress=progress)
    return PushedLaw(law.map, law.reference, flow.state().theta.double().cpu()), flow


def update(
    law: PushedLaw,
    log_likelihood: Callable[[Tensor], Tensor],
    *,
    tolerance: float = 1e-3,
    max_time: float = 4.0,
    map: PushForward | None = None,
    num_fit: int | None = None,
    max_iterations: int = 30,
    t: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Updated:
    r"""Bayes' rule: the law with density ∝ ρ(x) p(y|x).

    In the coordinates z of λ the posterior is known up to a constant without any inverse: λ(z) p(y|T(z)). A map S
    reaches it by the flow of KL to that density (`sampling.sample`), started at its moments by importance weights; then
    one map replaces T∘S by least squares (`fitting.regress`). Both errors are measured and returned.

    Args:
        law: before the observation, T_θ#λ.
        log_likelihood: log p(y|x), (n,d) → (n,), for the y observed.
        tolerance: on KL(ρ|posterior), nats, at which the flow stops.
        max_time: at which it stops in any case.
        map: S; None means the family of `law.map`, from the identity.
        num_fit: samples of the least squares; None means 4000, or enough that n·d ≥ 4p.
        max_iterations: of the least squares.
        t: for messages.
        seed: of all randomness.
        settings: of the `PWGF` of this flow. The likelihood is evaluated, and the map fitted, on its `device`.

    Raises:
        ConfigError: zero likelihood everywhere.
    """
    reference, generator = law.reference, seeded(seed, "filtering.update")
    check_integer(max_iterations, "max_iterations", "filtering.update")
    if num_fit is not None:
        check_integer(num_fit, "num_fit", "filtering.update")
    device = check_device(settings.get("device", "cpu"), "filtering.update")
    law = PushedLaw(law.map, reference, law.theta.to(device))
    z = reference.matched_sample(_PILOT_SAMPLES, generator)
    with torch.no_grad():
        log_w = log_likelihood(law.push(z).to(device)).cpu()
    check_observation(log_w, t)
    check_slope(log_likelihood, law.push(z[:64]).to(device), "log_likelihood(y, x)")
    mean, cov, share = weighted_moments(z, log_w)

    def target(z: Tensor) -> Tensor:
        return reference.log_density(private(z)) + log_likelihood(law.map(law.theta, z))

    enough = share * len(z) > _EFFECTIVE_PER_COORDINATE * len(mean)
    map = in_standard_coordinates(law.map if map is None else map, reference)
    centre, scale = (mean, torch.linalg.cholesky(cov)) if enough else _at_mode(target, len(mean), device)
    scale = scale @ torch.linalg.inv(torch.linalg.cholesky(reference.cov()))  # from λ, whose samples one map pushes
    found = sampling.sample(
        target, law.map.dim, _CHUNK, map=map, reference=reference, tolerance=tolerance, max_time=max_time,
        whiten=(centre - scale @ reference.mean(), scale), seed=seed, bridge=0, progress=False,
        **{"num_eval": 1000, **settings},
    )  # fmt: skip
    n = num_fit or max(_PILOT_SAMPLES, -(-4 * law.map.num_params // law.map.dim))
    new, kl_fit = _one_map(law, map, found, n, max_iterations, generator)
    if not kl_fit <= _POOR_FIT * tolerance:
        _log.warning(
            "filtering: the map that takes the law on after the observation at t = %g differs from it by KL %.2g "
            "(kl_fit; tolerance %.2g). Cure: a larger map, more samples (num_fit) or iterations (max_iterations)",
            t, kl_fit, tolerance,
        )  # fmt: skip
    return Updated(new, found.log_z, found.log_z_stderr, share, found.log_z - found.log_z_bound, kl_fit)


def _at_mode(target: Callable[[Tensor], Tensor], dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Where the density is largest, and L with LLᵀ the inverse Hessian of its −log there, both on the CPU."""
    mode, scale = sampling.laplace(target, dim, torch.zeros(dim, dtype=torch.float64, device=device))
    return mode.cpu(), scale.cpu()


def _one_map(
    law: PushedLaw, map: PushForward, found: sampling.Sampled, n: int, max_iterations: int, generator: torch.Generator
) -> tuple[PushedLaw, float]:
    """The law by one map in place of T∘S, fitted at n samples, and the KL between the two."""
    reference = law.reference
    moved = _compose(law, map, found, reference.matched_sample(n, generator))
    middle = reference.mean()
    tails = middle + _TAIL_FACTOR * (reference.matched_sample(n // 5, generator) - middle)  # so that no map folds there
    wide = _compose(law, map, found, tails)
    z, x = torch.cat([moved.z, wide.z]), torch.cat([moved.x, wide.x])
    theta, _ = fitting.regress(
        law.map, law.theta, z, x, max_iterations, tolerance=_FIT_TOLERANCE, least_damping=1e-8, call="filtering.update"
    )
    new = PushedLaw(law.map, reference, theta.cpu())
    return new, _gap(moved, new, reference)


@dataclass(frozen=True)
class _Moved:
    """x = T(S(z)) with the log density of its law."""

    z: Tensor
    x: Tensor
    log_density: Tensor


def _compose(law: PushedLaw, map: PushForward, found: sampling.Sampled, z: Tensor) -> _Moved:
    """At samples z of λ, on the device of the law."""
    z, inner = z.to(law.theta), found.theta.to(law.theta)
    x, logs = [], []
    with torch.no_grad():
        for part in z.split(_CHUNK):
            rho = PushedMeasure(map, found.run.reference, inner, part)
            s, log_volume = found.coordinates(rho.x)
            x.append(law.map(law.theta, s))
            logs.append(rho.log_density - law.map.log_abs_det(law.theta, s) - log_volume)
    return _Moved(z, torch.cat(x), torch.cat(logs))


def _gap(moved: _Moved, new: PushedLaw, reference: Reference) -> float:
    """KL from the law of T∘S to the new one, on some of its samples."""
    few = slice(0, _CHUNK)
    return float(divergence(new.log_density(moved.x[few]) - moved.log_density[few].cpu()))
