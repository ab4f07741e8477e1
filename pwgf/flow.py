"""The main loop: `evolve` makes steps, `solve` stores rows, resumes, reports and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import h5py
import numpy as np
import torch
import torchdiffeq

from . import storage
from ._version import __version__
from .errors import ConfigError, PathError, PWGFError, ResumeMismatchError
from .progress import Progress
from .schemes import Row, Scheme
from .state import Info, State
from .trajectory import Memory, Trajectory, restart_to_state, state_to_restart

_log = logging.getLogger("pwgf")
Callback = Callable[[State, Info], Any]


def evolve(scheme: Scheme, state: State, times: Sequence[float]) -> Iterator[tuple[State, Info]]:
    """Yields (state, info) after every step on the way through the given times, each of which is hit exactly.

    Args:
        scheme: e.g. `PWGF`.
        state: where to begin, e.g. `scheme.start(seed)`.
        times: increasing; those not after `state.t` are passed over.
    """
    for t1 in check_times(times):
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
        NonFiniteError, SolverError: the flow cannot go on; rows so far are in the file (and in the error's `run`).
        StorageError: the disk refused; what was published stays good.
        ResumeMismatchError: the stored run had other settings or another energy.
    """
    t, settings = check_times(times), _Settings(checkpoint_seconds, tuple(callbacks), progress)
    config = {"scheme": scheme.to_config(), "times": t.tolist(), "seed": seed, "problem": problem and problem.to_config()}
    if start is not None:
        config["start"] = {"t": start.t, "counters": dict(start.counters)}
    if out is None:
        if resume:
            raise ConfigError("solve(resume=True) needs the file to resume: solve(…, out='results/run.h5', resume=True).")
        return _fresh(scheme, t, Memory(config), _first_state(scheme, seed, t, start), settings)
    if resume and _has_rows(out):
        return _resume(scheme, t, out, config, max_cost, settings)
    state = _first_state(scheme, seed, t, start)
    header = _header(scheme, config, state)
    nothing_there = resume and (os.path.exists(os.fspath(out) + ".parts") and not os.path.exists(out))
    with storage.Writer.create(out, header, overwrite=overwrite or nothing_there, max_cost=max_cost) as writer:
        _fresh(scheme, t, writer, state, settings)
    return _opened(scheme, out)


@dataclasses.dataclass(frozen=True)
class _Settings:
    checkpoint_seconds: float
    callbacks: tuple[Callback, ...]
    progress: bool | None

    def __post_init__(self) -> None:
        if not (isinstance(self.checkpoint_seconds, (int, float)) and self.checkpoint_seconds > 0):
            raise ConfigError(f"solve(checkpoint_seconds=…) must be positive; got {self.checkpoint_seconds!r}.")
        for f in self.callbacks:
            if not callable(f):
                raise ConfigError(f"solve(callbacks=…) needs functions f(state, info); got {type(f).__name__}.")


def check_times(times: Sequence[float] | np.ndarray | torch.Tensor) -> np.ndarray:
    """times as float64, (T,); ConfigError unless finite and strictly increasing."""
    values = times.detach().cpu().numpy() if isinstance(times, torch.Tensor) else times
    try:
        t = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"times must be a sequence of numbers; got {times!r:.60} ({error}).") from error
    if t.ndim != 1 or len(t) == 0:
        raise ConfigError(f"times must be a non-empty sequence of numbers; got shape {t.shape}. E.g. torch.linspace(0, 1, 11).")
    if not np.isfinite(t).all():
        raise ConfigError(f"times must be finite; got {t[~np.isfinite(t)][0]} at position {int((~np.isfinite(t)).argmax())}.")
    if (np.diff(t) <= 0).any():
        k = int((np.diff(t) <= 0).argmax())
        raise ConfigError(f"times must increase strictly; got {t[k]:g} followed by {t[k + 1]:g}. Sort them and drop repeats.")
    return t


