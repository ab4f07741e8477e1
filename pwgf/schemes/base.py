"""What a scheme is, and how stored rows of a map's parameters are read back as measures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import check_points
from ..errors import ConfigError
from ..maps.base import Block, PushForward
from ..measures import PushedMeasure, Reference
from ..state import Info, Rows, State

Row = dict[str, float | Tensor]
"""One stored row: `theta` and `theta_dot` (p,), all else numbers; `t` is added by the loop."""


class Replay(Protocol):
    """Reads stored rows back as measures; all that a trajectory needs of a scheme."""

    reference: Reference
    dtype: torch.dtype

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """Samples of ρ_t from samples z (n,d) of λ, (n,d)."""
        ...

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,d) → (n,); ConfigError where the scheme has no density."""
        ...

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d) → (n,d); ConfigError where the scheme has no density."""
        ...


class Scheme(Replay, Protocol):
    """A way to move a measure in time. `solve` and `evolve` need no more than this.

    `step` makes one sampling interval and never passes t1; `measure` gives the figures of a row. Neither changes the
    scheme or the state, and equal states give equal results.
    """

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """The state at time t, after a check of the energy on a few samples."""
        ...

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One step towards t1."""
        ...

    def measure(self, state: State) -> Row:
        """The row of this state: θ, θ̇ and the figures measured on fresh samples."""
        ...

    def fingerprint(self, state: State) -> np.ndarray:
        """Energy and velocity at a few fixed samples of this state: tells another energy from the same one."""
        ...

    def layout(self) -> list[Block]:
        """The blocks of θ."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON."""
        ...


def hermite(rows: Rows, t: float) -> Tensor:
    """θ(t): the row itself within 1e-6 of the run's range, else the cubic Hermite interpolant of θ and θ̇."""
    times = rows.t
    k = nearest_row(times, t)
    if k is not None:
        return rows.theta(k)
    k = int(np.searchsorted(times, t)) - 1
    return hermite_between(rows, k, k + 1, t)


def hermite_between(rows: Rows, k: int, l: int, t: float) -> Tensor:  # noqa: E741
    """The cubic through θ and θ̇ of rows k and l, at t."""
    h = float(rows.t[l] - rows.t[k])
    s = (t - float(rows.t[k])) / h
    a, b = rows.theta(k), rows.theta(l)
    da, db = rows.theta_dot(k), rows.theta_dot(l)
    bend = s * (1 - s)
    return a + s * s * (3 - 2 * s) * (b - a) + h * bend * ((1 - s) * da - s * db)


def nearest_row(times: np.ndarray, t: float) -> int | None:
    """Index of the row at t (within 1e-6 of the range), None between rows, ConfigError outside the run."""
    span = float(times[-1] - times[0]) if len(times) > 1 else max(abs(float(times[0])), 1.0)
    slack = 1e-6 * span
    if not math.isfinite(t) or t < times[0] - slack or t > times[-1] + slack:
        raise ConfigError(
            f"t = {t!r} lies outside the run, which goes from {times[0]:g} to {times[-1]:g}. Give a t within it, or "
            "solve on with longer times (resume=True)."
        )
    k = int(np.abs(times - t).argmin())
    return k if abs(float(times[k]) - t) <= slack else None


class MapReplay:
    """ρ_t = (T_θ(t))#λ with θ interpolated between rows: what all schemes with one map share.

    Args:
        map, reference: T and λ.
        dtype: of θ in memory.
        device: where θ lives.
    """

    map: PushForward
    reference: Reference
    dtype: torch.dtype
    device: str

    def __init__(
        self, map: PushForward, reference: Reference, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> None:
        self.map, self.reference, self.dtype, self.device = map, reference, dtype, device

    def _theta(self, rows: Rows, t: float) -> Tensor:
        return hermite(rows, t).to(self.dtype).to(self.device)

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """T_θ(t)(z), (n,d)."""
        check_points(z, self.map.dim, "push(t, z): z", finite=True)
        theta = self._theta(rows, t)
        with torch.no_grad():
            return self.map(theta, z.to(theta)).cpu()

    def _at(self, rows: Rows, t: float, x: Tensor) -> PushedMeasure:
        check_points(x, self.map.dim, "x", finite=True)
        theta = self._theta(rows, t)
        z = self.map.inverse(theta, x.detach().to(theta))
        return PushedMeasure(self.map, self.reference, theta, z)

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log λ(z) − log|det ∂_zT(z)| at z = T⁻¹(x), (n,)."""
        return self._at(rows, t, x).log_density.cpu()

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d)."""
        return self._at(rows, t, x).score.cpu()

    def layout(self) -> list[Block]:
        """The map's parameter blocks."""
        return self.map.layout()


def fork(rng: Tensor, purpose: str) -> torch.Generator:
    """A generator of its own, fixed by a random state and a purpose: its draws do not disturb the state's stream."""
    digest = hashlib.sha256(rng.cpu().numpy().tobytes() + purpose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def tensor_config(x: Tensor | None) -> dict[str, Any] | None:
    """A tensor as JSON: shape, dtype and sha256 of its values."""
    if x is None:
        return None
    values = x.detach().cpu().contiguous()
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch."), "sha256": digest}


def member_config(member: Any) -> dict[str, Any]:
    """`to_config` of a map, reference or energy; a user's own without one is named by its class."""
    if hasattr(member, "to_config"):
        return dict(member.to_config())
    return {"name": f"{type(member).__module__}.{type(member).__qualname__}"}


def merge_counters(old: Mapping[str, int], **more: int) -> dict[str, int]:
    """Counters with increments added."""
    return {**old, **{name: old.get(name, 0) + step for name, step in more.items()}}


def standard_error(values: list[float]) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
