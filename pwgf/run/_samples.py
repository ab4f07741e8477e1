"""Samples that a run stores in every row: the same z, pushed by the map of the row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..measures.law import as_generator
from ..schemes import Scheme, ask
from ..state import State


class RowSamples:
    """x (n,d) of a row, float64, equal to `run.sample(t, n)` of the run.

    Args:
        scheme: whose rows are read as measures by `scheme.push(rows, t, z)`.
        n: number of samples.
        past: t and θ of the rows stored so far.

    Raises:
        ConfigError: only the scheme itself knows what its rows are.
    """

    def __init__(self, scheme: Scheme, n: int, past: Iterable[tuple[float, Tensor]] = ()) -> None:
        self._push: Any = getattr(scheme, "push", None)
        if not callable(self._push):
            raise ConfigError(
                f"solve(store_samples={n}) needs a scheme with a method push(rows, t, z), which reads rows as samples; "
                f"{type(scheme).__name__} has none. Let it inherit pwgf.schemes.MapReplay, ParticleReplay or JKOReplay."
            )
        self._z = scheme.reference.sample(n, as_generator(0, "solve")).to(scheme.dtype)
        self._is_chain = ask(scheme, "describe")().rows == "chain"  # a row needs all before it
        self._rows = list(past) if self._is_chain else []

    def __call__(self, state: State) -> np.ndarray:
        """The samples of the row of this state."""
        self._rows = [*(self._rows if self._is_chain else []), (state.t, state.theta.detach().double().cpu())]
        x: Tensor = self._push(_Stored(self._rows), state.t, self._z)
        return x.detach().double().cpu().numpy()


class _Stored:
    """Rows as schemes see them."""

    def __init__(self, rows: list[tuple[float, Tensor]]) -> None:
        self.t = np.array([t for t, _ in rows])
        self._rows = rows

    def theta(self, k: int) -> Tensor:
        return self._rows[k][1]

    def theta_dot(self, k: int) -> Tensor:
        return torch.zeros_like(self._rows[k][1])
