"""What a caller asks of a figure, checked: axes to draw into, the problem with the exact law."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..problems import Problem
from ..run.trajectory import Trajectory
from ..study import accuracy


def checked_axes(ax: Any, call: str) -> Any:
    """ax; ConfigError unless it is one axes of matplotlib, or None."""
    if ax is not None and not (hasattr(ax, "plot") and hasattr(ax, "set_xlim")):
        raise ConfigError(
            f"{call}(ax=…) needs one axes of matplotlib; got {type(ax).__name__}. Give e.g. ax=figure.subplots(), or "
            "leave it out for a figure of its own."
        )
    return ax


def framed(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """The figure and the axes to draw into: a new one of this size in inches, unless axes are given."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    if ax is not None:
        return ax.figure, ax
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def known_problem(run: Trajectory, problem: Problem | None) -> Problem | None:
    """The problem given, or the one that the file records; None where that is unknown to this version or a user's."""
    try:
        return accuracy.problem_of(run) if problem is None else problem
    except ConfigError:
        return None
