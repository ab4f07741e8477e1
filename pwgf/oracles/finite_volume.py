"""The flow in one dimension by finite volumes: the truth that products of one-dimensional laws are measured against.

Linear:    ∂ₜρ = ∂ₓ(D ∂ₓρ + ρ V′)    Scharfetter–Gummel fluxes, Radau IIA of order 5 in time: `fokker_planck`.
Nonlinear: ∂ₜρ = ∂ₓ(∂ₓρ^m + ρ V′)    the same fluxes with the local diffusivity, SDIRK of order 2: `porous_medium`.

Both work on a uniform grid whose nodes carry point values; no mass passes the ends, and Σρh is conserved. The spatial
error is even in the spacing h, so two grids, h and h/2, give order 4 by extrapolation (`fokker_planck_marginal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError, SolverError

Array = np.ndarray
Potential = Callable[[Tensor], Tensor]  # V: (n, 1) -> (n,)

_TRUSTED = 1e-30  # where the computed density is below this, log ρ + V/τ is continued from where it is above


def solve_tridiagonal(lower: Array, diag: Array, upper: Array, rhs: Array) -> Array:
    """x (N,) with A x = rhs for the tridiagonal A; the first of `lower` and the last of `upper` are not used."""
    from scipy.linalg import solve_banded  # noqa: PLC0415, a tenth of a second

    return solve_banded((1, 1), np.stack([np.roll(upper, 1), diag, np.roll(lower, -1)]), rhs)


def _factored(lower: Array, diag: Array, upper: Array) -> Callable[[Array], Array]:
    """rhs (N,) → x of `solve_tridiagonal`, for many right sides: the matrix is factorised once."""
    from scipy.linalg.lapack import get_lapack_funcs  # noqa: PLC0415, a tenth of a second

    factorise, solve = get_lapack_funcs(("gttrf", "gttrs"), (diag,))
    *factors, failed = factorise(lower[1:], diag, upper[:-1])
    if failed:
        raise SolverError("fokker_planck: a step has a singular matrix. Are V, D and t finite?")
    return lambda rhs: solve(*factors, rhs)[0]


def fokker_planck(
    grid: Array, potential: Array, rho0: Array, t: float, *, tau: float | Array = 1.0, steps: int = 200
) -> Array:
    """Density at time t of ∂ₜρ = ∂ₓ(τ ∂ₓρ + ρV′) on one grid, second order in its spacing; O(steps · N).

    The Scharfetter–Gummel flux (τ/h)[B(δ) ρ_i − B(−δ) ρ_{i+1}], δ = (V_{i+1} − V_i)/τ, B(z) = z/(e^z − 1), vanishes at
    ρ ∝ exp(−V/τ) exactly. A step is R(Δt·A) ρ, R the stability function of Radau IIA, as a sum over its three poles.

    Args:
        grid: (N,) uniform nodes.
        potential: (N,) values of V at the nodes.
        rho0: (N,) initial density at the nodes.
        t: end time ≥ 0.
        tau: temperature > 0, or a diffusion D(x) ≥ 0 in the middle of each cell, (N−1,). In Itô's form
            ∂ₓ²(Dρ) = ∂ₓ(D∂ₓρ + ρD′): add D to the potential.
        steps: number of steps, even; half of them cover the first tenth of the time, where the tails fall in.

    Returns:
        (N,) density, Σρh as at the start.

    References:
        D. L. Scharfetter, H. K. Gummel, Large-signal analysis of a silicon Read diode oscillator, 1969.
        E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, 1996, §IV.5 (Radau IIA).
    """
    _check_line("fokker_planck", grid, potential=potential, rho0=rho0)
    lower, diag, upper = _generator(grid[1] - grid[0], np.broadcast_to(tau, len(grid) - 1), np.diff(potential))
    rho = rho0
    for duration in (0.1 * t, 0.9 * t):
        dt = duration / (steps // 2)
        terms = [(residue, _factored(dt * lower, dt * diag - pole, dt * upper)) for pole, residue in _radau_poles()]
        for _ in range(steps // 2):
            rho = np.sum([(residue * solve(rho)).real for residue, solve in terms], axis=0)
    return rho


def porous_medium(
    grid: Array, potential: Array, rho0: Array, t: float, *, m: float = 2.0, steps: int = 200, tolerance: float = 1e-11
) -> Array:
    """Density at time t of ∂ₜρ = ∂ₓ(∂ₓρ^m + ρV′) on one grid; O(steps · N), second order in spacing and step.

    The flux is that of `fokker_planck` with the diffusivity Δρ^m/Δρ of each cell in place of τ; where it vanishes the
    flux becomes upwind. In time the two-stage L-stable SDIRK method (γ = 1 − 1/√2), each stage by Picard iteration.

    Args:
        grid, potential, rho0, t: as in `fokker_planck`.
        m: exponent ≥ 1.
        steps: number of steps.
        tolerance: bound on the last update of a stage, relative to max ρ.

    Returns:
        (N,) density, Σρh as at the start.

    Raises:
        SolverError: a stage did not converge in 200 iterations.

    References:
        M. Bessemoulin-Chatard, A finite volume scheme for convection–diffusion equations with nonlinear diffusion
        derived from the Scharfetter–Gummel scheme, 2012.
        R. Alexander, Diagonally implicit Runge–Kutta methods for stiff O.D.E.'s, 1977.
    """
    _check_line("porous_medium", grid, potential=potential, rho0=rho0)
    spacing, delta = grid[1] - grid[0], np.diff(potential)
    gamma, dt = 1 - math.sqrt(0.5), t / steps

    def stage(start: Array, rho: Array) -> Array:
        """Solves ρ − γΔt A(ρ)ρ = start from a first guess."""
        for _ in range(200):
            lower, diag, upper = _generator(spacing, _diffusivity(rho, m), delta)
            last = rho
            rho = solve_tridiagonal(-gamma * dt * lower, 1 - gamma * dt * diag, -gamma * dt * upper, start)
            if np.abs(rho - last).max() <= tolerance * rho.max():
                return rho
        raise SolverError(
            f"porous_medium: a stage did not converge in 200 iterations with Δt = {dt:.3g}. "
            f"Give more steps than {steps}."
        )

    rho = rho0
    for _ in range(steps):
        first = stage(rho, rho)
        start = rho + (1 / gamma - 1) * (first - rho)
        rho = stage(start, start)
    return rho


@dataclass(frozen=True, eq=False)
class Marginal:
    """A one-dimensional law given at grid nodes by g = log ρ + V/τ, which varies slowly even in the far tails.

    Between nodes g is interpolated by cubics, beyond the grid it is constant: ρ ∝ exp(−V/τ) there.

    Args:
        grid: (N,) uniform nodes that carry all the mass.
        excess: (N,) g at the nodes.
        potential: V, (n, 1) -> (n,).
        tau: temperature.
    """

    grid: Array
    excess: Array
    potential: Potential
    tau: float = 1.0

    @cached_property
    def values(self) -> Array:
        """V at the nodes, (N,)."""
        return _on_grid(self.potential, self.grid)

    @cached_property
    def density(self) -> Array:
        """ρ at the nodes, (N,)."""
        return np.exp(self.excess - self.values / self.tau)

    @cached_property
    def cdf(self) -> Array:
        """P(x ≤ node), (N,), by the trapezoid rule with its end correction −h²/12 [ρ′], of order 4."""
        h, rho = self.grid[1] - self.grid[0], self.density
        cells = 0.5 * h * (rho[1:] + rho[:-1]) - h**2 / 12 * np.diff(np.gradient(rho, h))
        cdf = np.maximum.accumulate(np.append(0, np.cumsum(cells)))
        return cdf / cdf[-1]

    def expectation(self, values: Array) -> float:
        """∫ f ρ by the trapezoid rule, spectrally accurate as ρ vanishes at the ends; f at the nodes, (N,)."""
        return float(np.sum(values * self.density) / np.sum(self.density))

    @cached_property
    def mean(self) -> float:
        """E x."""
        return self.expectation(self.grid)

    @cached_property
    def var(self) -> float:
        """Variance of x."""
        return self.expectation((self.grid - self.mean) ** 2)

    @cached_property
    def energy(self) -> float:
        """∫Vρ + τ∫ρ log ρ."""
        return self.tau * self.expectation(self.excess)

    def probability_below(self, threshold: float) -> float:
        """P(x < threshold), by the cubic Hermite interpolant of the distribution function."""
        h = self.grid[1] - self.grid[0]
        position = np.clip((threshold - self.grid[0]) / h, 0, len(self.grid) - 1)
        k = min(int(position), len(self.grid) - 2)
        s = position - k
        low, high = self.cdf[k : k + 2]
        rise_low, rise_high = h * self.density[k : k + 2]
        smooth = s * s * (3 - 2 * s)
        return float(low + (high - low) * smooth + s * (1 - s) * ((1 - s) * rise_low - s * rise_high))

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent samples of the given shape, float64, by the inverse distribution function."""
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.from_numpy(np.interp(uniform.numpy(), self.cdf, self.grid))

    def log_density(self, x: Tensor) -> Tensor:
        """log ρ at x, of any shape; differentiable, in x's dtype and on its device."""
        nodes = torch.from_numpy(self.excess).to(x)
        h = float(self.grid[1] - self.grid[0])
        position = ((x - float(self.grid[0])) / h).clamp(0, len(nodes) - 1)
        k = position.detach().long().clamp(1, len(nodes) - 3)
        s = position - k
        excess = (
            nodes[k - 1] * (-s * (s - 1) * (s - 2) / 6)
            + nodes[k] * ((s + 1) * (s - 1) * (s - 2) / 2)
            + nodes[k + 1] * (-(s + 1) * s * (s - 2) / 2)
            + nodes[k + 2] * ((s + 1) * s * (s - 1) / 6)
        )
        return excess - self.potential(x.reshape(-1, 1)).reshape(x.shape) / self.tau


