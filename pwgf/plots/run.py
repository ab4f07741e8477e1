"""One figure of a run, drawn from what is stored: energy, projection residual, error, and the law as it moves."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import storage
from ..errors import ConfigError, PathError
from ..measures import Law
from ..problems import Problem
from ..run.asked import Dims, Times, checked_dims, checked_times
from ..run.trajectory import Trajectory
from ._asked import known_problem
from ._density import drawn, joint, marginal
from ._over_time import panels as panels_over_time
from ._over_time import time_axis
from ._style import EXACT, QUIET, RUN, style
from .laws import NUM_SAMPLES, label, outer, regions

_MOST_TIMES = 8
_TITLES = {
    "OrnsteinUhlenbeck": "Ornstein–Uhlenbeck flow", "StyblinskiTang": "Styblinski–Tang flow",
    "BarenblattFlow": "Porous-medium (Barenblatt) flow", "Aggregation": "Aggregation",
    "NewtonianAggregation": "Newtonian aggregation", "ConfinedPorousMedium": "Confined porous-medium flow",
    "HeatInBox": "Heat in a box", "Kuramoto": "Noisy Kuramoto oscillators",
    "HarmonicHamiltonian": "Harmonic oscillator", "IsothermalGas": "Isothermal gas",
    "MovingTrap": "Dragged trap", "LinearDrift": "Linear drift", "KineticTrap": "Kinetic trap",
    "GaussianMixture": "Flow to a Gaussian mixture", "Rosenbrock": "Flow to the Rosenbrock law",
    "Funnel": "Flow to Neal's funnel", "DoubleBanana": "Flow to the double banana",
}  # fmt: skip


def save(
    run: Trajectory,
    out: str | os.PathLike[str],
    *,
    problem: Problem | None = None,
    n: int = 2000,
    dims: Dims = None,
    times: Times = None,
) -> str:
    """Draws a run and writes the figure.

    Args:
        run: e.g. `pwgf.load("results/run.h5")`.
        out: file to write; its ending gives the format: png (200 dots per inch), pdf, svg.
        problem, n, dims, times: as `draw`.

    Returns:
        The path written.

    Raises:
        ConfigError: matplotlib is missing, or the ending is not a format it knows.
        PathError: the folder does not exist or cannot be written.
    """
    return write(lambda: draw(run, problem=problem, n=n, dims=dims, times=times), out)


def write(make: Callable[[], Any], out: str | os.PathLike[str]) -> str:
    """Writes the figure that `make` draws, once the ending of `out` is found to be a picture's; errors as `save`."""
    with style():
        from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if os.path.splitext(os.fspath(out))[1].removeprefix(".").lower() not in endings:
        raise ConfigError(f"plots.save(out={os.fspath(out)!r}) must end in one of {', '.join(endings)}. Try .png.")
    target = storage.path_without_run(out, "plots.save(out=…)")
    figure = make()
    try:
        figure.savefig(target, dpi=200)
    except OSError as error:
        raise PathError(
            f"plots.save(out={os.fspath(out)!r}): cannot write there ({error.strerror}). Make the folder first."
        ) from error
    return os.fspath(out)


