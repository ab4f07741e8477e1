"""The commands `pwgf plot`, `pwgf animate` and `pwgf export`: a run as a figure, in motion, and as samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .. import plots
from ..errors import ConfigError
from ..run.trajectory import load
from ._options import numbers
from ._terminal import say
from .facts import problem_from
from .settings import Animate, Export, Plot


def plot(settings: Plot) -> int:
    """Draws the figure; exit status 0."""
    dims = values(settings.dims, int, "pwgf plot --dims")
    times = values(settings.times, float, "pwgf plot --times")
    if settings.kind == "energy" and (dims is not None or times is not None):
        raise ConfigError(
            "pwgf plot --kind energy shows no law: leave --dims and --times out, or use --kind marginals."
        )
    run, spec = load(settings.file), settings.problem
    exact = None if spec is None else problem_from(spec, "pwgf plot --problem")(run)
    makers: dict[str, Callable[[], Any]] = {
        "overview": lambda: run.plot(dims=dims, times=times, problem=exact),
        "energy": lambda: run.plot_energy(problem=exact),
        "marginals": lambda: run.plot_marginals(times, dims, problem=exact),
        "density": lambda: run.plot_density(one_time(times), dims, problem=exact),
    }
    say(f"Drawn: {plots.write(makers[settings.kind], settings.out or beside(settings.file, '.png'))}")
    return 0


def animate(settings: Animate) -> int:
    """Writes the film; exit status 0."""
    out = settings.out or beside(settings.file, ".gif")
    dims = values(settings.dims, int, "pwgf animate --dims")
    load(settings.file).animate(out, dims, num_frames=settings.frames, fps=settings.fps)
    say(f"Drawn: {out}")
    return 0


def export(settings: Export) -> int:
    """Writes samples; exit status 0."""
    out = settings.out or beside(settings.file, ".nc")
    dims = values(settings.dims, int, "pwgf export --dims")
    times = values(settings.times, float, "pwgf export --times")
    written = load(settings.file).export(out, settings.samples, times=times, dims=dims, seed=settings.seed)
    say(f"Written to {written}")
    return 0


def values(text: str | None, kind: type, where: str) -> list[Any] | None:
    """Numbers with commas between them; None where the option was left out."""
    return None if text is None else numbers(text, kind, where)


def one_time(times: list[float] | None) -> float | None:
    """The single time of `--times`; None where it was left out."""
    if times is not None and len(times) != 1:
        raise ConfigError(f"pwgf plot --kind density shows one time; got {len(times)} in --times. Give one.")
    return None if times is None else times[0]


def beside(file: str, ending: str) -> str:
    """The name of the run's file with another ending."""
    return re.sub(r"\.(h5|hdf5)$", "", file) + ending
