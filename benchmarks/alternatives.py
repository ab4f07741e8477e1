"""What a user would write with other packages: the rivals of `benchmarks.peers`, each in a few lines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")  # one thread


def spline_flow(target: Callable[[Tensor], Tensor], dim: int, steps: int, n: int, seed: int) -> Tensor:
    """log p − log ρ at n samples of a neural spline flow ρ fitted by reverse KL, float64, (n,)."""
    import zuko  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = zuko.flows.NSF(dim, transforms=3, hidden_features=(64, 64)).double()
        optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3)
        for _ in range(steps):
            x, log_rho = flow().rsample_and_log_prob((1000,))
            loss = (log_rho - target(x)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            x, log_rho = flow().rsample_and_log_prob((n,))
            return target(x) - log_rho


def nuts(X: np.ndarray, y: np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, float]:
    """Draws (n,d) of the posterior of `posteriors.LogisticRegression`, and the least effective size of a coordinate."""
    import jax  # noqa: PLC0415
    import numpyro  # noqa: PLC0415
    from numpyro import distributions as dist  # noqa: PLC0415
    from numpyro.diagnostics import effective_sample_size  # noqa: PLC0415
    from numpyro.infer import MCMC, NUTS  # noqa: PLC0415

    labels = (np.asarray(y) > 0).astype(int)

    def model() -> None:
        alpha = numpyro.sample("alpha", dist.Exponential(100.0))
        w = numpyro.sample("w", dist.Normal(0, alpha**-0.5).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=X @ w), obs=labels)

    chain = MCMC(NUTS(model), num_warmup=min(500, steps), num_samples=steps, progress_bar=False)
    chain.run(jax.random.PRNGKey(seed))
    found = chain.get_samples()
    draws = np.column_stack([np.asarray(found["w"]), np.log(np.asarray(found["alpha"]))]).astype(np.float64)
    return draws, min(float(effective_sample_size(draws[None, :, k])) for k in range(draws.shape[1]))


def _start(axis: np.ndarray, dim: int) -> np.ndarray:
    one = np.exp(-0.5 * axis**2) / math.sqrt(2 * math.pi)
    return one if dim == 1 else np.multiply.outer(one, one)


def finite_volumes(potential: Callable[[np.ndarray], np.ndarray], axis: np.ndarray, dim: int, t: float) -> np.ndarray:
    """ρ_t (N^d,) on a grid from N(0, I), d = 1 or 2: Scharfetter–Gummel fluxes and a matrix exponential."""
    import scipy.sparse as sparse  # noqa: PLC0415
    from scipy.sparse.linalg import expm_multiply  # noqa: PLC0415

    h, shape = axis[1] - axis[0], (len(axis),) * dim
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    values = potential(points).reshape(shape)
    index = np.arange(values.size).reshape(shape)
    rate = sparse.csr_matrix((values.size, values.size))
    for k in range(dim):
        one, other = (np.take(index, range(*ends), axis=k).ravel() for ends in ((0, shape[k] - 1), (1, shape[k])))
        step = values.ravel()[other] - values.ravel()[one]
        forward, backward = (s / np.expm1(np.where(s == 0, 1e-9, s)) / h**2 for s in (step, -step))
        for source, sink, speed in ((one, other, forward), (other, one, backward)):
            rate += sparse.csr_matrix((speed, (sink, source)), rate.shape)
            rate -= sparse.csr_matrix((speed, (source, source)), rate.shape)
    return expm_multiply(rate * t, _start(axis, dim).ravel())


def finite_differences(
    potential: Callable[[np.ndarray], np.ndarray], axis: np.ndarray, dim: int, t: float
) -> np.ndarray:
    """The same by py-pde: ∂ₜρ = Δρ + ∇ρ·∇V + ρΔV with explicit adaptive steps."""
    import pde  # noqa: PLC0415

    half = 0.5 * (axis[1] - axis[0])
    grid = pde.CartesianGrid([[axis[0] - half, axis[-1] + half]] * dim, [len(axis)] * dim)
    points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    V = pde.ScalarField(grid, potential(points).reshape((len(axis),) * dim))
    free = {"derivative": 0}
    slope, bend = V.gradient("auto_periodic_neumann"), V.laplace("auto_periodic_neumann")
    equation = pde.PDE(
        {"rho": "laplace(rho) + dot(gradient(rho), slope) + rho * bend"}, bc=free, consts={"slope": slope, "bend": bend}
    )
    start = pde.ScalarField(grid, _start(axis, dim))
    found = equation.solve(
        start, t_range=t, dt=1e-4, adaptive=True, solver="runge-kutta", backend="numpy", tracker=None
    )
    return np.asarray(found.data).ravel()


def euler_maruyama(
    slope: Callable[[np.ndarray], np.ndarray], n: int, dim: int, t: float, seed: int, dt: float = 1e-3
) -> np.ndarray:
    """n particles (n,d) at time t from N(0, I), for dX = −slope(X) dt + √2 dW."""
    rng = np.random.default_rng(seed)
    x, steps = rng.standard_normal((n, dim)), round(t / dt)
    for _ in range(steps):
        x = x - dt * slope(x) + math.sqrt(2 * dt) * rng.standard_normal(x.shape)
    return x


def bootstrap_filter(seen: Sequence[float], end: float, n: int, seed: int, dt: float = 0.01) -> tuple[float, float]:
    """Mean of the law at `end` and log evidence in the rippled well of `experiments.filtering`, by `particles`."""
    import particles  # noqa: PLC0415
    from particles import distributions as dists  # noqa: PLC0415
    from particles import state_space_models as ssm  # noqa: PLC0415

    steps = round(0.5 / dt)

    class Moved(dists.ProbDist):
        """The law half a unit of time after the points x."""

        dim = 1

        def __init__(self, x: np.ndarray) -> None:
            self.x = x

        def rvs(self, size: int | None = None) -> np.ndarray:
            x = np.array(self.x)
            for _ in range(steps):
                slope = 2 * np.cos(2 * np.pi * x) + x / 2
                x = x - dt * slope + math.sqrt(2 * dt) * np.random.standard_normal(x.shape)
            return x

    class Rippled(ssm.StateSpaceModel):
        """Observed at t = .5, 1, …"""

        def PX0(self) -> dists.ProbDist:
            return Moved(np.random.standard_normal(n))

        def PX(self, t: int, xp: np.ndarray) -> dists.ProbDist:
            return Moved(xp)

        def PY(self, t: int, xp: np.ndarray, x: np.ndarray) -> dists.ProbDist:
            return dists.Normal(loc=x, scale=1.0)

    np.random.seed(seed)
    filtered = particles.SMC(fk=ssm.Bootstrap(ssm=Rippled(), data=np.array(seen)), N=n)
    filtered.run()
    after = Moved(filtered.X).rvs()
    return float(np.average(after, weights=filtered.W)), float(filtered.logLt)
