"""Checks of arguments, which every constructor and function uses at its door.

Each raises with the name of the argument, what it must be, and what came; `call` is the function's name.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import ConfigError, ShapeError


def is_real(value: object) -> bool:
    """Whether value is a finite number (and no bool)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(value: object, name: str, call: str, *, least: int = 1) -> None:
    """ConfigError unless value is an integer ≥ least."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{call}({name}=…) must be an integer ≥ {least}; got {value!r}.")


def check_count(call: str, name: str, value: int, *, least: int = 1) -> None:
    """ConfigError unless the value is an integer ≥ least."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{call}({name}=…) needs an integer ≥ {least}; got {value!r}.")


def check_dim(dim: int, call: str) -> None:
    """Raises ConfigError unless dim is a positive integer."""
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise ConfigError(f"{call}: dim must be an integer ≥ 1; got {dim!r}.")


def check_number(value: object, name: str, call: str, *, low: float, high: float, open_low: bool = False) -> None:
    """ConfigError unless value is a number in [low, high], or (low, high] when open_low."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not (low < value if open_low else low <= value) or value > high:  # type: ignore[operator]
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ConfigError(f"{call}({name}=…) must be a number in {interval}; got {value!r}.")


def check_positive(call: str, name: str, value: float) -> float:
    """The value as a float; ConfigError unless it is a finite number above zero."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ConfigError(f"{call}({name}=…) needs a finite number > 0; got {value!r}. Try {name}=1.0.")
    return float(value)


def check_dtype(dtype: object, call: str) -> None:
    """ConfigError unless dtype is float64 or float32."""
    if dtype not in (torch.float32, torch.float64):
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


def check_points(x: Tensor, dim: int, call: str) -> None:
    """ShapeError unless x has shape (n, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ShapeError(f"{call} must have shape (n, {dim}), a row per sample; got {tuple(x.shape)}.")
