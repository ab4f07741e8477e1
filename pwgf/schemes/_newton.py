"""Newton's law for free samples, and what a run of a second-order flow is watched for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..energies import Energy
from ..measures import Cloud
from ..state import State
from .base import Row, Watch

_DRIFT = 0.01  # change of the total energy, relative to the kinetic one, that is named
_NOISE = 3.0  # standard errors of the energy that it exceeds
_OFF = 0.02  # distance of samples from their paths, relative to the largest spread, that is named


class FreePaths:
    """Samples that follow Ẍ = v(X) − γẊ without a map, by Störmer–Verlet steps: where those of the map should be.

    For energies without a density, which particles can follow.

    Args:
        energy: F, with v = −∇δF/δρ.
        x, velocity: (n,d) each.
        t: the time.
    """

    def __init__(self, energy: Energy, x: Tensor, velocity: Tensor, t: float) -> None:
        self._energy, self._x, self._velocity = energy, x, velocity
        self._force = energy.velocity(Cloud(x, t))

    @classmethod
    def of(cls, energy: Energy, state: State, count: int) -> FreePaths | None:
        """Those that a state carries; None where they are not so many, or it has been given another θ or θ̇."""
        paths, own = state.extra.get("paths"), state.extra.get("paths_of")
        if paths is None or own is None or paths.shape[1] != count or not torch.equal(own, _place(state)):
            return None
        return cls(energy, paths[0], paths[1], state.t)

    def added_to(self, state: State) -> State:
        """The state, which carries them: positions and velocities, (2,n,d), and the θ and θ̇ to which they belong."""
        return replace(state, extra={"paths": torch.stack([self._x, self._velocity]), "paths_of": _place(state)})

    def move(self, h: float, slowed: float, t: float) -> None:
        """A step of length h that ends at t; velocities are multiplied by `slowed` before and after it."""
        half = slowed * self._velocity + 0.5 * h * self._force
        self._x = self._x + h * half
        self._force = self._energy.velocity(Cloud(self._x, t))
        self._velocity = slowed * (half + 0.5 * h * self._force)

    def distance(self, x: Tensor) -> float:
        """Of samples x (n,d) from them, rms, in units of x."""
        return float((x - self._x).square().sum(1).mean().sqrt())


def _place(state: State) -> Tensor:
    return torch.stack([state.theta, state.theta_dot])


def spread_of(x: Tensor) -> float:
    """√tr cov of samples (n,d), in units of x."""
    return float(x.var(0, unbiased=False).sum().sqrt())


class PWHFWatch(Watch):
    """Folds, samples off their paths, and a total energy that changes by itself, or upwards under friction.

    Args:
        span: the initial and the last time of the run.
        friction: γ.
        conserved: whether the energy has a value that does not depend on time.
    """

    def __init__(self, span: tuple[float, float], friction: float, conserved: bool = True) -> None:
        super().__init__(span)
        self._conserved = conserved
        self._friction = friction
        self._start = math.nan  # total energy of the first row
        self._spread = 0.0  # the largest of a row so far
        self._kinetic = 0.0  # the largest kinetic energy of a row so far

    def of_row(self, row: Row, t: float) -> Iterator[tuple[str, str]]:
        """Folds, samples off their paths, and a changed energy, in the row at t."""
        yield from super().of_row(row, t)
        self._spread = max(self._spread, float(row["spread"]))
        off = float(row["path_error"])
        if off > _OFF * self._spread:  # not where it is NaN
            message = (
                f"fresh samples are off the paths of Newton's law by {off:.2g} (rms, path_error) at t = {t:.4g}, "
                f"{100 * off / self._spread:.2g} % of the largest spread so far: the map does not follow all of them. "
                "Cure: more samples (num_samples), which reach further into the tails; a wider map; an earlier end"
            )
            yield "paths", message
        total, self._kinetic = float(row["total_energy"]), max(self._kinetic, float(row["kinetic_energy"]))
        self._start = total if math.isnan(self._start) else self._start
        change, noise = total - self._start, float(np.nan_to_num(row["energy_stderr"]))
        allowed = _DRIFT * self._kinetic + _NOISE * (noise + 1e-4 * abs(float(row["energy"])))
        if self._conserved and (change if self._friction > 0 else abs(change)) > allowed:
            message = (
                f"the total energy has changed by {change:.2g} up to t = {t:.4g}, which is "
                f"{100 * abs(change) / self._kinetic:.2g} % of the largest kinetic energy; it should "
                f"{'fall' if self._friction > 0 else 'stay'}. Cure: a smaller dt, a wider map, more samples "
                "(num_samples)"
            )
            yield "energy", message
