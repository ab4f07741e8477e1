"""Distances between laws, from samples or from densities.

Every sample distance is **squared** (`w2`, `sliced_w2`, `energy_distance`, `mmd`); `bures_w2` alone is the root.
Between two finite samples of one and the same law such a distance is not zero; `floor` measures that value, without
which no figure can be read. Nothing here estimates a density from samples: a kernel density estimate of 10⁴ exact
samples in twelve dimensions is itself 4 away in symmetric KL.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .checks import as_tensor, memory_told
from .errors import ConfigError, NonFiniteError, ShapeError

_BLOCK_ELEMENTS = 4_000_000  # entries of one block of a distance matrix: 32 MB in float64


class Density(Protocol):
    """What `sym_kl` needs of a law, such as `run.at(t)`, `problem.exact(t)` or a reference."""

    def sample(self, n: int, seed: torch.Generator, /) -> Tensor:
        """n samples, (n, d)."""

    def log_density(self, x: Tensor) -> Tensor:
        """Log density at x (n, d), (n,)."""


@memory_told("w2", "fewer samples, whose distances are a matrix, or sliced_w2")
def w2(x: Tensor, y: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two empirical measures, exactly: min over couplings π of Σ π_ij |x_i − y_j|².

    In one dimension by sorting, O(n log n); otherwise by network simplex on the n × m cost matrix, about O(n³).

    Args:
        x: samples, (n, d).
        y: samples, (m, d).

    Returns:
        Scalar, float64.

    Raises:
        ShapeError: x or y is not (n, d), or they differ in d.
        ConfigError: d > 1 and the package POT (extra `eval`) is missing.

    Example:
        >>> float(w2(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]])))
        4.0
    """
    x, y = _pair("w2", x, y)
    if x.shape[1] == 1:
        return _sorted_w2(x.T, y.T)[0]
    try:
        ot = importlib.import_module("ot")
    except ImportError as error:
        raise ConfigError(
            f"w2(x, y) in dimension {x.shape[1]} needs the package POT, which is not installed. "
            'Install it with pip install "pwgf[eval]", or use sliced_w2.'
        ) from error
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square().detach().cpu().numpy()
    return torch.tensor(float(ot.emd2([], [], cost, numItermax=10_000_000)), dtype=torch.float64)


