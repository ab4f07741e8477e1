"""A map fitted to samples, by maximum likelihood, or to a log density, by the reverse KL."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import as_tensor, check_integer, check_number, check_theta0, plain_numbers, private, seeded
from ..errors import ConfigError, NonFiniteError, ShapeError, SolverError
from ..maps.base import PushForward
from ..measures import PushedMeasure, Reference
from ..run.progress import Progress
from ..shown import fields_as_table
from .stored import File, keep

_CHECK_EVERY = 10  # iterations between two checks on the held-out samples
_HALVINGS = 6  # of the learning rate after failures, before giving up
_POLISH_CHECK_EVERY = 5  # L-BFGS iterations between two checks


class Fit(NamedTuple):
    """A fitted map.

    Args:
        theta: (p,) float64, the best seen on the held-out samples.
        held_out: the value there, in nats: −E log ρ_θ (samples), or E[log ρ_θ − log π] (log density).
        iterations: Adam's and L-BFGS's together.
        converged: whether it stopped for lack of improvement, and not at `max_iterations`.
    """

    theta: Tensor
    held_out: float
    iterations: int
    converged: bool

    def _repr_html_(self) -> str:
        return fields_as_table(self)


@plain_numbers
def fit(
    map: PushForward,
    reference: Reference,
    target: Tensor | np.ndarray | Callable[[Tensor], Tensor],
    *,
    theta0: Tensor | None = None,
    batch_size: int = 1000,
    learning_rate: float = 1e-2,
    max_iterations: int = 2000,
    polish: int = 100,
    patience: int = 10,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Fit:
    r"""θ for which ρ_θ = (T_θ)#λ is close to a target: maximum likelihood for samples, reverse KL for a log density.

    Samples x: min −E_x log ρ_θ(x), log ρ_θ(x) = log λ(z) − log|det ∂_zT(z)| at z = T⁻¹(x), by Newton's method, whose
    last step carries the gradient in θ. A log density: min E_z[log ρ_θ − log π] at T_θ(z). Adam on batches, then
    L-BFGS on all samples of the fit; both stop when the held-out samples improve no more, and the best θ is returned.
    An iteration that fails (not finite, no inverse) goes back to the best θ at half the learning rate.

    Cost: an iteration is one density and its gradient on a batch; with samples also the inverse of T.

    Args:
        map, reference: T and λ.
        target: samples (n,d) float, a tensor or an array, n ≥ 2, or a function log π, (n,d) → (n,), normalised or not.
        theta0: start (p,); None means `map.initial(seed)`. The fit is made where the samples lie, or else θ₀.
        batch_size: samples of an Adam iteration; L-BFGS on a log density takes ten times as many.
        learning_rate: of Adam, > 0.
        max_iterations: of Adam, ≥ 0.
        polish: L-BFGS iterations at most; 0 for none.
        patience: checks on the held-out samples (every 10 iterations) without improvement, before Adam stops.
        held_out: share of the samples, in [0, .9], used only to judge the fit; 0 judges by the samples of the fit. A
            fit to a log density is judged by `batch_size` further samples of λ in any case.
        seed: of θ₀, batches and split.
        progress: as in `solve`.
        out, resume, overwrite: as in `solve`. The fit is a run of one row there, with 1000 samples of ρ_θ, which
            `fitting.load` reads as such and `pwgf.load` as a run. One that was stopped is made anew by `resume`.

    Raises:
        ConfigError, ShapeError: arguments that cannot work.
        ResumeMismatchError: the file holds a fit to another target, or by other settings.
        SolverError: the iterations failed repeatedly; names the iteration, the learning rate, the best value.

    Example:
        >>> import torch, pwgf
        >>> from pwgf import fitting, maps
        >>> x = 3 + 2 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = fitting.fit(maps.Affine(1), pwgf.Gaussian(1), x, held_out=0.0, progress=False)
        >>> bool((found.theta[1] - x.mean()).abs() < 1e-4)
        True
    """
    target = as_tensor(target)
    settings: dict[str, Any] = {"batch_size": batch_size, "patience": patience}
    _check_settings(map, reference, learning_rate, max_iterations, polish, held_out, settings)
    generator = seeded(seed, "fit")
    theta = check_theta0(theta0, map.num_params, "fit")
    given = target if isinstance(target, Tensor) else theta
    theta = (map.initial(seed) if theta is None else theta).double().to("cpu" if given is None else given.device)
    if isinstance(target, Tensor):
        target = _checked_samples(target, map)
        objective: _Objective = _Likelihood(map, reference, target, batch_size, held_out, generator)
    elif callable(target):
        objective = _ReverseKL(map, reference, target, batch_size, generator)
    else:
        raise ConfigError(
            f"fit(target=…) must be samples (n, {map.dim}) or a function log π(x); got {type(target).__name__}."
        )

    def find() -> tuple[Tensor, dict[str, float]]:
        with contextlib.closing(Progress(0, max_iterations + polish, progress)) as bar:
            best = _Best(objective, theta, learning_rate, bar)
            done = _adam(best, generator, max_iterations, patience)
            done = _polish(best, polish) if polish else done
        return best.theta.cpu(), {"held_out": best.value, "iterations": best.iterations, "converged": done}

    settings |= {"learning_rate": learning_rate, "max_iterations": max_iterations, "polish": polish}
    settings |= {"held_out_share": held_out, "theta0": theta0}
    file = File(out, resume, overwrite)
    return fit_of(*keep(file, map, reference, target, settings, seed, find))


def fit_of(theta: Tensor, figures: Mapping[str, float]) -> Fit:
    """From θ and the figures of `stored`."""
    return Fit(theta, figures["held_out"], int(figures["iterations"]), bool(figures["converged"]))


class _Objective(Protocol):
    """The function to be minimised."""

    def value(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        """Differentiable in θ; on a batch drawn from the generator, or on all samples of the fit."""
        ...

    def judge(self, theta: Tensor) -> float:
        """On the held-out samples."""
        ...


class _Likelihood:
    def __init__(
        self, map: PushForward, reference: Reference, x: Tensor, batch: int, share: float, generator: torch.Generator
    ) -> None:
        self.map = map
        self.reference = reference
        self.batch = batch
        order = torch.randperm(len(x), generator=generator).to(x.device)
        count = min(math.ceil(share * len(x)), len(x) - 1)
        self.judging = x[order[:count]] if count else x
        self.x = x[order[count:]]

    def _of(self, theta: Tensor, x: Tensor) -> Tensor:
        """−E log ρ_θ(x). z = z* − (∂_zT)⁻¹(T_θ(z*) − x) is z* itself, with the derivative of the inverse in θ."""
        z = self.map.inverse(theta.detach(), x)
        if theta.requires_grad:
            slope = self.map.jacobian(theta.detach(), z).detach()
            z = z - torch.linalg.solve(slope, (self.map(theta, z) - x).unsqueeze(2)).squeeze(2)
        return -(self.reference.log_density(private(z)) - self.map.log_abs_det(theta, z)).mean()

    def value(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or len(self.x) <= self.batch:
            return self._of(theta, self.x)
        batch = torch.randperm(len(self.x), generator=generator)[: self.batch]
        return self._of(theta, self.x[batch.to(self.x.device)])

    def judge(self, theta: Tensor) -> float:
        return float(self._of(theta, self.judging))


class _ReverseKL:
    def __init__(
        self, map: PushForward, reference: Reference, log_target: Callable, batch: int, generator: torch.Generator
    ) -> None:
        self.map = map
        self.reference = reference
        self.log_target = log_target
        self.batch = batch
        even = reference.matched_sample  # so that a Gaussian is found exactly
        self.judging = even(batch, generator)
        self.all = even(10 * batch, generator)

    def _of(self, theta: Tensor, z: Tensor) -> Tensor:
        rho = PushedMeasure(self.map, self.reference, theta, z.to(theta.device))
        target = self.log_target(rho.x)
        if not isinstance(target, Tensor) or target.shape != (len(z),):
            got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise ShapeError(
                f"fit(target=…): log π(x) must return a tensor of shape ({len(z)},) for x of shape {tuple(z.shape)}; "
                f"got {got}. Sum over coordinates: ….sum(-1)."
            )
        if theta.requires_grad and not target.requires_grad:
            raise ConfigError("fit(target=…): log π(x) has no gradient in x. Use torch operations throughout.")
        return (rho.log_density - target).mean()

    def value(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._of(theta, self.all if generator is None else self.reference.sample(self.batch, generator))

    def judge(self, theta: Tensor) -> float:
        return float(self._of(theta, self.judging))


class _Best:
    """The best θ on the held-out samples so far, the count of iterations, and the response to a failed one."""

    def __init__(self, objective: _Objective, theta: Tensor, learning_rate: float, bar: Progress) -> None:
        self.objective = objective
        self.learning_rate = learning_rate
        self.bar = bar
        self.theta = theta.clone()
        self.value = math.inf
        self.iterations = 0
        self.failures = 0
        start = self.objective.judge(theta)
        if not math.isfinite(start):
            raise NonFiniteError(
                f"fit: the value at the start is {start}. Causes: (a) log π or log λ is infinite or NaN at some "
                "samples: another reference, or a log π that is finite there; (b) theta0 makes the map singular: "
                "start at map.initial()."
            )
        self.value = start

    def gradient(self, theta: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Value and gradient (p,) at θ; SolverError where they are not finite."""
        leaf = theta.detach().requires_grad_(True)
        value = self.objective.value(leaf, generator)
        (slope,) = torch.autograd.grad(value, leaf)
        if not bool(torch.isfinite(value) & torch.isfinite(slope).all()):
            raise SolverError(f"value {float(value):.4g} or its gradient is not finite")
        return value.detach(), slope

    def look(self, theta: Tensor) -> bool:
        """Keeps θ if it is better on the held-out samples; whether it is better by more than 1e-6."""
        value = self.objective.judge(theta.detach())
        if not math.isfinite(value):
            raise SolverError(f"the held-out value is {value}")
        self.bar.update(self.iterations, value=value)
        clearly = value < self.value - 1e-6 * max(1.0, abs(self.value))
        if value < self.value:
            self.theta = theta.detach().clone()
            self.value = value
        return clearly

    def failed(self, error: Exception) -> None:
        """Halves the learning rate; SolverError after too many failures."""
        self.failures += 1
        self.learning_rate /= 2
        if self.failures > _HALVINGS:
            raise SolverError(
                f"fit stopped at iteration {self.iterations}, learning rate {self.learning_rate:.2g}: {error}. The "
                f"best held-out value was {self.value:.6g}. Causes: (a) the map folds or has no inverse at some "
                "samples: a map that cannot fold (maps.ConvexRidge), or a start closer to the target (theta0, or an "
                "Affine fit first); (b) the steps are too long: smaller learning_rate."
            ) from error


