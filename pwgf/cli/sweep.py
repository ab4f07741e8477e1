"""The command `pwgf sweep`: a problem for every combination of settings, each run in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import tyro

from .. import storage
from ..errors import ConfigError, PWGFError
from ._options import option
from ._own import Posed, file_name, passing_on
from ._terminal import say
from .run import CALL as RUN_CALL
from .run import OWN, in_options, planned, problem_of, solved
from .settings import Run, Sweep
from .table import Line, line_of, tell

_CALL = "pwgf sweep"
_TAKEN = ("out", "resume")
_KILLED_AFTER = 60.0  # seconds that runs have to end in order


@dataclasses.dataclass
class Member:
    """One combination.

    Args:
        name: of its file.
        settings: as of `pwgf run`.
        swept: values of the options that have several.
        what: there is to solve; None where that failed.
        error: why it failed; empty so far.
    """

    name: str
    settings: Run
    swept: dict[str, str]
    what: Posed | None = None
    error: str = ""

    @property
    def path(self) -> str:
        """Of its file."""
        return str(self.settings.out)


def perform(settings: Sweep) -> int:
    """Solves them all and prints the table; exit status 0 if all are complete, else 1."""
    if settings.jobs < 1:
        raise ConfigError(f"{_CALL} --jobs needs an integer ≥ 1; got {settings.jobs}.")
    members = combinations(settings)
    _check(members)
    _make_folder(settings.out_dir)
    _Pool(members, settings.jobs).run()
    lines = [_line(member) for member in members]
    say("")
    tell(lines, as_csv=settings.csv)
    complete = sum(line.status == "complete" for line in lines)
    if complete < len(lines):
        say(
            f"pwgf: {len(lines) - complete} of {len(lines)} runs are not complete; the same command tries them again",
            error=True,
        )
    return 0 if complete == len(lines) else 1


def combinations(settings: Sweep) -> list[Member]:
    """All combinations of the values, the last option changing fastest.

    Raises:
        ConfigError: an option that a sweep sets itself, or a value that is there twice.
    """
    for name in _TAKEN:
        if name in settings.given:
            raise ConfigError(f"{_CALL} has no option {option(name)}; give --out-dir. Finished runs are kept.")
    axes = [_axis(settings.problem, name, values) for name, values in settings.given.items()]
    found = []
    for chosen in itertools.product(*axes):
        swept = {one.name: one.text for one, axis in zip(chosen, axes, strict=True) if len(axis) > 1}
        words = [f"{key.replace('_', '-')}-{text}" for key, text in swept.items()]
        name = re.sub(r"[^\w.+-]", "_", "-".join([file_name(settings.problem), *words]))
        own = {one.name: one.value for one in chosen if one.name in OWN}
        given = {one.name: [one.text] for one in chosen if one.name not in OWN}
        own["threads"] = own.get("threads") or 1  # the same for each number of jobs, and so the same to the bit
        path = os.path.join(settings.out_dir, f"{name}.h5")
        resume = not own.get("overwrite", False)
        found.append(Member(name, Run(settings.problem, **own, out=path, resume=resume, given=given), swept))
    return found


class _Value(NamedTuple):
    """A value of an option, as it was written and as `pwgf run` reads it."""

    name: str
    text: str
    value: Any


def _axis(problem: str, name: str, texts: Sequence[str]) -> list[_Value]:
    """The values of an option."""
    for text in texts:
        if list(texts).count(text) > 1:
            raise ConfigError(f"{_CALL} {option(name)} has the value {text} twice. Leave one out.")
    if name not in OWN:
        return [_Value(name, text, text) for text in texts or ["true"]]
    words = [[option(name), text] for text in texts] or [[option(name)]]
    read = [tyro.cli(Run, prog=_CALL, args=[problem, *one], config=(tyro.conf.FlagCreatePairsOff,)) for one in words]
    return [_Value(name, one[-1], getattr(settings, name)) for one, settings in zip(words, read, strict=True)]


def _check(members: list[Member]) -> None:
    """Notes which cannot begin; where none can, the first error is that of the command."""
    first: PWGFError | None = None
    for member in members:
        try:
            member.what = problem_of(member.settings)
            planned(member.settings, member.what)
        except PWGFError as error:
            member.error = in_options(error)
            first = first or error
    if first is not None and all(member.error for member in members):
        raise ConfigError(members[0].error.replace(RUN_CALL, _CALL, 1)) from first


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{_CALL} --out-dir {path}: cannot make this folder ({error.strerror}). Give another."
        ) from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{_CALL} --out-dir {path}: cannot write there. Check the permissions, or give another.")


def _line(member: Member) -> Line:
    """Its row of the table."""
    exact = None if member.what is None else member.what.exact
    found = line_of(member.path, lambda _: exact)
    if member.error:
        found = dataclasses.replace(found, status="failed", message=member.error)
    return dataclasses.replace(found, settings=member.swept)


class _Pool:
    """Runs members in processes of their own, so many at a time; what befalls one touches no other."""

    def __init__(self, members: Sequence[Member], jobs: int) -> None:
        self._members, self._jobs, self._done = members, jobs, 0
        self._running: dict[int, tuple[BaseProcess, Connection, Member, float]] = {}
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            slow_to_import = [f"{__package__}.run", "torchdiffeq"]  # once for all runs
            self._context.set_forkserver_preload(slow_to_import)

    def run(self) -> None:
        """All of them; after an interrupt those in progress store their state first."""
        waiting = [member for member in self._members if not member.error]
        for member in self._members:
            if member.error:
                self._tell(member, f"failed: {member.error}")
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._jobs:
                    self._begin(waiting.pop(0))
                ready = wait(list(self._running))
                for sentinel in [one for one in self._running if one in ready]:
                    self._end(*self._running.pop(sentinel))
        finally:
            self._stop()

    def _begin(self, member: Member) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(member.settings, theirs), name=member.name)
        process.start()
        theirs.close()
        self._running[process.sentinel] = process, ours, member, time.monotonic()

    def _end(self, process: BaseProcess, ours: Connection, member: Member, began: float) -> None:
        process.join()
        with contextlib.suppress(EOFError), ours:
            member.error = ours.recv()
        if process.exitcode and not member.error:
            number = -process.exitcode
            died = f"its process was killed by {signal.Signals(number).name}" if number > 0 else ""
            member.error = died or f"its process ended with exit status {process.exitcode}"
        word = f"failed: {member.error}" if member.error else _status(member.path)
        self._tell(member, f"{word}, {time.monotonic() - began:.1f} s")

    def _tell(self, member: Member, word: str) -> None:
        self._done += 1
        say(f"{self._done} of {len(self._members)}: {member.name}: {word}")

    def _stop(self) -> None:
        """Ends what still runs, in order."""
        for process, *_ in self._running.values():
            process.terminate()
        for process, *_ in self._running.values():
            process.join(_KILLED_AFTER)
            if process.is_alive():
                process.kill()


def _status(path: str) -> str:
    with storage.open_record(path) as record:
        return record.status


def work(settings: Run, told: Connection) -> None:
    """One member, in its process: sends an empty text, or what went wrong."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the sweep alone, which then asks each run to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["PWGF_PROGRESS"] = "0"
    try:
        what = problem_of(settings)
        with passing_on(f"{_CALL}: solving", (Exception,)):
            solved(settings, what, str(settings.out))
    except PWGFError as error:
        told.send(in_options(error))
        sys.exit(1)
    told.send("")


def _end_with_parent() -> None:
    """Asks this process to end in order once the sweep is gone, also when that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
