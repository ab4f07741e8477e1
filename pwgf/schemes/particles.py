"""Plain particles: the Euler–Maruyama discretisation of the Langevin (McKean–Vlasov) dynamics behind a flow."""

from __future__ import annotations

import hashlib
import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import (
    check_device,
    check_dtype,
    check_integer,
    check_number,
    check_points,
    plain_numbers,
    seeded,
)
from ..energies import Energy
from ..errors import ConfigError, NonFiniteError
from ..maps.base import Block
from ..measures import Cloud, Reference
from ..measures.law import sample_cov
from ..state import Info, Rows, State
from ._arguments import check_law, check_lengths
from ._mobility import Given, Mobility
from .base import Answers, Row, member_config, merge_counters, nearest_row


def rows_around(times: np.ndarray, t: float) -> list[tuple[float, int]]:
    """Weights and indices of rows whose laws, mixed, stand for that at t: the row itself, or those before and after."""
    k = nearest_row(times, t)
    if k is not None:
        return [(1.0, k)]
    k = int(np.searchsorted(times, t)) - 1
    share = (t - float(times[k])) / float(times[k + 1] - times[k])
    return [(1 - share, k), (share, k + 1)]


class ParticleReplay(Answers):
    """Stored particles read back as a measure.

    Args:
        reference: λ, for `sample`.
        dtype: of the particles in memory.
    """

    ROWS: ClassVar[str] = "particles"

    def __init__(self, reference: Reference, dtype: torch.dtype = torch.float64) -> None:
        self.reference, self.dtype = reference, dtype

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """As many particles as z has rows, (n,d); z serves as a source of randomness, so equal z give equal choices.

        Between rows each is taken from the row before or after, with probabilities linear in t, which interpolates
        the law; of more than there are stored, each is taken as often as the others, up to one time.
        """
        generator = self._generator(z)
        n = len(z)
        (_, before), *after = ((share, rows.theta(k)) for share, k in rows_around(rows.t, t))
        x = before.view(-1, self.reference.dim)
        copies = [torch.randperm(len(x), generator=generator) for _ in range(max(math.ceil(n / len(x)), 1))]
        index = torch.cat(copies)[:n]
        chosen = x[index]
        for share, theta in after:
            later = torch.rand(n, generator=generator, dtype=torch.float64) < share
            chosen = torch.where(later.unsqueeze(1), theta.view_as(x)[index], chosen)
        return chosen.to(self.dtype)

    def _generator(self, z: Tensor) -> torch.Generator:
        """One fixed by the values of z (n,d)."""
        check_points(z, self.reference.dim, "push(t, z): z", finite=True)
        digest = hashlib.sha256(z.double().cpu().contiguous().numpy().tobytes()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def moments(self, rows: Rows, t: float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d,d) of the particles, float64; between rows those of the mixture."""
        parts = [(share, rows.theta(k).view(-1, self.reference.dim).double()) for share, k in rows_around(rows.t, t)]
        mean = sum((share * x.mean(0) for share, x in parts), torch.zeros(self.reference.dim, dtype=torch.float64))
        cov = sum(share * (sample_cov(x) + torch.outer(x.mean(0) - mean, x.mean(0) - mean)) for share, x in parts)
        return mean, torch.as_tensor(cov)

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError("this run holds particles, which have no density; solve with pwgf.PWGF to get log_density.")

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """Particles have none: ConfigError."""
        raise ConfigError("this run holds particles, which have no score; solve with pwgf.PWGF to get one.")


class EulerMaruyama(ParticleReplay):
    r"""Particles X ← X + dt·v(X) + √(2τ dt) ξ, whose law follows the flow of potential, interaction and entropy.

    Potential (and KL), interaction and drift terms drift the particles; the entropy's coefficient is the temperature
    τ. A `Diffusion` D adds noise √(2D dt) ξ and, in the divergence form, the drift ∇·D; terms that depend on time are
    taken at the start of a step. The weak error is O(dt), the sampling error 1/√num_samples. θ in rows and state holds
    the particles, (num_samples·d,). With an entropy the free energy needs a density, so the column `energy` is NaN and
    only its parts `energy_potential`, `energy_interaction` are given.

    With a mobility M, X ← X + dt·M v + dt·τ∇·M + √(2τ dt) R ξ with RRᵀ = M. For the covariance, which is that of the n
    particles and moves with each of them, (d + 1)(X − E X)/n takes the place of ∇·M.

    Args:
        energy: sum of Potential, Interaction, KL, Drift, Diffusion, and Entropy with non-negative temperature.
        reference: law of the particles at the start.
        num_samples: number of particles.
        dt: step, in units of t.
        mobility: M of ∂ₜρ = ∇·(ρM∇δF/δρ), as for `PWGF`: `covariance`, a number, a matrix, or a function of x.
        dtype: torch.float64 or torch.float32.
        device: where the particles live.

    Raises:
        ConfigError: an energy that needs a density, or an argument out of range.

    Example:
        >>> import pwgf
        >>> from pwgf import energies
        >>> energy = energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()
        >>> scheme = pwgf.EulerMaruyama(energy, pwgf.Gaussian(dim=1), num_samples=100, dt=0.1)
        >>> len(pwgf.solve(scheme, times=[0.0, 1.0], progress=False))
        2

    References:
        Kloeden, Platen, Numerical Solution of Stochastic Differential Equations, 1992, §10.2. Garbuno-Inigo,
        Hoffmann, Li, Stuart, Interacting Langevin diffusions: gradient structure and ensemble Kalman sampler, 2020,
        arXiv 1903.08866. Garbuno-Inigo, Nüsken, Reich, Affine invariant interacting Langevin dynamics for Bayesian
        inference, 2020, arXiv 1912.02859 (the drift (d + 1)(X − E X)/n).
    """

    @plain_numbers
    def __init__(
        self, energy: Energy, reference: Reference, *, num_samples: int = 10_000, dt: float,
        mobility: Given = None, dtype: torch.dtype = torch.float64, device: str = "cpu",
    ) -> None:  # fmt: skip
        check_law(energy, reference, "EulerMaruyama")
        check_integer(num_samples, "num_samples", "EulerMaruyama")
        check_number(dt, "dt", "EulerMaruyama", low=0.0, high=math.inf, open_low=True)
        check_dtype(dtype, "EulerMaruyama")
        super().__init__(reference, dtype)
        self.energy, self.num_samples, self.dt = energy, num_samples, float(dt)
        self.device = check_device(device, "EulerMaruyama")
        self._mobility = Mobility(mobility, energy, "EulerMaruyama")
        self._mobility.check_samples(reference.dim, "EulerMaruyama", num_samples=num_samples)
        self._drifts, self.temperature = energy.particle_form()
        self._noises = energy.noises()
        if any(factor < 0 for factor, _ in self._noises):
            raise ConfigError("EulerMaruyama: a Diffusion enters with a negative factor; it must be ≥ 0.")
        if self.temperature < 0:
            raise ConfigError(f"EulerMaruyama: the entropy's coefficient must be ≥ 0; got {self.temperature:g}.")

    @classmethod
    def suited(
        cls, energy: Energy, reference: Reference, times: np.ndarray, *, dt: float | None = None, **settings: Any
    ) -> EulerMaruyama:
        """One with steps of a thousandth of the span of `times` unless dt says otherwise."""
        step = float(times[-1] - times[0]) / 1000 if dt is None else dt
        return cls(energy, reference, dt=step, **settings)

    def altered_by(self) -> str:
        """A mobility."""
        return self._mobility.argument

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError where dt is lost in rounding beside the span of the times."""
        check_lengths(self.dt, "dt", times, "EulerMaruyama")

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """Independent particles from the reference; checks the drift once."""
        generator = seeded(seed, "EulerMaruyama.start")
        x = self.reference.sample(self.num_samples, generator).to(self.dtype).to(self.device)
        for _, term in [*self._drifts, *self._noises]:
            term.try_functions(Cloud(x[:64], t))
        self._mobility.try_function(Cloud(x[:64], t))
        self._drift(x[: max(64, 4 * self.reference.dim)], t)
        theta = x.reshape(-1)
        return State(
            t, theta, torch.zeros_like(theta), self.dt, generator.get_state(), {"num_steps": 0, "num_stages": 0}
        )

    def _force(self, x: Tensor, t: float) -> Tensor:
        """−∇δF/δρ (n,d), without the noise's part."""
        v = torch.zeros_like(x)
        for coefficient, term in self._drifts:
            v = v + coefficient * term.velocity(Cloud(x, t))
        return v

    def _drift(self, x: Tensor, t: float) -> tuple[Tensor, float]:
        """The drift (n,d), the force times the mobility where there is one, and its rms.

        Raises:
            NonFiniteError: the force is not finite.
        """
        force, cloud = self._force(x, t), Cloud(x, t)
        v = force
        if self._mobility.given is not None:
            v = self._mobility.frame(cloud).velocity(force) + self.temperature * self._mobility.spurious(cloud)
        speed, finite = torch.stack([v.square().sum(1).mean().sqrt(), torch.isfinite(v).all().to(v.dtype)]).tolist()
        if not finite:
            bad = int((~torch.isfinite(force).all(1)).sum())
            raise NonFiniteError(
                f"the drift is NaN or infinite at {bad} of {len(x)} particles at t = {t:.6g}. Causes: (a) the energy "
                "is not finite there: check it; (b) the step is unstable: smaller dt."
            )
        return v, speed

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One step of length dt, cut at t1."""
        generator = state.generator()
        left = state.left(t1)
        last = self.dt >= left * (1 - 1e-9)
        h = left if last else self.dt
        x = state.theta.view(self.num_samples, -1)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        v, speed = self._drift(x, state.t)
        noise = self._mobility.frame(Cloud(x, state.t)).outside(noise)
        moved = x + h * v + math.sqrt(2 * self.temperature * h) * noise
        for factor, source in self._noises:
            gauss = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            moved = moved + math.sqrt(2 * factor * h) * source.noise(Cloud(x, state.t), gauss)
        moved = moved.reshape(-1)
        t, rest = (t1, 0.0) if last else state.later(h, t1)
        counters = merge_counters(state.counters, num_steps=1, num_stages=1)
        after = State(t, moved, v.reshape(-1), self.dt, generator.get_state(), counters, rest=rest)
        return after, Info(state.t, t, h, 1, 0, {"velocity_rms": speed})

    def measure(self, state: State) -> Row:
        """Particles, energy of the drift terms, second moment."""
        x = state.theta.view(self.num_samples, -1)
        _, speed = self._drift(x, state.t)
        row: Row = {"theta": state.theta, "theta_dot": state.theta_dot}
        total = 0.0
        for coefficient, term in self._drifts:
            with torch.no_grad():
                part = coefficient * float(term(Cloud(x, state.t)))
            row[f"energy_{term.label}"] = float(row.get(f"energy_{term.label}", 0.0)) + part
            total += part
        row["energy"] = total if self.temperature == 0 else math.nan
        if self.energy.time:
            row["power"] = sum(c * float(term.power(Cloud(x, state.t))) for c, term in self._drifts)
        row["velocity_rms"] = speed
        row["second_moment"] = float(x.square().sum(1).mean())
        row.update({name: float(count) for name, count in state.counters.items()}, dt=state.dt)
        return row

    def fingerprint(self, state: State) -> np.ndarray:
        """Velocity and noise at the first 16 particles, with the temperature."""
        x = state.theta.view(self.num_samples, -1)[:16]
        v = self._force(x, state.t)
        noises = [factor * source.root(Cloud(x, state.t)).double().cpu().numpy() for factor, source in self._noises]
        return np.concatenate([v.double().cpu().numpy().ravel(), [self.temperature], *map(np.ravel, noises)])

    def layout(self) -> list[Block]:
        """The particles as one block."""
        return [Block("particles", (self.num_samples, self.reference.dim), 0)]

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        return {
            "name": "EulerMaruyama", "energy": member_config(self.energy), "reference": member_config(self.reference),
            "num_samples": self.num_samples, "dt": self.dt, "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device, **self._mobility.to_config(),
        }  # fmt: skip
