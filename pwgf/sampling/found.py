"""What `sample` returns: samples of a density with their weights, what they say of it, and its form for ArviZ."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..measures.base import effective_share
from ..run.trajectory import Trajectory
from ..shown import as_table
from .coordinates import Coordinates, Linear

_COLUMNS = ("mean", "sd", "5%", "50%", "95%", "ess")
_CHAINS = 4  # into which independent draws are divided for ArviZ, which compares chains


@dataclass(frozen=True, eq=False)
class Sampled:
    """Independent samples of ρ ≈ π = p/Z, with the estimates that their exact density under the map allows.

    Args:
        x: (n,d) samples.
        log_density: log ρ(x), (n,), exact; NaN after a polish.
        log_weights: log p(x) − log ρ(x), (n,), whose weighted means are those of π; NaN after a polish.
        log_z_bound, log_z_bound_stderr: E log(p/ρ) ≤ log Z with its standard error, nats; the gap is KL(ρ|π).
        log_z, log_z_stderr: log Z with its standard error, from samples of ρ and from chains that carry them towards π
            (Bennett), or log E_ρ[p/ρ] by importance alone: good while `ess` is not small.
        ess: effective sample size as a share of n, (Σw)²/(nΣw²); 1 where ρ = π.
        converged: whether the law reached `tolerance`.
        t: time of the flow.
        run: the flow itself, in the coordinates y.
        theta: θ (p,) of ρ = (T_θ)#λ in the coordinates y, after the natural-gradient steps that followed the flow.
        coordinates: y (n,d) → x (n,d) and log|det ∂x/∂y| (n,), as set by `whiten`: `found.coordinates(y)[0]` are the x
            of samples y of the run or its file.
    """

    x: Tensor
    log_density: Tensor
    log_weights: Tensor
    log_z_bound: float
    log_z_bound_stderr: float
    log_z: float
    log_z_stderr: float
    ess: float
    converged: bool
    t: float
    run: Trajectory = field(repr=False)
    theta: Tensor = field(repr=False)
    coordinates: Coordinates = field(repr=False)
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        n, dim = self.x.shape
        constant = f"log Z = {self.log_z:.4g} ± {self.log_z_stderr:.1g}, effective {self.ess:.0%}"
        known = "no weights after a polish" if math.isnan(self.ess) else constant
        ended = "converged" if self.converged else "not converged"
        return f"Sampled({n} samples, d = {dim}, {known}, {ended} at t = {self.t:g})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary()._repr_html_()}"

    @property
    def centre(self) -> Tensor:
        """m (d,) of coordinates x = m + Ly."""
        return self._linear().centre

    @property
    def scale(self) -> Tensor:
        """L (d,d) of coordinates x = m + Ly."""
        return self._linear().scale

    def mean(self) -> Tensor:
        """E_π x by the weights, (d,); unweighted after a polish."""
        return (self._weights()[:, None] * self.x).sum(0)

    def cov(self) -> Tensor:
        """cov_π x by the weights, (d,d); unweighted after a polish."""
        centred = self.x - self.mean()
        return centred.T @ (self._weights()[:, None] * centred)

    def summary(self) -> Summary:
        """Mean, standard deviation, quantiles and effective sample size of each coordinate; prints as a table.

        All by the weights; unweighted after a polish. The effective sample size of a coordinate is the number of
        independent samples of p/Z whose mean would have the same standard error, Var x_k / Σ w̄²(x_k − E x_k)².

        Example:
            >>> from pwgf import sampling
            >>> found = sampling.sample(lambda x: -x.square().sum(-1) / 2, 1, 1000, names=["height"], progress=False)
            >>> str(found.summary()).split()[:7]
            ['mean', 'sd', '5%', '50%', '95%', 'ess', 'height']
        """
        x, weights = self.x.double().numpy(), self._weights().double().numpy()
        mean = weights @ x
        variance = weights @ (x - mean) ** 2
        ess = variance / (weights**2 @ (x - mean) ** 2)
        q05, q50, q95 = np.stack([_quantiles(values, weights) for values in x.T], axis=1)
        return Summary(self.names, mean, np.sqrt(variance), q05, q50, q95, ess)

    def to_arviz(self, seed: int = 0) -> Any:
        """The samples for ArviZ (extra `arviz`): `az.summary(found.to_arviz())`.

        ArviZ knows no weights. So as many samples as are effective, `ess`·n of them and at least 32, are drawn by their
        weights (systematic resampling) and divided into four chains: ArviZ's `ess_bulk` is then about the effective
        size of the weighted samples. Each coordinate is a variable where `names` were given; else there is one
        variable x. In `sample_stats`, `lp` is log p(x).

        Args:
            seed: of the draws.

        Returns:
            `arviz.InferenceData`, or in ArviZ 1 an `xarray.DataTree`.

        Raises:
            ConfigError: ArviZ is not installed.
        """
        arviz = _arviz()
        rows = self._drawn(np.random.default_rng(seed))
        rows = rows[: len(rows) // _CHAINS * _CHAINS].reshape(_CHAINS, -1)
        x = self.x.double().numpy()[rows]
        named = self.names != default_names(x.shape[-1])
        posterior = {name: x[..., k] for k, name in enumerate(self.names)} if named else {"x": x}
        groups: dict[str, Any] = {"posterior": posterior}
        if math.isfinite(self.ess):
            groups["sample_stats"] = {"lp": (self.log_density + self.log_weights).double().numpy()[rows]}
        if int(arviz.__version__.split(".")[0]) > 0:
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)

    def _drawn(self, generator: np.random.Generator) -> np.ndarray:
        """Rows drawn by the weights, in random order."""
        n = len(self.x)
        count = max(8 * _CHAINS, n if math.isnan(self.ess) else round(self.ess * n))
        steps = (generator.random() + np.arange(count)) / count
        rows = np.searchsorted(np.cumsum(self._weights().double().numpy()), steps).clip(max=n - 1)
        return generator.permutation(rows)

    def _linear(self) -> Linear:
        if not isinstance(self.coordinates, Linear):
            raise ConfigError(
                "Sampled.centre and Sampled.scale belong to linear coordinates; `whiten` was a function. Use "
                "Sampled.coordinates(y)."
            )
        return self.coordinates

    def _weights(self) -> Tensor:
        if bool(self.log_weights.isnan().any()):
            return torch.full_like(self.log_weights, 1 / len(self.x))
        return torch.softmax(self.log_weights, 0)


@dataclass(frozen=True, eq=False)
class Summary:
    """One row a coordinate; made by `Sampled.summary()`. `dataclasses.asdict` makes columns of it, which pandas takes.

    Args:
        names: of the coordinates, (d,).
        mean, sd: (d,).
        q05, q50, q95: quantiles, (d,).
        ess: effective sample sizes, (d,).
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    q05: np.ndarray
    q50: np.ndarray
    q95: np.ndarray
    ess: np.ndarray

    def __repr__(self) -> str:
        wide = max(len(name) for name in self.names)
        rows = [("", *_COLUMNS), *self._rows()]
        return "\n".join(f"{name:<{wide}}{''.join(f'{text:>11}' for text in texts)}" for name, *texts in rows)

    def _repr_html_(self) -> str:
        return as_table(self._rows(), ("", *_COLUMNS))

    def _rows(self) -> list[list[str]]:
        figures = zip(self.mean, self.sd, self.q05, self.q50, self.q95, strict=True)
        texts = [[f"{value:.4g}" for value in row] for row in figures]
        return [[name, *row, f"{ess:.0f}"] for name, row, ess in zip(self.names, texts, self.ess, strict=True)]