def _first_state(scheme: Scheme, seed: int, t: np.ndarray, start: State | None) -> State:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"solve(seed=…) must be an integer in [0, 2⁶³); got {seed!r}.")
    if start is None:
        return scheme.start(seed, float(t[0]))
    if abs(start.t - float(t[0])) > 1e-9 * max(1.0, abs(start.t)):
        raise ConfigError(f"solve(start=…) is a state at t = {start.t:g}, but times begin at {t[0]:g}; let times[0] = start.t.")
    return start


def _fresh(scheme: Scheme, t: np.ndarray, store: Any, state: State, settings: _Settings) -> Trajectory:
    """Stores the first row and runs."""
    loop = _Loop(scheme, store, settings, float(t[0]), float(t[-1]), 0.0)
    try:
        loop.save(state)
        loop.run(state, t[1:])
    except PWGFError as error:
        if isinstance(store, Memory) and len(store):
            error.run = Trajectory(store, scheme)
        raise
    return Trajectory(store, scheme) if isinstance(store, Memory) else None  # type: ignore[return-value]


def _has_rows(out: str | os.PathLike[str]) -> bool:
    """Whether a run with at least one row is at `out`."""
    if not os.path.exists(out) and not os.path.exists(os.fspath(out) + ".parts"):
        return False
    try:
        with storage.open_record(out) as record:
            return len(record) > 0
    except PathError:
        if os.path.exists(out):
            raise
        return False  # killed before anything was published


def _resume(scheme: Scheme, t: np.ndarray, out: Any, config: dict[str, Any], max_cost: float | None, settings: _Settings) -> Trajectory:
    """Continues a stored run after checking that it is the same one."""
    with storage.open_record(out) as record:
        _check_same(record.config, config)
        state = restart_to_state(record.restart(), scheme.dtype, config["scheme"].get("device", "cpu"))
        _check_fingerprint(scheme, state, np.asarray(record.restart()["fingerprint"]))
        finished = record.complete and len(record.config["times"]) == len(t)
        spent = float(record.column("wall_time")[-1])
        threads = record.provenance.get("threads")
    if finished:
        return _opened(scheme, out)
    if threads != torch.get_num_threads():
        _log.warning("resuming with %d threads a run begun with %s: results may differ in the last bits", torch.get_num_threads(), threads)
    writer, record = storage.Writer.resume(out, max_cost=max_cost)
    with writer:
        if len(record.config["times"]) != len(t):
            writer.update_header(_header(scheme, config, state))
        last_row = float(record.column("t")[-1])
        loop = _Loop(scheme, writer, settings, float(t[0]), float(t[-1]), spent)
        loop.run(state, t[t > last_row])
    return _opened(scheme, out)


