"""What a run of PWGF warns of: folds, missed velocities, vanishing steps, a rising energy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...errors import SolverError
from ...state import Info
from ..base import Row, Watch
from .cures import CURES

_CURE = "a wider map, more samples (num_samples), or another family of maps"
_FAR = 1e4  # spreads; at 1e4 the mean was measured to be off by 3e-3 of them, at 1e6 all was lost (ResidualMLP, d = 1)
_RUNAWAY = 1e6  # by how much F falls faster than at the start where it seems to have no lower bound
_STALLED = 10  # tiny steps in a row that make a stall: a first step may be tiny, and grows by then


class PWGFWatch(Watch):
    """Folds, a map too small for the flow, a step that vanishes, and an energy that rises on the same samples.

    Args:
        span: the initial and the last time of the run.
        accuracy: estimated error of the law, in spreads, above which it is named.
        stops: whether such an error ends the run.
        implicit: whether steps may be implicit, so that these are no cure.
    """

    def __init__(
        self, span: tuple[float, float], accuracy: float = 0.02, stops: bool = False, implicit: bool = True
    ) -> None:
        super().__init__(span)
        self._accuracy = accuracy
        self._stops = stops
        self._integrator = "" if implicit else "integrator='implicit', "
        self.fold_cure = f"{self._integrator}{Watch.fold_cure}"
        self._fastest = 0.0  # largest rms |v| of a row so far
        self._highest = -math.inf  # largest F so far
        self._first_rate = 0.0  # −dF/dt in the first step in which F fell
        self._num_tiny = 0  # tiny steps in a row

    def of_row(self, row: Row, t: float) -> Iterator[tuple[str, str]]:
        """Folds, and a law that seems to be wrong, in the row at t."""
        yield from super().of_row(row, t)
        error, spread = float(row["error_estimate"]), float(row["spread"])
        if error > self._accuracy * spread:
            message = self._off(row, t)
            if self._stops:
                raise SolverError(f"{message}. The rows before it are stored; on_miss='warn' goes on.")
            yield "residual", message
        residual, speed = float(row["projection_residual"]), float(row["velocity_rms"])
        self._fastest = max(self._fastest, speed)
        if math.isnan(error) and residual > 0.25 and math.sqrt(residual) * speed > 0.05 * self._fastest:
            message = (
                f"the map misses {100 * residual:.0f} % of E|v|² at t = {t:.4g}, and in this dimension there is no "
                f"estimate of what that means for the law. Cure: {_CURE}"
            )
            yield "residual", message

    def _off(self, row: Row, t: float) -> str:
        """What is said of a row whose law seems to be wrong, with what was tried there."""
        error, spread = float(row["error_estimate"]), float(row["spread"])
        tried = {words: float(row[name]) for name, words in CURES.items() if math.isfinite(float(row[name]))}
        shares = " and ".join(f"{100 * value / spread:.2g} % with {words}" for words, value in tried.items())
        helps = next((words for words, value in tried.items() if value < 0.5 * error), None)
        return (
            f"the law seems to be off by {100 * error / spread:.2g} % of its spread (W2, {error:.2g} in units of x; "
            f"error_estimate) at t = {t:.4g}, more than accuracy = {100 * self._accuracy:.3g} %, since the map misses "
            "velocities that would move it. "
            + (f"Tried at this time: {shares}. " if tried else "")
            + f"Cure: {helps or ('another family of maps; none of these helps here' if tried else _CURE)}"
        )

    def of_step(self, info: Info) -> Iterator[tuple[str, str]]:
        """A vanishing step, or an energy that rose in it."""
        tiny = info.dt < 1e-6 * (self.last - self.first) and info.t1 < self.last
        self._num_tiny = self._num_tiny + 1 if tiny else 0
        if self._num_tiny >= _STALLED:
            message = (
                f"the last {_STALLED} steps were no longer than {info.dt:.1e}, at t = {info.t1:.4g}: the flow is "
                f"stiff, or a few samples near a fold are fast. Cure: {self._integrator}a wider map, more samples "
                "(num_samples), or larger damping"
            )
            yield "stall", message
        moved = info.values.get("moved", 0.0)
        if moved > _FAR:
            message = (
                f"the law has moved by {moved:.2g} times its spread at t = {info.t1:.4g}: an error small beside "
                "that way need not be so beside the spread. Cure: a reference nearer to where the law goes, such as "
                "Gaussian(dim, mean=…), or maps.Affine"
            )
            yield "far", message
        change, predicted, energy = (info.values[name] for name in ("energy_change", "predicted_change", "energy"))
        self._highest = max(self._highest, energy - change)
        rate = -change / info.values["length"]
        if self._first_rate == 0 and rate > 0:
            self._first_rate = rate
        if math.isfinite(rate) and self._first_rate > 0 and rate > _RUNAWAY * self._first_rate:
            message = (
                f"F falls ever faster, at t = {info.t1:.4g} by {rate:.2g} per unit of t, {rate / self._first_rate:.0e} "
                f"times as fast as at the start, down to {energy:.3g}: it seems to have no lower bound, the flow no "
                "equilibrium. Causes: (a) a potential that falls without bound, such as a concave one; (b) attraction "
                "without repulsion. Cure: an energy that grows in all directions, or an earlier last time"
            )
            yield "unbounded", message
        # Near equilibrium F hovers; a rise by more than a thousandth of itself is named however far it has fallen.
        noise = 1e-6 * (1 + abs(energy)) + min(1e-4 * (self._highest - energy), 1e-3 * (1 + abs(energy)))
        if math.isfinite(change) and change > 0.5 * abs(predicted) + noise:
            message = (
                f"the energy rose by {change:.2g} on the same samples between t = {info.t0:.4g} and {info.t1:.4g}, "
                f"where it should have fallen by {-predicted:.2g}. Cure: lower tolerance or dt, more samples, larger "
                "damping"
            )
            yield "increase", message
