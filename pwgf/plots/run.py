"""One figure of a run, drawn from what is stored: energy, projection residual, error, and the law as it moves."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, PathError, SolverError
from ..measures import Law
from ..problems import Problem, names
from ..run.trajectory import Trajectory
from ..study import accuracy
from ._style import EXACT, QUIET, RUN, SECOND, style

_PANELS = 4  # times at which the law is shown
_ROWS = 41  # most rows at which errors are measured
_TITLES = {
    "OrnsteinUhlenbeck": "Ornstein–Uhlenbeck flow", "StyblinskiTang": "Styblinski–Tang flow",
    "BarenblattFlow": "Porous-medium (Barenblatt) flow", "Aggregation": "Aggregation",
    "GaussianMixture": "Flow to a Gaussian mixture", "Rosenbrock": "Flow to the Rosenbrock law",
    "Funnel": "Flow to Neal's funnel", "DoubleBanana": "Flow to the double banana",
}  # fmt: skip


def save(run: Trajectory, out: str | os.PathLike[str], *, problem: Problem | None = None, n: int = 2000) -> str:
    """Draws a run and writes the figure.

    Args:
        run: e.g. `pwgf.load("results/run.h5")`.
        out: file to write; its ending gives the format: png (200 dots per inch), pdf, svg.
        problem: with the exact law; None takes the one that the file records, if any.
        n: samples of each law behind errors and pictures.

    Returns:
        The path written.

    Raises:
        ConfigError: matplotlib is missing, or the ending is not a format it knows.
        PathError: the folder does not exist or cannot be written.
    """
    with style():
        from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if os.path.splitext(os.fspath(out))[1].removeprefix(".").lower() not in endings:
        raise ConfigError(f"plots.save(out={os.fspath(out)!r}) must end in one of {', '.join(endings)}. Try .png.")
    figure = draw(run, problem=problem, n=n)
    try:
        figure.savefig(out, dpi=200)
    except OSError as error:
        raise PathError(
            f"plots.save(out={os.fspath(out)!r}): cannot write there ({error.strerror}). Make the folder first."
        ) from error
    return os.fspath(out)


def draw(run: Trajectory, *, problem: Problem | None = None, n: int = 2000) -> Any:
    """The figure of a run, a `matplotlib.figure.Figure`; nothing is kept in matplotlib's global state.

    Energy, projection residual, and error against the exact law (where the problem is known) over time; below them the
    law at four times: its density for d = 1, samples over the exact law's regions of given mass for d = 2, the first
    coordinate's marginal for d ≥ 3.

    Args, Raises: as `save`.
    """
    with style():
        from matplotlib.figure import Figure  # noqa: PLC0415

        problem = _recorded(run) if problem is None else problem
        figure = Figure(figsize=(11, 6.8))
        above = figure.add_gridspec(1, 3, left=0.055, right=0.985, top=0.845, bottom=0.565, wspace=0.24)
        below = figure.add_gridspec(1, _PANELS, left=0.055, right=0.985, top=0.415, bottom=0.075, wspace=0.22)
        over_time = [figure.add_subplot(above[0, k]) for k in range(3)]
        _energy(over_time[0], run, problem)
        _residual(over_time[1], run)
        _error(over_time[2], run, problem, n)
        for panel in over_time:
            _time_axis(panel, run)
        panels = [figure.add_subplot(below[0, k]) for k in range(_PANELS)]
        _laws(panels, run, problem, n)
        figure.text(0.055, 0.468, "The law as it moves", fontsize=10, fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", bbox_to_anchor=(0.99, 0.452), ncols=3)
        figure.text(0.055, 0.945, title(run), fontsize=13, fontweight="bold")
        figure.text(0.055, 0.915, _settings(run), fontsize=8.5, color=QUIET)
    return figure


def _recorded(run: Trajectory) -> Problem | None:
    """The problem that the file records; None without one, and for one of the user's own, which no file rebuilds."""
    config = run.config.get("problem") or {}
    return accuracy.problem_of(run) if config.get("name") in names() else None


def title(run: Trajectory) -> str:
    """What was solved and how, in one line, such as "Aggregation, d = 2 · PWGF with ResidualMLP (326 parameters)"."""
    scheme, problem = run.config["scheme"], run.config.get("problem")
    name = _TITLES.get(problem["name"], problem["name"]) if problem else "Wasserstein gradient flow"
    extra = "".join(f", {key} = {problem[key]:g}" for key in ("c", "m") if key in problem) if problem else ""
    dim = scheme["reference"].get("dim")
    how = run.description.line(len(run.theta(run.t[0])), dim)
    return f"{name}, d = {'?' if dim is None else dim}{extra} · {how}"


def _settings(run: Trajectory) -> str:
    def last(found: re.Match[str]) -> str:
        return f"{run[found[1]][-1]:.6g}" if found[1] in run.names else "?"

    parts = [re.sub(r"\{(\w+)\}", last, text) for text in run.description.settings]
    if "wall_time" in run.names:
        parts.append(f"{run['wall_time'][-1]:.3g} s")
    return " · ".join([*parts, f"seed {run.config['seed']}"])


