"""The main loop: one step of a scheme after another, with rows, checkpoints, callbacks, signals and warnings."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, ParallelError
from ..parallel import world
from ..schemes import Row, Scheme
from ..state import Info, State
from ._one_writer import OneWriter
from .progress import Progress
from .signals import Signals
from .trajectory import Memory, state_to_restart

_log = logging.getLogger("pwgf")
_ROUNDING = 1e-12  # a velocity, in units of x over t, below which there is nothing to be missed
Callback = Callable[[State, Info], Any]


def evolve(
    scheme: Scheme, state: State, times: Sequence[float] | np.ndarray | torch.Tensor
) -> Iterator[tuple[State, Info]]:
    """Yields (state, info) after every step on the way through the given times, each of which is hit exactly.

    Args:
        scheme: e.g. `PWGF`.
        state: where to begin, e.g. `scheme.start(seed)`.
        times: increasing; those not after `state.t` are passed over.
    """
    if not isinstance(state, State):
        raise ConfigError(
            f"evolve(scheme, state, times) needs a State, such as scheme.start(seed); got {type(state).__name__}. "
            "Give evolve(scheme, scheme.start(0), times)."
        )
    for t1 in check_times(times, "evolve"):
        while state.t < t1:
            state, info = scheme.step(state, float(t1))
            yield state, info


def check_times(times: Sequence[float] | np.ndarray | torch.Tensor, call: str = "solve") -> np.ndarray:
    """times as float64, (T,); ConfigError unless finite and strictly increasing."""
    try:
        values = times.detach().cpu().numpy() if isinstance(times, torch.Tensor) else times
        t = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{call}(times=…) must be a sequence of numbers; got {times!r:.60} ({error}). "
            "E.g. torch.linspace(0, 1, 11)."
        ) from error
    if t.ndim != 1 or len(t) == 0:
        raise ConfigError(
            f"{call}(times=…) must be a non-empty sequence of numbers; got shape {t.shape}. "
            "E.g. torch.linspace(0, 1, 11)."
        )
    if not np.isfinite(t).all():
        k = int((~np.isfinite(t)).argmax())
        raise ConfigError(
            f"{call}(times=…) must be finite; got {t[k]} at position {k}. Give the times you want stored."
        )
    if (np.diff(t) <= 0).any():
        k = int((np.diff(t) <= 0).argmax())
        raise ConfigError(
            f"{call}(times=…) must increase strictly; got {t[k]:g} followed by {t[k + 1]:g}. "
            "Sort them and drop repeats."
        )
    return t


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `solve` that the loop heeds; see there."""

    checkpoint_seconds: float
    callbacks: Sequence[Callback]
    progress: bool | None

    def __post_init__(self) -> None:
        if not (isinstance(self.checkpoint_seconds, (int, float)) and self.checkpoint_seconds > 0):
            raise ConfigError(
                f"solve(checkpoint_seconds=…) must be a positive number; got {self.checkpoint_seconds!r}. "
                "Give e.g. 60, or math.inf for none between rows."
            )
        listed = isinstance(self.callbacks, (list, tuple))
        wrong = [f for f in self.callbacks if not callable(f)] if listed else [self.callbacks]
        if wrong:
            raise ConfigError(
                "solve(callbacks=…) needs a list of functions f(state, info); got "
                f"{'a list with ' if listed else ''}{type(wrong[0]).__name__}. Give callbacks=[f]."
            )