def draw(
    run: Trajectory, *, problem: Problem | None = None, n: int = 2000, dims: Dims = None, times: Times = None
) -> Any:
    """The figure of a run, a `matplotlib.figure.Figure`; nothing is kept in matplotlib's global state.

    Above, three panels over time: energy, projection residual, and error against the exact law (where the problem is
    known, else the estimated error, or a column of the scheme's own). Below, the law at several times. What is not
    known is left out, and the line below the title says why.

    Args:
        run: e.g. `pwgf.load("results/run.h5")`.
        problem: with the exact law; None takes the one that the file records, if any.
        n: samples of each law behind errors and pictures.
        dims: one coordinate, whose density is shown, or two, whose samples are; None: both in d = 2, else the first.
        times: of the law, at most 8; None: four rows, evenly spread.

    Raises:
        ConfigError: matplotlib is missing, or dims or times that the run has not.
    """
    problem = known_problem(run, problem)
    times = checked_times(times, run, "run.plot", default=4, most=_MOST_TIMES)
    laws, dims, why = _laws_at(run, times, dims)
    with style():
        from matplotlib.figure import Figure  # noqa: PLC0415

        over_time, notes = panels_over_time(run, problem, n)
        height = 6.8 if laws else 4.0
        figure = Figure(figsize=(11, height))
        place = {"left": 0.06, "right": 0.985}
        bottom = 1 - (2.96 if laws else 3.45) / height
        above = figure.add_gridspec(1, len(over_time), top=1 - 1.17 / height, bottom=bottom, wspace=0.24, **place)
        for k, draw_panel in enumerate(over_time):
            panel = figure.add_subplot(above[0, k])
            draw_panel(panel)
            time_axis(panel, run)
        if laws:
            below = figure.add_gridspec(1, len(laws), top=0.415, bottom=0.075, wspace=0.22, **place)
            panels = [figure.add_subplot(below[0, k]) for k in range(len(laws))]
            _laws(panels, times, laws, problem, n, dims)
            figure.text(0.06, 0.468, "The law as it moves", fontsize=10, fontweight="bold")
            figure.legend(*_handles(panels), loc="lower right", bbox_to_anchor=(0.99, 0.452), ncols=3)
        figure.text(0.06, 1 - 0.37 / height, title(run), fontsize=13, fontweight="bold")
        figure.text(0.06, 1 - 0.58 / height, _settings(run), fontsize=8.5, color=QUIET)
        notes += [why] if why else []
        figure.text(0.06, 1 - 0.76 / height, " · ".join(notes), fontsize=7.5, color=QUIET)
    return figure


def title(run: Trajectory) -> str:
    """What was solved and how, in one line, such as "Aggregation, d = 2 · PWGF with ResidualMLP (326 parameters)"."""
    problem = run.config.get("problem")
    name = _TITLES.get(problem["name"], problem["name"]) if problem else "Wasserstein gradient flow"
    extra = "".join(f", {key} = {problem[key]:g}" for key in ("c", "m") if key in problem) if problem else ""
    reference = run.config["scheme"]["reference"]
    dim = reference.get("dim", len(reference.get("lower", ())) or None)  # a box has corners
    how = run.description.line(len(run.theta(run.t[0])), dim)
    return f"{name}, d = {'?' if dim is None else dim}{extra} · {how}"


def _settings(run: Trajectory) -> str:
    def last(found: re.Match[str]) -> str:
        return f"{run[found[1]][-1]:.6g}" if found[1] in run.names else "?"

    parts = [re.sub(r"\{(\w+)\}", last, text) for text in run.description.settings]
    if "wall_time" in run.names:
        parts.append(f"{run['wall_time'][-1]:.3g} s")
    return " · ".join([*parts, f"seed {run.config['seed']}"])


def _laws_at(run: Trajectory, times: list[float], dims: Dims) -> tuple[list[Law], list[int], str]:
    """The laws at these times and the coordinates to show; none, and why, where the rows cannot be read as laws."""
    try:
        dim = run.reference.dim
        run.push(times[0], run.reference.sample(1))
    except ConfigError:
        if run.description.rows == "own":
            return [], [], "law not shown: only the scheme itself reads its rows as one"
        return [], [], "law not shown: it needs a user's own map or reference; pass it to pwgf.load"
    shown = checked_dims(dims, dim, "run.plot", default=(0, 1) if dim == 2 else (0,), most=2)
    return [run.at(t) for t in times], shown, ""


