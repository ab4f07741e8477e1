"""Samples in the file of their run, beside its rows: stored when they are made, and loaded in another process."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .. import storage
from ..errors import ConfigError, PWGFError
from ..maps import PushForward
from ..measures import Reference
from ..run.results import read_result, store_result
from ..run.trajectory import load as load_run
from .coordinates import Coordinates, Linear
from .found import Sampled, is_name

_KIND = "sampling.sample"
_ARRAYS = ("x", "log_density", "log_weights", "theta")
_NUMBERS = ("log_z_bound", "log_z_bound_stderr", "log_z", "log_z_stderr", "ess")
_NUM_POINTS = 8  # y of the first samples, by which a function that is given again is recognised


def store(found: Sampled, y: Tensor, path: str, settings: dict[str, Any]) -> None:
    """Puts the samples into the file of their run.

    Args:
        found: what is returned.
        y: (n,d), x = coordinates(y).
        path: of the run, finished.
        settings: for the reader, JSON values.
    """
    linear = isinstance(found.coordinates, Linear)
    name = "linear" if linear else _name(found.coordinates)
    about = {"names": list(found.names), "converged": found.converged, "coordinates": name, **settings}
    result: dict[str, Any] = {"y": y[:_NUM_POINTS].double().cpu().numpy()}
    result |= {name: getattr(found, name).double().numpy() for name in _ARRAYS}
    result |= {name: float(getattr(found, name)) for name in _NUMBERS}
    if linear:
        result |= {"centre": found.centre.numpy(), "scale": found.scale.numpy()}
    store_result(path, _KIND, about, result)


def load(
    path: str | os.PathLike[str],
    *,
    whiten: Coordinates | None = None,
    map: PushForward | None = None,
    reference: Reference | None = None,
) -> Sampled:
    """What `sample(out=path)` returned, from its file.

    Args:
        path: as given to `sample(out=…)`.
        whiten: the function that was given to `sample`, if one was; needed only for `Sampled.coordinates(y)`, and
            compared with values that the file holds.
        map, reference: your own, as for `pwgf.load`; needed only to read the law of the flow.

    Raises:
        PathError: no such file.
        ConfigError: a run without samples, or another function than the one of the run.
        SchemaError: what is stored is damaged.

    Example:
        >>> import tempfile
        >>> from pwgf import sampling
        >>> path = tempfile.mkdtemp() + "/posterior.h5"
        >>> made = sampling.sample(lambda x: -x.square().sum(-1) / 2, 1, 100, out=path, progress=False)
        >>> bool((sampling.load(path).x == made.x).all())
        True
    """
    path = storage.checked_path(path, "sampling.load(path)")
    about, result = read_result(path, _KIND, f"sampling.load({path!r})")
    run = load_run(path, map=map, reference=reference)
    try:
        x, log_density, log_weights, theta = (torch.from_numpy(np.array(result[name], np.float64)) for name in _ARRAYS)
        fits = theta.ndim == 1 and x.ndim == 2 and log_density.shape == log_weights.shape == x.shape[:1]
        bound, bound_stderr, log_z, log_z_stderr, ess = (float(result[name]) for name in _NUMBERS)
        names, y = tuple(about["names"]), torch.from_numpy(np.array(result["y"], np.float64))
        chosen = _coordinates(result, about, path) if whiten is None else whiten
        fits = fits and len(names) == x.shape[1] and y.shape == x[:_NUM_POINTS].shape
        converged = bool(about["converged"])
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise storage.refused(path, f"its samples are damaged ({type(error).__name__}: {error})") from error
    if not fits:
        raise storage.refused(path, "its samples have other sizes than belong together")
    if not all(is_name(name) for name in names):
        raise storage.refused(path, "its coordinates have names that cannot be printed")
    if whiten is not None:
        _check_same(whiten, y, x[: len(y)], path)
    return Sampled(
        x, log_density, log_weights, bound, bound_stderr, log_z, log_z_stderr, ess, converged, float(run.t[-1]), run,
        theta, chosen, names,
    )  # fmt: skip


def _coordinates(result: dict[str, Any], about: dict[str, Any], path: str) -> Coordinates:
    if about["coordinates"] == "linear":
        return Linear(torch.from_numpy(np.array(result["centre"])), torch.from_numpy(np.array(result["scale"])))
    return _Missing(str(about["coordinates"]), path)


class _Missing:
    """Coordinates by a function of the user's that was not given."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def __call__(self, y: Tensor) -> NoReturn:
        raise ConfigError(
            f"Sampled.coordinates(y) needs the function {self._name}, in whose coordinates the flow ran; a file holds "
            f"no functions. Give it: sampling.load({self._path!r}, whiten=…)."
        )


def _check_same(whiten: Coordinates, y: Tensor, x: Tensor, path: str) -> None:
    """ConfigError unless the function takes the stored y to the stored x."""
    try:
        now = whiten(y)[0].detach().cpu().double()
        same = now.shape == x.shape and bool(((now - x).abs() <= 1e-6 * (1 + x.abs())).all())
    except (PWGFError, RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        same = False
    if not same:
        raise ConfigError(
            f"sampling.load({path!r}, whiten=…): the function does not take the stored y to their samples x. Give the "
            "one that was given to sample."
        )


def _name(function: object) -> str:
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
