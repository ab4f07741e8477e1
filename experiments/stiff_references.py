"""Independent laws for the stiff flows, and how far a run's law at a time is from them.

On a line:      ∂ₜρ = ∂ₓ(τ ∂ₓρ + ρV′) and ∂ₜρ = ∂ₓ(∂ₓρ^m + ρV′) by the finite volumes of `pwgf.problems`;
on radii:       ∂ₜρ = r^{1−d} ∂ᵣ(r^{d−1}(D ∂ᵣρ + ρV′)), D = τ or Δρ^m/Δρ, by the same fluxes on shells;
product wells:  the one-dimensional law of each coordinate;
Gaussian:       closed form;
elsewhere:      Langevin particles, whose sampling error stands beside the error.

Wherever the exact flow map is known (affine, radial, one function per coordinate) run and law are compared on the same
reference points z, or on evenly spread ones, so that sampling noise cancels. What takes more than a second is computed
once and kept as results/stiff/ref-NAME.npz, to be deleted when its case changes; all of them take three minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import chi2, norm
from torch import Tensor

import pwgf
from experiments.common import RESULTS, sym_kl
from pwgf import maps, problems
from pwgf.measures import PushedMeasure
from pwgf.oracles import finite_volume
from pwgf.oracles.finite_volume import _diffusivity, _fitted, solve_tridiagonal
from pwgf.problems.langevin import LangevinProblem, TargetLaw

Array = np.ndarray
Potential = Callable[[Tensor], Tensor]  # V: (n, d) -> (n,)
POINTS = 200_000
LEVELS = (np.arange(POINTS) + 0.5) / POINTS  # of distribution functions


class Judge:
    """A law at each of `times`, and the errors of a run's rows against it; `laws` is kept under the case's name."""

    times: Sequence[float]

    def compute(self) -> dict[str, Array]:
        """What has to be kept, one entry per time along the first axis."""
        return {}

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """Errors at times[k] by name."""
        raise NotImplementedError

    def laws(self, name: str) -> dict[str, Array]:
        """Kept under `name`, or computed now; computed again where the times are others."""
        path = RESULTS / "stiff" / f"ref-{name}.npz"
        if path.exists():
            with np.load(path) as file:
                kept = dict(file)
            if np.array_equal(kept["times"], self.times):
                return kept
        found = self.compute()
        if found:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, times=np.asarray(self.times), **found)
        return found


@dataclass
class Gaussians(Judge):
    """Ornstein–Uhlenbeck about 0: x = Az with A symmetric; variances along the eigenvectors of A, on the same z."""

    problem: problems.OrnsteinUhlenbeck
    times: Sequence[float]

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`var`: largest relative error of a variance; `mean`: of a mean, over its standard deviation."""
        t = self.times[k]
        directions = torch.linalg.eigh(self.problem.cov)[1]
        law = directions.T @ self.problem.exact(t).cov() @ directions
        z = torch.randn(POINTS, self.problem.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(12345))
        x, exact = run.push(t, z) @ directions, (z @ directions) * law.diagonal().sqrt()
        mean = (x.mean(0) - exact.mean(0)) / exact.std(0)
        return {"var": float((x.var(0) / exact.var(0) - 1).abs().max()), "mean": float(mean.abs().max())}


@dataclass
class Divergence(Judge):
    """Symmetric KL to the exact law of a problem."""

    problem: problems.Problem
    times: Sequence[float]

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`sym_kl`, in nats."""
        return {"sym_kl": sym_kl(run, self.problem, self.times[k])}


@dataclass
class Line(Judge):
    """A density on the line from N(mean, spread²): temperature τ, or exponent m of a porous medium.

    What is computed here starts at N(0, 1).
    """

    potential: Potential
    times: Sequence[float]
    tau: float | None = None
    m: float | None = None
    half_width: float = 6.0
    mean: float = 0.0
    spread: float = 1.0

    def compute(self) -> dict[str, Array]:
        """Distribution functions (T, N) on grids (T, N)."""
        if self.tau is not None:
            laws = [
                finite_volume.fokker_planck_marginal(self.potential, t, tau=self.tau, num_nodes=8193, steps=400)
                for t in self.times[1:]
            ]
            grids, cdfs = [law.grid for law in laws], [law.cdf for law in laws]
        else:
            grids, cdfs = self._porous_medium()
        return {"grid": np.stack([grids[0], *grids]), "cdf": np.stack([norm.cdf(grids[0]), *cdfs])}

    def _porous_medium(self) -> tuple[list[Array], list[Array]]:
        grid = np.linspace(-self.half_width, self.half_width, 3001)
        values = self.potential(torch.from_numpy(grid)[:, None]).numpy()
        rho, cdfs = norm.pdf(grid), []
        for duration in np.diff(self.times):
            rho = finite_volume.porous_medium(grid, values, rho, duration, m=self.m or 1.0, steps=300)
            cdf = np.append(0, np.cumsum(0.5 * (rho[1:] + rho[:-1])))
            cdfs.append(cdf / cdf[-1])
        return [grid] * len(cdfs), cdfs

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`l1`: Σ|mass − exact mass| over 160 bins of the range that holds the mass; `var`: of the variance; `w2`.

        W₂ is relative to the standard deviation.
        """
        grid, cdf = laws["grid"][k], laws["cdf"][k]
        z = self.mean + self.spread * norm.ppf(LEVELS)
        x = np.sort(run.push(self.times[k], torch.from_numpy(z)[:, None])[:, 0].double().numpy())
        exact = quantiles(cdf, grid, LEVELS)
        margin = exact.std()
        bins = np.linspace(*(np.quantile(exact, [0.0005, 0.9995]) + [-margin, margin]), 161)
        share = np.diff(np.searchsorted(x, bins) / POINTS)
        l1 = np.abs(share - np.diff(np.interp(bins, grid, cdf))).sum()
        w2 = np.sqrt(np.square(x - exact).mean()) / exact.std()
        return {"l1": float(l1), "var": abs(float(x.var() / exact.var() - 1)), "w2": float(w2)}


