"""Checks of arguments, which every constructor and function uses at its door.

Each raises with the name of the argument, what it must be, and what came; `call` is the function's name.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from .errors import ConfigError, ShapeError

DTYPES = {"float64": torch.float64, "float32": torch.float32}  # by name, as files and the command line have them


_ASKED = re.compile(r"allocate ([\d.]+ ?(?:bytes|[KMGTPE]iB))|(?:Storage size calculation|numel:) .*overflow", re.I)


@contextlib.contextmanager
def memory_told(call: str, cure: str) -> Iterator[None]:
    """ConfigError, with what was asked for, in place of what torch and NumPy raise where memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        found = _ASKED.search(str(error))
        if found is None and not isinstance(error, MemoryError):
            raise
        asked = found[1] if found and found[1] else "more bytes than can be counted"
        raise ConfigError(f"{call} asks for {asked} of memory at once, more than there is. Cure: {cure}.") from error


def is_integer(value: object) -> TypeGuard[int]:
    """Whether value is an integer (and no bool)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether value is a finite number (and no bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(value: object, name: str, call: str, *, least: int = 1) -> None:
    """ConfigError unless value is an integer ≥ least."""
    if not is_integer(value) or value < least:
        raise ConfigError(f"{call}({name}=…) must be an integer ≥ {least}; got {value!r}.")


def check_dim(dim: object, call: str) -> None:
    """ConfigError unless dim is an integer ≥ 1."""
    if not is_integer(dim) or dim < 1:
        raise ConfigError(f"{call}: dim must be an integer ≥ 1; got {dim!r}.")


def check_number(value: object, name: str, call: str, *, low: float, high: float, open_low: bool = False) -> None:
    """ConfigError unless value is a number in [low, high], or (low, high] when open_low."""
    if not is_real(value) or not (low < value if open_low else low <= value) or value > high:
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ConfigError(f"{call}({name}=…) must be a number in {interval}; got {value!r}.")


def check_positive(value: object, name: str, call: str) -> float:
    """The value as a float; ConfigError unless it is a finite number above zero."""
    if not is_real(value) or value <= 0:
        raise ConfigError(f"{call}({name}=…) must be positive and finite; got {value!r}.")
    return float(value)


def check_dtype(dtype: object, call: str) -> None:
    """ConfigError unless dtype is float64 or float32."""
    if dtype not in DTYPES.values():
        raise ConfigError(f"{call}(dtype=…) must be torch.float64 or torch.float32; got {dtype!r}. Give torch.float64.")


def check_device(device: object, call: str) -> str:
    """The device's name; ConfigError unless torch knows it and it is there."""
    try:
        name = str(torch.device(device))  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{call}(device=…) must be 'cpu' or 'cuda'; got {device!r} ({error}).") from error
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"{call}(device={name!r}) needs a CUDA device, and torch finds none here; use device='cpu'.")
    return name


def check_points(x: Tensor, dim: int, call: str) -> Tensor:
    """x itself; ShapeError unless it has shape (n, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ShapeError(
            f"{call} must have shape (n, {dim}), a row per sample; got {tuple(x.shape)}. Reshape it: view(-1, {dim})."
        )
    return x


def check_theta0(theta0: Tensor | None, num_params: int, call: str) -> Tensor | None:
    """theta0 (p,) as a tensor of its own; ConfigError or ShapeError unless it has num_params finite numbers."""
    if theta0 is None:
        return None
    try:
        theta = torch.as_tensor(theta0).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{call}(theta0=…) must be a tensor like map.initial(); got {type(theta0).__name__} ({error})."
        ) from error
    if theta.shape != (num_params,):
        raise ShapeError(
            f"{call}(theta0=…) must have shape ({num_params},) for this map; got {tuple(theta.shape)}. "
            "Start from map.initial()."
        )
    if not bool(torch.isfinite(theta).all()):
        raise ConfigError(f"{call}(theta0=…) must be finite; got NaN or infinite entries. Start from map.initial().")
    return theta
