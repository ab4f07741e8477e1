"""A bound of the distance to the exact law, from the velocity that a map has missed."""

from __future__ import annotations

import numpy as np

from ..checks import is_real
from ..errors import ConfigError


def error_bound(t: np.ndarray, delta: np.ndarray, convexity: float) -> np.ndarray:
    """∫₀ᵗ e^{−K(t−s)} δ(s) ds by the trapezoid rule, a bound of W₂(ρ_θ(t), ρ(t)) at every row, (T,), in units of x.

    δ = √E|Jθ̇ − v|² is the velocity that the map missed on fresh samples. The bound holds where F is K-convex along
    Wasserstein geodesics, as ∫V dρ + τ∫ρ log ρ is where ∇²V ≥ K·I, and the map does not fold. The error of the time
    steps, which `tolerance` controls, is not in it.

    Args:
        t: times of the rows, (T,).
        delta: δ at the rows, (T,), in units of x over t.
        convexity: K, in units of 1/t; negative for a semiconvex energy.

    Raises:
        ConfigError: K is no finite number.

    References:
        Ambrosio, Gigli, Savaré, Gradient flows in metric spaces and in the space of probability measures, 2008, ch. 11.
    """
    if not is_real(convexity):
        raise ConfigError(
            f"run.error_bound(convexity=…) must be a finite number, K in units of 1/t; got {convexity!r}. Give the "
            "smallest eigenvalue of ∇²V, or problem.convexity."
        )
    bound = np.zeros(len(t))
    for k, length in enumerate(np.diff(t)):
        kept = np.exp(-convexity * length)
        bound[k + 1] = kept * bound[k] + length * (kept * delta[k] + delta[k + 1]) / 2
    return bound
