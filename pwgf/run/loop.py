"""The main loop: one step of a scheme after another, with rows, checkpoints, callbacks and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..checks import check_ambient, check_integer, check_positive
from ..errors import ConfigError, ParallelError, SolverError
from ..parallel import world
from ..schemes import Scheme, ask
from ..state import Info, State
from ._restart import state_to_restart
from ._samples import RowSamples
from .progress import Progress
from .signals import Signals
from .spec import Times, check_times

Callback = Callable[[State, Info], Any]

_log = logging.getLogger("pwgf")


class Store(Protocol):
    """Where rows go: a file, or memory."""

    def append(self, row: Mapping[str, Any], restart: Mapping[str, Any]) -> None:
        """Adds a row with the state that follows it."""
        ...

    def checkpoint(self, restart: Mapping[str, Any]) -> None:
        """Publishes the state between two rows."""
        ...


def evolve(scheme: Scheme, state: State, times: Times) -> Iterator[tuple[State, Info]]:
    """Yields (state, info) after every step on the way through the given times, each of which is hit exactly.

    Args:
        scheme: e.g. `PWGF`.
        state: where to begin, e.g. `scheme.start(seed)`.
        times: increasing; those not after `state.t` are skipped.
    """
    check_ambient("evolve(scheme, state, times)")
    if not isinstance(state, State):
        raise ConfigError(
            f"evolve(scheme, state, times) needs a State, such as scheme.start(seed); got {type(state).__name__}. "
            "Give evolve(scheme, scheme.start(0), times)."
        )
    for after, info in _steps(scheme, state, check_times(times, "evolve")):
        yield after.copy(), info


def _steps(scheme: Scheme, state: State, times: np.ndarray) -> Iterator[tuple[State, Info]]:
    for t1 in times.tolist():
        while state.t < t1:
            before = state
            state, info = scheme.step(before, t1)
            if not 0 <= state.left(t1) < before.left(t1):
                raise SolverError(
                    f"{type(scheme).__name__}.step(state, t1) must end after its start and not after t1; from t = "
                    f"{before.t:.17g} with t1 = {t1:.17g} it ended at t = {state.t:.17g}. Let a step of at least "
                    "state.left(t1) end at t1 itself, and others at state.later(h, t1), which gives t and rest."
                )
            yield state, info


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `solve` that the loop uses and the file does not record; see `solve`."""

    checkpoint_seconds: float
    callbacks: Sequence[Callback]
    progress: bool | None
    max_seconds: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None:
            check_positive(self.max_seconds, "max_seconds", "solve")
        if self.max_steps is not None:
            check_integer(self.max_steps, "max_steps", "solve")
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


def _stops(answer: object) -> bool:
    """Whether a callback's answer ends the run; ConfigError where it is neither a truth value nor None."""
    if isinstance(answer, torch.Tensor) and answer.dtype == torch.bool and answer.ndim == 0:
        return bool(answer)
    if answer is None or isinstance(answer, (bool, np.bool_)):
        return bool(answer)
    raise ConfigError(
        "solve(callbacks=…): a callback must return True, to store a row and end the run, or False or None, to go on; "
        f"got {answer!r:.60} ({type(answer).__name__}). Return a comparison, such as info.values['energy'] < 0.1."
    )


