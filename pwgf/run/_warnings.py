"""The warnings of a run: folds, missed velocities, vanishing steps, a rising energy."""

from __future__ import annotations

import logging
import math
from typing import Any

from ..schemes import Row
from ..state import Info

_log = logging.getLogger("pwgf")
_ROUNDING = 1e-12  # rms |v|, in units of x over t, below which the law is at rest


class Warnings:
    """Warns of each kind of trouble once in a run.

    Args:
        span: the initial and the last time.
        speaks: whether this process is the one of several that reports.
    """

    def __init__(self, span: tuple[float, float], speaks: bool = True) -> None:
        self._first, self._last = span
        self._speaks = speaks
        self._given: set[str] = set()
        self._fastest = 0.0  # largest rms |v| of a row so far
        self._highest = -math.inf  # largest F so far

    def _warn(self, kind: str, message: str, *values: Any) -> None:
        if kind not in self._given and self._speaks:
            self._given.add(kind)
            _log.warning(message, *values)

    def of_row(self, row: Row, t: float) -> None:
        """Folds and missed velocity in the row at t."""
        if float(row.get("fold_fraction", 0.0)) > 0:
            self._warn(
                "fold",
                "the map folds at %.2g of the samples at t = %.4g: its density is wrong there. Cure: "
                "integrator='implicit', more samples (num_samples), or a map that cannot fold (maps.ConvexRidge)",
                row["fold_fraction"],
                t,
            )
        residual, speed = (float(row.get(name, 0.0)) for name in ("projection_residual", "velocity_rms"))
        missed = math.sqrt(max(residual, 0.0)) * speed
        self._fastest = max(self._fastest, speed)
        if residual > 0.25 and missed > max(
            0.05 * self._fastest, _ROUNDING
        ):  # near equilibrium a large share of a vanishing velocity is missed
            self._warn(
                "residual",
                "the map misses a velocity of %.2g (rms; %.0f %% of E|v|², projection_residual) at t = %.4g. Cure: a "
                "wider map, more samples (num_samples), or another family of maps",
                missed,
                100 * residual,
                t,
            )

    def of_step(self, info: Info) -> None:
        """A vanishing step, or an energy that rose in it."""
        if info.dt < 1e-6 * (self._last - self._first) and info.t1 < self._last:
            self._warn(
                "stall",
                "the step has shrunk to %.1e at t = %.4g: the flow is stiff, or a few samples near a fold are fast. "
                "Cure: integrator='implicit', a wider map, more samples (num_samples), or larger damping",
                info.dt,
                info.t1,
            )
        if "energy_change" not in info.values:  # particles: their free energy is not known
            return
        change, predicted, energy = (info.values[name] for name in ("energy_change", "predicted_change", "energy"))
        self._highest = max(self._highest, energy - change)
        # Near equilibrium F fluctuates; a rise by more than a thousandth of itself is reported in any case.
        noise = 1e-6 * (1 + abs(energy)) + min(1e-4 * (self._highest - energy), 1e-3 * (1 + abs(energy)))
        if math.isfinite(change) and change > 0.5 * abs(predicted) + noise:
            self._warn(
                "increase",
                "the energy rose by %.2g on the same samples between t = %.4g and %.4g, where it should have fallen by "
                "%.2g. Cure: lower tolerance or dt, more samples, larger damping",
                change,
                info.t0,
                info.t1,
                -predicted,
            )
