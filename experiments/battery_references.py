"""Independent laws for the battery, beside those of `experiments.stiff_references`, and how far a run is from them.

Where the exact flow map is known (radial, one function per coordinate, closed forms) run and law are compared on the
same z; elsewhere with particles, whose sampling error is left out. Errors by name:

w2:      of the line or of the coupling through z, hence an upper bound, over the spread √tr cov;
sliced:  largest W₂ of a projection over its standard deviation, of 12 directions (d > 2: of 6 axes and 12 others);
obs:     largest error of an observable over its standard deviation: coordinates, their squares, |x|, |x|², x₁x₂, mass
         within the radii that hold 2, 10, 50 and 90 %, and a problem's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import chi2, norm

import pwgf
from experiments.stiff_references import POINTS, Array, Judge, Line, Radial, quantiles
from pwgf.measures import Reference
from pwgf.oracles.finite_volume import fokker_planck

THOUSAND = (np.arange(1000) + 0.5) / 1000  # levels at which laws known by particles are compared
SHELLS = (0.02, 0.1, 0.5, 0.9)
ALLOWED = 0.01  # of a scale

Image = Callable[[Array, int, dict[str, Array]], Array]  # (z, k, laws) -> x at times[k]
Observe = Callable[[Array], Array]  # (n, d) -> (n, K)


def directions(dim: int) -> Array:
    """Unit vectors, (K, d)."""
    if dim == 2:
        angles = math.pi * np.arange(12) / 12
        return np.stack([np.cos(angles), np.sin(angles)], 1)
    others = np.random.default_rng(0).standard_normal((12, dim))
    return np.concatenate([np.eye(dim)[:6], others / np.linalg.norm(others, axis=1, keepdims=True)])


def observables(x: Array, radii: Array, own: Observe | None = None) -> Array:
    """(n, K)."""
    first, radius = x[:, :4], np.linalg.norm(x, axis=1, keepdims=True)
    columns = [first, first**2, radius, radius**2, x[:, :1] * x[:, 1:2], (radius < radii).astype(float)]
    return np.concatenate([*columns, own(x)] if own else columns, 1)


def pushed(run: pwgf.Trajectory, t: float, reference: Reference) -> tuple[Array, Array]:
    """z and x = T(z), (n, d) each."""
    count = min(POINTS, 2_000_000 // reference.dim)
    z = reference.matched_sample(count, torch.Generator().manual_seed(12345)).double()
    return z.numpy(), run.push(t, z).double().numpy()


@dataclass
class Images(Judge):
    """Flows whose exact map is known, from what `source` computes where it takes finite volumes."""

    reference: Reference
    times: Sequence[float]
    image: Image
    source: Judge = field(default_factory=Judge)

    def compute(self) -> dict[str, Array]:
        """That of the source."""
        return self.source.compute()

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`w2`, `sliced`, `obs`."""
        z, x = pushed(run, self.times[k], self.reference)
        exact = self.image(z, k, laws)
        w2 = math.sqrt(np.square(x - exact).sum(1).mean() / exact.var(0).sum())
        sliced = []
        for direction in directions(x.shape[1]):
            ours, theirs = np.sort(x @ direction), np.sort(exact @ direction)
            sliced.append(float(np.sqrt(np.square(ours - theirs).mean()) / theirs.std()))
        radii = np.quantile(np.linalg.norm(exact, axis=1), SHELLS)
        ours, theirs = observables(x, radii), observables(exact, radii)
        obs = np.abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0)
        return {"w2": w2, "sliced": max(sliced), "obs": float(obs.max())}


def radial(source: Radial) -> Images:
    """A radial flow: |x| from |z| by their distribution functions."""

    def image(z: Array, k: int, laws: dict[str, Array]) -> Array:
        start = np.linalg.norm(z, axis=1)
        levels = chi2.cdf((start / source.spread) ** 2, source.dim)
        radius = quantiles(laws["cdf"][k], laws["edges"] ** source.dim, levels) ** (1 / source.dim)
        return z * (radius / start)[:, None]

    return Images(pwgf.Gaussian(source.dim, cov=source.spread**2), source.times, image, source)


