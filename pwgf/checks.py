"""Checks of arguments, made by every constructor and function before it computes anything.

Each raises with the name of the argument, what it must be, and what was given; `call` is the name of the function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, ShapeError

P = ParamSpec("P")
R = TypeVar("R")

_ROUNDING = 0.6  # power of the dtype's ε, relative to the largest value: what a sum in another order may change

_UNITS = (bool, np.timedelta64)  # registered as numbers, but none


def plain(value: Any) -> Any:
    """A number of NumPy's, of torch's (0-d) or of any other kind as Python's int, float or bool; all else as it is."""
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0:
        refuse_masks(value)
        return plain(value.item())
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, _UNITS) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def plain_numbers(f: Callable[P, R]) -> Callable[P, R]:
    """f with every number among its arguments made plain."""

    @functools.wraps(f)
    def with_plain_numbers(*args: P.args, **kwargs: P.kwargs) -> R:
        return f(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return with_plain_numbers


def plain_fields(settings: Any) -> None:
    """Makes every number among the fields of a dataclass plain, also of a frozen one."""
    for field in dataclasses.fields(settings):
        object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))


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
        asked = f"{found[1] or 'more bytes than can be counted'} of memory at once, " if found else "memory, "
        raise ConfigError(f"{call} asks for {asked}more than there is. Cure: {cure}.") from error


def is_integer(value: object) -> TypeGuard[int]:
    """Whether value is an integer (and not a bool)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, _UNITS)


def is_real(value: object) -> TypeGuard[float]:
    """Whether value is a finite number (and not a bool)."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, _UNITS) and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def check_integer(value: object, name: str, call: str, *, least: int = 1) -> None:
    """ConfigError unless value is an integer ≥ least."""
    if not is_integer(value) or value < least:
        raise ConfigError(f"{call}({name}=…) must be an integer ≥ {least}; got {value!r}.")


def check_ambient(call: str) -> None:
    """ConfigError inside a mode of torch that takes derivatives, precision or device out of the solver's hands."""
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            f"{call} cannot work inside torch.inference_mode(), where nothing can be differentiated. Call it outside; "
            "torch.no_grad() does no harm."
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise ConfigError(
            f"{call} cannot work inside torch.autocast(), which computes in another precision than θ's. Call it "
            "outside, and choose the precision by dtype=torch.float32."
        )
    device = torch.empty(0).device  # torch.get_default_device of torch < 2.5 does not see a block `with device`
    if device.type != "cpu":
        raise ConfigError(
            f"{call} cannot work while torch's default device is '{device}'. Leave that as 'cpu', and choose the "
            f"device by device='{device}' of the scheme."
        )


def check_dim(dim: object, call: str) -> None:
    """ConfigError unless dim is an integer ≥ 1 (or in a mode of `check_ambient`)."""
    check_ambient(call)
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


def check_device(device: Any, call: str) -> str:
    """The name of the device; ConfigError unless torch finds it, and it factorises in float64 and gives values back."""
    try:
        name = str(torch.device(device))
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{call}(device=…) must be 'cpu' or 'cuda'; got {device!r} ({error}).") from error
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"{call}(device={name!r}) needs a CUDA device, and torch finds none here; use device='cpu'.")
    if name != "cpu":
        try:
            torch.linalg.cholesky_ex(torch.eye(2, dtype=torch.float64, device=name))[0].cpu()
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"{call}(device={name!r}) needs a device that factorises matrices in float64, also where θ is float32; "
                f"got {type(error).__name__}: {str(error).splitlines()[0]:.200}. Use device='cpu' or 'cuda'."
            ) from error
    return name


def memory_for_blocks(device: str) -> float:
    """Bytes for a block of samples: 1e9 on a CPU, where larger blocks gain nothing, else a tenth of the device's."""
    properties = getattr(getattr(torch, torch.device(device).type), "get_device_properties", None)
    return 1e9 if device == "cpu" or properties is None else max(1e9, properties(device).total_memory / 10)