class Loop:
    """Steps, rows, checkpoints, callbacks and signals of one `solve`; several processes do all this together.

    Args:
        scheme: makes the steps.
        store: receives the rows.
        options: of the call.
        signals: flag of the signal received.
        span: the initial and the last time of the run.
        spent: seconds of wall time and of CPU that earlier parts of the run took.
        samples: which rows hold; None for none.
    """

    def __init__(
        self,
        scheme: Scheme,
        store: Store,
        options: Options,
        signals: Signals,
        span: tuple[float, float],
        spent: tuple[float, float] = (0.0, 0.0),
        samples: RowSamples | None = None,
    ) -> None:
        self.scheme = scheme
        self.store = store
        self.options = options
        self.signals = signals
        self.samples = samples
        self.span = span
        self.group = world()
        self.watch = ask(scheme, "watch")(span)
        self.warned: set[str] = set()
        self.began = time.monotonic() - spent[0]
        self.cpu_spent = spent[1]
        self.cpu_began = time.process_time()
        self.entered = self.saved = time.monotonic()
        self.num_steps = 0
        self.last_row = math.nan

    def run(self, state: State, times: np.ndarray) -> bool:
        """Advances through the times and stores a row at each, the first at once if the state is there.

        A callback whose answer is true ends the run after a row.

        Returns:
            Whether the run has ended; False where `max_seconds` or `max_steps` stopped it, after storing its state.
        """
        rows = set(times.tolist())
        if state.t in rows:
            self._save(state)
            self._act()
        with self._told_what_is_stored(), contextlib.closing(self._progress()) as bar:
            for after, info in _steps(self.scheme, state, times):
                bar.update(after.t, dt=info.dt, **{k: v for k, v in info.values.items() if k == "energy"})
                self._warn(self.watch.of_step(info))
                self.num_steps += 1
                stop, due, limit = self._decided(after, info)
                if (after.t in rows or stop) and not after.t <= self.last_row:  # steps may be shorter than ulp(t)
                    self._save(after)
                elif due or limit or stop:
                    self._checkpoint(after)
                self._act()
                if stop:
                    return True
                if limit and after.t < times[-1]:
                    self._report_limit(after.t)
                    return False
        return True

    def _progress(self) -> Progress:
        return Progress(*self.span, self.options.progress if self.group.rank == 0 else False)

    @contextlib.contextmanager
    def _told_what_is_stored(self) -> Iterator[None]:
        """When another process has stopped, adds to the error up to where rows are stored."""
        try:
            yield
        except ParallelError as error:
            raise ParallelError(f"{error} Rows up to t = {self.last_row:.6g} are stored.") from error

    def _decided(self, state: State, info: Info) -> tuple[bool, bool, bool]:
        """Whether a callback of any process ends the run, a checkpoint is due, and a limit is reached."""
        stop = any([_stops(f(state.copy(), info)) for f in self.options.callbacks])  # every callback is called
        due = time.monotonic() - self.saved > self.options.checkpoint_seconds or self.signals.number > 0
        options, elapsed = self.options, time.monotonic() - self.entered
        limit = options.max_steps is not None and self.num_steps >= options.max_steps
        limit = limit or (options.max_seconds is not None and elapsed >= options.max_seconds)
        stop, due, limit = (flag > 0 for flag in self.group.greatest(stop, due, limit))
        return stop, due, limit

    def _report_limit(self, t: float) -> None:
        if self.group.rank == 0:
            _log.warning(
                "stopped at t = %.6g of %.6g by max_steps or max_seconds, after %d steps and %.3g s; the state is kept:"
                " solve(out=…, resume=True) goes on, or without a file solve(start=run.state())",
                t, self.span[1], self.num_steps, time.monotonic() - self.entered,
            )  # fmt: skip

    def _act(self) -> None:
        """Acts on a signal that any of the processes has received."""
        self.signals.act(int(self.group.greatest(self.signals.number)[0]))

    def _warn(self, found: Iterable[tuple[str, str]]) -> None:
        """Reports each kind of trouble once in a run, from one process of several."""
        for kind, message in found:
            if kind not in self.warned and self.group.rank == 0:
                _log.warning("%s", message)
            self.warned.add(kind)

    def _save(self, state: State) -> None:
        """Measures and stores the row of this state."""
        row = self.scheme.measure(state)
        self._warn(self.watch.of_row(row, state.t))
        plain = {
            k: v.detach().double().cpu().numpy() if isinstance(v, torch.Tensor) else float(v) for k, v in row.items()
        }
        cpu = torch.tensor(time.process_time() - self.cpu_began, dtype=torch.float64, device=self.group.device)
        plain.update(
            t=state.t, wall_time=time.monotonic() - self.began, cpu_time=self.cpu_spent + float(self.group.sum(cpu))
        )
        if self.samples is not None:
            plain["samples"] = self.samples(state)
        self.store.append(plain, state_to_restart(state, self.scheme.fingerprint(state)))
        self.last_row = state.t
        self.saved = time.monotonic()

    def _checkpoint(self, state: State) -> None:
        """Publishes the restart state between rows."""
        self.store.checkpoint(state_to_restart(state, self.scheme.fingerprint(state)))
        self.saved = time.monotonic()
