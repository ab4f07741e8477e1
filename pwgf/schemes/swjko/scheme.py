"""Minimising movements in the sliced Wasserstein distance: each step minimises d·SW₂²/(2τ) + F, by Adam."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...checks import check_device, check_dtype, check_integer, check_number, plain_numbers, seeded
from ...distances import sliced_w2
from ...energies import Energy, refuse_ill_posed
from ...errors import ConfigError, NonFiniteError, SolverError, nearest
from ...maps import ResidualMLP
from ...maps.base import Block, PushForward
from ...measures import PushedMeasure, Reference, Sampled
from ...state import Info, Rows, State
from .._arguments import check_law, check_lengths, even_step, refuse_driven, refuse_jump, refuse_kinks, try_functions
from ..base import Answers, Description, Row, fork, member_config, merge_counters
from .carriers import MapCarrier, ParticleCarrier
from .descent import descend
from .evaluation import evaluate_law

_FOLDED = 0.01  # share of samples with det ∂_zT ≤ 0 above which an iterate is refused, where the energy needs a density


class SWJKO(Answers):
    r"""Sliced-Wasserstein minimising movements of an energy, by a push-forward map or by particles.

    ρ_{k+1} = argmin_ρ d·SW₂²(ρ, ρ_k)/(2τ) + F(ρ), where SW₂² is the mean of W₂² over directions. The factor d makes τ
    a step of physical time: under a quadratic potential the mean moves by exactly implicit Euler with step τ. Both laws
    are seen at the same fresh samples of λ, the old one without gradient, and at fresh directions, drawn as orthonormal
    frames, at every iteration of an inner Adam, which starts from ρ_k, takes back steps that fold the map, and stops
    where the objective no longer falls (`schemes.descent`).

    What it is not: the flow of F in W₂, however small τ. Both share the minimiser of F and, for a quadratic potential,
    the path of the mean; the shape moves along another path: seen from an isotropic Gaussian, changes of size run at
    the right pace and changes of shape (d+2)/2 times too fast, since d·SW₂² is 2/(d+2) of W₂² for these. And each step
    is of first order in τ. `PWGF` follows the trajectory.

    A step never passes the next stored time; where that is no multiple of τ, the last step before it is shortened. θ̇ of
    a row is the difference quotient of the step before (zero in the first row), so that rows further apart than a few
    steps are interpolated to first order.

    Cost: an iteration takes num_directions sorts of num_samples numbers, twice, and one gradient of F.

    Args:
        energy: F.
        map: T, e.g. `maps.ResidualMLP(dim)`; None moves `num_samples` particles, for energies without density.
        reference: λ.
        tau: τ, step in units of t.
        num_directions: directions of an iteration.
        num_samples: samples of λ in an iteration, or number of particles.
        num_eval: fresh samples on which each row's energy and fold fraction are measured; particles are their own.
        prox: "sliced"; None leaves the first term out: each step then descends F alone from where it is, at most
            `max_iterations` far, and t only counts steps. A baseline without a time.
        learning_rate: first step of Adam, in units of θ (of x, for particles).
        max_iterations: most iterations of a step.
        theta0: θ at the start, (p,); None means `map.initial(seed)`.
        dtype: torch.float64 or torch.float32.
        device: where θ lives.

    Raises:
        ConfigError, ShapeError: an argument out of range, or particles under an energy that needs a density.

    Example:
        >>> import pwgf
        >>> from pwgf import energies, maps
        >>> energy = energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()
        >>> scheme = pwgf.SWJKO(energy, maps.Affine(1), pwgf.Gaussian(1, mean=1), tau=0.5, num_samples=200)
        >>> run = pwgf.solve(scheme, times=[0.0, 1.0], progress=False)
        >>> round(float(run.sample(t=1.0, n=10_000).mean()), 1)  # implicit Euler: 1/1.5²
        0.4

    Attributes:
        carrier: what θ is, a `MapCarrier` or a `ParticleCarrier`, which also reads the rows.

    References:
        C. Bonet, N. Courty, F. Septier, L. Drumetz, Efficient Gradient Flows in Sliced-Wasserstein Space, 2022, arXiv
        2110.10972.
    """

    ROWS: ClassVar[str] = "map"  # or particles, as `described` finds

    @plain_numbers
    def __init__(
        self, energy: Energy, map: PushForward | None, reference: Reference, *, tau: float, num_directions: int = 50,
        num_samples: int = 500, num_eval: int = 10_000, prox: str | None = "sliced", learning_rate: float = 0.02,
        max_iterations: int = 500, theta0: Tensor | None = None, dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        check_law(energy, reference, "SWJKO")
        refuse_ill_posed(energy)
        refuse_driven(energy, "SWJKO")
        counts = {"num_directions": num_directions, "num_samples": num_samples, "num_eval": num_eval}
        for name, count in {**counts, "max_iterations": max_iterations}.items():
            check_integer(count, name, "SWJKO")
        check_number(tau, "tau", "SWJKO", low=0.0, high=math.inf, open_low=True)
        check_number(learning_rate, "learning_rate", "SWJKO", low=0.0, high=math.inf, open_low=True)
        if prox not in ("sliced", None):
            raise ConfigError(f"SWJKO(prox={prox!r}) must be 'sliced' or None.{nearest(str(prox), ['sliced'])}")
        check_dtype(dtype, "SWJKO")
        self.energy, self.map, self.reference, self.dtype = energy, map, reference, dtype
        self.device = check_device(device, "SWJKO")
        self.tau, self.prox, self.learning_rate, self.max_iterations = float(tau), prox, learning_rate, max_iterations
        self.num_directions, self.num_samples, self.num_eval = num_directions, num_samples, num_eval
        self._reads_density = _reads_density(energy)
        self.carrier: MapCarrier | ParticleCarrier
        if map is None:
            self.carrier = ParticleCarrier(energy, reference, num_samples, theta0, dtype)
        else:
            self.carrier = MapCarrier(map, reference, theta0, dtype, self.device)

    @classmethod
    def suited(
        cls, energy: Energy, reference: Reference, times: np.ndarray, *, dt: float | None = None, **settings: Any
    ) -> SWJKO:
        """One with a residual map and even steps of at most a twentieth of the span of `times`, unless told otherwise.

        Of a map Adam is slower than by default, at whose rate it folds the map now and then.
        """
        tau = even_step(times) if dt is None else dt
        map = settings.pop("map") if "map" in settings else ResidualMLP(reference.dim)
        slow = {} if map is None else {"learning_rate": 0.005, "max_iterations": 1500}
        return cls(energy, map, reference, tau=tau, **{**slow, **settings})

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """θ₀, or independent particles, at time t; tries the energy, so that a wrong function is reported at once.

        Raises:
            ConfigError, ShapeError, NonFiniteError: the energy, map and reference do not work together.
        """
        generator = seeded(seed, "SWJKO.start")
        theta = self.carrier.start(seed, generator).to(self.dtype).to(self.device)
        few = self.carrier.draw(min(self.num_samples, 64), fork(generator.get_state(), "start"))
        rho = self.carrier.law(theta, few)
        try_functions(self.energy, rho)
        value = float(self.energy(rho))
        if isinstance(rho, PushedMeasure) and rho.asked_for_density:
            refuse_jump(self.reference, "SWJKO", self.map)
            refuse_kinks(rho.map, rho.theta.detach(), rho.z, "SWJKO")
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the energy is {value} at the start, t = {t:.6g}. Causes: (a) its function is NaN or infinite at some "
                "samples: check it there, or take another reference; (b) the map is singular there, so the law has no "
                "density: another map, or theta0=None."
            )
        counters = {"num_steps": 0, "num_stages": 0, "num_unsettled": 0}
        return State(t, theta, torch.zeros_like(theta), self.tau, generator.get_state(), counters)

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError where tau is lost in rounding beside the span of the times."""
        check_lengths(self.tau, "tau", times, "SWJKO")

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One minimisation over a time of tau, or what is left until t1.

        Raises:
            SolverError: it diverged; the state before it is untouched.
        """
        generator = state.generator()
        left = state.left(t1)
        last = self.tau >= left * (1 - 1e-9)
        h = left if last else self.tau

        def objective(theta: Tensor) -> Tensor:
            return self._objective(theta, state.theta, h, generator)

        try:
            found = descend(
                objective, state.theta, learning_rate=self.learning_rate, max_iterations=self.max_iterations
            )
        except SolverError as error:
            raise self._diverged(str(error), state) from error
        values = self._judged(found.theta, state, h, generator)
        t, rest = (t1, 0.0) if last else state.later(h, t1)
        counters = merge_counters(
            state.counters, num_steps=1, num_stages=found.num_iterations, num_unsettled=int(not found.settled)
        )
        theta_dot = (found.theta - state.theta) / h
        after = State(t, found.theta, theta_dot, self.tau, generator.get_state(), counters, rest=rest)
        return after, Info(state.t, t, h, found.num_iterations, 0, {**values, "objective": found.value})

    def _objective(self, theta: Tensor, old: Tensor, h: float, generator: torch.Generator) -> Tensor:
        """d·SW₂²/(2h) + F on fresh samples, the same for both laws, and fresh directions."""
        z, dim = self.carrier.draw(self.num_samples, generator), self.reference.dim
        rho = self.carrier.law(theta, z)
        value = self.energy(rho)
        if self._reads_density and _folded(rho) > _FOLDED:
            value = value + math.inf  # Adam takes the step back
        if self.prox is None:
            return value
        with torch.no_grad():
            before = self.carrier.law(old, z).x
        directions = frames(self.num_directions, dim, generator)
        return value + dim / (2 * h) * sliced_w2(rho.x, before, directions=directions)

    def _judged(self, theta: Tensor, before: State, h: float, generator: torch.Generator) -> dict[str, float]:
        """F at both ends on the same samples; SolverError where a step that must lower F has raised it by much."""
        z = self.carrier.draw(self.num_samples, generator)
        with torch.no_grad():
            old, new = (float(self.energy(self.carrier.law(each, z))) for each in (before.theta, theta))
        if not new - old <= 0.1 * (1 + abs(old)):
            raise self._diverged(
                f"the energy rose from {old:.4g} to {new:.4g} within {self.max_iterations} inner iterations or fewer "
                f"at learning rate {self.learning_rate:.3g}",
                before,
            )
        return {"energy": new, "energy_before": old, "step": h}

    def _diverged(self, what: str, state: State) -> SolverError:
        return SolverError(
            f"the inner optimisation diverged in the step from t = {state.t:.6g}: {what}. The last good step is number "
            f"{state.counters['num_steps']}, at t = {state.t:.6g}; nothing of this one is kept. Causes: (a) Adam's "
            "steps are too long: smaller learning_rate; (b) the energy is not finite where the samples went: check it; "
            "(c) the map folded, so that its density is lost: smaller learning_rate or tau, or a map that cannot fold."
        )

    def measure(self, state: State) -> Row:
        """θ, θ̇ and, on `num_eval` fresh samples (or the particles), energy by term, its velocity, folds."""
        row: Row = {"theta": state.theta, "theta_dot": state.theta_dot}
        generator, size = fork(state.rng, "measure"), max(self.num_samples, 100)
        laws = self.carrier.laws(state.theta, self.num_eval, size, generator)
        row.update(evaluate_law(self.energy, laws))
        row.update({name: float(count) for name, count in state.counters.items()}, dt=state.dt)
        return row

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """Samples of ρ_t from samples z (n,d) of λ, (n,d); particles choose by z, as those of `EulerMaruyama`."""
        return self.carrier.push(rows, t, z)

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,); ConfigError for particles."""
        return self.carrier.log_density(rows, t, x)

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d); ConfigError for particles."""
        return self.carrier.score(rows, t, x)

    def interpolation_error(self, rows: Rows, k: int) -> float | None:
        """That of the map between rows k and k + 1; None for particles."""
        return self.carrier.interpolation_error(rows, k)

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples at this θ, or at the first 16 particles, (1 + 16d,) float64."""
        rho = self.carrier.few(state.theta)
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def layout(self) -> list[Block]:
        """The map's parameter blocks, or the particles as one block."""
        return self.carrier.layout()

    @classmethod
    def described(cls, config: Mapping[str, Any]) -> Description:
        """What figures and summaries say of a run, from `to_config()`."""
        with_map = "map" in config
        found = (MapCarrier if with_map else ParticleCarrier).described(config)
        settings = (*found.settings, *([f"{config['num_samples']} samples an iteration"] if with_map else []))
        unit, why = "inner iterations", "each step minimises"
        return dataclasses.replace(found, settings=settings, work_unit=unit, no_projection=why)

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON; without "map" for particles."""
        return {
            "name": "SWJKO", "energy": member_config(self.energy), **self.carrier.to_config(),
            "reference": member_config(self.reference),
            "tau": self.tau, "num_directions": self.num_directions, "num_samples": self.num_samples,
            "num_eval": self.num_eval, "prox": self.prox, "learning_rate": self.learning_rate,
            "max_iterations": self.max_iterations, "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device,
        }  # fmt: skip


def _folded(rho: Sampled) -> float:
    """Share of the samples with det ∂_zT ≤ 0; 0 for particles."""
    return float((rho.det_sign <= 0).double().mean()) if isinstance(rho, PushedMeasure) else 0.0


def _reads_density(energy: Energy) -> bool:
    try:
        return energy.particle_form()[1] != 0
    except ConfigError:  # no particles follow it, since they have no density
        return True


def frames(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Directions (count, dim) in orthonormal frames of dim, each uniform up to its sign: Σ⟨u, a⟩² is |a|² a frame."""
    gauss = torch.randn(-(-count // dim), dim, dim, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gauss).Q.mT.reshape(-1, dim)[:count]