def _column(run: Trajectory, name: str) -> np.ndarray | None:
    """The column where it is stored and has a finite value."""
    values = run[name] if name in run.names else None
    return values if values is not None and np.isfinite(values).any() else None


def _energy(panel: Any, run: Trajectory, problem: Problem | None) -> None:
    panel.set_title("Energy F(ρ)")
    energy, noise = _column(run, "energy"), _column(run, "energy_stderr")
    if energy is None and "energy" in run.names:
        return _say(panel, "not known: particles have no density,\nand this energy has an entropy")
    if energy is None:
        return _say(panel, "not stored by this scheme")
    panel.plot(run.t, energy, "-o", color=RUN, label="run")
    if noise is not None:
        band = energy - 2 * noise, energy + 2 * noise
        panel.fill_between(run.t, *band, color=RUN, alpha=0.2, lw=0, label="± 2 standard errors")
    rows = _some(len(run), _ROWS)
    exact = [problem.exact_energy(float(run.t[k])) for k in rows] if problem else [None]
    if exact[0] is not None:
        panel.plot(run.t[rows], exact, "o", mfc="none", mec=EXACT, mew=1.3, ms=8, label="exact")
    panel.legend()
    return None


def _residual(panel: Any, run: Trajectory) -> None:
    panel.set_title("Projection residual: velocity missed")
    residual, folds = _column(run, "projection_residual"), _column(run, "fold_fraction")
    if residual is None:
        return _say(panel, f"{run.description.no_projection}:\nthere is no projection")
    panel.plot(run.t, _positive(residual), "-o", color=RUN, label="E|Jθ̇ − v|² / E|v|²")
    if folds is not None and folds.max() > 0:
        panel.plot(run.t, np.where(folds > 0, folds, np.nan), "-s", color=EXACT, label="folded samples (share)")
    panel.axhline(1, color=QUIET, lw=0.9, ls=(0, (4, 3)), label="1: nothing followed")
    _decades(panel)
    panel.legend(loc="upper left")
    return None


def _error(panel: Any, run: Trajectory, problem: Problem | None, n: int) -> None:
    panel.set_title("Error against the exact law")
    if problem is None:
        return _say(panel, "the file names no problem\nwith a known answer")
    rows = _some(len(run), _ROWS)
    try:
        errors = accuracy.errors(run, problem, n, rows=rows)
    except ConfigError:
        return _say(panel, "not measured:\nthe law cannot be read from the file")
    found = {name: _positive(values) for name, values in errors.items()}
    found["t"] = run.t[rows]
    panel.plot(found["t"], found["bures_w2"], "-o", color=RUN, label="Bures–W₂ (units of x)")
    if np.isfinite(found["bures_w2_floor"]).any():
        panel.plot(found["t"], found["bures_w2_floor"], ls=(0, (1, 1.5)), color=RUN, lw=1.3, label="its sampling error")
    if np.isfinite(found["sym_kl"]).any():
        panel.plot(found["t"], found["sym_kl"], "-s", color=SECOND, label="symmetric KL (nats)")
    _decades(panel)
    panel.legend(loc="upper left")
    return None


def _laws(panels: list[Any], run: Trajectory, problem: Problem | None, n: int) -> None:
    """The law at a few times, on common axes where they serve."""
    times = [float(run.t[k]) for k in _some(len(run), len(panels))]
    for panel in panels[len(times) :]:
        panel.set_axis_off()
    dim = run.config["scheme"]["reference"].get("dim", 0)
    try:
        samples = [run.sample(t, n if dim <= 2 else 10 * n).double() for t in times]
    except ConfigError:
        for panel in panels[1:]:
            panel.set_axis_off()
        if run.description.rows == "own":
            return _say(panels[0], "only the scheme itself\nreads its rows as a law")
        return _say(panels[0], "a user's own map or reference:\npass it to pwgf.load,\nthen use pwgf.plots.save")
    show = {1: _density_1d, 2: _samples_2d}.get(samples[0].shape[1], _marginal)
    for panel, t, x, (limits, zoom) in zip(panels, times, samples, _limits(samples), strict=False):
        panel.set_title(f"t = {t:.4g}" + (f"  (zoomed {zoom:.1f}×)" if zoom > 1 else ""), fontweight="normal")
        show(panel, run, t, x, problem.exact(t) if problem else None, limits)
    for panel in panels[1:]:
        panel.set_ylabel("")
    for panel in panels[: len(times)]:
        panel.locator_params(nbins=5)
    return None


