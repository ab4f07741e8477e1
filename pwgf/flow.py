"""The main loop: `evolve` makes steps, `solve` stores rows, resumes, reports and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from . import storage
from .errors import ConfigError, PWGFError, ShapeError
from .progress import Progress
from .provenance import provenance
from .resume import check_fingerprint, check_same, has_rows, pack_finished, stored_state
from .schemes import Row, Scheme
from .signals import Signals
from .state import Info, State
from .trajectory import Memory, Trajectory, restart_to_state, state_to_restart

_log = logging.getLogger("pwgf")
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


def solve(
    scheme: Scheme,
    times: Sequence[float] | np.ndarray | torch.Tensor,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    start: State | None = None,
    max_cost: float | None = None,
    checkpoint_seconds: float = 60,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    problem: Any = None,
) -> Trajectory:
    """Solves a flow and stores a row at every entry of `times`.

    Args:
        scheme: what moves the measure, e.g. `PWGF(energy, map, reference)`.
        times: strictly increasing, in units of t; the first is the initial time, where ρ = λ (or T_θ0 #λ).
        out: HDF5 file to write; None keeps the run in memory.
        seed: of all randomness.
        resume: continue what is at `out`: a killed run goes on to the bit, a finished one is returned (or extended when
            `times` has grown at its end), and where nothing is it starts afresh.
        overwrite: replace what is at `out`.
        start: a state to begin from instead of `scheme.start(seed)`; its t must be times[0].
        max_cost: share of the run time that writing may take; None publishes every row as soon as it is known.
        checkpoint_seconds: between rows the restart state is published this often.
        callbacks: each is called as f(state, info) after every step; returning True stores a row and ends the run.
        progress: show progress; None means yes unless `PWGF_PROGRESS=0`.
        problem: a `pwgf.problems` problem, recorded so that `pwgf plot` can draw its exact law.

    Returns:
        The trajectory, with a row per time.

    Raises:
        ConfigError, ShapeError: arguments that cannot work, told before anything is computed.
        NonFiniteError, SolverError: the flow cannot go on; rows so far are in the file, or in the error's `run`.
        StorageError: the disk refused; what was published stays good.
        ResumeMismatchError: the stored run had other settings or another energy.
    """
    _check_scheme(scheme)
    _check_problem(problem)
    t, settings = check_times(times), _Settings(checkpoint_seconds, callbacks, progress)
    config = {
        "scheme": scheme.to_config(),
        "times": t.tolist(),
        "seed": seed,
        "problem": None if problem is None else problem.to_config(),
    }
    if start is not None:
        start = _checked_start(scheme, start)
        config["start"] = {"t": start.t, "counters": dict(start.counters)}
    if out is None:
        if resume:
            raise ConfigError(
                "solve(resume=True) needs the file to resume: solve(…, out='results/run.h5', resume=True)."
            )
        memory = Memory(config)
        with Signals() as signals:
            _fresh(scheme, t, memory, _first_state(scheme, seed, t, start), settings, signals)
        return Trajectory(memory, scheme)
    out = storage.checked_path(out, "solve(out=…)")
    with Signals() as signals:  # from here on: also the first row, the last and the packing end in order
        if resume and has_rows(out):
            return _resume(scheme, t, out, config, max_cost, settings, signals)
        state = _first_state(scheme, seed, t, start)
        header = _header(scheme, config, state)
        nothing_there = resume and (os.path.exists(out + ".parts") and not os.path.exists(out))
        with storage.Writer.create(out, header, overwrite=overwrite or nothing_there, max_cost=max_cost) as writer:
            _fresh(scheme, t, writer, state, settings, signals)
    return _opened(scheme, out)


@dataclasses.dataclass(frozen=True)
class _Settings:
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


def _check_scheme(scheme: object) -> None:
    needed = ("start", "step", "measure", "fingerprint", "layout", "to_config")
    if isinstance(scheme, type) or not all(callable(getattr(scheme, name, None)) for name in needed):
        got = scheme.__name__ if isinstance(scheme, type) else type(scheme).__name__
        raise ConfigError(
            f"solve(scheme=…) needs a scheme, which has the methods {', '.join(needed)}; got {got}. "
            "Make one: pwgf.PWGF(energy, map, reference)."
        )


def _check_problem(problem: object) -> None:
    known = not isinstance(problem, type) and callable(getattr(problem, "to_config", None))
    if problem is not None and not known:
        raise ConfigError(
            f"solve(problem=…) needs a problem with to_config(), out of pwgf.problems; got {problem!r:.60}. "
            "Make one, e.g. pwgf.problems.OrnsteinUhlenbeck(2), or leave it out."
        )


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


def _first_state(scheme: Scheme, seed: int, t: np.ndarray, start: State | None) -> State:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"solve(seed=…) must be an integer in [0, 2⁶³); got {seed!r}. Give e.g. seed=0.")
    if start is None:
        return scheme.start(seed, float(t[0]))
    if abs(start.t - float(t[0])) > 1e-9 * max(1.0, abs(start.t)):
        raise ConfigError(
            f"solve(start=…) is a state at t = {start.t:g}, but times begin at {t[0]:g}; let times[0] = start.t."
        )
    return start


def _checked_start(scheme: Scheme, start: State) -> State:
    """The state in the scheme's dtype and on its device; ConfigError or ShapeError where it is not the scheme's."""
    if not isinstance(start, State):
        raise ConfigError(
            f"solve(start=…) needs a State, such as run.state() or scheme.start(seed); got {type(start).__name__}. "
            "To begin at other parameters give PWGF(theta0=…)."
        )
    last = scheme.layout()[-1]
    size = last.offset + math.prod(last.shape)
    if start.theta.shape != (size,) or start.theta_dot.shape != (size,):
        raise ShapeError(
            f"solve(start=…): theta and theta_dot must have shape ({size},) for this scheme; got "
            f"{tuple(start.theta.shape)} and {tuple(start.theta_dot.shape)}. Take the state from a run with the same "
            "map (or number of particles)."
        )
    device = scheme.to_config().get("device", "cpu")
    theta, theta_dot = (x.detach().to(device, scheme.dtype) for x in (start.theta, start.theta_dot))
    return dataclasses.replace(start, theta=theta, theta_dot=theta_dot)


def _fresh(
    scheme: Scheme,
    t: np.ndarray,
    store: Memory | storage.Writer,
    state: State,
    settings: _Settings,
    signals: Signals,
) -> None:
    """Stores the first row and runs; a run in memory that fails hands its rows over with the error."""
    loop = _Loop(scheme, store, settings, signals, float(t[0]), float(t[-1]))
    try:
        loop.save(state)
        signals.act()
        loop.run(state, t[1:])
    except PWGFError as error:
        if isinstance(store, Memory) and len(store):
            error.run = Trajectory(store, scheme)
        raise


def _resume(
    scheme: Scheme,
    t: np.ndarray,
    out: str,
    config: dict[str, Any],
    max_cost: float | None,
    settings: _Settings,
    signals: Signals,
) -> Trajectory:
    """Continues a stored run after checking that it is the same one."""
    with storage.open_record(out) as record:
        check_same(record.config, config)
        restart, stored_times = stored_state(record), record.config["times"]
        t = check_times(np.concatenate([stored_times, t[len(stored_times) :]]))  # the stored ones, to the bit
        config = {**config, "times": t.tolist()}
        state = restart_to_state(restart, scheme.dtype, config["scheme"].get("device", "cpu"))
        check_fingerprint(scheme, state, np.asarray(restart["fingerprint"]))
        finished = record.complete and len(record.config["times"]) == len(t)
        spent = (float(record.column("wall_time")[-1]), float(record.column("cpu_time")[-1]))
        threads = record.provenance.get("threads")
    if finished:
        pack_finished(out)
        return _opened(scheme, out)
    if threads != torch.get_num_threads():
        _log.warning(
            "resuming with %d threads a run begun with %s: results may differ in the last bits",
            torch.get_num_threads(),
            threads,
        )
    writer, record = storage.Writer.resume(out, max_cost=max_cost)
    with writer:
        if len(record.config["times"]) != len(t):
            writer.update_header(_header(scheme, config, state))
        last_row = float(record.column("t")[-1])
        loop = _Loop(scheme, writer, settings, signals, float(t[0]), float(t[-1]), spent)
        loop.run(state, t[t > last_row])
    return _opened(scheme, out)


class _Loop:
    """Steps, rows, checkpoints, callbacks and signals of one `solve`."""

    def __init__(
        self,
        scheme: Scheme,
        store: Memory | storage.Writer,
        settings: _Settings,
        signals: Signals,
        first: float,
        last: float,
        spent: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.scheme, self.store, self.settings, self.signals = scheme, store, settings, signals
        self.first, self.last = first, last
        self.began, self.began_cpu = time.monotonic() - spent[0], time.process_time() - spent[1]
        self.warned: set[str] = set()

    def run(self, state: State, times: np.ndarray) -> None:
        """On to the last time; each is stored when it is reached."""
        rows, saved = set(times.tolist()), time.monotonic()
        bar = Progress(self.first, self.last, self.settings.progress)
        with contextlib.closing(bar):
            for after, info in evolve(self.scheme, state, times) if len(times) else ():
                bar.update(after.t, dt=info.dt, **{k: v for k, v in info.values.items() if k == "energy"})
                self._warn_step(info)
                stop = any([f(after, info) is True for f in self.settings.callbacks])  # every callback is called
                if after.t in rows or stop:
                    self.save(after)
                    saved = time.monotonic()
                elif time.monotonic() - saved > self.settings.checkpoint_seconds or self.signals.number:
                    self.checkpoint(after)
                    saved = time.monotonic()
                self.signals.act()
                if stop:
                    return

    def save(self, state: State) -> None:
        """Measures and stores the row of this state."""
        row = self.scheme.measure(state)
        self._warn_row(row, state.t)
        plain = {
            k: v.detach().double().cpu().numpy() if isinstance(v, torch.Tensor) else float(v) for k, v in row.items()
        }
        plain.update(t=state.t, wall_time=time.monotonic() - self.began, cpu_time=time.process_time() - self.began_cpu)
        self.store.append(plain, state_to_restart(state, self.scheme.fingerprint(state)))

    def checkpoint(self, state: State) -> None:
        """Publishes the restart state between rows."""
        if not isinstance(self.store, Memory):
            self.store.checkpoint(state_to_restart(state, self.scheme.fingerprint(state)))

    def _warn(self, kind: str, message: str, *values: Any) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            _log.warning(message, *values)

    def _warn_row(self, row: Row, t: float) -> None:
        if float(row.get("fold_fraction", 0.0)) > 0:
            self._warn(
                "fold",
                "the map folds at %.2g of the samples at t = %.4g: its density is wrong there. Cure: more samples "
                "(num_samples), a wider map, or clip=5",
                row["fold_fraction"],
                t,
            )
        if float(row.get("projection_residual", 0.0)) > 0.25:
            self._warn(
                "residual",
                "the map follows only %.0f %% of the velocity at t = %.4g (projection_residual %.2g). Cure: a wider "
                "map, more samples (num_samples); near equilibrium, where the velocity itself vanishes, it is harmless",
                100 * max(0.0, 1 - float(row["projection_residual"])),
                t,
                row["projection_residual"],
            )

    def _warn_step(self, info: Info) -> None:
        if info.dt < 1e-6 * (self.last - self.first) and info.t1 < self.last:
            self._warn(
                "stall",
                "the step has shrunk to %.1e at t = %.4g: a few samples near a fold of the map have become very fast. "
                "Cure: a wider map, more samples (num_samples), or larger damping (1e-5, 1e-4)",
                info.dt,
                info.t1,
            )
        if "energy_change" not in info.values:  # particles: their free energy is not known
            return
        change, predicted = info.values["energy_change"], info.values["predicted_change"]
        if math.isfinite(change) and change > 0.5 * abs(predicted) + 1e-6 * (1 + abs(info.values["energy"])):
            self._warn(
                "increase",
                "the energy rose by %.2g on the same samples between t = %.4g and %.4g, where it should have fallen by "
                "%.2g. Cure: lower tolerance or dt, more samples, larger damping",
                change,
                info.t0,
                info.t1,
                -predicted,
            )


def _opened(scheme: Scheme, out: str) -> Trajectory:
    return Trajectory(storage.open_record(out), scheme, out)


def _header(scheme: Scheme, config: dict[str, Any], state: State) -> storage.Header:
    layout = [{"name": b.name, "shape": list(b.shape), "offset": b.offset} for b in scheme.layout()]
    return storage.Header(
        config, layout, provenance(config["scheme"].get("device", "cpu")), scheme.reference.dim, state.theta.numel()
    )