def _laws(
    panels: list[Any], times: list[float], laws: list[Law], problem: Problem | None, n: int, dims: list[int]
) -> None:
    """The law at a few times, on common axes where they serve."""
    n = n if laws[0].dim <= 2 and len(dims) == laws[0].dim else 5 * n
    samples = [drawn(law, n, seed=0) for law in laws]
    show = _density if len(dims) == 1 else _samples
    ends = _limits([x[:, dims] for x in samples])
    for panel, t, law, x, (limits, zoom) in zip(panels, times, laws, samples, ends, strict=True):
        panel.set_title(f"t = {t:.4g}" + (f"  (zoomed {zoom:.1f}×)" if zoom > 1 else ""), fontweight="normal")
        show(panel, law, x, problem.exact(t) if problem else None, dims, limits)
    zoomed = any(zoom > 1 for _, zoom in ends)
    heights = [panel.get_ylim()[1] for panel in panels]
    alike = not zoomed and (len(dims) == 2 or max(heights) < 5 * min(heights))
    for panel in panels:
        panel.locator_params(nbins=5)
        if len(panels) < 3 and len(dims) == 2:
            panel.set_autoscalex_on(True)
            panel.set_aspect("equal", adjustable="datalim")  # fills the row
        if alike and len(dims) == 1:
            panel.set_ylim(0, max(heights))
    for panel in panels[1:]:
        panel.set_ylabel("")
        panel.tick_params(labelleft=not alike)


def _density(panel: Any, law: Law, x: torch.Tensor, exact: Law | None, dims: list[int], limits: np.ndarray) -> None:
    """Density of one coordinate of the run over that of the exact law."""
    k, ends = dims[0], limits[0]
    if exact is not None:
        panel.fill_between(
            *marginal(exact, drawn(exact, NUM_SAMPLES, seed=1), k, ends),
            color=EXACT,
            alpha=0.3,
            lw=0,
            label="exact law",
        )
    panel.plot(*marginal(law, x, k, ends), color=RUN, label="run")
    name = "density" if law.dim == 1 else "marginal density"
    panel.set(xlabel=label(k, law.dim), ylabel=name, xlim=ends, ylim=(0, None))


def _samples(panel: Any, law: Law, x: torch.Tensor, exact: Law | None, dims: list[int], limits: np.ndarray) -> None:
    """Samples of two coordinates over the regions of the exact law."""
    x = x[:2000, dims]
    panel.scatter(x[:, 0], x[:, 1], s=3, color=RUN, alpha=0.35, lw=0, rasterized=True)
    panel.plot([], [], "o", color=RUN, ms=4, label="samples of the run")
    if exact is not None:
        regions(panel, joint(exact, drawn(exact, NUM_SAMPLES, seed=1), dims, limits), EXACT)
        panel.plot([], [], color=EXACT, label="exact law: regions of 50 % and 95 % mass")
    panel.set(xlabel=label(dims[0], law.dim), ylabel=label(dims[1], law.dim), xlim=limits[0], ylim=limits[1])
    panel.set_aspect("equal")


def _handles(panels: list[Any]) -> tuple[list[Any], list[str]]:
    found, labels = panels[0].get_legend_handles_labels()
    return found, labels


def _limits(samples: list[torch.Tensor]) -> list[tuple[np.ndarray, float]]:
    """Per panel [low, high] of each coordinate (k, 2), all of one length, and the zoom over the common axes.

    Axes hold all samples but the outermost few. They are common, so that motion shows, unless the law has shrunk so far
    that nothing would be seen of its shape.
    """
    ends = torch.tensor([[outer(column) for column in x.T] for x in samples], dtype=torch.float64)  # (panels, k, 2)
    own = (ends[..., 1] - ends[..., 0]).max(dim=1).values
    low, high = ends[..., 0].min(0).values, ends[..., 1].max(0).values
    common = float((high - low).max()) or 1.0

    def axes(low: torch.Tensor, high: torch.Tensor, length: float) -> tuple[np.ndarray, float]:
        centre, half = (low + high) / 2, 0.575 * length
        return torch.stack([centre - half, centre + half], dim=1).numpy(), common / length

    return [
        axes(ends[k, :, 0], ends[k, :, 1], float(own[k])) if 0 < own[k] < 0.4 * own.max() else axes(low, high, common)
        for k in range(len(samples))
    ]
