"""The main loop: `evolve` makes steps, `solve` stores rows, resumes, reports and stops."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import storage
from ..errors import ConfigError, PWGFError, ShapeError
from ..parallel import world
from ..schemes import Scheme
from ..schemes.base import tensor_config
from ..state import State
from ._one_writer import OneWriter
from .loop import Callback, Loop, Settings, check_times
from .provenance import provenance
from .resume import check_fingerprint, check_same, flatten, has_rows, pack_finished, stored_state
from .signals import Signals
from .trajectory import Memory, Trajectory, restart_to_state

_log = logging.getLogger("pwgf")


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
        ParallelError: another of the processes that share this run has stopped.
        ResumeMismatchError: the stored run had other settings or another energy.
    """
    _check_scheme(scheme)
    _check_problem(problem)
    t, settings = check_times(times), Settings(checkpoint_seconds, callbacks, progress)
    config = {
        "scheme": scheme.to_config(),
        "times": t.tolist(),
        "seed": seed,
        "problem": None if problem is None else problem.to_config(),
    }
    start = _checked_start(scheme, start, t)
    if start is not None:
        config["start"] = {"t": start.t, "counters": dict(start.counters)}
    out = None if out is None else storage.checked_path(out, "solve(out=…)")
    stored = _rows_to_resume(config, out, resume, overwrite, start)
    if out is None:
        if resume:
            raise ConfigError(
                "solve(resume=True) needs the file to resume: solve(…, out='results/run.h5', resume=True)."
            )
        memory = Memory(config)
        with Signals() as signals:
            _fresh(scheme, t, memory, _first_state(scheme, seed, t, start), settings, signals)
        return Trajectory(memory, scheme)
    with Signals() as signals:  # from here on: also the first row, the last and the packing end in order
        if stored:
            return _resume(scheme, t, out, config, max_cost, settings, signals)
        state = _first_state(scheme, seed, t, start)
        header = _header(scheme, config, state)
        replace = overwrite or (resume and not os.path.exists(out))  # resumed after a kill before the first row
        create = functools.partial(storage.Writer.create, out, header, overwrite=replace, max_cost=max_cost)
        with OneWriter(world(), create) as writer:
            _fresh(scheme, t, writer, state, settings, signals)
    return _opened(scheme, out)


def _rows_to_resume(config: dict[str, Any], out: Any, resume: bool, overwrite: bool, start: State | None) -> bool:
    """Whether there are; ConfigError where several processes differ in that, or in the settings."""
    stored = resume and out is not None and has_rows(out)
    same: dict[str, Any] = {"out": out and os.fspath(out), "resume": resume, "overwrite": overwrite}
    same |= {"rows in out": stored, "start.theta": None if start is None else tensor_config(start.theta)}
    world().agree({**flatten(config), **same}, "solve")
    return stored


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


def _checked_start(scheme: Scheme, start: State | None, t: np.ndarray) -> State | None:
    """The state in the scheme's dtype and on its device; ConfigError or ShapeError where it is not the scheme's.

    A scheme with `check_times` also says whether it can begin there and store rows at t.
    """
    if hasattr(scheme, "check_times"):
        scheme.check_times(t, start if isinstance(start, State) else None)
    if start is None:
        return None
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
    store: Memory | OneWriter,
    state: State,
    settings: Settings,
    signals: Signals,
) -> None:
    """Stores the first row and runs; a run in memory that fails hands its rows over with the error."""
    loop = Loop(scheme, store, settings, signals, float(t[0]), float(t[-1]))
    try:
        loop.save(state)
        loop.act()
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
    settings: Settings,
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
        grown, last_row = len(record.config["times"]) != len(t), float(record.column("t")[-1])
        spent = (float(record.column("wall_time")[-1]), float(record.column("cpu_time")[-1]))
        begun = (record.provenance.get("threads"), record.provenance.get("processes", 1))
    if finished:
        world().on_first(lambda: pack_finished(out))
        return _opened(scheme, out)
    group, now = world(), (torch.get_num_threads(), world().size)
    if begun != now and group.rank == 0:
        _log.warning(
            "resuming with %d threads in %d processes a run begun with %s in %s: results may differ in the last bits",
            *now,
            *begun,
        )
    with OneWriter(group, lambda: storage.Writer.resume(out, max_cost=max_cost)[0]) as writer:
        if grown:
            writer.update_header(_header(scheme, config, state))
        loop = Loop(scheme, writer, settings, signals, float(t[0]), float(t[-1]), spent)
        loop.run(state, t[t > last_row])
    return _opened(scheme, out)


def _opened(scheme: Scheme, out: str) -> Trajectory:
    return Trajectory(storage.open_record(out), scheme, out)


def _header(scheme: Scheme, config: dict[str, Any], state: State) -> storage.Header:
    layout = [{"name": b.name, "shape": list(b.shape), "offset": b.offset} for b in scheme.layout()]
    return storage.Header(
        config,
        layout,
        provenance(config["scheme"].get("device", "cpu"), world().size),
        scheme.reference.dim,
        state.theta.numel(),
    )
