"""Panels over time: energy, projection residual, error, and whatever else a run has stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import storage
from ..errors import ConfigError
from ..problems import Problem
from ..run.asked import some
from ..run.trajectory import Trajectory
from ..study import accuracy
from ._asked import checked_axes, framed, known_problem
from ._style import EXACT, QUIET, RUN, SECOND, style

_ROWS = 7  # most rows with exact values; the four of the law are among them, so that each is computed once
_NUM_KL = 200  # samples of each law behind a divergence
_ROUNDING = 1e-8  # distances below are rounding
Panel = Callable[[Any], None]
_TELLING = ("velocity_rms", "second_moment", "dissipation")  # columns that take the place of what is not known


def panels(run: Trajectory, problem: Problem | None, n: int, most: int = 3) -> tuple[list[Panel], list[str]]:
    """The first `most` panels that the run can fill, and why others are missing."""
    asked = (_energy(run, problem), _residual(run), _error(run, problem, n), _estimate(run))
    found = [panel for panel in asked if callable(panel)][:most]
    notes = [why for why in asked if isinstance(why, str) and why]
    own = [name for name in run.names if name not in ("theta", "theta_dot", "samples", "t") and not _is_shown(name)]
    told = [*(n for n in _TELLING if n in own), *(n for n in own if n not in _TELLING)]
    for name in told or ([] if found else ["wall_time"]):
        if len(found) < most and _column(run, name) is not None:
            found.append(_any_column(run, name))
    return found, notes


def energy(run: Trajectory, *, problem: Problem | None = None, ax: Any = None) -> Any:
    """The energy over time; see `Trajectory.plot_energy`.

    Raises:
        ConfigError: the run has no energy.
    """
    panel = _energy(run, known_problem(run, problem))
    if isinstance(panel, str):
        raise ConfigError(f"run.plot_energy(): {panel}. The columns of this run are {', '.join(run.names)}.")
    ax = checked_axes(ax, "run.plot_energy")
    with style():
        figure, axes = framed(ax, (6.4, 3.6))
        panel(axes)
        time_axis(axes, run)
    return figure if ax is None else ax


def time_axis(panel: Any, run: Trajectory) -> None:
    """From the first to the last row, labelled."""
    if len(run) > 1:
        room = 0.03 * (run.t[-1] - run.t[0])
        panel.set_xlim(run.t[0] - room, run.t[-1] + room)
    panel.set_xlabel("time t")


def _is_shown(name: str) -> bool:
    """Whether a column is shown by a panel of its own, or says little of the law."""
    return name.startswith(("energy", "num_", "solver_")) or name in (
        "projection_residual", "fold_fraction", "error_estimate", "spread", "damping", "dt", "wall_time", "cpu_time",
    )  # fmt: skip


def _column(run: Trajectory, name: str) -> np.ndarray | None:
    """The column where it is stored and has a finite value."""
    values = run[name] if name in run.names else None
    return values if values is not None and np.isfinite(values).any() else None


def _style_of(run: Trajectory) -> str:
    """A marker at each row unless there are many."""
    return "-o" if len(run) <= 60 else "-"


def _energy(run: Trajectory, problem: Problem | None) -> Panel | str:
    values, noise = _column(run, "energy"), _column(run, "energy_stderr")
    if values is None and "energy" in run.names:
        return "energy not known: particles have no density, and this energy has an entropy"
    if values is None:
        return "energy not stored by this scheme"

    def draw(panel: Any) -> None:
        panel.set_title("Energy F(ρ)")
        panel.plot(run.t, values, _style_of(run), color=RUN, label="run")
        if noise is not None:
            band = values - 2 * noise, values + 2 * noise
            panel.fill_between(run.t, *band, color=RUN, alpha=0.2, lw=0, label="± 2 standard errors")
        rows = some(len(run), _ROWS)
        exact = [problem.exact_energy(float(run.t[k])) for k in rows] if problem else [None]
        if all(value is not None for value in exact):
            panel.plot(run.t[rows], exact, "o", mfc="none", mec=EXACT, mew=1.3, ms=8, label="exact")
        panel.set_ylabel("F", labelpad=1)
        panel.legend()

    return draw


def _residual(run: Trajectory) -> Panel | str:
    residual, folds = _column(run, "projection_residual"), _column(run, "fold_fraction")
    if residual is None:
        why = run.description.no_projection
        return f"no projection residual{': ' + why if why else ''}"

    of_second_order = "acceleration_rms" in run.names

    def draw(panel: Any) -> None:
        panel.set_title(f"Projection residual: {'acceleration' if of_second_order else 'velocity'} missed")
        missed = "E|Jη̇ − a|² / E|a|²" if of_second_order else "E|Jθ̇ − v|² / E|v|²"
        panel.plot(run.t, positive(residual), _style_of(run), color=RUN, label=missed)
        if folds is not None and folds.max() > 0:
            panel.plot(run.t, np.where(folds > 0, folds, np.nan), "-s", color=EXACT, label="folded samples (share)")
        panel.axhline(1, color=QUIET, lw=0.9, ls=(0, (4, 3)), label="1: nothing followed")
        decades(panel)
        panel.legend(loc="upper left")

    return draw


def _error(run: Trajectory, problem: Problem | None, n: int) -> Panel | str:
    if problem is None:
        return "error not known: the file names no problem with a known answer"
    rows = some(len(run), _ROWS)
    try:
        found = accuracy.errors(run, problem, n, rows=rows, num_kl=_NUM_KL)
    except ConfigError:
        return "error not measured: the law cannot be read from the file"

    def draw(panel: Any) -> None:
        t = run.t[rows]
        panel.set_title("Error against the exact law")
        panel.plot(t, positive(found["bures_w2"], _ROUNDING), "-o", color=RUN, label="Bures–W₂ (units of x)")
        floor = positive(found["bures_w2_floor"], _ROUNDING)
        if np.isfinite(floor).any():
            panel.plot(t, floor, ls=(0, (1, 1.5)), color=RUN, lw=1.3, label="its sampling error")
        divergence = positive(found["sym_kl"])
        if np.isfinite(divergence).any():
            panel.plot(t, divergence, "-s", color=SECOND, label="symmetric KL (nats)")
        decades(panel)
        panel.legend(loc="upper left")

    return draw


def _estimate(run: Trajectory) -> Panel | str:
    if _column(run, "error_estimate") is None or _column(run, "spread") is None:
        return ""

    def draw(panel: Any) -> None:
        share = run["error_estimate"] / np.maximum(run["spread"], 1e-300)
        panel.set_title("Estimated error of the law")
        panel.plot(run.t, positive(share), _style_of(run), color=RUN, label="W₂ / spread, from the velocity missed")
        decades(panel)
        panel.legend(loc="upper left")

    return draw


def _any_column(run: Trajectory, name: str) -> Panel:
    def draw(panel: Any) -> None:
        told = storage.meaning(name)
        panel.set_title(told.long_name[:1].upper() + told.long_name[1:])
        panel.plot(run.t, run[name], _style_of(run), color=RUN, label="run")
        panel.set_ylabel(told.units if told.units != "1" else "")

    return draw


def positive(values: np.ndarray, least: float = 1e-14) -> np.ndarray:
    """The values that a log axis can show: what is zero up to rounding, as at an exact start, is left out."""
    return np.where(values > least, values, np.nan)


def decades(panel: Any) -> None:
    """A log axis between whole powers of ten, labelled at these alone, with room for the legend above."""
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines()])
    shown = np.log10(shown[np.isfinite(shown)])
    panel.set_yscale("log")
    if len(shown):
        low, high = math.floor(shown.min() - 0.1), math.ceil(shown.max())
        panel.set_ylim(10.0**low, 10.0 ** (high + 0.45 * (high - low)))
    panel.yaxis.set_major_locator(LogLocator(numticks=7))
    panel.yaxis.set_minor_formatter(NullFormatter())
