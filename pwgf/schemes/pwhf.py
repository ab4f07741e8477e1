"""The parameterised Wasserstein Hamiltonian flow: T̈ = −∇δF/δρ∘T − γṪ on the tangent, by Störmer–Verlet steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import (
    check_device,
    check_dtype,
    check_each_sample,
    check_integer,
    check_number,
    check_theta0,
    plain_numbers,
    seeded,
)
from ..energies import Diffusion, Energy, refuse_ill_posed
from ..energies.base import check_callable, evaluate, qualified_name
from ..errors import ConfigError, NonFiniteError, SolverError
from ..linalg import Auto
from ..maps import ResidualMLP
from ..maps.base import PushForward
from ..measures import PushedMeasure, Reference
from ..state import Info, State
from ..tangent import Tangent
from ._arguments import (
    check_law,
    check_lengths,
    check_map,
    in_standard_coordinates,
    refuse_jump,
    refuse_kinks,
    try_functions,
)
from ._guards import finite_velocity, refuse_folded
from ._mixing import Mixing
from ._newton import FreePaths, PWHFWatch, spread_of
from .base import (
    Description,
    MapReplay,
    Row,
    fork,
    member_config,
    merge_counters,
    shown_settings,
    standard_error,
    tensor_config,
)

_STEPS = 200  # of a run at default settings
_TOGETHER = 16  # Verlet steps in one step of the scheme: the end of each is the start of the next, computed once
_MOST_ITERATIONS = 50  # of the equations of a step, which contract by about |∂J·h·η|/|J| each
_BEND = 1e-5  # change of θ over which the slope of J along η is taken, relative to 1 + |θ|
_BLOCK = 1000  # evaluation samples at once


@dataclass(frozen=True)
class _Place:
    """A point θ of the path on the samples: J, what the solver made of it, x, and v = −∇δF/δρ."""

    theta: Tensor
    tangent: Tangent
    prepared: Any
    x: Tensor
    v: Tensor


class PWHF(MapReplay):
    r"""Parameterised Wasserstein Hamiltonian flow of an energy by a push-forward map, with friction if wanted.

    ρ_t = (T_θ)#λ, where the samples follow Newton's law as closely as the map can, T̈ = v∘T − γṪ with the velocity
    v = −∇δF/δρ as the force: with η = θ̇ and J = ∂_θT,

        η̇ = argmin_ζ E|Jζ − (v − γJη − ∂_θ(Jη)η)|².

    For F = ∫V dρ every sample moves in the potential V; with τ·Entropy it is an isothermal gas, with FisherInformation
    Schrödinger's equation. Each step of length h is Störmer and Verlet's for the samples, projected on the tangent:
    x(θ₁) = T_θ₁(z) with J₀ᵀ[x(θ₁) − x(θ₀) − hJ₀η₀ − ½h²v₀] = 0, then J₁ᵀ[J₁η₁ − (x(θ₁) − x(θ₀))/h − ½hv₁] = 0, between
    two half steps of exp(−½γh) for η. It is of second order, has no derivative of J, and is reversible at γ = 0: the
    energy F + ½E|Jη|² does not drift. For this the samples z are those of the start during the whole run.

    Cost of a Verlet step: a tangent with its solves, and T at the samples for each of a few iterations.

    Args:
        energy: F, e.g. `energies.Potential(V)`.
        map: T, e.g. `maps.ResidualMLP(dim)`; see `PWGF`.
        reference: λ, the law at the start.
        dt: longest step, in units of t; those between two stored times are equal. Without friction, it has to resolve
            the fastest oscillation: the phase of one of frequency ω is off by (ωdt)²/24 of itself.
        friction: γ ≥ 0, in units of 1/t.
        velocity0: velocity of the samples at the start, x (n,d) → (n,d); None: at rest. Fitted by least squares.
        num_samples: n, samples of λ that carry the run.
        num_eval: fresh samples on which the figures of a row are measured.
        damping: a mass of the parameters themselves, relative to the metric's trace.
        theta0: θ at the start, (p,); None means `map.initial(seed)`, the identity.
        dtype, device: of θ and all computation.

    Raises:
        ConfigError, ShapeError: an argument that cannot work; the message says which and what would.

    Example:
        >>> import math, pwgf
        >>> from pwgf import energies, maps
        >>> spring = energies.Potential(lambda x: x.square().sum(-1) / 2)
        >>> scheme = pwgf.PWHF(spring, maps.Affine(1), pwgf.Gaussian(1, mean=1.0), dt=0.05, num_samples=100)
        >>> run = pwgf.solve(scheme, times=[0.0, math.pi], progress=False)
        >>> round(float(run.at(math.pi).mean()), 2)  # T = cos(t)·T₀
        -1.0

    References:
        Wu, Liu, Ye, Zhou, Parameterized Wasserstein Hamiltonian flow, 2023, arXiv 2306.00191.
        Marsden, West, Discrete mechanics and variational integrators, 2001.
    """

    flow: ClassVar[str] = "Hamiltonian"

    @plain_numbers
    def __init__(
        self,
        energy: Energy,
        map: PushForward,
        reference: Reference,
        *,
        dt: float,
        friction: float = 0.0,
        velocity0: Callable[[Tensor], Tensor] | None = None,
        num_samples: int = 1000,
        num_eval: int = 10_000,
        damping: float = 1e-7,
        theta0: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        check_law(energy, reference, "PWHF")
        refuse_ill_posed(energy)
        if any(isinstance(part, Diffusion) for _, _, part in energy.terms()):
            raise ConfigError(
                "PWHF(energy=…) has a Diffusion, which is noise of positions; Newton's law has forces. The pressure of "
                "an isothermal gas is τ·energies.Entropy(); friction is an argument, and noise of velocities belongs "
                "to PWGF with energies.Drift and Diffusion in phase space, as in problems.KineticTrap."
            )
        check_map(map, reference, "PWHF")
        check_number(dt, "dt", "PWHF", low=0.0, high=math.inf, open_low=True)
        check_number(friction, "friction", "PWHF", low=0.0, high=math.inf)
        check_number(damping, "damping", "PWHF", low=0.0, high=math.inf)
        check_integer(num_samples, "num_samples", "PWHF")
        check_integer(num_eval, "num_eval", "PWHF")
        check_dtype(dtype, "PWHF")
        if velocity0 is not None:
            check_callable(velocity0, "PWHF(velocity0=…)")
        if theta0 is None:
            map = in_standard_coordinates(map, reference)
        super().__init__(map, reference, dtype, check_device(device, "PWHF"))
        self.energy, self.theta0 = energy, check_theta0(theta0, map.num_params, "PWHF")
        self.dt, self.friction, self.velocity0 = float(dt), float(friction), velocity0
        self.num_samples, self.num_eval, self.damping = num_samples, num_eval, float(damping)
        self._solver = Auto(1e-6)  # a step is reversible as far as its equations are solved

    @classmethod
    def suited(
        cls, energy: Energy, reference: Reference, times: np.ndarray, *, dt: float | None = None, **settings: Any
    ) -> PWHF:
        """One with `maps.ResidualMLP(dim)` and 200 steps over the span of `times`, unless settings say otherwise."""
        step = float(times[-1] - times[0]) / _STEPS if dt is None else dt
        return cls(energy, reference=reference, dt=step, **{"map": ResidualMLP(reference.dim), **settings})

    def altered_by(self) -> str:
        """A velocity at the start."""
        return "" if self.velocity0 is None else "velocity0"

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError where dt is lost in rounding beside the span of the times."""
        check_lengths(self.dt, "dt", times, "PWHF")

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """θ₀ and the fitted η₀ at time t; checks the energy and `velocity0` on the run's samples.

        Raises:
            ConfigError, ShapeError, NonFiniteError: energy, map, reference and velocity0 do not work together.
        """
        theta = self.map.initial(seed) if self.theta0 is None else self.theta0
        theta = theta.to(self.dtype).to(self.device)
        rng = seeded(seed, "PWHF.start").get_state()
        z = self._samples(rng)
        few = self._pushed(theta, z[:64], t)
        try_functions(self.energy, few)
        finite_velocity(self.energy, few)
        if few.asked_for_density:
            refuse_jump(self.reference, "PWHF", self.map)
            refuse_kinks(self.map, theta, few.z, "PWHF")
            if self.theta0 is None:
                refuse_folded(few, "PWHF")
        eta = torch.zeros_like(theta)
        if self.velocity0 is not None:
            place = self._place(theta, z, t)
            eta = self._solved(place, self._first_velocity(place.x), torch.zeros_like(theta))
        counters = {"num_steps": 0, "num_stages": 0, "num_iterations": 0}
        state = State(t, theta, eta, self.dt, rng, counters)
        return state if few.asked_for_density else self._paths(state).added_to(state)

    def _paths(self, state: State) -> FreePaths:
        """Free paths of fresh samples, at their start."""
        x = self._path_ends(state.theta, state.rng)
        velocity = torch.zeros_like(x) if self.velocity0 is None else self._first_velocity(x)
        return FreePaths(self.energy, x, velocity, state.t)

    @property
    def _num_paths(self) -> int:
        return self.num_samples if self.energy.pairwise else self.num_eval

    def _path_ends(self, theta: Tensor, rng: Tensor) -> Tensor:
        """x = T(z) of the fresh samples whose paths a state carries, (m,d)."""
        z = self._drawn(self.reference.matched_sample(self._num_paths, fork(rng, "paths")))
        with torch.no_grad():
            return torch.cat([self.map(theta, part) for part in z.split(_BLOCK)])

    def _first_velocity(self, x: Tensor) -> Tensor:
        call, f = "PWHF: velocity0(x)", self.velocity0
        velocity = evaluate(f, call, x.shape, x, x).detach()  # type: ignore[arg-type]
        check_each_sample(lambda x: evaluate(f, call, x.shape, x, x), [x[:64]], call)  # type: ignore[arg-type]
        if not bool(torch.isfinite(velocity).all()):
            bad = int((~torch.isfinite(velocity).all(1)).sum())
            raise NonFiniteError(f"{call} is NaN or infinite at {bad} of {len(x)} samples; it must be finite there.")
        return velocity

    def _samples(self, rng: Tensor) -> Tensor:
        """The run's samples z (n,d), the same at every step."""
        return self._drawn(self.reference.matched_sample(self.num_samples, fork(rng, "samples")))

    def _drawn(self, z: Tensor) -> Tensor:
        return z.to(self.dtype).to(self.device)

    def _pushed(self, theta: Tensor, z: Tensor, t: float) -> PushedMeasure:
        return PushedMeasure(self.map, self.reference, theta, z, t=t)

    def _place(self, theta: Tensor, z: Tensor, t: float) -> _Place:
        rho, tangent = self._pushed(theta, z, t), Tangent(self.map, theta, z)
        v = finite_velocity(self.energy, rho)
        return _Place(theta, tangent, self._solver.prepare(tangent, self.damping), rho.x.detach(), v)

    def _solved(self, place: _Place, velocity: Tensor, prior: Tensor) -> Tensor:
        """argmin_η |Jη − velocity|²/n + damping about the prior, (p,)."""
        solution = self._solver.solve(place.prepared, velocity, prior)
        if not solution.converged:
            raise SolverError(
                f"PWHF: the linear solve stopped at relative residual {solution.residual:.1e} after "
                f"{solution.num_products} products. Cure: a larger damping, or a map with fewer parameters."
            )
        return solution.x

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """Up to 16 Verlet steps on the way to t1, where all that is left is divided into equal ones.

        Raises:
            SolverError, NonFiniteError: the equations of the step have no solution that is found; dt is too long.
        """
        left = state.left(t1)
        count = max(1, math.ceil(left / self.dt * (1 - 1e-9)))
        h, together = left / count, min(count, _TOGETHER)
        slowed, eta, iterations = math.exp(-0.5 * self.friction * h), state.theta_dot, 0
        t, rest = state.t, state.rest
        place = self._place(state.theta, self._samples(state.rng), t)
        paths = FreePaths.of(self.energy, state, self._num_paths)
        for k in range(together):
            before = place
            theta, needed = self._moved(before, slowed * eta, h, t)
            t, rest = (t1, 0.0) if k + 1 == count else state.later((k + 1) * h, t1)
            place = self._place(theta, before.tangent.z, t)
            if paths is not None:
                paths.move(h, slowed, t)
            velocity = (place.x - before.x) / h + 0.5 * h * place.v
            eta = slowed * self._solved(place, velocity, (theta - before.theta) / h)
            iterations += needed
        counters = merge_counters(state.counters, num_steps=1, num_stages=together, num_iterations=iterations)
        after = State(t, place.theta, eta, self.dt, state.rng, counters, {}, rest)
        after = after if paths is None else paths.added_to(after)
        return after, Info(state.t, t, h, together, 0, {"num_iterations": float(iterations)})

    def _moved(self, place: _Place, eta: Tensor, h: float, t: float) -> tuple[Tensor, int]:
        """θ₁ with J₀ᵀ[x(θ₁) − x(θ₀) − hJ₀η − ½h²v₀] + damping·(θ₁ − θ₀ − hη) = 0, and the iterations."""
        wanted = h * place.tangent.jv(eta) + 0.5 * h**2 * place.v
        way, last, mixing = h * eta, math.inf, Mixing()
        scale = float(place.x.square().mean().sqrt() + wanted.square().mean().sqrt())
        accuracy = 500 * torch.finfo(self.dtype).eps * max(scale, 1e-300)
        for iteration in range(1, _MOST_ITERATIONS + 1):
            with torch.no_grad():
                missed = wanted - (self.map(place.theta + way, place.tangent.z) - place.x)
            change = self._solved(place, missed, h * eta - way)
            moved = place.tangent.jv(change)
            size = float(moved.square().mean().sqrt())
            if size <= accuracy or (size >= 0.5 * last and size <= 1e3 * accuracy):  # rounding does not get smaller
                return place.theta + way + change, iteration
            way = way + mixing(change, moved)
            if not math.isfinite(size) or size > 10 * last:
                break
            last = size
        raise SolverError(
            f"PWHF: the equations of the step from t = {t:.6g} by h = {h:.3g} were not solved in {iteration} "
            f"iterations (the last moved the samples by {size:.1e}). The state at t = {t:.6g} is good. Causes: (a) the "
            "step is too long: a smaller dt; (b) with an entropy or pressure, the flow forms a shock, as a gas does, "
            "where its smooth solution ends: more friction, or an earlier last time; (c) the map follows noise of its "
            "samples: more of them (num_samples), or a larger damping; (d) rounding: dtype=torch.float64."
        )

    def measure(self, state: State) -> Row:
        """θ and η, and on `num_eval` fresh samples: F, ½E|Jη|², the acceleration missed; how far paths are off."""
        before = self._place(state.theta, self._samples(state.rng), state.t)
        rate = self._solved(before, self._acceleration(state, before.tangent, before.v), torch.zeros_like(state.theta))
        generator, blocks = fork(state.rng, "measure"), []
        for start in range(0, self.num_eval, _BLOCK):
            z = self._drawn(self.reference.matched_sample(min(_BLOCK, self.num_eval - start), generator))
            blocks.append(self._figures(state, rate, z) | {"share": len(z) / self.num_eval})
        mean = {name: math.fsum(b["share"] * b[name] for b in blocks) for name in blocks[0]}
        terms = {f"energy_{name}": c * mean[f"energy_{name}"] for name, c, _ in self.energy.terms()}
        energy = math.fsum(terms.values())
        each = [math.fsum(c * b[f"energy_{name}"] for name, c, _ in self.energy.terms()) for b in blocks]
        row: Row = {"theta": state.theta, "theta_dot": state.theta_dot, **terms, "energy": energy}
        row.update(energy_stderr=standard_error(each), kinetic_energy=mean["kinetic"])
        row.update(total_energy=energy + mean["kinetic"], acceleration_rms=math.sqrt(mean["a2"]))
        row.update(projection_residual=mean["miss2"] / mean["a2"] if mean["a2"] > 0 else 0.0)
        paths = FreePaths.of(self.energy, state, self._num_paths)
        off = math.nan if paths is None else paths.distance(self._path_ends(state.theta, state.rng))
        row.update(path_error=off, spread=spread_of(before.x))
        row.update(fold_fraction=mean["folded"], dt=state.dt)
        row.update({name: float(count) for name, count in state.counters.items()})
        return row

    def _acceleration(self, state: State, tangent: Tangent, v: Tensor) -> Tensor:
        """v − γJη − ∂_θ(Jη)η, (n,d), which Jη̇ should be; the last by a central difference."""
        eta, moving = state.theta_dot, tangent.jv(state.theta_dot)
        if not bool(eta.any()):
            return v
        step = _BEND * (1 + float(state.theta.norm())) / float(eta.norm())
        ahead, behind = (Tangent(self.map, state.theta + s * eta, tangent.z).jv(eta) for s in (step, -step))
        return v - self.friction * moving - (ahead - behind) / (2 * step)

    def _figures(self, state: State, rate: Tensor, z: Tensor) -> dict[str, float]:
        rho, tangent = self._pushed(state.theta, z, state.t), Tangent(self.map, state.theta, z)
        v = finite_velocity(self.energy, rho)
        a = self._acceleration(state, tangent, v)
        with torch.no_grad():
            values = {f"energy_{name}": part(rho) for name, _, part in self.energy.terms()}
            values["kinetic"] = 0.5 * tangent.jv(state.theta_dot).square().sum(1).mean()
            values["a2"], values["miss2"] = (u.square().sum(1).mean() for u in (a, tangent.jv(rate) - a))
            folded = (rho.det_sign <= 0).to(v.dtype).mean() if rho.asked_for_density else v.new_zeros(())
            values["folded"] = folded
        return {name: float(value) for name, value in values.items()}

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples at this θ, (1 + 16d,) float64."""
        z = self._drawn(self.reference.matched_sample(16, torch.Generator().manual_seed(0)))
        rho = self._pushed(state.theta, z, state.t)
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def watch(self, span: tuple[float, float]) -> PWHFWatch:
        """Warns of folds, of samples off their paths, and of a total energy that changes where it should not."""
        conserved = self.energy.has_value and not self.energy.time
        return PWHFWatch(span, self.friction, conserved)

    @classmethod
    def described(cls, config: Mapping[str, Any]) -> Description:
        """What figures and summaries say of a run, from `to_config()`."""
        friction = [f"friction {config['friction']:g}"] if config["friction"] else []
        samples = f"{config['num_samples']} samples for the run"
        settings = (*friction, *shown_settings(config), config["dtype"], samples)
        map = config["map"].get("map", config["map"]).get("name")
        balance = "falls" if config["friction"] else "stays"
        return Description(config["name"], "map", map, settings, "steps", balance, advice="a smaller dt")

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        return {
            "name": "PWHF", "energy": member_config(self.energy), "map": member_config(self.map),
            "reference": member_config(self.reference), "theta0": tensor_config(self.theta0), "dt": self.dt,
            "friction": self.friction,
            "velocity0": None if self.velocity0 is None else qualified_name(self.velocity0),
            "num_samples": self.num_samples, "num_eval": self.num_eval, "damping": self.damping,
            "dtype": str(self.dtype).removeprefix("torch."), "device": self.device,
        }  # fmt: skip