@dataclass
class Radial(Judge):
    """A radial density from N(0, spread²·I): temperature τ, or exponent m of a porous medium; V of the radius."""

    dim: int
    potential: Callable[[Array], Array]
    times: Sequence[float]
    tau: float | None = None
    m: float | None = None
    spread: float = 1.0
    edge: float = 8.0
    cells: int = 2000
    steps: int = 300

    def compute(self) -> dict[str, Array]:
        """Distribution functions of the radius (T, N+1) at the edges of the shells (N+1,)."""
        cdf = radial_cdfs(self)
        if self.m is not None:  # where ρ nearly vanishes the flux is upwind, of order 1 in h
            cdf = 2 * radial_cdfs(replace(self, cells=2 * self.cells))[:, ::2] - cdf
        return {"edges": np.linspace(0, self.edge, self.cells + 1), "cdf": cdf}

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`second`: relative error of E|x|²; `w1`: W₁ of the radii over their mean; z with evenly spread radii."""
        z = np.random.default_rng(0).standard_normal((POINTS, self.dim))
        z *= (self.spread * np.sqrt(chi2.ppf(LEVELS, self.dim)) / np.linalg.norm(z, axis=1))[:, None]
        radius = np.sort(run.push(self.times[k], torch.from_numpy(z)).double().norm(dim=1).numpy())
        exact = quantiles(laws["cdf"][k], laws["edges"] ** self.dim, LEVELS) ** (1 / self.dim)
        second = (radius**2).mean() / (exact**2).mean() - 1
        return {"second": abs(float(second)), "w1": float(np.abs(radius - exact).mean() / exact.mean())}


def radial_cdfs(law: Radial) -> Array:
    """Distribution functions at the edges of the shells, (T, N+1): two-stage L-stable SDIRK, Picard in each stage."""
    edges, gamma = np.linspace(0, law.edge, law.cells + 1), 1 - math.sqrt(0.5)
    r, h = 0.5 * (edges[1:] + edges[:-1]), edges[1]
    sphere = 2 * math.pi ** (law.dim / 2) / math.gamma(law.dim / 2)
    volume, area = sphere * np.diff(edges**law.dim) / law.dim, sphere * edges[1:-1] ** (law.dim - 1)
    delta = np.diff(law.potential(r))

    def stage(start: Array, rho: Array, dt: float) -> Array:
        """ρ − dt A(ρ)ρ = start."""
        for _ in range(500):
            diffusivity = np.full(law.cells - 1, law.tau) if law.tau is not None else _diffusivity(rho, law.m or 1.0)
            out, back = (dt * area / h * _fitted(diffusivity, sign * delta) for sign in (1, -1))
            diag = 1 + (np.append(out, 0) + np.append(0, back)) / volume
            last = rho
            rho = solve_tridiagonal(-np.append(0, out) / volume, diag, -np.append(back, 0) / volume, start)
            if np.abs(rho - last).max() <= 1e-10 * rho.max():
                return rho
        raise RuntimeError(
            f"radial finite volumes: no convergence with dt = {dt:.2g}; give more than {law.steps} steps."
        )

    rho = np.exp(-0.5 * (r / law.spread) ** 2)
    rho /= (rho * volume).sum()
    cdfs = [np.cumsum(rho * volume)]
    for duration in np.diff(law.times):
        for _ in range(law.steps):
            first = stage(rho, rho, gamma * duration / law.steps)
            start = rho + (1 / gamma - 1) * (first - rho)
            rho = stage(start, start, gamma * duration / law.steps)
        cdfs.append(np.cumsum(rho * volume))
    return np.stack([np.append(0, cdf / cdf[-1]) for cdf in cdfs])


def quantiles(cdf: Array, x: Array, levels: Array) -> Array:
    """Where a distribution function given at x reaches the levels, linear in between."""
    cdf = np.maximum.accumulate(cdf)
    rising = np.append(True, np.diff(cdf) > 1e-15)
    return np.interp(levels, cdf[rising], x[rising])


@dataclass
class Wells(Judge):
    """Equal double wells in every coordinate; the exact map is one monotone function of each."""

    problem: problems.StyblinskiTang
    times: Sequence[float]

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`energy`: of F/d; `energy_share`: of F; `var`: of the mean variance, `var_worst`: of a coordinate's."""
        t, d = self.times[k], self.problem.dim
        law = self.problem.marginal(t)
        z = self.problem.reference.sample(min(POINTS, 2_000_000 // d), torch.Generator().manual_seed(12345))
        map, theta = maps.from_config(run.config["scheme"]["map"]), run.theta(t)
        rise, ours, exact = 0.0, [], []
        for block in z.split(50_000 // d):
            rho = PushedMeasure(map, self.problem.reference, theta, block)
            x = torch.from_numpy(quantiles(law.cdf, law.grid, norm.cdf(block.numpy())))
            gap = self.problem.potential(rho.x) + rho.log_density - self.problem.potential(x)
            rise += float((gap - law.log_density(x).sum(1)).detach().sum()) / len(z)
            ours.append(rho.x.detach())
            exact.append(x)
        ratio = torch.cat(ours).var(0) / torch.cat(exact).var(0) - 1
        share = abs(rise / self.problem.exact_energy(t))
        var, worst = abs(float(ratio.mean())), float(ratio.abs().max())
        return {"energy": abs(rise) / d, "energy_share": share, "var": var, "var_worst": worst}


class Banana(LangevinProblem):
    """π: x₁ ~ N(0, 1) and x₂ ~ N(x₁²/2, 1/4) given it."""

    dim, times = 2, np.linspace(0, 2, 6)
    reference = pwgf.Gaussian(2)

    def log_target(self, x: Tensor) -> Tensor:
        """log π, normalised."""
        return -0.5 * x[:, 0].square() - 2 * (x[:, 1] - 0.5 * x[:, 0].square()).square() - math.log(math.pi)

    def curvature(self, x: Tensor) -> Tensor:
        """Above the largest |eigenvalue| of ∇² log π."""
        return 5 + 6 * x[:, 0].square() + 4 * x[:, 1].abs()

    @property
    def equilibrium(self) -> TargetLaw:
        """Means (0, 1/2), variances (1, 3/4)."""

        def draw(n: int, generator: torch.Generator) -> Tensor:
            x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
            return torch.stack([x[:, 0], 0.5 * x[:, 0].square() + 0.5 * x[:, 1]], 1)

        mean, cov = torch.tensor([0, 0.5]).double(), torch.tensor([[1, 0], [0, 0.75]]).double()
        return TargetLaw(mean, cov, draw, self.log_target)

    def _arguments(self) -> dict:
        return self._particle_arguments()


@dataclass
class Particles(Judge):
    """Moments of Langevin particles; 2 % are at least four of their standard errors in the cases here."""

    problem: LangevinProblem
    times: Sequence[float]

    def compute(self) -> dict[str, Array]:
        """Means (T, d), covariances (T, d, d) and the largest standard error of an entry, relative like `errors`."""
        means, covs, floors = [], [], []
        for t in self.times:
            law = self.problem.exact(t)
            x = law.sample(self.problem.num_particles, torch.Generator().manual_seed(0))
            unit = (x - x.mean(0)) / x.std(0)
            products = unit[:, :, None] * unit[:, None, :]
            means.append(x.mean(0).numpy())
            covs.append(torch.cov(x.T).numpy())
            floors.append(float(products.std(0).max()) / math.sqrt(len(x)))
        return {"mean": np.stack(means), "cov": np.stack(covs), "floor": np.array(floors)}

    def errors(self, run: pwgf.Trajectory, k: int, laws: dict[str, Array]) -> dict[str, float]:
        """`mean` over standard deviations, `cov` over products of them; `floor`: the particles' own standard error."""
        z = self.problem.reference.matched_sample(POINTS, torch.Generator().manual_seed(12345))
        x = run.push(self.times[k], z).double().numpy()
        mean, cov = laws["mean"][k], laws["cov"][k]
        scale = np.sqrt(np.diag(cov))
        off = {"mean": (x.mean(0) - mean) / scale, "cov": (np.cov(x.T) - cov) / np.outer(scale, scale)}
        return {**{name: float(np.abs(gap).max()) for name, gap in off.items()}, "floor": float(laws["floor"][k])}
