"""What stays the same over all right sides of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...energies import Energy
from ...linalg import LinearSolver
from ...maps.base import PushForward
from ...measures import FlooredMeasure, PushedMeasure, Reference
from ...parallel import ALONE, Group
from ...tangent import Tangent
from .._mobility import NO_MOBILITY, Frame, Mobility


@dataclass(frozen=True)
class Setup:
    """The fixed part of a right side: energy, map, reference, solver, and the processes (`group`) that share samples.

    `mobility` is what the velocity is multiplied by.

    Not a *problem*, which is a flow with a known law (`pwgf.problems`).
    """

    energy: Energy
    map: PushForward
    reference: Reference
    solver: LinearSolver
    form: str
    chunk_size: int | None
    group: Group = ALONE
    mobility: Mobility = NO_MOBILITY

    def moving(self, theta: Tensor) -> tuple[Setup, slice]:
        """The setup of the parameters that move at θ, and where they lie in θ."""
        map, where = self.map.moving_at(theta)
        return self if map is self.map else replace(self, map=map), where

    def frame(self, rho: PushedMeasure, known: Frame | None = None) -> Frame:
        """Coordinates in which the flow is one without mobility, at ρ; the known ones where they are the same there."""
        return self.mobility.frame(rho, known)

    def pushed(self, theta: Tensor, z: Tensor, t: float) -> PushedMeasure:
        """ρ_θ on the samples z (n,d), the same z in every process, at the time t."""
        group = self.group.for_samples(len(z))
        return PushedMeasure(self.map, self.reference, theta, z, self.chunk_size, group, t)

    def floored(
        self, theta: Tensor, z: Tensor, floor: float | None, t: float, weights: Tensor | None = None
    ) -> FlooredMeasure:
        """The same with slopes kept above a floor, for right sides; weights (n,) of the samples, None: all alike."""
        group = self.group.for_samples(len(z))
        return FlooredMeasure(
            self.map, self.reference, theta, z, self.chunk_size, group, floor=floor, t=t, weights=weights
        )

    def tangent(self, theta: Tensor, z: Tensor) -> Tangent:
        """J at θ and the samples z (n,d), the same z in every process."""
        return Tangent(self.map, theta, z, self.chunk_size, self.group.for_samples(len(z)))
