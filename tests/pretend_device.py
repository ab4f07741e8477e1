"""A device that is none: tensors say that they lie on it and hold their values on the CPU.

    with PretendedDevice() as device:
        solve(PWGF(..., device=DEVICE), [0.0, 0.1])
    assert not device.mixes    # operations that a GPU refuses: operands or a generator of another device
    print(device.waits)        # where the host waited for the device, by file and line of the package

Its name is registered with torch (PrivateUse1, a backend in Python, torch ≥ 2.10), so that C++ sees it too. A dispatch
mode, below autograd and torch.func, records each operation on such tensors and carries it out on the values they hold.
A wait is what stops the host until the device has caught up: a value that is read, a result whose shape depends on
values, a factorisation that checks itself. Copies from pageable memory of the host are counted apart, as uploads.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import pwgf

NAME = "pretended"
DEVICE = f"{NAME}:0"


class _Module(_DummyBackendModule):
    """What torch asks of a backend, whose generators nothing here uses."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None: ...

    def get_device_name(self, device: Any = None) -> str:
        return "Pretended"

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(total_memory=80e9)


_setup_privateuseone_for_python_backend(NAME, _Module())

_PACKAGE = str(Path(pwgf.__file__).parent) + "/"
_READ = {"_local_scalar_dense", "item", "equal", "is_nonzero", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd"}
_SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_", "lift_fresh", "lift_fresh_copy", "lift", "detach"}
_ONE_BY_ONE = {"cholesky_inverse", "linalg_qr"}  # CUDA takes the matrices of a batch one after another


class Placed(torch.Tensor):
    """A tensor on the pretended device."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(DEVICE), requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        """One copy to the host, which torch refuses for subclasses."""
        PretendedDevice.current.waits[_line()] += 1
        return self.held.detach().tolist()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    numpy = __array__

    def __repr__(self) -> str:
        return f"Placed({self.held!r})"

    def __deepcopy__(self, memo: dict) -> Placed:
        return self.clone()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Where autograd calls outside the mode."""
        mode = PretendedDevice.current
        TorchDispatchMode.__enter__(mode)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            TorchDispatchMode.__exit__(mode, None, None, None)


class PretendedDevice(TorchDispatchMode):
    """Records what happens on the device; with `strict`, mixes raise as on a GPU.

    Attributes: `mixes`, texts; `waits`, `uploads` and `one_by_one`, counts by line of the package; `kernels`, a count.
    """

    current: PretendedDevice

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict = strict
        self.mixes: list[str] = []
        self.clear()

    def clear(self) -> None:
        """Counts from zero."""
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.one_by_one: Counter[str] = Counter()
        self.kernels = 0

    def __enter__(self) -> PretendedDevice:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is seen as an upload
        PretendedDevice.current = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name.split("::")[1]
        flat = list(_leaves([args, kwargs]))
        there = [value for value in flat if isinstance(value, Placed)]
        here = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, Placed)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        placed = target is not None and target.type == NAME
        if not there and not placed:
            return func(*args, **kwargs)
        self._record(func, name, args, there, here, placed)
        if any(isinstance(value, torch.Generator) for value in flat):
            self._mix(name, "a generator of the CPU")
        held_args, held_kwargs = _mapped(_held, args), _mapped(_held, kwargs)
        if target is not None:
            held_kwargs["device"] = torch.device("cpu")
        out = func(*held_args, **held_kwargs)
        if target is not None and not placed:
            self.waits[_line()] += 1
            return out.clone() if any(out is value.held for value in there) else out
        if name == "_efficientzerotensor":  # the zeros of forward mode, which hold nothing
            out = torch.zeros(out.shape, dtype=out.dtype)
        if func._schema.is_mutable:
            return kwargs.get("out", args[0])
        return _mapped(lambda value: Placed(value) if isinstance(value, torch.Tensor) else value, out)

    def _record(self, func: Any, name: str, args: Any, there: list, here: list, placed: bool) -> None:
        if not any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns):
            self.kernels += 1  # no view
        if name in _READ | _SHAPED_BY_VALUES:
            self.waits[_line()] += 1
        if name in _ONE_BY_ONE and args[0].ndim > 2:
            self.one_by_one[_line()] += 1
        if name in _INDEXED:
            self._record_indices(name, args)
        elif name == "copy_" and here:
            counter = self.uploads if isinstance(args[0], Placed) else self.waits
            counter[_line()] += 1
        elif name == "_to_copy" and here and placed:
            self.uploads[_line()] += 1
        elif (
            name not in _COPIES and there and (any(value.ndim for value in here) or (here and name in ("cat", "stack")))
        ):
            self._mix(name, str([(tuple(value.shape), value.device.type) for value in [*there, *here]]))

    def _record_indices(self, name: str, args: Any) -> None:
        for index in args[1]:
            if index is None:
                continue
            if index.dtype in (torch.bool, torch.uint8):
                self.waits[_line()] += 1
            if not isinstance(index, Placed):
                self.uploads[_line()] += 1
        if not isinstance(args[0], Placed) or (len(args) > 2 and args[2].ndim and not isinstance(args[2], Placed)):
            self._mix(name, "the tensor, its values and the indices on two devices")

    def _mix(self, name: str, what: str) -> None:
        self.mixes.append(f"{name}: {what} at {_line()}")
        if self.strict:
            raise RuntimeError(f"Expected all tensors to be on the same device: {self.mixes[-1]}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _mapped(f: Callable[[Any], Any], value: Any) -> Any:
    """f of every leaf, in lists, tuples and dictionaries as before."""
    if isinstance(value, dict):
        return {name: _mapped(f, part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(f, part) for part in value])
    return f(value)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Placed) else value


def _line() -> str:
    """The innermost line of the package: file:line function."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            return f"{code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "outside of the package"
