"""A fit in a file: a run of one row, which everything that reads runs can read, pictures and exports included."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..maps import PushForward
from ..measures import Reference
from ..run.results import read_result, store_result
from ..run.solve import solve
from ..schemes import MapReplay
from ..schemes.base import Row, tensor_config
from ..state import Info, State

_KIND = "fitting.fit"
_FIGURES = ("held_out", "iterations", "converged", "error", "floor")
_NUM_STORED = 1000  # samples of the law, for programs without pwgf
_NUM_JUDGED = 16  # values of a log density, by which another one is recognised


class File(NamedTuple):
    """Where a fit is kept.

    Args:
        out, resume, overwrite: as in `solve`.
    """

    out: str | os.PathLike[str] | None = None
    resume: bool = False
    overwrite: bool = False


class _Fitting(MapReplay):
    """A scheme that fits at its start; the law then stays as it is.

    Args:
        map, reference: T and λ.
        target: samples (n,d) or log π.
        settings: of the fit.
        find: makes the fit: θ and its figures.
    """

    def __init__(
        self,
        map: PushForward,
        reference: Reference,
        target: Tensor | Callable[[Tensor], Tensor],
        settings: Mapping[str, Any],
        find: Callable[[], tuple[Tensor, dict[str, float]]],
    ) -> None:
        super().__init__(map, reference)
        self.target, self.settings, self._find = target, settings, find

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """The fitted state."""
        theta, figures = self._find()
        known = torch.tensor([figures.get(name, math.nan) for name in _FIGURES], dtype=torch.float64)
        rng = torch.Generator().manual_seed(seed).get_state()
        return State(t, theta, torch.zeros_like(theta), 0.0, rng, extra={"figures": known})

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """The same law at t1."""
        later = State(t1, state.theta, state.theta_dot, state.dt, state.rng, extra=state.extra)
        return later, Info(state.t, t1, state.left(t1), 0, 0)

    def measure(self, state: State) -> Row:
        """θ alone."""
        return {"theta": state.theta, "theta_dot": state.theta_dot}

    def fingerprint(self, state: State) -> np.ndarray:
        """log π at a few samples of the law; of data the settings hold a hash."""
        if isinstance(self.target, Tensor):
            return np.zeros(1)
        z = self.reference.sample(_NUM_JUDGED, torch.Generator().manual_seed(0)).to(state.theta)
        return self.target(self.map(state.theta, z)).detach().double().cpu().numpy()

    def to_config(self) -> dict[str, Any]:
        """The settings, with a hash of the data."""
        data = tensor_config(self.target) if isinstance(self.target, Tensor) else None
        tensors = {name: tensor_config(value) for name, value in self.settings.items() if isinstance(value, Tensor)}
        return {"name": _KIND, "data": data, **self.settings, **tensors}


def keep(
    file: File,
    map: PushForward,
    reference: Reference,
    target: Tensor | Callable[[Tensor], Tensor],
    settings: Mapping[str, Any],
    seed: int,
    find: Callable[[], tuple[Tensor, dict[str, float]]],
) -> tuple[Tensor, dict[str, float]]:
    """θ and the figures of a fit, made now unless the file holds it; the arguments are those of `File` and `_Fitting`.

    Raises:
        ResumeMismatchError: other data, another log density or other settings than those in the file.
        PathError, StorageError: as `solve`.
    """
    if file.out is None and not file.resume:
        return find()
    if file.out is not None and not (file.resume or file.overwrite):
        storage.refuse_existing(storage.checked_path(file.out, "fit(out=…)"))  # before the fit is made
    scheme, to = _Fitting(map, reference, target, settings, find), file._asdict()
    run = solve(scheme, [0.0], seed=seed, store_samples=_NUM_STORED, progress=False, **to)
    state = run.state()
    figures = dict(zip(_FIGURES, state.extra["figures"].tolist(), strict=True))
    store_result(str(run.path), _KIND, {}, figures)  # nothing where it is there already
    return state.theta, figures


def read(path: str, call: str) -> dict[str, float]:
    """The figures of the fit in a file.

    Raises:
        ConfigError: a run that is no fit.
        SchemaError: they are damaged.
    """
    _, result = read_result(path, _KIND, call)
    try:
        return {name: float(result[name]) for name in _FIGURES}
    except (LookupError, TypeError, ValueError) as error:
        raise storage.refused(path, f"its fit is damaged ({type(error).__name__}: {error})") from error