def fokker_planck_marginal(
    potential: Potential, t: float, *, tau: float = 1.0, num_nodes: int = 2049, steps: int = 200
) -> Marginal:
    """Law at time t of the flow from N(0, 1), order 4 in the spacing; about half a second.

    Args:
        potential: confining V: (n, 1) -> (n,).
        t: time > 0.
        tau: temperature > 0.
        num_nodes: nodes of the coarser of the two grids.
        steps: steps in time on both.

    Returns:
        The law, at the nodes of the coarser grid.

    Raises:
        ConfigError: V does not confine.
    """
    half_width = _half_width(potential, tau)
    fine = np.linspace(-half_width, half_width, 2 * num_nodes - 1)
    values = _on_grid(potential, fine)
    rho0 = np.exp(-0.5 * fine**2) / math.sqrt(2 * math.pi)
    on_fine = fokker_planck(fine, values, rho0, t, tau=tau, steps=steps)[::2]
    on_coarse = fokker_planck(fine[::2], values[::2], rho0[::2], t, tau=tau, steps=steps)
    trusted = (on_fine > _TRUSTED) & (on_coarse > _TRUSTED)
    grid = fine[::2]
    log_rho = (4 * np.log(on_fine[trusted]) - np.log(on_coarse[trusted])) / 3
    excess = np.interp(grid, grid[trusted], log_rho + values[::2][trusted] / tau)
    marginal = Marginal(grid, excess, potential, tau)
    return Marginal(grid, excess - math.log(np.sum(marginal.density) * (grid[1] - grid[0])), potential, tau)