def _check_same(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """ResumeMismatchError, with the keys that differ, unless the settings agree; `times` may grow at its end."""
    old, new = _flatten({**stored, "times": None}), _flatten({**now, "times": None})
    differ = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    before, after = stored["times"], now["times"]
    if before[: len(after)] != after[: len(before)] or len(after) < len(before):
        differ.append("times")
    if differ:
        shown = "; ".join(f"{key}: stored {old.get(key, before)!r:.50}, now {new.get(key, after)!r:.50}" for key in differ[:8])
        raise ResumeMismatchError(
            f"solve(resume=True): the stored run has other settings ({shown}). Restore them, choose another out=…, or start "
            "anew with overwrite=True. times may only grow at the end."
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = ((str(k), part) for k, part in enumerate(value))  # type: ignore[assignment]
    else:
        return {prefix: value}
    return {k: v for key, part in items for k, v in _flatten(part, f"{prefix}.{key}" if prefix else str(key)).items()}


def _check_fingerprint(scheme: Scheme, state: State, stored: np.ndarray) -> None:
    now = scheme.fingerprint(state)
    close = 1e-9 if scheme.dtype == torch.float64 else 1e-3
    scale = max(float(np.abs(stored).max(initial=0.0)), 1e-300)
    if now.shape != stored.shape or not float(np.abs(now - stored).max(initial=0.0)) <= close * scale:
        raise ResumeMismatchError(
            f"solve(resume=True): energy and velocity at the stored state (t = {state.t:g}) differ from the stored ones, so the "
            "energy's functions have changed. Resume with the energy of the first run, or choose another out=…."
        )


class _Loop:
    """Steps, rows, checkpoints, callbacks and signals of one `solve`."""

    def __init__(self, scheme: Scheme, store: Any, settings: _Settings, first: float, last: float, spent: float) -> None:
        self.scheme, self.store, self.settings = scheme, store, settings
        self.began = time.monotonic() - spent
        self.bar = Progress(first, last, settings.progress)
        self.warned: set[str] = set()

    def run(self, state: State, times: np.ndarray) -> None:
        """On to the last time; each is stored when it is reached."""
        rows, saved = set(times.tolist()), time.monotonic()
        with contextlib.closing(self.bar), _Signals() as signals:
            for state, info in evolve(self.scheme, state, times) if len(times) else ():
                self.bar.update(state.t, dt=info.dt, **{k: v for k, v in info.values.items() if k == "energy"})
                self._warn_step(info)
                stop = [f(state, info) is True for f in self.settings.callbacks]
                if state.t in rows or any(stop):
                    self.save(state)
                    saved = time.monotonic()
                elif time.monotonic() - saved > self.settings.checkpoint_seconds or signals.number:
                    self.checkpoint(state)
                    saved = time.monotonic()
                signals.act()
                if any(stop):
                    return

    def save(self, state: State) -> None:
        """Measures and stores the row of this state."""
        row = self.scheme.measure(state)
        self._warn_row(row, state.t)
        plain = {k: v.detach().double().cpu().numpy() if isinstance(v, torch.Tensor) else float(v) for k, v in row.items()}
        plain.update(t=state.t, wall_time=time.monotonic() - self.began)
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
                "fold", "the map folds at %.2g of the samples at t = %.4g: its density is wrong there. Cure: more samples "
                "(num_samples), a wider map, or clip=5", row["fold_fraction"], t,
            )  # fmt: skip
        if float(row.get("projection_residual", 0.0)) > 0.25:
            self._warn(
                "residual", "the map follows only %.0f %% of the velocity at t = %.4g (projection_residual %.2g). Cure: a wider "
                "map, more samples (num_samples); near equilibrium, where the velocity itself vanishes, it is harmless",
                100 * (1 - float(row["projection_residual"])), t, row["projection_residual"],
            )  # fmt: skip

    def _warn_step(self, info: Info) -> None:
        change, predicted = info.values.get("energy_change", 0.0), info.values.get("predicted_change", 0.0)
        if math.isfinite(change) and change > 0.5 * abs(predicted) + 1e-6 * (1 + abs(info.values["energy"])):
            self._warn(
                "increase", "the energy rose by %.2g on the same samples between t = %.4g and %.4g, where it should have "
                "fallen by %.2g. Cure: lower tolerance or dt, more samples, larger damping", change, info.t0, info.t1, -predicted,
            )  # fmt: skip


class _Signals:
    """Turns SIGINT and SIGTERM into a flag for the duration of a run; the second one acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            self.number = number
            self.act()
        self.number = number

    def act(self) -> None:
        """Raises what the signal asked for, if one came."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _opened(scheme: Scheme, out: str | os.PathLike[str]) -> Trajectory:
    return Trajectory(storage.open_record(out), scheme, os.fspath(out))


def _header(scheme: Scheme, config: dict[str, Any], state: State) -> storage.Header:
    layout = [{"name": b.name, "shape": list(b.shape), "offset": b.offset} for b in scheme.layout()]
    provenance = {
        "pwgf": __version__, "torch": torch.__version__, "torchdiffeq": torchdiffeq.__version__, "numpy": np.__version__,
        "h5py": h5py.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "threads": torch.get_num_threads(), "device": config["scheme"].get("device", "cpu"), "git_commit": _git_commit(),
        "argv": sys.argv,
    }  # fmt: skip
    return storage.Header(config, layout, provenance, scheme.reference.dim, state.theta.numel())


def _git_commit() -> str:
    """Commit of the working folder's repository, or ""; the run does not depend on it."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