def _adam(best: _Best, generator: torch.Generator, max_iterations: int, patience: int) -> bool:
    """Whether it stopped for lack of improvement; leaves the best θ in `best`."""
    waited, theta, optimiser = 0, best.theta.clone(), None
    for k in range(1, max_iterations + 1):
        if optimiser is None:
            optimiser = torch.optim.Adam([theta], lr=best.learning_rate)
        best.iterations += 1
        try:
            _, theta.grad = best.gradient(theta, generator)
            optimiser.step()
            if k % _CHECK_EVERY == 0:
                waited = 0 if best.look(theta) else waited + 1
        except (SolverError, NonFiniteError) as error:
            best.failed(error)
            theta, optimiser = best.theta.clone(), None
        if waited >= patience:
            return True
    return False


def _polish(best: _Best, iterations: int) -> bool:
    """L-BFGS on all samples of the fit, from the best θ; whether it stopped for lack of improvement."""
    theta = best.theta.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=_POLISH_CHECK_EVERY, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
        tolerance_change=0.0,
    )  # fmt: skip

    def closure() -> Tensor:
        try:
            value, theta.grad = best.gradient(theta, None)
        except (SolverError, NonFiniteError):  # the line search shortens its step
            theta.grad = torch.zeros_like(theta)
            return torch.full((), 1e10, dtype=theta.dtype, device=theta.device)
        return value

    for _ in range(0, iterations, _POLISH_CHECK_EVERY):
        optimiser.step(closure)
        best.iterations += _POLISH_CHECK_EVERY
        before = best.value
        try:
            best.look(theta)
        except (SolverError, NonFiniteError):
            return False
        if not best.value < before - 1e-12 * max(1.0, abs(before)):
            return True
    return False


