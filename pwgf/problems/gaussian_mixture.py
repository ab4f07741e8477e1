"""The flow of the JKO-ICNN study to a mixture of Gaussians, among whose components the mass must be divided."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Constants, as_points, check_dim, check_integer, check_points, check_positive, plain_numbers
from ..measures import Gaussian
from .langevin import LangevinProblem, TargetLaw


class GaussianMixture(LangevinProblem):
    """F(ρ) = ∫ρ log(ρ/π), π = (1/k) Σ N(m_j, I) with m_j uniform in [−span, span]^d, from N(0, 16 I), temperature 1.

    Mass first falls into the basins of the components and then moves slowly from one to another: at t = 4 the masses of
    the components are not yet 1/k. The law at t comes from Langevin particles (`LangevinProblem`); 50 000 of them in
    d = 2 to t = 4 take about 4 seconds.

    Args:
        dim: d ≥ 1.
        components: k ≥ 1.
        span: half the width of the cube of the centres, > 0; None means 5, in d ≥ 32 3, as in the study.
        seed: of the centres.
        num_particles, dt, particle_seed: of the Langevin particles.
        centres: m_j themselves, (k, d), in place of `components`, `span` and `seed`.

    Raises:
        ConfigError: an argument outside its range, or centres that are not finite.
        ShapeError: centres of another shape.

    Example:
        >>> problem = GaussianMixture(dim=2, components=3)
        >>> problem.masses(problem.centres).tolist() == [1 / 3] * 3
        True

    References:
        P. Mokrov et al., Large-Scale Wasserstein Gradient Flows, 2021, arXiv 2106.00736, §5.1.
    """

    @plain_numbers
    def __init__(
        self,
        dim: int,
        components: int = 5,
        span: float | None = None,
        seed: int = 0,
        num_particles: int = 50_000,
        dt: float = 0.02,
        particle_seed: int = 0,
        centres: Any = None,
    ) -> None:
        check_dim(dim, "GaussianMixture(dim)")
        check_integer(components, "components", "GaussianMixture")
        check_integer(seed, "seed", "GaussianMixture", least=0)
        super().__init__(num_particles, dt, particle_seed)
        self.dim, self.components, self.seed = dim, components, seed
        self.span = check_positive((5.0 if dim < 32 else 3.0) if span is None else span, "span", "GaussianMixture")
        self._given = centres is not None
        if centres is None:
            generator = torch.Generator().manual_seed(seed)
            self.centres = self.span * (2 * torch.rand(components, dim, generator=generator, dtype=torch.float64) - 1)
        else:
            call = "GaussianMixture(centres=…)"
            self.centres = check_points(as_points(centres, dim, call).double(), dim, call, finite=True).clone()
            self.components = len(self.centres)
        self._constants = Constants(self.centres)

    def log_target(self, x: Tensor) -> Tensor:
        """log π(x), (n, d) -> (n,), normalised."""
        constant = 0.5 * self.dim * math.log(2 * math.pi) + math.log(self.components)
        return torch.logsumexp(self._closeness(x), 1) - 0.5 * x.square().sum(1) - constant

    def _closeness(self, x: Tensor) -> Tensor:
        """x·m_j − ½|m_j|², (n, k): −½|x − m_j|² up to a term that does not depend on j."""
        (centres,) = self._constants.like(x)
        return x @ centres.T - 0.5 * centres.square().sum(1)

    def assign(self, x: Tensor) -> Tensor:
        """The component to which each sample most probably belongs, that of the nearest centre: (n, d) -> (n,)."""
        return self._closeness(check_points(x, self.dim, "GaussianMixture.assign(x): x")).argmax(1)

    def masses(self, x: Tensor) -> Tensor:
        """Share of the samples that `assign` gives each component, (n, d) -> (k,) float64."""
        return torch.bincount(self.assign(x), minlength=self.components).double() / len(x)

    @property
    def reference(self) -> Gaussian:
        """N(0, 16 I)."""
        return Gaussian(self.dim, cov=16.0)

    @property
    def times(self) -> np.ndarray:
        """0, .5, …, 4."""
        return np.linspace(0, 4, 9)

    @property
    def convexity(self) -> float:
        """1 − D²/4 with D the largest distance of two centres: −∇²log π is I less a covariance of centres."""
        return 1 - float(torch.cdist(self.centres, self.centres).max()) ** 2 / 4

    @property
    def equilibrium(self) -> TargetLaw:
        """The mixture."""
        mean = self.centres.mean(0)
        spread = self.centres - mean
        cov = torch.eye(self.dim, dtype=torch.float64) + spread.T @ spread / self.components

        def draw(n: int, generator: torch.Generator) -> Tensor:
            which = torch.randint(self.components, (n,), generator=generator)
            return self.centres[which] + torch.randn(n, self.dim, generator=generator, dtype=torch.float64)

        return TargetLaw(mean, cov, draw, self.log_target)

    def _arguments(self) -> dict[str, Any]:
        drawn = {"components": self.components, "span": self.span, "seed": self.seed}
        own = {"centres": self.centres.tolist()} if self._given else drawn
        return {"dim": self.dim, **own, **self._particle_arguments()}
