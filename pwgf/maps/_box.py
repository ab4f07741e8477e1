"""The corners of a box."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import as_float64
from ..errors import ConfigError, ShapeError


def check_box(lower: Any, upper: Any, call: str, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """The corners of a box, (d,) float64 each, from d numbers or one for all coordinates; d is dim where that is given.

    Raises:
        ConfigError: a lower bound is not below the upper one, or one is not finite.
        ShapeError: the corners do not fit each other or dim.
    """
    expected = f"{call}(lower, upper): {{}} must be a number or {'d' if dim is None else dim} of them"
    low, high = (as_float64(v, expected.format(name)) for name, v in (("lower", lower), ("upper", upper)))
    d = max(low.numel(), high.numel()) if dim is None else dim
    for corner in (low, high):
        if corner.ndim > 1 or (corner.ndim == 1 and len(corner) != d) or d < 1:
            raise ShapeError(
                f"{call}(lower, upper) needs {'the same number of coordinates' if dim is None else f'{d} numbers'} "
                f"in both, or one number for all; got shapes {tuple(low.shape)} and {tuple(high.shape)}."
            )
    low, high = low.expand(d).clone(), high.expand(d).clone()
    wrong = ~((low < high) & torch.isfinite(low) & torch.isfinite(high))
    if bool(wrong.any()):
        k = int(wrong.double().argmax())
        raise ConfigError(
            f"{call}(lower, upper) needs finite numbers with lower < upper in each coordinate; got lower = "
            f"{float(low[k]):g}, upper = {float(high[k]):g} in coordinate {k}. Exchange them, or widen the box."
        )
    return low, high
