"""The figure of a comparison, from its file alone: error against time, error and CPU seconds against dimension."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, PathError
from ..study.compare import Comparison, Summary
from ._style import EXACT, QUIET, RUN, SECOND, style

_COLOURS = (RUN, EXACT, SECOND, "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
_MARKERS = "os^Dvp"
_LABELS = {
    "sym_kl": "symmetric KL (nats)",
    "energy_distance": "energy distance (squared)",
    "cpu_seconds": "CPU seconds",
}


def save(path: str | os.PathLike[str], out: str | os.PathLike[str], *, dim: int | None = None) -> str:
    """Draws the comparison stored at `path` and writes the figure.

    Args:
        path: HDF5 file of a `study.compare` table.
        out: picture, .png, .pdf or .svg.
        dim: dimension of the panel over time; None: the largest.

    Returns:
        The path written.

    Raises:
        ConfigError: matplotlib is missing, or no entry of that dimension.
        PathError: no such table, or a folder that cannot be written.
    """
    figure = draw(Comparison.load(path), dim=dim)
    try:
        figure.savefig(out, dpi=200)
    except (OSError, ValueError) as error:
        raise PathError(
            f"plots.compare.save(out={os.fspath(out)!r}): cannot write there ({error}). Give a .png in a folder that "
            "is there."
        ) from error
    return os.fspath(out)


def draw(table: Comparison, *, dim: int | None = None) -> Any:
    """The figure, a `matplotlib.figure.Figure`: medians over problems and seeds.

    Dotted lines are floors: what the score gives between the exact law and itself at that number of samples.
    """
    summaries = table.summaries()
    dims = sorted({s.dim for s in summaries})
    if not dims or (dim is not None and dim not in dims):
        raise ConfigError(f"plots.compare.draw(dim={dim}) needs a dimension out of {dims}.")
    shown = dims[-1] if dim is None else dim
    first, last = (pick(s.t for s in summaries if s.kind != "published") for pick in (min, max))
    with style():
        from matplotlib.figure import Figure  # noqa: PLC0415

        figure = Figure(figsize=(11, 3.9), layout="constrained")
        panels = figure.subplots(1, 4 if len(dims) > 1 else 3)
        looks = _looks(summaries)
        at_dim = [s for s in summaries if s.dim == shown and s.t > first]  # at the first time all laws are the start
        at_end = [s for s in summaries if abs(s.t - last) < 1e-9]
        _curves(panels[0], looks, at_dim, "sym_kl", lambda s: s.t, "time t")
        _curves(panels[1], looks, at_dim, "energy_distance", lambda s: s.t, "time t")
        panels[0].set_title(f"d = {shown}")
        panels[1].set_title(f"d = {shown}")
        if len(dims) > 1:
            _curves(panels[2], looks, at_end, "sym_kl", lambda s: s.dim, "dimension d")
            panels[2].set_title(f"t = {last:g}")
        _curves(panels[-1], looks, at_end, "cpu_seconds", lambda s: s.dim, "dimension d")
        panels[-1].set_title(f"to t = {last:g}")
        for panel in (*panels[2:-1], panels[-1]):
            panel.set_xticks(dims)
        handles: dict[str, Any] = {}
        for panel in panels:
            found, labels = panel.get_legend_handles_labels()
            handles.update({label: handle for handle, label in zip(found, labels, strict=True)})
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(len(handles), 1))
    return figure


def _looks(summaries: list[Summary]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each method, the same in all panels; what was published is dashed and grey."""
    published = {s.method for s in summaries if s.kind == "published"}
    looks: dict[str, dict[str, Any]] = {}
    for k, method in enumerate(dict.fromkeys(s.method for s in summaries)):
        line = {"ls": "--", "color": QUIET} if method in published else {"color": _COLOURS[k % len(_COLOURS)]}
        looks[method] = {"marker": _MARKERS[k % len(_MARKERS)], "label": method, **line}
    return looks


def _curves(
    panel: Any,
    looks: dict[str, dict[str, Any]],
    summaries: list[Summary],
    name: str,
    at: Callable[[Summary], float],
    xlabel: str,
) -> None:
    """A curve per method with what can be seen on a log axis, and its floor where there is one."""
    for method, look in looks.items():
        own = [s for s in summaries if s.method == method]
        points = [(at(s), s.values[name]) for s in own if s.values[name] > 1e-14]
        if points:
            panel.plot(*zip(*points, strict=True), **look)
        floor = [(at(s), s.values.get(f"{name}_floor", math.nan)) for s in own]
        floor = [(x, y) for x, y in floor if y > 0]
        if floor:
            panel.plot(*zip(*floor, strict=True), ls=":", color=look["color"], lw=1.2, label="dotted: floor")
    panel.set(xlabel=xlabel, ylabel=_LABELS[name])
    if panel.lines:
        panel.set_yscale("log")
