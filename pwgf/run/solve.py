"""`solve`: a run from its arguments to its trajectory, begun or resumed, in a file or in memory."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import storage
from ..checks import check_ambient, memory_told, plain_numbers
from ..errors import ConfigError, PWGFError, ShapeError
from ..parallel import world
from ..schemes import Scheme, ask
from ..schemes.base import stored_config, tensor_config
from ..state import State
from ._file import FileRows
from ._one_writer import OneWriter
from ._samples import RowSamples
from .identity import identity_of
from .loop import Callback, Loop, Options
from .memory import Memory
from .provenance import provenance
from .resume import flatten, has_rows, pack_finished, same_device, stored_run
from .signals import Signals
from .sources import sources_of
from .spec import RunSpec, Times, check_times
from .trajectory import Trajectory

_log = logging.getLogger("pwgf")


@plain_numbers
def solve(
    scheme: Scheme,
    times: Times,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    start: State | None = None,
    max_cost: float | None = None,
    checkpoint_seconds: float = 60,
    max_seconds: float | None = None,
    max_steps: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    store_samples: int | None = None,
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
        resume: continue the run at `out`: a killed one continues to the bit, a finished one is returned (or extended
            when `times` is longer at its end), and where there is none a new one starts.
        overwrite: replace the run at `out`.
        start: a state to begin from instead of `scheme.start(seed)`; its t must be times[0].
        max_cost: share of the run time that writing may take; None publishes every row at once.
        checkpoint_seconds: between rows the restart state is published this often.
        max_seconds: wall time after which this call stops, after the step in progress; its state is stored, the status
            of the file is "interrupted", and `resume=True` continues to the bit, with any limit. None: no limit.
        max_steps: the same for the steps (`scheme.step`) of this call.
        metadata: your own entries, JSON values by name, stored as `run.config["metadata"]`; a resumed run keeps those
            with which it began.
        store_samples: number n of samples of ρ_t that every row holds, `run["samples"]` (T,n,d), for programs without
            pwgf. They are those of `run.sample(t, n)`.
        callbacks: each is called as f(state, info) after every step, with a state of its own; True (also NumPy's or
            torch's) stores a row and ends the run, None or False goes on, anything else is refused.
        progress: show progress; None means yes unless `PWGF_PROGRESS=0`.
        problem: a `pwgf.problems` problem, recorded so that `pwgf plot` can draw its exact law.

    Returns:
        The trajectory, with a row per time, or up to where a callback or a limit stopped it.

    Raises:
        ConfigError, ShapeError: arguments that cannot work; raised before anything is computed.
        NonFiniteError, SolverError: the flow cannot continue; rows so far are in the file, or in `run` of the error.
        StorageError: writing failed; what was published stays valid.
        ParallelError: another of the processes that share this run has stopped.
        ResumeMismatchError: the stored run had other settings or another energy.
    """
    check_ambient("solve(scheme, times)")
    _check_scheme(scheme)
    options = Options(checkpoint_seconds, callbacks, progress, max_seconds, max_steps)
    t = check_times(times)
    start = _checked_start(scheme, start, t)
    spec = RunSpec.of(scheme, t, seed, problem, start, metadata, store_samples)
    path = None if out is None else storage.checked_path(out, "solve(out=…)")
    if resume and path is None:
        raise ConfigError("solve(resume=True) needs the file to resume: solve(…, out='results/run.h5', resume=True).")
    found = _has_rows_to_resume(spec, start, path, resume, overwrite)
    cure = "fewer num_samples or num_eval, a smaller chunk_size or max_memory, a smaller map"
    with memory_told("solve", cure), Signals() as signals:  # also the first row, the last and the packing end in order
        if path is None:
            return _in_memory(scheme, spec, start, options, signals)
        if found:
            way = _continued(scheme, spec, path, max_cost)
        else:
            replace = overwrite or (resume and not os.path.exists(path))  # resumed after a kill before the first row
            way = _begun(scheme, spec, start, path, replace, max_cost)
        return _in_file(scheme, way, path, options, signals)


def _has_rows_to_resume(spec: RunSpec, start: State | None, out: str | None, resume: bool, overwrite: bool) -> bool:
    """Whether rows are stored; ConfigError where several processes differ in that, or in the settings."""
    found = resume and out is not None and has_rows(out)
    same: dict[str, Any] = {"out": out, "resume": resume, "overwrite": overwrite, "rows in out": found}
    same["start.theta"] = None if start is None else tensor_config(start.theta)
    settings = flatten(dataclasses.replace(spec, description={}, metadata=None).to_config())  # process 0 writes its own
    settings["scheme.device"] = spec.device.partition(":")[0]  # each process has one of the same kind
    world().agree({**settings, **same}, "solve")
    world().check_own_device(spec.device, "solve")
    return found


def _check_scheme(scheme: object) -> None:
    needed = ("start", "step", "measure", "fingerprint", "layout", "to_config")
    if isinstance(scheme, type) or not all(callable(getattr(scheme, name, None)) for name in needed):
        got = scheme.__name__ if isinstance(scheme, type) else type(scheme).__name__
        raise ConfigError(
            f"solve(scheme=…) needs a scheme, which has the methods {', '.join(needed)}; got {got}. "
            "Make one: pwgf.PWGF(energy, map, reference)."
        )


