"""Samples of an unnormalised density, with exact weights, effective sample size and bounds on its constant."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..checks import check_device, check_dim, check_integer, check_number, check_seed, memory_told, plain_numbers
from ..energies import KL
from ..errors import ConfigError, NonFiniteError, SolverError
from ..integrate import Auto
from ..maps import PushForward, ResidualMLP
from ..measures import Gaussian, PushedLaw, PushedMeasure, Reference
from ..run.resume import has_rows
from ..run.solve import solve
from ..run.trajectory import Trajectory
from ..schemes import PWGF
from ..state import Info, State
from .bridge import bridge as bridge_from
from .chains import LogDensity, langevin
from .coordinates import Target, Whiten, check_whiten, coordinates
from .found import Sampled, checked_names, constants
from .gaussian import closest_gaussian
from .natural import NaturalDescent
from .stored import store

_log = logging.getLogger("pwgf")
_FIRST_CHECK = 0.125  # time of the first check of the law; each later one at twice the time
_MOST_STAGES = 300  # right sides, beyond which cheap natural-gradient steps take over from a stiff flow at once
_SLOW = 0.5  # fall of F over a doubling of t, relative to the KL that remains: where natural-gradient steps take over
_MISSED, _LEAST_MISSED = 10.0, 0.01  # KL(π|ρ) relative to KL(ρ|π), or to .01 nats where that is less: a warning
_MISSED_MODE = 3.0  # log(p/ρ) at a mode of which ρ knows nothing, above that at another
_MARGIN = 0.25  # of the tolerance: what the natural-gradient steps aim at, so that fresh samples confirm it
_DIVERGED_CHECKS = 4  # in a row, with F falling no slower while the samples spread: there is no minimum
_DIVERGED_GROWTH = 1.3  # of the spread of the samples between two such checks
_CHUNK = 2000  # samples whose density is evaluated at a time


@memory_told("sampling.sample", "a smaller n or num_samples, a smaller map")
@plain_numbers
def sample(
    log_density: LogDensity,
    dim: int,
    n: int = 10_000,
    *,
    map: PushForward | None = None,
    reference: Reference | None = None,
    whiten: Whiten = "auto",
    tolerance: float = 1e-2,
    max_time: float = 64.0,
    finish: bool = True,
    polish: int = 0,
    bridge: int = 200,
    names: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> Sampled:
    r"""Independent samples of p/Z: the Wasserstein gradient flow of KL(ρ|p/Z) from λ, then natural-gradient steps.

    At t = 1/8, 1/4, 1/2, 1, … the law is checked on fresh samples: it has converged when KL(ρ|π), estimated by log
    E_ρ[w] − E_ρ[log w] with w = p/ρ, is below `tolerance`. Where it has not, natural-gradient steps of the same map
    follow (`sampling.natural`), in which mass moves between wells at once, while the flow takes exponentially long to
    cross barriers: after the first check, or 300 right sides, where they are cheap (p ≤ 1000 parameters), else as soon
    as the fall of F over a doubling of t is less than half of the KL that remains. Where they cannot reach `tolerance`
    either, a warning says so, and the weights must correct for the remainder. The estimate does not see mass of π where
    ρ has none: like any local method, this one misses a mode that no sample of the start can reach.

    Args:
        log_density: log p, (n,d) → (n,), a differentiable torch function, finite wherever the flow goes.
        dim: d.
        n: samples returned.
        map: T; None means `ResidualMLP(dim)`.
        reference: λ, in the coordinates of the flow; None means N(0, I).
        whiten: the coordinates y in which the flow runs. "auto": x = m + Ly, N(m, LLᵀ) the Gaussian closest to π, found
            by natural-gradient steps from N(0, I) or from a mode; where a search from a hundred wide starts finds modes
            farther than √d + 2 from m in y, the mean and covariance of a mixture of Gaussians at all of them; x itself
            where d > 31 or a reference is given.
            "laplace": m the mode that L-BFGS finds from 0 and LLᵀ the inverse Hessian of −log p there. A pair (m, L),
            (d,) and (d,d): the same with values from elsewhere, such as moments of an earlier run. A function
            y → x(y), log|det ∂x/∂y|, (n,d) → (n,d), (n,), one to one, both parts differentiable and finite everywhere:
            any coordinates, for funnels, such as `LogisticRegression.coordinates()`. None: x itself.
        tolerance: on the estimated KL(ρ|π), nats.
        max_time: t at which the flow ends in any case.
        finish: whether natural-gradient steps take over where the flow is slow; if not, or where the derivatives of the
            map cannot be batched (`torch.func.vmap`), it runs to `max_time`.
        polish: steps of Metropolis-adjusted Langevin that move the samples afterwards, in y. They preserve π, but the
            density is then unknown: log_density, log_weights, ess and both values of log Z are NaN.
        bridge: steps of Metropolis-adjusted Langevin by which a tenth of the samples, at most a thousand, look for mass
            of π that ρ misses; log Z is then estimated from both sides (Bennett). 0, after a polish, or for n < 100: by
            importance alone.
        names: of the coordinates, for `Sampled.summary()` and ArviZ; None: x0, x1, ….
        out, resume, overwrite, progress: as in `solve`; a flow is resumed with the `finish` that it was begun with. The
            samples are stored too, and `sampling.load(out)` returns what this call does.
        seed: of the flow and of the samples.
        settings: of `PWGF`, e.g. num_samples=2000. log p and `whiten` are evaluated on its `device`; results lie on the
            CPU. With `whiten` the flow is expected to be smooth, and `integrator` begins with explicit steps.

    Raises:
        ConfigError: arguments that cannot work; p vanishes at samples of λ; no mode for "laplace"; a log p without a
            gradient.
        ShapeError: log p returns another shape than (n,).
        NonFiniteError: log p is NaN or infinite where the flow goes.
        SolverError: F decreased without bound: p has no finite integral, or −log p no minimum.

    Example:
        >>> import torch
        >>> from pwgf import sampling
        >>> found = sampling.sample(lambda x: -x.square().sum(-1) / 8, dim=1, n=1000, progress=False)
        >>> exact = 0.5 * float(torch.log(torch.tensor(8 * torch.pi)))
        >>> found.converged, abs(found.log_z - exact) < 0.02
        (True, True)

    References:
        M. Girolami, B. Calderhead, 2011, §2 (Langevin proposals with a Metropolis step).
    """
    _check(log_density, dim, n, whiten, tolerance, max_time, polish, bridge)
    seed = check_seed(seed, "sample")
    named = checked_names(names, dim)
    device = check_device(settings.get("device", "cpu"), "sample")
    target, reference, smooth, modes = _posed(log_density, dim, whiten, reference, device, seed)
    map = ResidualMLP(dim) if map is None else map
    if smooth:
        settings = {"integrator": Auto(explicit_start=True), **settings}
    scheme = PWGF(KL(target), map, reference, **settings)
    watch = _Watch(scheme, target, reference, tolerance, finish, seed)
    times = np.unique([0.0, *np.minimum(_FIRST_CHECK * 2.0 ** np.arange(40), max_time)])
    watch.times = set(times.tolist())
    if resume and out is not None:
        watch.look_at_rows(out)
    to: dict[str, Any] = {"out": out, "resume": resume, "overwrite": overwrite}
    run = solve(scheme, times, **to, seed=seed, callbacks=[watch], progress=progress)
    theta = watch.finished(run.state())
    y, log_rho = _drawn(scheme, target, theta, n, polish, seed)
    found = _weighted(target, y, log_rho, watch.converged, run, theta, named)
    law = PushedLaw(scheme.map, reference, theta.double().to(device))
    if bridge and not polish:
        found = _bridged(found, target, law, y, bridge, seed)
    if _misses(modes, target, law):
        found = dataclasses.replace(found, converged=False)
    if run.path is not None:
        about = {"seed": int(seed), "tolerance": float(tolerance), "polish": int(polish), "bridge": int(bridge)}
        store(found, y, run.path, about)
    return found


def _posed(
    log_density: LogDensity, dim: int, whiten: Whiten, reference: Reference | None, device: str, seed: int
) -> tuple[Target, Reference, bool, Tensor]:
    """log p in the coordinates chosen, λ, whether the flow is expected to be smooth there, and modes found (k,d)."""
    auto = isinstance(whiten, str) and whiten == "auto"
    start = Gaussian(dim) if reference is None else reference
    target = Target(log_density, coordinates(log_density, dim, None if auto else whiten, device))
    target.check_start(start.sample(1000, torch.Generator().manual_seed(seed)).to(device))
    none = torch.zeros(0, dim, dtype=torch.float64, device=device)
    if not auto:
        return target, start, whiten is not None, none
    found = closest_gaussian(target, dim, device, seed) if reference is None else None
    if found is None:
        return target, start, False, none
    centred = Target(log_density, coordinates(log_density, dim, (found.m, found.scale), device))
    return centred, start, not len(found.modes), torch.linalg.solve(found.scale, (found.modes - found.m).T).T


def _misses(modes: Tensor, target: Target, law: PushedLaw) -> bool:
    """Has ρ far less of one of the modes (k,d) than of another, relative to p? A warning names that."""
    missed = []  # log p − log ρ
    for y in modes.unsqueeze(1):
        try:
            with torch.no_grad():
                missed.append(float(target(y) - law.log_density(y)))
        except SolverError:  # no sample of λ is mapped there
            missed.append(math.inf)
    if not missed or max(missed) - min(missed) < _MISSED_MODE:
        return False
    k = int(np.argmax(missed))
    _log.warning(
        "sample: a search found %d modes, and the law misses the one near x = %s (number %d by weight), where it has "
        "less than a twentieth of its share: samples and log Z are those of the others. Cure: "
        "reference=Gaussian(dim, cov=…), as wide as the modes lie apart, or a larger map",
        len(modes),
        [round(value, 3) for value in target.coordinates(modes[k : k + 1])[0][0].tolist()],
        k + 1,
    )
    return True


def _bridged(found: Sampled, target: Target, law: PushedLaw, y: Tensor, steps: int, seed: int) -> Sampled:
    """The same samples, with log Z from both sides; warns where the law misses more of π than its own samples show."""
    both = bridge_from(target, law.log_density, y, found.log_weights, steps, seed)
    if both is None:
        return found
    seen = max(found.log_z - found.log_z_bound, 0.0)
    if both.kl_backward > _MISSED * max(seen, _LEAST_MISSED):
        _log.warning(
            "sample: chains that began at the samples found mass that the law misses: KL(π|ρ) is about %.2g, while "
            "KL(ρ|π) is about %.2g. The weights cannot correct for it. Cure: a larger map, or samples moved by "
            "polish=200",
            both.kl_backward,
            seen,
        )
    return dataclasses.replace(found, log_z=both.log_z, log_z_stderr=both.log_z_stderr)


class _Watch:
    """Checks the law at doubled times; as a callback of `solve` it returns True when the flow has converged."""

    def __init__(
        self, scheme: PWGF, target: Target, reference: Reference, tolerance: float, finish: bool, seed: int
    ) -> None:
        self.scheme = scheme
        self.target = target
        self.reference = reference
        self.tolerance = tolerance
        self.z = reference.sample(2 * _CHUNK, torch.Generator().manual_seed(seed + 2)).to(scheme.device)
        self.times: set[float] = set()
        self.kl = math.inf
        self.converged = False
        self.looks: list[tuple[float, float, float]] = []  # t, F, rms |y|
        self.descent = NaturalDescent(scheme.map, reference, target, scheme.device, seed + 4)
        self.finish = finish and self.descent.works
        self.num_steps = 0  # of the descent

    def look_at_rows(self, out: str | os.PathLike[str]) -> None:
        """The looks of a run that is to be resumed, at its rows."""
        if not has_rows(storage.checked_path(out, "sample(out=…)")):
            return
        with storage.open_record(out) as record:
            for k, t in enumerate(record.column("t") if record.num_params == self.scheme.map.num_params else []):
                if k > 0:
                    self._look(float(t), torch.from_numpy(record.vector("theta", k)))

    def __call__(self, state: State, info: Info) -> bool:
        crawls = self.finish and self.descent.has_enough and state.counters["num_stages"] > _MOST_STAGES
        return crawls or (state.t in self.times and self._look(state.t, state.theta))

    def _look(self, t: float, theta: Tensor) -> bool:
        y, log_w = self._weighed(theta, f"t = {t:g}")
        self.looks.append((t, -float(log_w.mean()), float(y.square().sum(1).mean().sqrt())))
        self._check_bound()
        return self.converged or self._gives_way()

    def _weighed(self, theta: Tensor, when: str) -> tuple[Tensor, Tensor]:
        """y and log p − log ρ at fresh samples; sets `kl` and `converged`."""
        y, log_rho = _pushed(self.scheme.map, self.reference, theta, self.z)
        log_w = self.target(y) - log_rho
        if not bool(torch.isfinite(log_w).all()):
            raise _not_finite(log_w, when)
        self.kl = float(torch.logsumexp(log_w, 0) - math.log(len(log_w)) - log_w.mean())
        self.converged = self.kl < self.tolerance
        return y, log_w

    def _gives_way(self) -> bool:
        """Do natural-gradient steps take over: are they cheap, or is the flow slow and its samples spread no more?"""
        if not self.finish or len(self.looks) < 2:
            return self.finish and self.descent.has_enough
        (_, before, narrow), (_, now, wide) = self.looks[-2:]
        return before - now < _SLOW * self.kl and wide < _DIVERGED_GROWTH * narrow

    def finished(self, state: State) -> Tensor:
        """θ at the end of the flow or, where they help, after natural-gradient steps; warns where KL is too large."""
        theta = state.theta
        if self.finish and not self.converged:
            theta = self._descended(theta)
        if not self.converged:
            self._warn(state.t)
        return theta

    def _descended(self, theta: Tensor) -> Tensor:
        before = self.kl
        found = self.descent.run(theta, _MARGIN * self.tolerance)
        self.num_steps = max(len(found.kl) - 1, 0)
        if found.runs_away:
            raise _without_bound(found.energies, found.spreads)
        try:
            self._weighed(found.theta, "the end of the natural-gradient steps")
        except NonFiniteError:  # at a sample of the new law alone
            self.kl = math.inf
        if self.kl < before:
            return found.theta
        self._weighed(theta, "the end of the flow")
        return theta

    def _warn(self, t: float) -> None:
        """Warns that the law is farther from π than `tolerance`."""
        cure = "a larger map" if self.num_steps else "a larger map or max_time"
        _log.warning(
            "sample: KL(ρ|π) is still about %.2g (tolerance %.2g) after the flow to t = %g and %d natural-gradient "
            "steps. Cure: %s, or more samples (num_samples); the weights correct for it where `ess` is not small",
            self.kl,
            self.tolerance,
            t,
            self.num_steps,
            cure,
        )

    def _check_bound(self) -> None:
        if len(self.looks) <= _DIVERGED_CHECKS:
            return
        _, energies, sizes = zip(*self.looks[-_DIVERGED_CHECKS - 1 :], strict=True)
        drops = [a - b for a, b in zip(energies, energies[1:], strict=False)]
        falls = all(later > 0.95 * drop > 0 for drop, later in zip(drops, drops[1:], strict=False))
        if falls and all(b > _DIVERGED_GROWTH * a for a, b in zip(sizes, sizes[1:], strict=False)):
            raise _without_bound(energies, sizes)


def _not_finite(log_w: Tensor, when: str) -> NonFiniteError:
    return NonFiniteError(
        f"sample: log p − log ρ is not finite at {int((~torch.isfinite(log_w)).sum())} of {len(log_w)} samples at "
        f"{when}. Causes: (a) log p is infinite or NaN there: make it finite; (b) the map folds: "
        "maps.ConvexRidge(dim) cannot."
    )


def _without_bound(energies: Sequence[float], sizes: Sequence[float]) -> SolverError:
    return SolverError(
        f"sample: F fell without bound, from {energies[0]:.4g} to {energies[-1]:.4g} and hardly slower at the end, "
        f"while the samples spread from {sizes[0]:.3g} to {sizes[-1]:.3g} (rms |x|). Cause: p has no finite integral, "
        "as without a prior. Cure: a log_density that falls off in all directions."
    )


def _pushed(map: PushForward, reference: Reference, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """T_θ(z) and log ρ_θ there, (n,d) and (n,) float64, on the device of z."""
    theta = theta.detach().double().to(z.device)
    with torch.no_grad():
        parts = [PushedMeasure(map, reference, theta, part) for part in z.split(_CHUNK)]
        return torch.cat([rho.x for rho in parts]), torch.cat([rho.log_density for rho in parts])


def _drawn(scheme: PWGF, target: Target, theta: Tensor, n: int, polish: int, seed: int) -> tuple[Tensor, Tensor]:
    """y and log ρ there, (n,d) and (n,); after a polish log ρ is NaN."""
    z = scheme.reference.sample(n, torch.Generator().manual_seed(seed + 1)).to(scheme.device)
    y, log_rho = _pushed(scheme.map, scheme.reference, theta, z)
    if not polish:
        return y, log_rho
    return langevin(target, y, polish, seed=seed), torch.full_like(log_rho, math.nan)


def _weighted(
    target: Target,
    y: Tensor,
    log_rho: Tensor,
    converged: bool,
    run: Trajectory,
    theta: Tensor,
    names: tuple[str, ...],
) -> Sampled:
    """The samples x(y) with their weights, and what follows from these."""
    with torch.no_grad():
        x, log_volume = target.coordinates(y)
        log_w = (target(y) - log_rho).cpu()
    if bool((log_w.isinf() | (log_w.isnan() & ~log_rho.cpu().isnan())).any()):
        raise _not_finite(log_w, "the end")
    log_density, end = (log_rho - log_volume).cpu(), float(run.t[-1])
    coordinates = target.coordinates
    return Sampled(x.cpu(), log_density, log_w, *constants(log_w), converged, end, run, theta.cpu(), coordinates, names)


def _check(
    log_density: object,
    dim: object,
    n: object,
    whiten: object,
    tolerance: object,
    max_time: object,
    polish: object,
    bridge: object,
) -> None:
    if not callable(log_density):
        raise ConfigError(f"sample(log_density=…) must be a function (n,d) → (n,); got {type(log_density).__name__}.")
    check_dim(dim, "sample(log_density, dim)")
    check_integer(n, "n", "sample", least=2)
    check_integer(polish, "polish", "sample", least=0)
    check_integer(bridge, "bridge", "sample", least=0)
    check_number(tolerance, "tolerance", "sample", low=0.0, high=math.inf, open_low=True)
    check_number(max_time, "max_time", "sample", low=0.0, high=1e9, open_low=True)
    check_whiten(whiten, dim)