def _radau_poles() -> list[tuple[complex, complex]]:
    """Poles and residues of R(z) = (1 + 2z/5 + z²/20)/(1 − 3z/5 + 3z²/20 − z³/60); a conjugate pair once, doubled."""
    top = np.polynomial.Polynomial([1, 2 / 5, 1 / 20])
    bottom = np.polynomial.Polynomial([1, -3 / 5, 3 / 20, -1 / 60])

    def residue(pole: complex) -> complex:
        return complex(top(pole) / bottom.deriv()(pole))

    real, pair = sorted((complex(pole) for pole in bottom.roots()), key=lambda pole: abs(pole.imag))[:2]
    return [(real.real, residue(real.real).real), (pair, 2 * residue(pair))]


def _generator(spacing: float, diffusivity: Array, delta: Array) -> tuple[Array, Array, Array]:
    """The three diagonals of ρ ↦ −div of the Scharfetter–Gummel flux; diffusivity and ΔV of each cell, (N−1,)."""
    forward = _fitted(diffusivity, delta) / spacing**2  # rate i -> i+1
    backward = _fitted(diffusivity, -delta) / spacing**2  # rate i+1 -> i
    return np.append(0, forward), -np.append(forward, 0) - np.append(0, backward), np.append(backward, 0)


def _fitted(diffusivity: Array, delta: Array) -> Array:
    """D·B(δ/D) = δ/(e^{δ/D} − 1): D for small δ, upwind (−δ or 0) for small D."""
    exponent = np.clip(delta / np.maximum(diffusivity, 1e-300), -700, 700)
    small = np.abs(exponent) < 1e-8
    return np.where(small, diffusivity - delta / 2, delta / np.expm1(np.where(small, 1.0, exponent)))


def _diffusivity(rho: Array, m: float) -> Array:
    """Δρ^m/Δρ of each cell, (N−1,); the derivative where the two densities agree."""
    rho = np.maximum(rho, 0)
    low, high = rho[:-1], rho[1:]
    near = np.abs(high - low) <= 1e-6 * (high + low)
    quotient = (high**m - low**m) / np.where(near, 1.0, high - low)
    return np.where(near, m * (0.5 * (high + low)) ** (m - 1), quotient)


def _on_grid(potential: Potential, grid: Array) -> Array:
    with torch.no_grad():
        return potential(torch.from_numpy(np.ascontiguousarray(grid))[:, None]).double().numpy()


def _half_width(potential: Potential, tau: float) -> float:
    """L such that N(0, 1) and exp(−V/τ) are both negligible beyond ±L."""
    half_width = 8.0
    while half_width < 1e4:
        values = _on_grid(potential, np.linspace(-half_width, half_width, 2001)) / tau
        if min(values[0], values[-1]) - values.min() > 40:
            return half_width
        half_width *= 1.2
    raise ConfigError(
        "fokker_planck_marginal(potential=…) needs a potential that confines; got V that rises by less than 40 "
        "temperatures within ±10⁴. Add a confining term, such as 0.01 x²."
    )


def _check_line(call: str, grid: Array, **arrays: Array) -> None:
    spacing = np.diff(grid) if np.ndim(grid) == 1 and np.size(grid) > 2 else np.zeros(1)
    if not (spacing[0] > 0 and np.allclose(spacing, spacing[0], rtol=1e-6)):
        raise ShapeError(f"{call}(grid=…) needs at least 3 increasing, equally spaced nodes (N,). Use numpy.linspace.")
    for name, array in arrays.items():
        if np.shape(array) != np.shape(grid):
            raise ShapeError(
                f"{call}({name}=…) needs one value per node, shape {np.shape(grid)}; got {np.shape(array)}. "
                "Evaluate it at the grid."
            )
