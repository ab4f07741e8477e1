"""The law of a run in motion, as a gif or mp4."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .. import storage
from ..checks import check_integer, check_positive
from ..errors import ConfigError, PathError
from ..measures import Law
from ..problems import Problem
from ..run.asked import Dims, checked_dims
from ..run.trajectory import Trajectory
from ._asked import known_problem
from ._density import drawn, joint, marginal
from ._style import EXACT, RUN, style
from .laws import NUM_SAMPLES, label, outer, regions

_CALL = "run.animate"
_FEWEST, _MOST = 24, 96  # rows that are shown as frames, one each


def animate(
    run: Trajectory,
    path: str | os.PathLike[str],
    dims: Dims = None,
    *,
    num_frames: int | None = None,
    fps: float = 12,
    problem: Problem | None = None,
) -> Any:
    """Writes a moving picture; see `Trajectory.animate`.

    Raises:
        ConfigError: another ending than .gif or .mp4, ffmpeg is missing, or coordinates that the run has not.
        PathError: the folder does not exist or cannot be written.
    """
    if num_frames is not None:
        check_integer(num_frames, "num_frames", _CALL, least=2)
    check_positive(fps, "fps", _CALL)
    with style():
        writer = _writer(os.path.expanduser(os.fspath(path)), fps)
        target = storage.path_without_run(path, f"{_CALL}(path=…)")
        dim = run.reference.dim
        shown = checked_dims(dims, dim, _CALL, default=range(min(dim, 2)), most=2)
        times = _times(run, num_frames)
        from matplotlib.animation import FuncAnimation  # noqa: PLC0415
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        figure = Figure(figsize=(5.2, 4.6) if len(shown) == 2 else (5.6, 3.6))
        FigureCanvasAgg(figure)
        panel = figure.add_axes((0.13, 0.14, 0.84, 0.78))
        scene = _Scene(panel, run, times, shown, known_problem(run, problem))
        frames = FuncAnimation(figure, scene.show, frames=len(times), init_func=list, blit=False)
        try:
            frames.save(target, writer=writer, dpi=100)
        except OSError as error:
            raise PathError(
                f"{_CALL}(path={os.fspath(path)!r}): cannot write there ({error.strerror}). Make the folder first."
            ) from error
    return frames


def _writer(path: str, fps: float) -> Any:
    """What makes a film with this ending."""
    from matplotlib import animation  # noqa: PLC0415

    ending = os.path.splitext(path)[1].lower()
    if ending not in (".gif", ".mp4"):
        raise ConfigError(f"{_CALL}(path={path!r}) must end in .gif or .mp4. Give e.g. 'run.gif'.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise PathError(f"{_CALL}(path={path!r}): there is no such folder. Make it first.")
    if ending == ".gif":
        return animation.PillowWriter(fps=fps)  # type: ignore[arg-type]
    if not animation.FFMpegWriter.isAvailable():
        raise ConfigError(
            f"{_CALL}(path={path!r}) needs the program ffmpeg for an mp4, and there is none on the PATH. Install it, "
            "or write a .gif, which needs nothing more."
        )
    return animation.FFMpegWriter(fps=fps)  # type: ignore[arg-type]


def _times(run: Trajectory, num_frames: int | None) -> np.ndarray:
    """Of the frames: the rows where there are enough for a movement, and not too many; else evenly spaced."""
    if num_frames is None and _FEWEST <= len(run) <= _MOST:
        return run.t
    return np.linspace(run.t[0], run.t[-1], num_frames or 2 * _FEWEST)


class _Scene:
    """Frames on common axes: a density of one coordinate, or samples of two that keep their z from frame to frame."""

    def __init__(
        self, panel: Any, run: Trajectory, times: np.ndarray, dims: list[int], problem: Problem | None
    ) -> None:
        self.panel, self.times, self.dims = panel, times, dims
        self.laws: list[Law] = [run.at(t) for t in times]
        dim = self.laws[0].dim
        n = 2000 if len(dims) == 2 or dim == 1 else NUM_SAMPLES
        self.samples = [drawn(law, n, seed=0) for law in self.laws]
        self.exact: list[Law] = [problem.exact(float(t)) for t in times] if problem is not None else []
        spans = np.array([[outer(x[:, k]) for k in dims] for x in self.samples])  # (frames, k, 2)
        low, high = spans[..., 0].min(0), spans[..., 1].max(0)
        room = np.maximum(0.12 * (high - low), 1e-9)
        self.limits = np.stack([low - room, high + room], axis=1)
        self.passing: list[Any] = []  # artists of this frame alone
        panel.set(xlabel=label(dims[0], dim), xlim=self.limits[0])
        panel.plot([], [], color=EXACT, label="exact law") if self.exact else None
        if len(dims) == 2:
            panel.plot([], [], "o", color=RUN, ms=4, label="samples of the run")
            self.points = panel.scatter([], [], s=4, color=RUN, alpha=0.4, lw=0)
            panel.set(ylabel=label(dims[1], dim), ylim=self.limits[1])
        else:
            pairs = zip(self.laws, self.samples, strict=True)
            self.curves = [marginal(law, x, dims[0], self.limits[0]) for law, x in pairs]
            (self.line,) = panel.plot([], [], color=RUN, label="run")
            top = 1.2 * max(float(density.max()) for _, density in self.curves)
            panel.set(ylabel="density" if dim == 1 else "marginal density", ylim=(0, top))
        panel.legend(loc="upper right")

    def show(self, k: int) -> list[Any]:
        """Frame k."""
        for artist in self.passing:
            artist.remove()
        self.panel.set_title(f"t = {self.times[k]:.3f}")
        if len(self.dims) == 2:
            self.points.set_offsets(self.samples[k][:, self.dims].numpy())
        else:
            self.line.set_data(*self.curves[k])
        self.passing = [self._exact(self.exact[k])] if self.exact else []
        return []

    def _exact(self, law: Law) -> Any:
        x = drawn(law, NUM_SAMPLES, seed=1)
        if len(self.dims) == 2:
            return regions(self.panel, joint(law, x, self.dims, self.limits), EXACT)
        return self.panel.fill_between(*marginal(law, x, self.dims[0], self.limits[0]), color=EXACT, alpha=0.3, lw=0)
