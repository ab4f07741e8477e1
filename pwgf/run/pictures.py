"""What a run shows of itself: figures, moving pictures, and how a notebook displays it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ..shown import as_table
from .asked import Dims, Times


def _plots() -> Any:
    """`pwgf.plots`, by its name: its layer is above this one, which needs it only once a picture is asked for."""
    return import_module("pwgf.plots")


class Pictures:
    """The pictures of a `Trajectory`, which inherits these methods. They need the extra `plot`, and the file alone.

    All know the exact law where the file names one of `pwgf.problems`; `problem=` gives a problem of your own, or one
    that the run was not given. Where nothing is known of it, it is left out. Coordinates (`dims`) are counted from 0.

    A method makes a `matplotlib.figure.Figure` of its own and returns it (`figure.savefig("a.pdf")`; notebooks display
    it after `%matplotlib inline`). With `ax=` it draws into axes of yours, and returns these.
    """

    def plot(self, *, dims: Dims = None, times: Times = None, problem: Any = None, n: int = 2000) -> Any:
        """The overview: energy, projection residual and error over time, and the law at several times.

        What the run does not know is left out, and a line below the title says why: without an exact law, the estimated
        error takes the place of the error; a scheme without a projection shows other columns.

        Args:
            dims: one coordinate, shown by its density, or two, by samples; None: both in d = 2, else the first.
            times: of the law, up to 8, between the first row and the last; None: four rows, evenly spread.
            problem: with the exact law, see above.
            n: samples behind errors and pictures.

        Returns:
            The `Figure`.

        Raises:
            ConfigError: coordinates or times that the run has not, or no matplotlib.

        Example:
            >>> import pwgf
            >>> problem = pwgf.problems.OrnsteinUhlenbeck(1)
            >>> scheme = pwgf.PWGF(problem.energy, pwgf.maps.Affine(1), problem.reference, num_samples=50, num_eval=50)
            >>> run = pwgf.solve(scheme, [0.0, 0.1], problem=problem, progress=False)
            >>> [axes.get_title(loc="left") for axes in run.plot(n=100).axes][-2:]
            ['t = 0', 't = 0.1']
        """
        return _plots().draw(self, dims=dims, times=times, problem=problem, n=n)

    def plot_energy(self, *, problem: Any = None, ax: Any = None) -> Any:
        """The energy F(ρ) over time, with its sampling error and the exact one where they are known.

        Args:
            problem: with the exact energy, see above.
            ax: axes to draw into.

        Returns:
            The `Figure`, or `ax`.

        Raises:
            ConfigError: the run has no energy, as for particles under an entropy.
        """
        return _plots().energy(self, problem=problem, ax=ax)

    def plot_marginals(self, times: Times = None, dims: Dims = None, *, problem: Any = None, ax: Any = None) -> Any:
        """Densities at several times, dashed those of the exact law: of one coordinate, or of several and their pairs.

        In d = 1 and d = 2 they are ρ_t itself where the map can be inverted, else 10 000 samples smoothed by a kernel.
        With several coordinates the diagonal shows each alone, the panels below it the regions of each pair that hold
        50 % and 95 % of the mass, and those above it samples at the last time over the regions of the exact law.

        Args:
            times: up to 12, between the first row and the last; None: four rows, evenly spread.
            dims: up to 8 coordinates; None: the first four, or all.
            problem: with the exact law, see above.
            ax: axes to draw into, for one coordinate.

        Returns:
            The `Figure`, or `ax`.

        Raises:
            ConfigError: coordinates or times that the run has not; no law can be read, as of particles' columns without
                their scheme, or of a user's own map that was not handed to `pwgf.load`.
        """
        return _plots().marginals(self, times, dims, problem=problem, ax=ax)

    def plot_density(self, t: float | None = None, dims: Dims = None, *, problem: Any = None, ax: Any = None) -> Any:
        """Joint density of two coordinates at time t, with the regions that hold 50 % and 95 % of the mass.

        Args:
            t: None: the last row.
            dims: two coordinates; None: the first two.
            problem: with the exact law, whose regions are dashed; see above.
            ax: axes to draw into.

        Returns:
            The `Figure`, or `ax`.

        Raises:
            ConfigError: as `plot_marginals`, or d = 1.
        """
        return _plots().density(self, t, dims, problem=problem, ax=ax)

    def animate(
        self,
        path: str | os.PathLike[str],
        dims: Dims = None,
        *,
        num_frames: int | None = None,
        fps: float = 12,
        problem: Any = None,
    ) -> Any:
        """Writes the law in motion: one coordinate's density, or samples of two coordinates.

        Args:
            path: ends in .gif, or in .mp4 where the program ffmpeg is installed.
            dims: one or two coordinates; None: the first two, or the only one.
            num_frames: at evenly spaced times, ≥ 2; None: a frame a row where there are 24 to 96 rows, else 48.
            fps: frames per second.
            problem: with the exact law, see above.

        Returns:
            The `matplotlib.animation.FuncAnimation`.

        Raises:
            ConfigError: another ending, no ffmpeg, coordinates that the run has not.
            PathError: the folder does not exist or cannot be written.
        """
        return _plots().animate(self, path, dims, num_frames=num_frames, fps=fps, problem=problem)

    def _figures(self) -> dict[str, str]:
        """What a notebook shows of the run, by name."""
        return {}  # a Trajectory's own

    def _repr_html_(self) -> str:
        """A small table."""
        return as_table(self._figures().items())