def _check_settings(
    map: PushForward, reference: Reference, learning_rate: float, max_iterations: int, polish: int, held_out: float,
    counts: dict[str, int],
) -> None:  # fmt: skip
    for name, value in counts.items():
        check_integer(value, name, "fit")
    check_integer(max_iterations, "max_iterations", "fit", least=0)
    check_integer(polish, "polish", "fit", least=0)
    check_number(learning_rate, "learning_rate", "fit", low=0.0, high=math.inf, open_low=True)
    check_number(held_out, "held_out", "fit", low=0.0, high=0.9)
    if not isinstance(map, PushForward):
        raise ConfigError(f"fit(map=…) must be a map from pwgf.maps; got {type(map).__name__}.")
    if not isinstance(reference, Reference) or map.dim != reference.dim:
        got = f"dimension {reference.dim}" if isinstance(reference, Reference) else type(reference).__name__
        raise ConfigError(f"fit(reference=…) must be a reference measure of the map's dimension {map.dim}; got {got}.")


def _checked_samples(x: Tensor, map: PushForward) -> Tensor:
    if x.ndim != 2 or x.shape[1] != map.dim or len(x) < 2:
        raise ShapeError(
            f"fit(target=…): samples must have shape (n, {map.dim}) with n ≥ 2; got {tuple(x.shape)}. A row per sample."
        )
    x = x.detach().double()
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(1)).sum())
        raise ConfigError(f"fit(target=…): {bad} of {len(x)} samples are NaN or infinite. Leave them out.")
    return x