@memory_told("sliced_w2", "fewer directions or samples")
def sliced_w2(
    x: Tensor,
    y: Tensor,
    num_directions: int = 100,
    generator: torch.Generator | None = None,
    *,
    directions: Tensor | None = None,
) -> Tensor:
    """Squared sliced 2-Wasserstein distance: the mean over unit directions u of W₂²(⟨u, x⟩, ⟨u, y⟩).

    O(L (n + m) log(n + m)) for L directions; differentiable in x and y.

    Args:
        x: samples, (n, d).
        y: samples, (m, d); n and m may differ.
        num_directions: number L of random directions, uniform on the sphere.
        generator: source of the directions; None draws the same ones at every call.
        directions: (L, d) directions to use instead of random ones, normalised here.

    Returns:
        Scalar, float64.

    Raises:
        ShapeError: x, y or directions have the wrong shape.
        ConfigError: num_directions < 1.

    References:
        J. Rabin, G. Peyré, J. Delon, M. Bernot, Wasserstein barycenter and its application to texture mixing, 2011.
    """
    x, y = _pair("sliced_w2", x, y)
    if directions is None:
        if num_directions < 1:
            raise ConfigError(f"sliced_w2(num_directions=…) needs at least 1; got {num_directions}. Try 100.")
        source = torch.Generator().manual_seed(0) if generator is None else generator
        directions = torch.randn(num_directions, x.shape[1], generator=source, dtype=torch.float64)
    directions = torch.as_tensor(directions, dtype=torch.float64).to(x.device)
    if directions.shape[1:] != x.shape[1:]:
        raise ShapeError(f"sliced_w2(directions=…) needs rows (L, {x.shape[1]}); got {tuple(directions.shape)}.")
    directions = directions / directions.norm(dim=1, keepdim=True)
    return _sorted_w2(directions @ x.T, directions @ y.T).mean()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared energy distance 2E|x−y| − E|x−x'| − E|y−y'| of two empirical measures (never negative).

    In one dimension by sorting, 2∫(F−G)²; otherwise O((n+m)² d) in blocks of bounded memory.

    Args:
        x: samples, (n, d).
        y: samples, (m, d).

    Returns:
        Scalar, float64. `scipy.stats.energy_distance` is its square root.

    Raises:
        ShapeError: x or y is not (n, d), or they differ in d.

    References:
        G. J. Székely, M. L. Rizzo, Energy statistics: a class of statistics based on distances, 2013.
    """
    x, y = _pair("energy_distance", x, y)
    if x.shape[1] > 1:
        return _kernel_discrepancy(x, y, _minus_distance)
    x_sorted, y_sorted = x[:, 0].sort().values, y[:, 0].sort().values
    z = torch.cat([x_sorted, y_sorted]).sort().values
    cdf_x = torch.searchsorted(x_sorted.detach(), z[:-1].detach(), right=True).double() / len(x)
    cdf_y = torch.searchsorted(y_sorted.detach(), z[:-1].detach(), right=True).double() / len(y)
    return 2 * ((cdf_x - cdf_y).square() * z.diff()).sum()


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: str | Callable[[Tensor, Tensor], Tensor] = "gaussian",
    *,
    bandwidth: float | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy E k(x,x') + E k(y,y') − 2E k(x,y) of two empirical measures.

    O((n+m)² d) in blocks of bounded memory.

    Args:
        x: samples, (n, d).
        y: samples, (m, d).
        kernel: "gaussian", exp(−|x−y|²/(2h²)); "energy", −|x−y|, the energy distance; or a function of two samples
            (n, d), (m, d) that returns (n, m).
        bandwidth: h > 0 of the Gaussian kernel, in units of x; None takes the median distance within the pooled
            samples (at most 500 rows of each). State it when values are to be compared.

    Returns:
        Scalar, float64.

    Raises:
        ShapeError: x or y is not (n, d), they differ in d, or the kernel returns another shape than (n, m).
        ConfigError: unknown kernel, or a bandwidth that is not positive.

    References:
        A. Gretton, K. M. Borgwardt, M. J. Rasch, B. Schölkopf, A. Smola, A kernel two-sample test, 2012.
    """
    x, y = _pair("mmd", x, y)
    if kernel == "energy" or callable(kernel):
        return _kernel_discrepancy(x, y, kernel if callable(kernel) else _minus_distance)
    if kernel != "gaussian":
        raise ConfigError(f"mmd(kernel=…) needs 'gaussian', 'energy' or a function k(x, y) -> (n, m); got {kernel!r}.")
    if bandwidth is None:
        bandwidth = float(torch.pdist(torch.cat([x[:500], y[:500]]).detach()).median())
    if not bandwidth > 0:
        raise ConfigError(
            f"mmd(bandwidth=…) needs a positive length in units of x; got {bandwidth}. Try bandwidth=1.0."
        )
    scale = 2 * bandwidth**2
    return _kernel_discrepancy(x, y, lambda a, b: (-_minus_distance(a, b).square() / scale).exp())


def floor(
    distance: Callable[[Tensor, Tensor], Tensor],
    sampler: Callable[[int, torch.Generator], Tensor],
    n: int,
    repeats: int = 10,
    seed: int = 0,
) -> float:
    """Same-law sampling floor: the mean distance between two independent samples of size n of one law.

    A method whose distance to the exact law is at the floor cannot be told from exact by that many samples.

    Args:
        distance: function of two samples (n, d), such as `w2`.
        sampler: function of n and a generator that returns (n, d), such as `law.sample`.
        n: size of each sample.
        repeats: number of independent pairs.
        seed: seed of the pairs.

    Returns:
        The mean over the pairs.

    Raises:
        ConfigError: n or repeats below 1.

    Example:
        >>> gaussian = lambda n, generator: torch.randn(n, 2, generator=generator, dtype=torch.float64)
        >>> floor(sliced_w2, gaussian, n=100) > floor(sliced_w2, gaussian, n=1000)
        True
    """
    if n < 1 or repeats < 1:
        raise ConfigError(f"floor(n=…, repeats=…) needs at least 1 of each; got n={n}, repeats={repeats}.")
    generator = torch.Generator().manual_seed(seed)
    pairs = ((sampler(n, generator), sampler(n, generator)) for _ in range(repeats))
    return sum(float(distance(x, y)) for x, y in pairs) / repeats