def _checked_start(scheme: Scheme, start: State | None, t: np.ndarray) -> State | None:
    """The state in the scheme's dtype and on its device; ConfigError or ShapeError where it is not the scheme's."""
    ask(scheme, "check_times")(t, start if isinstance(start, State) else None)
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
    if abs(start.t - float(t[0])) > 1e-6 * (float(t[-1] - t[0]) or max(1.0, abs(start.t))):
        raise ConfigError(
            f"solve(start=…) is a state at t = {start.t:g}, but times begin at {t[0]:g}; let times[0] = start.t."
        )
    device = stored_config(scheme)["device"]
    theta, theta_dot = (x.detach().to(device, scheme.dtype) for x in (start.theta, start.theta_dot))
    extra = {name: values.detach().to(device) for name, values in start.extra.items()}
    return dataclasses.replace(start, theta=theta, theta_dot=theta_dot, extra=extra)


def _first(scheme: Scheme, spec: RunSpec, start: State | None) -> tuple[State, np.ndarray]:
    """The first state, and the times whose rows are to be stored: its own and the later ones."""
    state = scheme.start(spec.seed, spec.span[0]) if start is None else start
    return state, np.concatenate([[state.t], spec.times[1:]])


def _in_memory(scheme: Scheme, spec: RunSpec, start: State | None, options: Options, signals: Signals) -> Trajectory:
    """The run without a file; if it fails, the error carries its rows."""
    memory = Memory(spec.to_config())
    state, times = _first(scheme, spec, start)
    samples = None if spec.store_samples is None else RowSamples(scheme, spec.store_samples)
    try:
        Loop(scheme, memory, options, signals, spec.span, samples=samples).run(state, times)
    except PWGFError as error:
        if len(memory):
            error.run = Trajectory(memory, scheme)
        raise
    return Trajectory(memory, scheme)


class _Way(NamedTuple):
    """The part of a run in a file that remains to be done.

    Args:
        state: from which it continues.
        times: those whose rows are to be stored.
        span: the initial and the last time of the whole run.
        open: returns the writer; None where nothing remains to be done.
        spent: seconds of wall time and of CPU so far.
        header: replaces the stored one, which lacks times that were added.
        samples: which rows hold; None for none.
    """

    state: State
    times: np.ndarray
    span: tuple[float, float]
    open: Callable[[], storage.Writer] | None
    spent: tuple[float, float] = (0.0, 0.0)
    header: storage.Header | None = None
    samples: RowSamples | None = None


def _begun(scheme: Scheme, spec: RunSpec, start: State | None, out: str, replace: bool, max_cost: float | None) -> _Way:
    """The whole of a new run."""
    state, times = _first(scheme, spec, start)
    header = _header(scheme, spec, state)
    create = functools.partial(storage.Writer.create, out, header, overwrite=replace, max_cost=max_cost)
    samples = None if spec.store_samples is None else RowSamples(scheme, spec.store_samples)
    return _Way(state, times, spec.span, create, samples=samples)


def _continued(scheme: Scheme, spec: RunSpec, out: str, max_cost: float | None) -> _Way:
    """The rest of the run stored at `out`, after checking that it is the same one."""
    stored = stored_run(scheme, spec, out)
    if stored.finished:
        return _Way(stored.state, stored.times, stored.spec.span, None)
    now = torch.get_num_threads(), world().size
    if stored.begun_with != now and world().rank == 0:
        _log.warning(
            "resuming with %d threads in %d processes a run begun with %s in %s: results may differ in the last bits",
            *now,
            *stored.begun_with,
        )
    if not same_device(stored.begun_on, spec.device) and world().rank == 0:
        _log.warning(
            "resuming on %s a run begun on %s: results may differ in the last bits", spec.device, stored.begun_on
        )
    header = _header(scheme, stored.spec, stored.state) if stored.grown else None
    samples = None if spec.store_samples is None else RowSamples(scheme, spec.store_samples, _rows(out))
    return _Way(
        stored.state,
        stored.times,
        stored.spec.span,
        lambda: storage.Writer.resume(out, max_cost=max_cost)[0],
        stored.spent,
        header,
        samples,
    )


def _rows(out: str) -> Iterator[tuple[float, torch.Tensor]]:
    """t and θ of all rows of a file; nothing is read before the first is asked for."""
    with storage.open_record(out) as record:
        for k, t in enumerate(record.column("t")):
            yield float(t), torch.from_numpy(record.vector("theta", k))


def _in_file(scheme: Scheme, way: _Way, out: str, options: Options, signals: Signals) -> Trajectory:
    """Runs what remains, of a new run or a resumed one."""
    if way.open is None:
        world().on_first(lambda: pack_finished(out))
    else:
        with OneWriter(world(), way.open) as writer:
            if way.header is not None:
                writer.update_header(way.header)
            ended = Loop(scheme, writer, options, signals, way.span, way.spent, way.samples).run(way.state, way.times)
            if not ended:
                writer.close("interrupted")
    with storage.open_record(out) as record:
        return Trajectory(FileRows(record), scheme, out)


def _header(scheme: Scheme, spec: RunSpec, state: State) -> storage.Header:
    layout = [{"name": b.name, "shape": list(b.shape), "offset": b.offset} for b in scheme.layout()]
    made_with = provenance(spec.device, world().size) | {"sources": sources_of(scheme)}
    dim = scheme.reference.dim
    return storage.Header(spec.to_config(), layout, made_with, dim, state.theta.numel(), identity_of(scheme))