def _density_1d(panel: Any, run: Trajectory, t: float, x: torch.Tensor, law: Law | None, limits: np.ndarray) -> None:
    points = torch.linspace(float(limits[0, 0]), float(limits[0, 1]), 400, dtype=torch.float64)[:, None]
    if law is not None and not law.has_density:
        exact = law.sample(100_000, seed=1)[:, 0]
        panel.hist(exact, bins=60, range=tuple(limits[0]), density=True, color=EXACT, alpha=0.3, label="exact")
    elif law is not None:
        panel.fill_between(points[:, 0], law.log_density(points).exp(), color=EXACT, alpha=0.3, lw=0, label="exact")
    try:
        panel.plot(points[:, 0], run.log_density(t, points).double().exp(), color=RUN, label="run")
    except (ConfigError, SolverError):  # particles, or a map without an inverse there
        panel.hist(x[:, 0], bins=60, range=tuple(limits[0]), density=True, histtype="step", color=RUN, label="run")
    panel.set(xlabel="x", ylabel="density", xlim=limits[0], ylim=(0, None))


def _samples_2d(panel: Any, run: Trajectory, t: float, x: torch.Tensor, law: Law | None, limits: np.ndarray) -> None:
    panel.scatter(x[:, 0], x[:, 1], s=3, color=RUN, alpha=0.35, lw=0, rasterized=True)
    panel.plot([], [], "o", color=RUN, ms=4, label="samples of the run")
    if law is not None and not law.has_density:
        exact = law.sample(len(x), seed=1)
        panel.scatter(exact[:, 0], exact[:, 1], s=3, color=EXACT, alpha=0.2, lw=0, rasterized=True, zorder=0)
        panel.plot([], [], "o", color=EXACT, ms=4, label="particles of the exact law")
    elif law is not None:
        axes = [torch.linspace(float(low), float(high), 300, dtype=torch.float64) for low, high in limits]
        density = law.log_density(torch.cartesian_prod(*axes)).exp().view(300, 300).T
        own = law.log_density(law.sample(20_000, seed=1)).exp()
        # highest-density regions that hold 95 and 50 % of the mass
        levels = sorted({float(own.quantile(share)) for share in (0.05, 0.5)})
        panel.contour(axes[0], axes[1], density, levels=levels, colors=EXACT, linewidths=(1.1, 1.7))
        panel.plot([], [], color=EXACT, label="exact law: regions of 50 % and 95 % mass")
    panel.set(xlabel="x₁", ylabel="x₂", xlim=limits[0], ylim=limits[1], aspect="equal")


def _marginal(panel: Any, run: Trajectory, t: float, x: torch.Tensor, law: Law | None, limits: np.ndarray) -> None:
    bins = np.linspace(limits[0, 0], limits[0, 1], 46)
    panel.hist(x[:, 0], bins=bins, density=True, color=RUN, alpha=0.45, label="samples of the run")
    if law is not None:
        exact = law.sample(100_000, seed=1)[:, 0]
        panel.hist(exact, bins=bins, density=True, histtype="step", color=EXACT, lw=1.6, label="exact")
    panel.set(xlabel="x₁", ylabel="marginal density", xlim=limits[0])


def _limits(samples: list[torch.Tensor]) -> list[tuple[np.ndarray, float]]:
    """Per panel [low, high] of each coordinate (d, 2), all of one length, and the zoom over the common axes.

    Axes hold all samples but the outermost few. They are common, so that motion shows, unless the law has shrunk so far
    that nothing would be seen of its shape.
    """
    levels = torch.tensor([0.003, 0.997], dtype=torch.float64)
    ends = torch.stack([x.quantile(levels, dim=0) for x in samples])  # (panels, 2, d)
    own = (ends[:, 1] - ends[:, 0]).max(dim=1).values
    low, high = ends[:, 0].min(0).values, ends[:, 1].max(0).values
    common = float((high - low).max())

    def axes(low: torch.Tensor, high: torch.Tensor, length: float) -> tuple[np.ndarray, float]:
        centre, half = (low + high) / 2, 0.575 * length
        return torch.stack([centre - half, centre + half], dim=1).numpy(), common / length

    return [
        axes(ends[k, 0], ends[k, 1], float(own[k])) if 0 < own[k] < 0.4 * own.max() else axes(low, high, common)
        for k in range(len(samples))
    ]


def _some(count: int, most: int) -> list[int]:
    """At most `most` of the positions 0 … count−1, evenly spread, with both ends."""
    return sorted({math.floor(k + 0.5) for k in np.linspace(0, count - 1, min(count, most))})


def _positive(values: np.ndarray) -> np.ndarray:
    """The values that a log axis can show: what is zero up to rounding, as at an exact start, is left out."""
    return np.where(values > 1e-14, values, np.nan)


def _decades(panel: Any) -> None:
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


def _time_axis(panel: Any, run: Trajectory) -> None:
    if len(run) > 1 and panel.lines:
        room = 0.03 * (run.t[-1] - run.t[0])
        panel.set_xlim(run.t[0] - room, run.t[-1] + room)
    panel.set_xlabel("time t" if panel.lines else "")


def _say(panel: Any, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=QUIET)
    panel.grid(False)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