class Loop:
    """Steps, rows, checkpoints, callbacks and signals of one `solve`; several processes do all this together."""

    def __init__(
        self,
        scheme: Scheme,
        store: Memory | OneWriter,
        settings: Settings,
        signals: Signals,
        first: float,
        last: float,
        spent: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.scheme, self.store, self.settings, self.signals = scheme, store, settings, signals
        self.first, self.last = first, last
        self.began, self.began_cpu, self.spent_cpu = time.monotonic() - spent[0], time.process_time(), spent[1]
        self.warned: set[str] = set()
        self.group = world()
        self.stored, self.fastest, self.highest = math.nan, 0.0, -math.inf  # the latter two: largest |v| and F so far

    def run(self, state: State, times: np.ndarray) -> None:
        """On to the last time; each is stored when it is reached."""
        try:
            self._run(state, times)
        except ParallelError as error:
            raise ParallelError(f"{error} Rows up to t = {self.stored:.6g} are stored.") from error

    def _run(self, state: State, times: np.ndarray) -> None:
        rows, saved = set(times.tolist()), time.monotonic()
        bar = Progress(self.first, self.last, self.settings.progress if self.group.rank == 0 else False)
        with contextlib.closing(bar):
            for after, info in evolve(self.scheme, state, times) if len(times) else ():
                bar.update(after.t, dt=info.dt, **{k: v for k, v in info.values.items() if k == "energy"})
                self._warn_step(info)
                stop = any([f(after, info) is True for f in self.settings.callbacks])  # every callback is called
                waited = time.monotonic() - saved > self.settings.checkpoint_seconds or self.signals.number > 0
                stop, due = (flag > 0 for flag in self.group.greatest(stop, waited))
                if after.t in rows or stop:
                    self.save(after)
                    saved = time.monotonic()
                elif due:
                    self.checkpoint(after)
                    saved = time.monotonic()
                self.act()
                if stop:
                    return

    def act(self) -> None:
        """Does what a signal asks for that has come to any of the processes."""
        self.signals.act(int(self.group.greatest(self.signals.number)[0]))

    def save(self, state: State) -> None:
        """Measures and stores the row of this state."""
        row = self.scheme.measure(state)
        self._warn_row(row, state.t)
        plain = {
            k: v.detach().double().cpu().numpy() if isinstance(v, torch.Tensor) else float(v) for k, v in row.items()
        }
        cpu = torch.tensor(time.process_time() - self.began_cpu, dtype=torch.float64, device=self.group.device)
        plain.update(
            t=state.t, wall_time=time.monotonic() - self.began, cpu_time=self.spent_cpu + float(self.group.sum(cpu))
        )
        self.store.append(plain, state_to_restart(state, self.scheme.fingerprint(state)))
        self.stored = state.t

    def checkpoint(self, state: State) -> None:
        """Publishes the restart state between rows."""
        if not isinstance(self.store, Memory):
            self.store.checkpoint(state_to_restart(state, self.scheme.fingerprint(state)))

    def _warn(self, kind: str, message: str, *values: Any) -> None:
        if kind not in self.warned and self.group.rank == 0:
            self.warned.add(kind)
            _log.warning(message, *values)

    def _warn_row(self, row: Row, t: float) -> None:
        if float(row.get("fold_fraction", 0.0)) > 0:
            self._warn(
                "fold",
                "the map folds at %.2g of the samples at t = %.4g: its density is wrong there. Cure: "
                "integrator='implicit', more samples (num_samples), or a map that cannot fold (maps.ConvexRidge)",
                row["fold_fraction"],
                t,
            )
        residual, speed = (float(row.get(name, 0.0)) for name in ("projection_residual", "velocity_rms"))
        missed = math.sqrt(max(residual, 0.0)) * speed
        self.fastest = max(self.fastest, speed)
        if residual > 0.25 and missed > max(
            0.05 * self.fastest, _ROUNDING
        ):  # near equilibrium a large share of nothing is missed
            self._warn(
                "residual",
                "the map misses a velocity of %.2g (rms; %.0f %% of E|v|², projection_residual) at t = %.4g. Cure: a "
                "wider map, more samples (num_samples), or another family of maps",
                missed,
                100 * residual,
                t,
            )

    def _warn_step(self, info: Info) -> None:
        if info.dt < 1e-6 * (self.last - self.first) and info.t1 < self.last:
            self._warn(
                "stall",
                "the step has shrunk to %.1e at t = %.4g: the flow is stiff, or a few samples near a fold are fast. "
                "Cure: integrator='implicit', a wider map, more samples (num_samples), or larger damping",
                info.dt,
                info.t1,
            )
        if "energy_change" not in info.values:  # particles: their free energy is not known
            return
        change, predicted, energy = (info.values[name] for name in ("energy_change", "predicted_change", "energy"))
        self.highest = max(self.highest, energy - change)
        # Near equilibrium F hovers; a rise by more than a thousandth of itself is named however far it has fallen.
        noise = 1e-6 * (1 + abs(energy)) + min(1e-4 * (self.highest - energy), 1e-3 * (1 + abs(energy)))
        if math.isfinite(change) and change > 0.5 * abs(predicted) + noise:
            self._warn(
                "increase",
                "the energy rose by %.2g on the same samples between t = %.4g and %.4g, where it should have fallen by "
                "%.2g. Cure: lower tolerance or dt, more samples, larger damping",
                change,
                info.t0,
                info.t1,
                -predicted,
            )