def product(source: Line, dim: int) -> Images:
    """The same flow from N(0, 1) in each of `dim` coordinates."""

    def image(z: Array, k: int, laws: dict[str, Array]) -> Array:
        return quantiles(laws["cdf"][k], laws["grid"][k], norm.cdf(z))

    return Images(pwgf.Gaussian(dim), source.times, image, source)


@dataclass
class Sampled(Judge):
    """Flows known by particles at t, (N, d); the W₂ of two halves of them, rescaled, is the floor of `sliced`."""

    reference: Reference
    times: Sequence[float]
    particles: Callable[[float], torch.Tensor]
    own: Observe | None = None

    def compute(self) -> dict[str, Array]:
        """Quantiles of projections, observables and their standard deviations, of all times after the first."""
        rows = [self._summary(self.particles(t).double().numpy()) for t in self.times[1:]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _summary(self, x: Array) -> dict[str, Array]:
        along = x @ directions(x.shape[1]).T
        halves = [np.quantile(along[start::2], THOUSAND, axis=0) for start in (0, 1)]
        radii = np.quantile(np.linalg.norm(x, axis=1), SHELLS)
        values = observables(x, radii, self.own)
        return {
            "quantiles": np.quantile(along, THOUSAND, axis=0), "std": along.std(0), "count": np.array(len(x)),
            "halves": np.sqrt(np.square(halves[0] - halves[1]).mean(0)) / along.std(0),
            "radii": radii, "means": values.mean(0), "deviations": values.std(0),
        }  # fmt: skip

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`sliced`, `obs`, and `share`: of what is allowed, 1 % of scale and the floor, or three standard errors."""
        law = {name: values[k - 1] for name, values in laws.items() if name != "times"}
        _, x = pushed(run, self.times[k], self.reference)
        noise = 1 / law["count"] + 1 / len(x)
        floor = law["halves"] * np.sqrt(noise * law["count"] / 4)
        gap = np.quantile(x @ directions(x.shape[1]).T, THOUSAND, axis=0) - law["quantiles"]
        sliced = np.sqrt(np.maximum(np.square(gap).mean(0) / law["std"] ** 2 - floor**2, 0)).max()
        means = observables(x, law["radii"], self.own).mean(0)
        obs = (np.abs(means - law["means"]) / np.maximum(law["deviations"], 1e-12)).max()
        share = max(sliced / (ALLOWED + floor.max()), obs / max(ALLOWED, 3 * math.sqrt(noise)))
        return {"sliced": float(sliced), "obs": float(obs), "share": float(share), "floor": float(floor.max())}


@dataclass
class MeanField(Line):
    """∂ₜρ = ∂ₓ(τ ∂ₓρ + ρ(V′ + x − m)), m = ∫xρ: short linear steps with m of their middle."""

    steps: int = 200  # of each row

    def compute(self) -> dict[str, Array]:
        """As a line, on a fixed grid."""
        grid = np.linspace(-self.half_width, self.half_width, 4001)
        values = self.potential(torch.from_numpy(grid)[:, None]).numpy()
        rho = norm.pdf(grid, self.mean, self.spread)
        cdfs = [norm.cdf(grid, self.mean, self.spread)]
        for duration in np.diff(self.times) / self.steps:
            for _ in range(self.steps):
                middle = self._moved(grid, values, rho, (grid @ rho) / rho.sum(), duration / 2)
                rho = self._moved(grid, values, rho, (grid @ middle) / middle.sum(), duration)
            cdf = np.append(0, np.cumsum(0.5 * (rho[1:] + rho[:-1])))
            cdfs.append(cdf / cdf[-1])
        return {"grid": np.stack([grid] * len(cdfs)), "cdf": np.stack(cdfs)}

    def _moved(self, grid: Array, values: Array, rho: Array, mean: float, duration: float) -> Array:
        return fokker_planck(grid, values + 0.5 * (grid - mean) ** 2, rho, duration, tau=self.tau or 1.0, steps=2)
