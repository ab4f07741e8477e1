"""The law of a run: densities of one coordinate, of pairs of coordinates, and all pairs of several."""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError
from ..measures import Law
from ..problems import Problem
from ..run.asked import Dims, Times, checked_dims, checked_times
from ..run.trajectory import Trajectory
from ._asked import checked_axes, framed, known_problem
from ._density import Grid, drawn, joint, levels, marginal, smoothed_2d
from ._style import EXACT, QUIET, RUN, style

_MOST_TIMES = 12
_MOST_DIMS = 8
NUM_SAMPLES = 10_000
"""Samples behind a density."""
_DASHED: dict[str, Any] = {"ls": (0, (3, 3)), "lw": 1.0}


def marginals(
    run: Trajectory, times: Times = None, dims: Dims = None, *, problem: Problem | None = None, ax: Any = None
) -> Any:
    """Densities at several times: of one coordinate in one axes, of several all pairs; see `Trajectory.plot_marginals`.

    Raises:
        ConfigError: coordinates or times that the run has not, several coordinates for one `ax`, or no law to be read.
    """
    call = "run.plot_marginals"
    ax, dim = checked_axes(ax, call), run.reference.dim
    shown = checked_dims(dims, dim, call, default=range(min(dim, 4)), most=_MOST_DIMS)
    if ax is not None and len(shown) > 1:
        raise ConfigError(
            f"{call}(ax=…) holds the density of one coordinate; got dims={shown}. Give one, or leave ax out."
        )
    series = _Series(run, checked_times(times, run, call, default=4, most=_MOST_TIMES), known_problem(run, problem))
    with style():
        if len(shown) > 1:
            return _corner(series, shown)
        figure, panel = framed(ax, (6.4, 3.6))
        _curves(panel, series, shown[0])
        panel.set(xlabel=label(shown[0], dim), ylabel="density" if dim == 1 else "marginal density", ylim=(0, None))
        panel.legend(handles=series.handles())
    return figure if ax is None else ax


def density(
    run: Trajectory, t: float | None = None, dims: Dims = None, *, problem: Problem | None = None, ax: Any = None
) -> Any:
    """Joint density of two coordinates at one time; see `Trajectory.plot_density`.

    Raises:
        ConfigError: coordinates or a time that the run has not, d = 1, or no law to be read.
    """
    call = "run.plot_density"
    ax, dim = checked_axes(ax, call), run.reference.dim
    pair = checked_dims(dims, dim, call, default=range(min(dim, 2)), most=2)
    if len(pair) < 2:
        raise ConfigError(f"{call}(dims=…) needs two coordinates; got {pair}. For one, use run.plot_marginals.")
    times = checked_times(run.t[-1:] if t is None else t, run, call, default=1, most=1)
    series = _Series(run, times, known_problem(run, problem))
    limits = np.stack([series.limits(k) for k in pair])
    with style():
        figure, panel = framed(ax, (5.4, 4.4))
        grid = joint(series.laws[0], series.samples[0], pair, limits)
        drawn = panel.pcolormesh(*grid, cmap="Blues", vmin=0, shading="gouraud", rasterized=True)
        panel.figure.colorbar(drawn, ax=panel, label="density" if dim == 2 else "marginal density")
        regions(panel, grid, RUN)
        handles = [_line(RUN, f"t = {times[0]:.4g}: 50 % and 95 % of the mass")]
        if series.exact:
            regions(panel, joint(series.exact[0], series.exact_samples[0], pair, limits), EXACT, dashed=True)
            handles.append(_line(EXACT, "of the exact law", ls="--"))
        panel.set(xlabel=label(pair[0], dim), ylabel=label(pair[1], dim), xlim=limits[0], ylim=limits[1])
        panel.grid(False)
        panel.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2)
    return figure if ax is None else ax


def label(k: int, dim: int) -> str:
    """Of coordinate k, as one writes it in Python."""
    return "x" if dim == 1 else f"x[{k}]"