def check_shape(x: Tensor, dim: int, call: str) -> Tensor:
    """x itself; ShapeError unless it has shape (n, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ShapeError(
            f"{call} must have shape (n, {dim}), a row per sample; got {tuple(x.shape)}. Reshape it: view(-1, {dim})."
        )
    return x


def check_points(x: Tensor, dim: int, call: str, *, finite: bool = False) -> Tensor:
    """x itself; ShapeError unless it has shape (n, dim), ConfigError where it is NaN or, with `finite`, infinite."""
    check_shape(x, dim, call)
    bad = (~x.isfinite() if finite else x.isnan()).any(1)
    if bool(bad.any()):
        k = int(bad.int().argmax())
        raise ConfigError(
            f"{call} must be {'finite' if finite else 'numbers'}; got NaN or infinite entries in {int(bad.sum())} of "
            f"{len(x)} rows, first in row {k}: {[round(value, 4) for value in x[k, :4].tolist()]}. Leave them out."
        )
    return x


def as_points(x: Any, dim: int, call: str) -> Tensor:
    """x as a floating-point tensor (n, dim): tensors keep their type and device, integers become float64; NaN stays.

    Raises:
        ConfigError: x is not made of real numbers.
        ShapeError: it has another shape.
    """
    refuse_masks(x)
    try:
        points = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{call} must be made of real numbers; got {x!r:.60} ({error}).") from error
    return check_shape(points if points.is_floating_point() else points.double(), dim, call)


def as_float64(value: Any, expected: str) -> Tensor:
    """The value as a detached float64 tensor on the CPU; ConfigError where it is not made of numbers."""
    refuse_masks(value)
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{expected}; got {value!r:.60}, which is not made of numbers.") from error


def as_tensor(value: Any) -> Any:
    """A NumPy array of numbers as a tensor of its own; anything else as it is, for the checks that follow."""
    refuse_masks(value)
    return torch.tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value


def refuse_masks(value: Any) -> None:
    """ConfigError for an array with masked entries, whose values a tensor would hold like the others."""
    if np.ma.is_masked(value):
        raise ConfigError(
            "an array has masked entries; give the known ones: x[~x.mask].data, of points x[~x.mask.any(1)].data."
        )


def density_at(x: Tensor, log_density: Callable[[Tensor], Tensor]) -> Tensor:
    """log ρ(x), (n,d) → (n,), −∞ in rows that are infinite, where no law has mass; `log_density` sees the others."""
    finite = ~x.isinf().reshape(len(x), -1).any(1)
    if bool(finite.all()):
        return log_density(x)
    values = x.new_full((len(x),), -math.inf)
    if bool(finite.any()):
        found = log_density(x[finite])
        values = values.to(found).masked_scatter(finite.to(found.device), found)
    return values


def seeded(seed: object, call: str, offset: int = 0) -> torch.Generator:
    """A generator of the seed plus an offset; ConfigError unless the seed is an integer in [0, 2⁶³)."""
    return torch.Generator().manual_seed(check_seed(seed, call) + offset)


def check_seed(seed: Any, call: str) -> int:
    """The seed; ConfigError unless it is an integer in [0, 2⁶³)."""
    if not is_integer(seed) or not 0 <= seed < 2**63:
        raise ConfigError(f"{call}(seed=…) must be an integer in [0, 2⁶³); got {seed!r}. Give e.g. seed=0.")
    return int(seed)


def private(x: Tensor) -> Tensor:
    """x for a user's function to hold: a copy, with x's graph, so that nothing done to it in place reaches x itself."""
    return x.clone()


_ON_DEVICE = 2**25  # numbers that a block holds on a device: 256 MB in float64


def entries_at_once(on_cpu: int, x: Tensor) -> int:
    """Numbers that a block holds: `on_cpu`, for a core's cache, where x lies there; else many, for few kernels."""
    return on_cpu if x.device.type == "cpu" else max(on_cpu, _ON_DEVICE)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32, where a setting of torch allows TF32 or bfloat16; the setting is restored."""
    matmuls = [backend.matmul for backend in (torch.backends.cuda, torch.backends.mkldnn) if hasattr(backend, "matmul")]
    name, full = ("fp32_precision", "ieee") if hasattr(matmuls[0], "fp32_precision") else ("allow_tf32", False)
    before = [(matmul, getattr(matmul, name)) for matmul in matmuls if hasattr(matmul, name)]
    lower = [(matmul, value) for matmul, value in before if value in ("tf32", "bf16", True)]
    try:
        for matmul, _ in lower:
            setattr(matmul, name, full)
        yield
    finally:
        for matmul, value in lower:
            setattr(matmul, name, value)


class Constants:
    """Tensors in the dtype and on the device of what they meet, copied there once.

    Args:
        tensors: in float64.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._copies: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def like(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tensors as x is."""
        key = (x.dtype, x.device)
        if key not in self._copies:
            self._copies[key] = tuple(tensor.to(x.device, x.dtype) for tensor in self._tensors)
        return self._copies[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensors": self._tensors, "_copies": {}}  # another process may have no such device


def check_repeats(f: Callable[..., Tensor], arguments: Sequence[Tensor], call: str) -> Tensor:
    """f(*arguments), detached; ConfigError unless a second call gives the same within rounding."""
    first, again = (f(*arguments).detach() for _ in range(2))
    apart = _apart(first, again)
    if apart > 0:
        raise ConfigError(
            f"{call} gives other values when it is called again at the same samples, by up to {apart:.2g}; it must be "
            "a function. Causes: (a) dropout or other randomness inside: module.eval(), or numbers drawn once; (b) a "
            "counter, a clock or another state that it changes: take it out; (c) the time of the flow: it belongs in "
            "the argument, V(t, x) with time=True, as in energies.Potential(V, time=True)."
        )
    return first


def check_each_sample(f: Callable[..., Tensor], arguments: Sequence[Tensor], call: str) -> None:
    """ConfigError unless f, whose arguments and values have a row per sample, is a function of each sample alone.

    Three calls: twice at all rows, and at half of them in another order.
    """
    values = check_repeats(f, arguments, call)
    some = torch.arange(len(values) - 1, (len(values) - 1) // 2 - 1, -1, device=values.device)
    apart = _apart(values[some], f(*(given[some] for given in arguments)).detach())
    if apart > 0:
        raise ConfigError(
            f"{call} gives a sample other values when other samples stand beside it, by up to {apart:.2g}; it must act "
            "on each sample alone, f(x[:k]) = f(x)[:k]. Causes: (a) batch norm: module.eval(), or LayerNorm; (b) a "
            "mean, softmax or norm over the samples, the first axis: take the last one, dim=-1."
        )


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors; 0 where it is rounding, infinite where only one of them is finite."""
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=math.inf)
    size = one.abs()[one.isfinite()].amax() if bool(one.isfinite().any()) else one.new_zeros(())
    largest = float(gap.amax()) if gap.numel() else 0.0
    return largest if largest > float(size) * torch.finfo(one.dtype).eps ** _ROUNDING else 0.0


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
