"""Minimising movements in the sliced Wasserstein distance: each step minimises d·SW₂²/(2τ) + F, by Adam."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import check_device, check_dtype, check_integer, check_number, check_theta0, later, plain_numbers
from ...distances import sliced_w2
from ...energies import Energy, refuse_ill_posed
from ...errors import ConfigError, NonFiniteError, SolverError, nearest
from ...maps.base import Block, PushForward
from ...measures import PushedMeasure, Reference
from ...state import Info, Rows, State
from .._arguments import check_law, check_map, refuse_jump, try_functions
from ..base import MapReplay, Row, fork, member_config, merge_counters, tensor_config
from ..particles import Cloud, ParticleReplay
from .descent import descend
from .evaluation import evaluate_law

_FOLDED = 0.01  # share of samples with det ∂_zT ≤ 0 above which an iterate is refused, where the energy needs a density


class SWJKO:
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
        replay: reads its rows: a `MapReplay`, or a `ParticleReplay` for particles.

    References:
        C. Bonet, N. Courty, F. Septier, L. Drumetz, Efficient Gradient Flows in Sliced-Wasserstein Space, 2022, arXiv
        2110.10972.
    """

    @plain_numbers
    def __init__(
        self, energy: Energy, map: PushForward | None, reference: Reference, *, tau: float, num_directions: int = 50,
        num_samples: int = 500, num_eval: int = 10_000, prox: str | None = "sliced", learning_rate: float = 0.02,
        max_iterations: int = 500, theta0: Tensor | None = None, dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        check_law(energy, reference, "SWJKO")
        refuse_ill_posed(energy)
        counts = {"num_directions": num_directions, "num_samples": num_samples, "num_eval": num_eval}
        for name, count in {**counts, "max_iterations": max_iterations}.items():
            check_integer(count, name, "SWJKO")
        check_number(tau, "tau", "SWJKO", low=0.0, high=math.inf, open_low=True)
        check_number(learning_rate, "learning_rate", "SWJKO", low=0.0, high=math.inf, open_low=True)
        if prox not in ("sliced", None):
            raise ConfigError(f"SWJKO(prox={prox!r}) must be 'sliced' or None.{nearest(str(prox), ['sliced'])}")
        check_dtype(dtype, "SWJKO")
        self.energy, self.map, self.reference, self.dtype = energy, map, reference, dtype
        self.device, self.tau, self.prox, self.learning_rate = (
            check_device(device, "SWJKO"),
            float(tau),
            prox,
            learning_rate,
        )
        self.num_directions, self.num_samples, self.num_eval = num_directions, num_samples, num_eval
        self.max_iterations, self.theta0, self._reads_density = max_iterations, None, _reads_density(energy)
        self.replay: MapReplay | ParticleReplay
        if map is None:
            _refuse_density(energy, theta0)
            self.replay = ParticleReplay(reference, dtype)
        else:
            check_map(map, reference, "SWJKO")
            self.theta0 = check_theta0(theta0, map.num_params, "SWJKO")
            self.replay = MapReplay(map, reference, dtype, self.device)

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """θ₀, or independent particles, at time t; evaluates the energy once, so that a wrong function is told at once.

        Raises:
            ConfigError, ShapeError, NonFiniteError: the energy, map and reference do not work together.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.map is None:
            theta = self.reference.sample(self.num_samples, generator).reshape(-1)
        else:
            theta = self.map.initial(seed) if self.theta0 is None else self.theta0
        theta = theta.to(self.dtype).to(self.device)
        rho = self._measure(theta, min(self.num_samples, 64), fork(generator.get_state(), "start"))
        try_functions(self.energy, rho)
        value = float(self.energy(rho))
        if self.map is not None and rho.asked_for_density:
            refuse_jump(self.reference, "SWJKO")
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the energy is {value} at the start, t = {t:.6g}. Causes: (a) its function is NaN or infinite at some "
                "samples: check it there, or take another reference; (b) the map is singular there, so the law has no "
                "density: another map, or theta0=None."
            )
        counters = {"num_steps": 0, "num_stages": 0, "num_unsettled": 0}
        return State(t, theta, torch.zeros_like(theta), self.tau, generator.get_state(), counters)

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One minimisation over a time of tau, or what is left until t1.

        Raises:
            SolverError: it diverged; the state before it is untouched.
        """
        generator = state.generator()
        last = self.tau >= (t1 - state.t) * (1 - 1e-9)
        h = t1 - state.t if last else self.tau

        def objective(theta: Tensor) -> Tensor:
            return self._objective(theta, state.theta, h, generator)

        try:
            found = descend(
                objective, state.theta, learning_rate=self.learning_rate, max_iterations=self.max_iterations
            )
        except SolverError as error:
            raise self._diverged(str(error), state) from error
        values = self._judged(found.theta, state, h, generator)
        t = t1 if last else later(state.t, h)
        counters = merge_counters(
            state.counters, num_steps=1, num_stages=found.num_iterations, num_unsettled=int(not found.settled)
        )
        theta_dot = (found.theta - state.theta) / h
        after = State(t, found.theta, theta_dot, self.tau, generator.get_state(), counters)
        return after, Info(state.t, t, h, found.num_iterations, 0, {**values, "objective": found.value})

    def _objective(self, theta: Tensor, old: Tensor, h: float, generator: torch.Generator) -> Tensor:
        """d·SW₂²/(2h) + F on fresh samples, the same for both laws, and fresh directions."""
        z, dim = self._draw(self.num_samples, generator), self.reference.dim
        rho = self._on(theta, z)
        value = self.energy(rho)
        if self.map is not None and self._reads_density and float((rho.det_sign <= 0).double().mean()) > _FOLDED:
            value = value + math.inf  # Adam takes the step back
        if self.prox is None:
            return value
        with torch.no_grad():
            before = self._on(old, z).x
        directions = frames(self.num_directions, dim, generator)
        return value + dim / (2 * h) * sliced_w2(rho.x, before, directions=directions)

    def _judged(self, theta: Tensor, before: State, h: float, generator: torch.Generator) -> dict[str, float]:
        """F at both ends on the same samples; SolverError where a step that must lower F has raised it by much."""
        z = self._draw(self.num_samples, generator)
        with torch.no_grad():
            old, new = (float(self.energy(self._on(each, z))) for each in (before.theta, theta))
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
        row.update(evaluate_law(self.energy, self._laws(state)))
        row.update({name: float(count) for name, count in state.counters.items()}, dt=state.dt)
        return row

    def _laws(self, state: State) -> list[PushedMeasure]:
        if self.map is None:
            return [self._on(state.theta, None)]
        generator, size = fork(state.rng, "measure"), max(self.num_samples, 100)
        starts = range(0, self.num_eval, size)
        return [self._measure(state.theta, min(size, self.num_eval - k), generator) for k in starts]

    def _measure(self, theta: Tensor, n: int, generator: torch.Generator) -> PushedMeasure:
        return self._on(theta, self._draw(n, generator))

    def _on(self, theta: Tensor, z: Tensor | None) -> PushedMeasure:
        """The law of θ on samples z (n,d) of λ; particles are what they are."""
        if self.map is None or z is None:
            return Cloud(theta.view(-1, self.reference.dim))  # type: ignore[return-value]
        return PushedMeasure(self.map, self.reference, theta, z)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor | None:
        if self.map is None:
            return None
        matched = getattr(self.reference, "matched_sample", None)
        return (matched or self.reference.sample)(n, generator).to(self.dtype).to(self.device)

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """Samples of ρ_t from samples z (n,d) of λ, (n,d); particles choose by z, as those of `EulerMaruyama`."""
        return self.replay.push(rows, t, z)

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,); ConfigError for particles."""
        return self.replay.log_density(rows, t, x)

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d); ConfigError for particles."""
        return self.replay.score(rows, t, x)

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples at this θ, or at the first 16 particles, (1 + 16d,) float64."""
        theta = state.theta[: 16 * self.reference.dim] if self.map is None else state.theta
        rho = self._measure(theta, 16, torch.Generator().manual_seed(0))
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def layout(self) -> list[Block]:
        """The map's parameter blocks, or the particles as one block."""
        if self.map is None:
            return [Block("particles", (self.num_samples, self.reference.dim), 0)]
        return self.map.layout()

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON; without "map" for particles."""
        map = {} if self.map is None else {"map": member_config(self.map), "theta0": tensor_config(self.theta0)}
        return {
            "name": "SWJKO", "energy": member_config(self.energy), **map, "reference": member_config(self.reference),
            "tau": self.tau, "num_directions": self.num_directions, "num_samples": self.num_samples,
            "num_eval": self.num_eval, "prox": self.prox, "learning_rate": self.learning_rate,
            "max_iterations": self.max_iterations, "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device,
        }  # fmt: skip


def _reads_density(energy: Energy) -> bool:
    try:
        return energy.particle_form()[1] != 0
    except ConfigError:  # no particles follow it, since they have no density
        return True


def _refuse_density(energy: Energy, theta0: object) -> None:
    if energy.particle_form()[1] != 0:
        raise ConfigError(
            "SWJKO(map=None) moves particles, which have no density; this energy has an entropy. Give a map, e.g. "
            "maps.ResidualMLP(dim), or use EulerMaruyama."
        )
    if theta0 is not None:
        raise ConfigError("SWJKO(theta0=…) belongs to a map; particles (map=None) start as samples of the reference.")


def frames(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Directions (count, dim) in orthonormal frames of dim, each uniform up to its sign: Σ⟨u, a⟩² is |a|² a frame."""
    gauss = torch.randn(-(-count // dim), dim, dim, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gauss).Q.mT.reshape(-1, dim)[:count]