def regions(panel: Any, grid: Grid, colour: Any, *, dashed: bool = False, fine: bool = False) -> Any:
    """Contours of the smallest regions that hold 95 and 50 % of the mass."""
    x, y, density = grid
    heights = [height for height in levels(density) if 0 < height < density.max()] or [math.inf]
    widths = (0.9, 1.2) if fine else (1.1, 1.7)
    look: dict[str, Any] = {"linestyles": "--" if dashed else "-", "linewidths": widths[: len(heights)]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No contour levels were found")  # a law beyond the axes
        return panel.contour(x, y, density, levels=heights, colors=[colour], **look)


def outer(x: torch.Tensor) -> tuple[float, float]:
    """Ends between which all but a few of the samples (n,) lie."""
    found = x.double().quantile(torch.tensor([0.003, 0.997], dtype=torch.float64))
    return float(found[0]), float(found[1])


class _Series:
    """The laws of a run at the times of a figure, and the exact ones where they are known, with samples and colours."""

    def __init__(self, run: Trajectory, times: list[float], problem: Problem | None) -> None:
        self.times = times
        self.laws: list[Law] = [run.at(t) for t in times]
        self.exact: list[Law] = [problem.exact(t) for t in times] if problem is not None else []

    @cached_property
    def samples(self) -> list[torch.Tensor]:
        """(n,d) float64 of each law of the run."""
        return [drawn(law, NUM_SAMPLES, seed=0) for law in self.laws]

    @cached_property
    def exact_samples(self) -> list[torch.Tensor]:
        """(n,d) float64 of each exact law."""
        return [drawn(law, NUM_SAMPLES, seed=1) for law in self.exact]

    def limits(self, k: int) -> np.ndarray:
        """[low, high] of coordinate k that hold all laws but their outermost few samples."""
        spans = [outer(x[:, k]) for x in (*self.samples, *self.exact_samples)]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        room = 0.12 * (high - low) or 0.1 * max(abs(high), 1.0)
        return np.array([low - room, high + room])

    @property
    def colours(self) -> list[Any]:
        """From early, pale, to late, dark."""
        from matplotlib import colormaps  # noqa: PLC0415

        shades = np.linspace(0.12, 0.95, len(self.times)) if len(self.times) > 1 else [0.7]
        return [colormaps["viridis_r"](shade) for shade in shades]

    def handles(self) -> list[Any]:
        """Of the legend."""
        found = [_line(colour, f"t = {t:.4g}") for t, colour in zip(self.times, self.colours, strict=True)]
        return [*found, _line("black", "exact law", **_DASHED)] if self.exact else found


def _line(colour: Any, text: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], color=colour, label=text, **look)


def _curves(panel: Any, series: _Series, k: int) -> None:
    """The densities of coordinate k at all times."""
    limits = series.limits(k)
    for law, x, colour in zip(series.laws, series.samples, series.colours, strict=True):
        panel.plot(*marginal(law, x, k, limits), color=colour, lw=2.2)
    for law, x in zip(series.exact, series.exact_samples, strict=True):
        panel.plot(*marginal(law, x, k, limits), color="black", **_DASHED)
    panel.set_xlim(limits)


def _corner(series: _Series, dims: list[int]) -> Any:
    """Densities of single coordinates on the diagonal; below it of pairs, above it samples at the last time."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    count, dim = len(dims), series.laws[0].dim
    size = max(5.6, 1.7 * count + 0.6)
    figure = Figure(figsize=(size, size + 0.3), layout="constrained")
    grid = figure.subplots(count, count, sharex="col")
    limits = [series.limits(k) for k in dims]
    for row in range(count):
        for column in range(count):
            panel = grid[row, column]
            if row == column:
                _curves(panel, series, dims[row])
                panel.set(ylim=(0, None), yticks=[])
                continue
            ends = np.stack([limits[column], limits[row]])
            (_pairs if row > column else _cloud)(panel, series, [dims[column], dims[row]], ends)
            panel.set(xlim=ends[0], ylim=ends[1])
            panel.tick_params(labelleft=column == 0)
        grid[row, 0].set_ylabel(label(dims[row], dim) if row else "density")
    for panel, k in zip(grid[-1], dims, strict=True):
        panel.set_xlabel(label(k, dim))
    figure.legend(handles=series.handles(), loc="outside upper center", ncols=min(len(series.times) + 1, 7))
    told = f"below: regions that hold 50 % and 95 % of the mass; above: samples at t = {series.times[-1]:.4g}"
    figure.supxlabel(told, fontsize=8, color=QUIET)
    return figure


def _pairs(panel: Any, series: _Series, pair: list[int], limits: np.ndarray) -> None:
    """The regions at all times."""
    for x, colour in zip(series.samples, series.colours, strict=True):
        regions(panel, smoothed_2d(x[:, pair].numpy(), limits), colour, fine=True)


def _cloud(panel: Any, series: _Series, pair: list[int], limits: np.ndarray) -> None:
    """Samples at the last time over the regions of the exact law."""
    x = series.samples[-1][:2000, pair]
    panel.scatter(x[:, 0], x[:, 1], s=2, color=series.colours[-1], alpha=0.4, lw=0, rasterized=True)
    if series.exact:
        regions(panel, smoothed_2d(series.exact_samples[-1][:, pair].numpy(), limits), "black", dashed=True, fine=True)