def sym_kl(p: Density, q: Density, n: int = 20_000, generator: torch.Generator | None = None) -> Tensor:
    """Symmetric Kullback–Leibler divergence KL(p‖q) + KL(q‖p) (no factor ½) of two laws with densities.

    Each half is the mean of r − 1 − log r over n samples, r the ratio of densities: the same expectation as −log r,
    but every summand is ≥ 0, so that laws close to each other give a small value with a small error.

    Args:
        p, q: laws with `sample(n, generator)` and `log_density(x)`, such as `run.at(t)` and `problem.exact(t)`.
        n: samples of each.
        generator: source of the samples; None draws the same ones at every call.

    Returns:
        Scalar, float64; infinite where one law has samples outside the support of the other.

    Raises:
        ConfigError: n < 1.
        NonFiniteError: a log density is NaN.
    """
    if n < 1:
        raise ConfigError(f"sym_kl(n=…) needs at least 1 sample; got {n}. Try the default, 20000.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return _sampled_kl("p", p, "q", q, n, generator) + _sampled_kl("q", q, "p", p, n, generator)


def gaussian_kl(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> Tensor:
    """KL(N(m₀, Σ₀) ‖ N(m₁, Σ₁)) = ½[tr(Σ₁⁻¹Σ₀) − d + (m₁−m₀)ᵀΣ₁⁻¹(m₁−m₀) + log det Σ₁ − log det Σ₀].

    Args:
        mean0, mean1: means, (d,).
        cov0, cov1: covariances, (d, d), symmetric positive definite.

    Returns:
        Scalar, float64.

    Raises:
        ShapeError: shapes that do not belong together.
        ConfigError: a covariance is not positive definite.
    """
    mean0, cov0, mean1, cov1 = _gaussians("gaussian_kl", mean0, cov0, mean1, cov1)
    root0, root1 = _cholesky("gaussian_kl", "cov0", cov0), _cholesky("gaussian_kl", "cov1", cov1)
    whitened = torch.linalg.solve_triangular(root1, torch.cat([root0, (mean1 - mean0)[:, None]], dim=1), upper=False)
    log_dets = root1.diagonal().log().sum() - root0.diagonal().log().sum()
    return 0.5 * (whitened.square().sum() - len(mean0)) + log_dets


def gaussian_sym_kl(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> Tensor:
    """KL + KL (no factor ½) of two Gaussians in closed form; arguments and errors as `gaussian_kl`.

    With moments of N samples in place of the exact ones its floor is about (d² + 3d)/(2N).
    """
    return gaussian_kl(mean0, cov0, mean1, cov1) + gaussian_kl(mean1, cov1, mean0, cov0)


def bures_w2(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> Tensor:
    """W₂ (the root, not squared) of two Gaussians: W₂² = |m₀−m₁|² + tr(Σ₀ + Σ₁ − 2(Σ₀^½ Σ₁ Σ₀^½)^½).

    The trace is evaluated as |Σ₀^½ − Σ₁^½ Q|² with the Q of the polar decomposition, which has no cancellation between
    nearly equal covariances.

    Args:
        mean0, mean1: means, (d,).
        cov0, cov1: covariances, (d, d), symmetric positive semidefinite.

    Returns:
        Scalar, float64.

    Raises:
        ShapeError, ConfigError: shapes that do not belong together; a matrix that is no covariance.

    References:
        R. Bhatia, T. Jain, Y. Lim, On the Bures–Wasserstein distance between positive definite matrices, 2019,
        arXiv 1712.01504.
    """
    mean0, cov0, mean1, cov1 = _gaussians("bures_w2", mean0, cov0, mean1, cov1)
    root0, root1 = _symmetric_root(cov0), _symmetric_root(cov1)
    left, _, right = torch.linalg.svd(root1 @ root0)
    return ((mean0 - mean1).square().sum() + (root0 - root1 @ left @ right).square().sum()).sqrt()


def _pair(call: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (torch.as_tensor(as_tensor(samples), dtype=torch.float64) for samples in (x, y))
    y = y.to(x.device)
    for name, samples in (("x", x), ("y", y)):
        if samples.ndim != 2 or samples.numel() == 0:
            raise ShapeError(
                f"{call}({name}=…) needs samples of shape (n, d) with n, d ≥ 1; got {tuple(samples.shape)}. "
                f"For one dimension pass {name}[:, None]."
            )
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            f"{call}(x, y) needs samples of one dimension d; got x {tuple(x.shape)} and y {tuple(y.shape)}. "
            "Rows are samples, columns coordinates."
        )
    return x, y


def _sorted_w2(x: Tensor, y: Tensor) -> Tensor:
    """W₂² of each pair of rows of x (L, n) and y (L, m): ∫ (quantile_x − quantile_y)², (L,)."""
    n, m = x.shape[1], y.shape[1]
    x, y = _sorted_rows(x), _sorted_rows(y)
    if n == m:
        return (x - y).square().mean(dim=1)
    # Both quantile functions are constant between the levels i/n and j/m; in units of 1/(nm) these are integers.
    ends = [torch.arange(a + 1, device=x.device) * b for a, b in ((n, m), (m, n))]
    levels = torch.cat(ends).sort().values  # one that occurs twice weighs nothing
    weights = levels.diff().double() / (n * m)
    gap = x[:, (levels[:-1] // m).clamp(max=n - 1)] - y[:, (levels[:-1] // n).clamp(max=m - 1)]
    return (gap.square() * weights).sum(dim=1)


def _sorted_rows(x: Tensor) -> Tensor:
    """Each row of x (L, n) in order; on a CPU NumPy sorts them two to three times faster than torch."""
    if x.device.type != "cpu":
        return x.sort(dim=1).values
    return x.gather(1, torch.from_numpy(np.argsort(x.detach().numpy(), axis=1)))


def _minus_distance(x: Tensor, y: Tensor) -> Tensor:
    return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def divergence(log_ratio: Tensor) -> Tensor:
    """KL(p‖q) as the mean of r − 1 − log r ≥ 0, from log r = log q − log p (n,) at samples of p; a scalar."""
    return (torch.expm1(log_ratio) - log_ratio).mean()


def _kernel_discrepancy(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        rows = max(1, _BLOCK_ELEMENTS // len(b))
        total = a.new_zeros(())
        for block in a.split(rows):
            values = kernel(block, b)
            if values.shape != (len(block), len(b)):
                raise ShapeError(
                    f"mmd(kernel=…) must return shape (n, m) = {(len(block), len(b))}; got {tuple(values.shape)}. "
                    "Compare all rows of the first sample with all rows of the second."
                )
            total = total + values.sum()
        return total / (len(a) * len(b))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _sampled_kl(p_name: str, p: Density, q_name: str, q: Density, n: int, generator: torch.Generator) -> Tensor:
    """KL(p‖q) as the mean of r − 1 − log r ≥ 0 over x ~ p, r = q(x)/p(x), n samples in blocks."""
    blocks = p.sample(n, generator).double().split(10_000)
    log_ratio = torch.cat([(q.log_density(x).double() - p.log_density(x).double()).cpu() for x in blocks])
    if log_ratio.isnan().any():
        raise NonFiniteError(
            f"sym_kl: the log density of {p_name} or {q_name} is NaN at samples of {p_name}. Likely causes: "
            "(a) a diverged flow, (b) a folded map. Look at its fold_fraction and energy."
        )
    return divergence(log_ratio)


def _gaussians(call: str, mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> list[Tensor]:
    device = torch.as_tensor(mean0).device
    arrays = [torch.as_tensor(a, dtype=torch.float64).to(device) for a in (mean0, cov0, mean1, cov1)]
    shapes = [tuple(a.shape) for a in arrays]
    dim = shapes[0][0] if len(shapes[0]) == 1 else 0
    if dim < 1 or shapes != [(dim,), (dim, dim), (dim,), (dim, dim)]:
        raise ShapeError(
            f"{call}(mean0, cov0, mean1, cov1) needs shapes (d,), (d, d), (d,), (d, d) of one d; got {shapes}."
        )
    return arrays


def _cholesky(call: str, name: str, cov: Tensor) -> Tensor:
    root, info = torch.linalg.cholesky_ex(cov)
    if info != 0:
        raise ConfigError(f"{call}({name}=…) needs a positive definite matrix; got one that is not. Use bures_w2.")
    return root


def _symmetric_root(cov: Tensor) -> Tensor:
    sound = bool(torch.isfinite(cov).all()) and torch.allclose(cov, cov.mT)
    values, vectors = torch.linalg.eigh(cov) if sound else (-cov.new_ones(1), cov)
    if values[0] < -1e-8 * values[-1].abs():
        raise ConfigError("bures_w2(cov0=…, cov1=…) needs finite, symmetric, positive semidefinite matrices.")
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