def default_names(dim: int) -> tuple[str, ...]:
    """x0, x1, …"""
    return tuple(f"x{k}" for k in range(dim))


def is_name(value: object) -> bool:
    """Whether it is a text that a table can hold: printable, without line breaks and escapes of a terminal."""
    return isinstance(value, str) and value != "" and value.isprintable()


def checked_names(names: object, dim: int) -> tuple[str, ...]:
    """The names of d coordinates; ConfigError unless they are d different texts, or None."""
    if names is None:
        return default_names(dim)
    listed = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else ()
    if len(listed) != dim or len(set(listed)) < dim or not all(is_name(name) for name in listed):
        raise ConfigError(
            f"sample(names=…) needs {dim} different names, one for each coordinate, in printable letters; got "
            f"{names!r:.60}. Give e.g. names={list(default_names(dim)[:3])}."
        )
    return listed


def constants(log_w: Tensor) -> tuple[float, float, float, float, float]:
    """Bound on log Z and its standard error, log Z and its standard error, effective share."""
    n = len(log_w)
    w = torch.exp(log_w - log_w.max())
    log_z = float(torch.log(w.mean()) + log_w.max())
    error = float(w.std() / w.mean()) / math.sqrt(n)
    return (
        float(log_w.mean()),
        float(log_w.std()) / math.sqrt(n),
        log_z,
        error,
        effective_share(log_w),
    )


def _quantiles(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """5, 50 and 95 % quantiles of weighted samples (n,): each sample stands in the middle of its weight."""
    order = np.argsort(x)
    middle = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp([0.05, 0.5, 0.95], middle, x[order])


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of its own next version
            import arviz  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("Sampled.to_arviz() needs ArviZ: pip install 'pwgf[arviz]'.") from error
    return arviz
