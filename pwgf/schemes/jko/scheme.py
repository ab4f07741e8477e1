"""JKO steps by gradients of input-convex networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import check_device, check_dtype, check_integer, check_number, plain_numbers, private, seeded
from ...energies import Energy, refuse_ill_posed
from ...errors import ConfigError, NonFiniteError, ShapeError, nearest
from ...maps.base import Block
from ...maps.convex import ConvexGradient
from ...measures import PushedMeasure, Reference
from ...state import Info, State
from .._arguments import check_law, check_map, even_step, refuse_driven, refuse_jump, try_functions
from ..base import Description, Row, fork, member_config, merge_counters
from .inner import Cloud, InnerSettings, Objective, Seen, exact_log_det, minimise, stochastic_log_det
from .quadratic_icnn import QuadraticICNN
from .replay import JKOReplay

_BLOCK = 4096  # samples at once where nothing is differentiated
_SLACK = 1e-6  # of h: times within this of a step's end are its end


class JKOICNN(JKOReplay):
    r"""The JKO scheme with convex potentials: ρ_{k+1} = (∇ψ)#ρ_k, ψ = argmin ½E|∇ψ(x) − x|² + h·F(∇ψ#ρ_k), x ~ ρ_k.

    Each step is implicit Euler in W₂, so its error in t is O(h) and F never rises but for what the minimisation leaves.
    ψ is an input-convex network that starts at the identity (the first step) or at the last step's ψ; log det ∇²ψ is
    exact. Every step is a row and holds its own map, so neighbours in `times` may be at most h apart (closer ones make
    a shorter step): `times=torch.arange(0, T + h / 2, h)`.

    Adam minimises on batches of `num_samples`; held-out samples judge it, lower its rate at plateaus and end it. With
    `samples="cached"` particles of ρ_k are kept and pushed by one map a step, `num_batches` batches for Adam and others
    for judging; K steps then cost K maps. But a map fitted to the same particles again and again overfits them.
    `samples="redrawn"` draws both anew for every step and pushes them through all maps so far, once; `samples="fresh"`
    does so for every inner iteration, as published: K² maps. Samples are matched ones where the reference has them.

    Cost of an inner iteration: three times that of T, ∂_zT and n·d³/3 flops, n = num_samples.

    Args:
        energy: F, any of the package's.
        reference: λ = ρ at the first time.
        h: length of a step, in units of t.
        width, rank: of the default network, `schemes.jko.QuadraticICNN(dim, width, rank)`.
        map: another `ConvexGradient` family for ∇ψ, e.g. `maps.ConvexRidge(dim)` or `maps.ConvexMax(dim)`.
        num_samples: of an inner iteration.
        samples: `cached`, `redrawn` or `fresh`.
        num_batches: batches of a step among which the iterations rotate; None means 5·d, at least 16 and at most 64.
        num_eval: held-out samples, on which each row's energy is measured; the first num_samples of them judge Adam.
        learning_rate: of Adam at the start of a step.
        max_iterations: most inner iterations of a step.
        num_decays: times that the rate falls to a quarter, at plateaus, before a step ends.
        patience: inner iterations between two looks at the held-out objective; it has a plateau where it fell by less
            than 1e-3 of the step's whole descent.
        log_det: `exact` (Cholesky), or `stochastic`: a Lanczos estimator for the iterations, unbiased for d ≤ 10. It
            needs no d × d matrices, but is the slower one up to d = 50 at least.
        dtype, device: of θ and all computation.

    Raises:
        ConfigError: an argument that cannot work, or `times` further apart than h.

    Example:
        >>> import pwgf
        >>> from pwgf import energies
        >>> energy = energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()
        >>> scheme = pwgf.JKOICNN(energy, pwgf.Gaussian(1, mean=2.0), h=0.1, width=8, num_samples=64, max_iterations=50)
        >>> run = pwgf.solve(scheme, times=[0.0, 0.1], progress=False)
        >>> abs(float(run.sample(t=0.1, n=1000).mean()) - 2.0 / 1.1) < 0.2  # implicit Euler for m' = −m
        True

    References:
        Mokrov, Korotin, Li, Genevay, Solomon, Burnaev, Large-scale Wasserstein gradient flows, 2021, arXiv 2106.00736.
        Jordan, Kinderlehrer, Otto, The variational formulation of the Fokker–Planck equation, 1998.
    """

    @plain_numbers
    def __init__(
        self,
        energy: Energy,
        reference: Reference,
        *,
        h: float,
        width: int = 64,
        rank: int = 5,
        map: ConvexGradient | None = None,
        num_samples: int = 1024,
        samples: str = "cached",
        num_batches: int | None = None,
        num_eval: int = 4096,
        learning_rate: float = 2e-2,
        max_iterations: int = 500,
        num_decays: int = 3,
        patience: int = 20,
        log_det: str = "exact",
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        check_law(energy, reference, "JKOICNN")
        refuse_ill_posed(energy)
        refuse_driven(energy, "JKOICNN")
        if map is not None:
            check_map(map, reference, "JKOICNN")
            if not isinstance(map, ConvexGradient):
                raise ConfigError(
                    f"JKOICNN(map=…) must be the gradient of a convex function: schemes.jko.QuadraticICNN, "
                    f"maps.ConvexRidge or maps.ConvexMax; got {type(map).__name__}."
                )
        _check_choice("samples", samples, ["cached", "redrawn", "fresh"])
        _check_choice("log_det", log_det, ["exact", "stochastic"])
        num_batches = min(64, max(16, 5 * reference.dim)) if num_batches is None else num_batches
        counts = {"num_samples": num_samples, "num_batches": num_batches, "num_eval": num_eval}
        counts |= {"max_iterations": max_iterations, "patience": patience}
        for name, value in counts.items():
            check_integer(value, name, "JKOICNN")
        check_integer(num_decays, "num_decays", "JKOICNN", least=0)
        for name, number in (("h", h), ("learning_rate", learning_rate)):
            check_number(number, name, "JKOICNN", low=0.0, high=math.inf, open_low=True)
        check_dtype(dtype, "JKOICNN")
        family = QuadraticICNN(reference.dim, width, rank) if map is None else map
        super().__init__(family, reference, dtype, check_device(device, "JKOICNN"))
        self.energy, self.h, self.samples, self.log_det = energy, float(h), samples, log_det
        self.num_samples, self.num_batches, self.num_eval = num_samples, num_batches, max(num_eval, num_samples)
        self.adam = InnerSettings(float(learning_rate), max_iterations, num_decays, patience)

    @classmethod
    def suited(
        cls, energy: Energy, reference: Reference, times: np.ndarray, *, dt: float | None = None,
        dtype: torch.dtype = torch.float32, **settings: Any,
    ) -> JKOICNN:  # fmt: skip
        """One in float32 with even steps of at most a twentieth of the span of `times`, unless told otherwise."""
        return cls(energy, reference, h=even_step(times) if dt is None else dt, dtype=dtype, **settings)

    def rows_for(self, times: np.ndarray) -> np.ndarray:
        """`times` and every step between them, since each is a row; (T,)."""
        parts = [times[:1]]
        for before, after in zip(times, times[1:], strict=False):
            steps = math.ceil((after - before) / self.h * (1 - 1e-9))
            parts.append(np.linspace(before, after, steps + 1)[1:])
        return np.concatenate(parts)

    @classmethod
    def described(cls, config: Mapping[str, Any]) -> Description:
        """What figures and summaries say of a run, from `to_config()`."""
        found = super().described(config)
        settings = (*found.settings, f"{config['num_samples']} samples an iteration")
        unit, why = "inner iterations", "each step minimises"
        return dataclasses.replace(found, settings=settings, work_unit=unit, no_projection=why)

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError unless each row is at most a step after the one before; a start must be the scheme's own."""
        gaps = np.diff(times)
        if len(gaps) and float(gaps.max()) > self.h * (1 + _SLACK):
            k = int(gaps.argmax())
            raise ConfigError(_too_far(float(times[k]), float(times[k + 1]), self.h))
        if start is not None and start.counters.get("num_steps", 0):
            raise ConfigError(
                "solve(start=…): a run of JKOICNN is a chain of maps, whose beginning a state in the middle lacks; "
                "begin with scheme.start(seed), or extend the stored run: solve(…, out=path, resume=True)."
            )

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """The identity map and, where samples are cached, the particles. Evaluates the energy on a few samples.

        Raises:
            ConfigError, ShapeError, NonFiniteError: the energy and the reference do not work together.
        """
        theta = self.family.initial(seed).to(self.dtype).to(self.device)
        generator = seeded(seed, "JKOICNN.start")
        few = self._reference_cloud(64, fork(generator.get_state(), "start"))
        seen = Seen(few)
        try_functions(self.energy, seen)
        value = self.energy(seen)
        if seen.read:
            refuse_jump(self.reference, "JKOICNN")
        if not bool(torch.isfinite(value)):
            bad = [name for name, _, part in self.energy.terms() if not bool(torch.isfinite(part(Seen(few))))]
            raise NonFiniteError(
                f"the energy is {float(value)} at the start (term '{bad[0] if bad else 'sum'}'), t = {t:.6g}: its "
                "function is NaN or infinite at some samples of the reference. Check it there, or take another "
                "reference."
            )
        extra = {"last": torch.zeros(3, dtype=torch.float64)}
        if self.samples == "cached":
            used = self._reference_cloud(self.num_samples * self.num_batches, generator)
            held_out = self._reference_cloud(self.num_eval, generator)
            extra["x"] = torch.cat([used.x, held_out.x])
            extra["log_density"] = torch.cat([used.log_density, held_out.log_density])
        else:
            extra["chain"] = theta.new_zeros(0, len(theta))
        counters = {"num_steps": 0, "num_stages": 0}
        return State(t, theta, torch.zeros_like(theta), self.h, generator.get_state(), counters, extra)

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One JKO step to t1, which is at most h away.

        Raises:
            ConfigError: t1 is further away.
            SolverError: the inner minimisation diverged; the state is untouched.
        """
        h = state.left(t1)
        if h > self.h * (1 + _SLACK):
            raise ConfigError(_too_far(state.t, t1, self.h))
        generator = state.generator()
        held_out, before = self._held_out(state), state.extra
        seen = Seen(held_out.rows(slice(self.num_samples)))
        identity = h * float(self.energy(seen))
        objective = Objective(self.family, self.energy, h, seen.read)
        found = minimise(
            objective, state.theta, self._batches(state, generator), held_out.rows(slice(self.num_samples)), self.adam,
            identity=identity, log_det=stochastic_log_det(generator) if self.log_det == "stochastic" else exact_log_det,
            where=f" in the step from t = {state.t:.6g} to {t1:.6g}; the state at t = {state.t:.6g} is good",
        )  # fmt: skip
        moved = self._moved(found.theta, held_out, seen.read)
        speed = float((moved.x - held_out.x).square().sum(1).mean().sqrt()) / h
        extra = {"last": torch.tensor([speed, found.iterations, found.rate], dtype=torch.float64)}
        if self.samples == "cached":
            size = len(before["x"]) - self.num_eval
            used = Cloud(before["x"][:size], before["log_density"][:size])
            used = self._moved(found.theta, used, seen.read)
            extra["x"] = torch.cat([used.x, moved.x])
            extra["log_density"] = torch.cat([used.log_density, moved.log_density])
        else:
            extra["chain"] = torch.cat([before["chain"], found.theta.unsqueeze(0)])
        counters = merge_counters(state.counters, num_steps=1, num_stages=found.iterations)
        after = State(t1, found.theta, torch.zeros_like(found.theta), self.h, generator.get_state(), counters, extra)
        few = Seen(moved.rows(slice(self.num_samples)))
        values = {"energy": float(self.energy(few)), "velocity_rms": speed, "descent": identity - found.value}
        return after, Info(state.t, t1, h, found.iterations, 0, values)

    def _reference_cloud(self, n: int, generator: torch.Generator) -> Cloud:
        """Samples of λ, matched ones where there are such."""
        z = self.reference.matched_sample(n, generator)
        if not isinstance(z, Tensor) or z.shape != (n, self.reference.dim):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ShapeError(
                f"reference.sample(n={n}, generator) must return a tensor of shape ({n}, {self.reference.dim}); got "
                f"{got}. Return a row per sample."
            )
        z = z.to(self.dtype).to(self.device)
        return Cloud(z, self.reference.log_density(private(z)))

    def _moved(self, theta: Tensor, cloud: Cloud, dense: bool = True) -> Cloud:
        """∇ψ#ρ on the samples, with its density if the energy reads it."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(cloud.x), _BLOCK):
                part = cloud.rows(slice(start, start + _BLOCK))
                if not dense:
                    parts.append(Cloud(self.family(theta, part.x), part.log_density))
                    continue
                x, volume = exact_log_det(self.family, theta, part.x)
                parts.append(Cloud(x, part.log_density - volume))
        moved = Cloud(torch.cat([p.x for p in parts]), torch.cat([p.log_density for p in parts]))
        if not bool(torch.isfinite(moved.x).all() and torch.isfinite(moved.log_density).all()):
            raise NonFiniteError(
                "JKOICNN: the found map or its log det is not finite at some held-out or cached samples. Causes: (a) "
                "too long strides: smaller learning_rate; (b) too few samples: more num_samples or num_batches."
            )
        return moved

    def _through_chain(self, chain: Tensor, cloud: Cloud) -> Cloud:
        for theta in chain:
            cloud = self._moved(theta, cloud)
        return cloud

    def _held_out(self, state: State) -> Cloud:
        """`num_eval` samples of the state's law that no minimisation saw."""
        if self.samples == "cached":
            return Cloud(state.extra["x"][-self.num_eval :], state.extra["log_density"][-self.num_eval :])
        fresh = self._reference_cloud(self.num_eval, fork(state.rng, "held out"))
        return self._through_chain(state.extra["chain"], fresh)

    def _batches(self, state: State, generator: torch.Generator) -> Callable[[int], Cloud]:
        """The samples of inner iteration i: those of the step in turn, each round in a new order; or new ones."""
        n, order = self.num_samples, list[int]()

        def fresh(i: int) -> Cloud:
            return self._through_chain(state.extra["chain"], self._reference_cloud(n, generator))

        def in_turn(i: int) -> Cloud:
            if not order:
                order.extend(torch.randperm(self.num_batches, generator=generator).tolist())
            start = n * order.pop()
            return cloud.rows(slice(start, start + n))

        if self.samples == "fresh":
            return fresh
        if self.samples == "cached":
            cloud = Cloud(state.extra["x"], state.extra["log_density"])
        else:
            cloud = self._through_chain(state.extra["chain"], self._reference_cloud(n * self.num_batches, generator))
        return in_turn

    def measure(self, state: State) -> Row:
        """θ of the step's map, and energy by term, second moment and the step's figures on held-out samples."""
        cloud = self._held_out(state)
        row: Row = {"theta": state.theta, "theta_dot": state.theta_dot}
        with torch.no_grad():
            for name, coefficient, part in self.energy.terms():
                row[f"energy_{name}"] = coefficient * float(part(Seen(cloud)))
        row["energy"] = sum(float(value) for name, value in row.items() if name.startswith("energy_"))
        row["second_moment"] = float(cloud.x.square().sum(1).mean())
        speed, iterations, rate = state.extra["last"].tolist()
        row.update({name: float(count) for name, count in state.counters.items()})
        row.update(velocity_rms=speed, inner_iterations=iterations, learning_rate=rate, dt=state.dt)
        return row

    def fingerprint(self, state: State) -> np.ndarray:
        """F and v on 16 fixed samples of λ moved by the state's map, (1 + 16d,) float64."""
        z = self._reference_cloud(16, torch.Generator().manual_seed(0)).x
        rho = PushedMeasure(self.family, self.reference, state.theta, z)
        values = torch.cat([self.energy(rho).detach().reshape(1), self.energy.velocity(rho).reshape(-1)])
        return values.double().cpu().numpy()

    def layout(self) -> list[Block]:
        """The parameter blocks of one step's map."""
        return self.family.layout()

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        return {
            "name": "JKOICNN", "energy": member_config(self.energy), "map": member_config(self.family),
            "reference": member_config(self.reference), "h": self.h, "num_samples": self.num_samples,
            "samples": self.samples, "num_batches": self.num_batches, "num_eval": self.num_eval,
            **dataclasses.asdict(self.adam), "log_det": self.log_det,
            "dtype": str(self.dtype).removeprefix("torch."), "device": self.device,
        }  # fmt: skip


def _check_choice(name: str, value: object, known: list[str]) -> None:
    if value not in known:
        choices = " or ".join(map(repr, known))
        raise ConfigError(f"JKOICNN({name}=…) must be {choices}; got {value!r}.{nearest(str(value), known)}")


def _too_far(t0: float, t1: float, h: float) -> str:
    return (
        f"JKOICNN(h={h:g}) stores the map of every step, so times may be at most h apart; got t = {t0:g} followed by "
        f"{t1:g}. Give times=torch.arange({t0:g}, T + {h / 2:g}, {h:g}), or a larger h."
    )
