"""Colours and style that all figures share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError

RUN, EXACT, SECOND, QUIET = "#0072B2", "#D55E00", "#009E73", "#767676"  # Okabe & Ito, told apart by all eyes
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "figure.facecolor": "white", "savefig.facecolor": "white",
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#444444",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8,
    "lines.linewidth": 1.6, "lines.markersize": 4.5, "xtick.color": "#444444", "ytick.color": "#444444",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The house style for the duration of a drawing; ConfigError without matplotlib."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib, which is not installed: pip install 'pwgf[plot]'.") from error
    with rc_context(_STYLE):  # type: ignore[arg-type]
        yield
