"""A user's function of the samples, or of the time and the samples."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_each_sample
from ..errors import ConfigError
from ..measures import Sampled
from .base import FEW, check_callable, check_gradient, evaluate, shares


@dataclass(frozen=True)
class Timed:
    """A user's f(x, …), or f(t, x, …) where it depends on time; t is then that of the measure, a 0-d tensor.

    Args:
        f: the function, of tensors with a row per sample.
        owner: the energy it belongs to, such as "Potential".
        name, arguments: what f and its arguments are called, such as "V" and "x".
        time: whether f takes t as its first argument.

    Raises:
        ConfigError: f is not callable, or takes another number of arguments than `time` says.
    """

    f: Callable[..., Tensor]
    owner: str
    name: str
    arguments: str
    time: bool = False

    def __post_init__(self) -> None:
        check_callable(self.f, f"{self.owner}({self.name})")
        if not isinstance(self.time, bool):
            raise ConfigError(f"{self.owner}(time=…) must be True or False; got {self.time!r}.")
        self._check_arguments()

    @property
    def call(self) -> str:
        """What messages name, such as "Potential: V(t, x)"."""
        return f"{self.owner}: {self.name}({self._given(self.time)})"

    def _given(self, time: bool) -> str:
        return f"t, {self.arguments}" if time else self.arguments

    def _check_arguments(self) -> None:
        """ConfigError where f takes the arguments that it would with the other value of `time`, and not these."""
        plain = self.arguments.count(",") + 1
        wanted, other = (plain + 1, plain) if self.time else (plain, plain + 1)
        if _takes(self.f, wanted) or not _takes(self.f, other):
            return
        right, wrong = self._given(self.time), self._given(not self.time)
        if self.time:
            raise ConfigError(
                f"{self.owner}({self.name}, time=True) calls {self.name}({right}), t a 0-d tensor; got a function of "
                f"({wrong}). Write `def {self.name}({right})`, or leave time=True out."
            )
        raise ConfigError(
            f"{self.owner}({self.name}) calls {self.name}({right}); got a function of {plain + 1} arguments. If it is "
            f"{self.name}({wrong}), say so: {self.owner}({self.name}, time=True)."
        )

    def __call__(self, rho: Sampled, shape: torch.Size | None, *arguments: Tensor, t: Tensor | None = None) -> Tensor:
        """f at the time of rho, or at t, and at the arguments, checked to have that shape, if any is given."""
        when: Any = None
        if self.time:
            when = time_of(rho, self.call) if t is None else t
        return evaluate(self.f, self.call, shape, arguments[0], *arguments, t=when)

    def rate(self, rho: Sampled, *arguments: Tensor) -> Tensor:
        """E ∂ₜf at the samples, a scalar; NaN where f reads t outside torch."""
        given, share = [value.detach() for value in arguments], shares(rho)

        def total(t: Tensor) -> Tensor:
            return self(rho, given[0].shape[:1], *given, t=t).sum()

        return share.group.sum(slope_in_time(total, given[0].new_tensor(time_of(rho, self.call)))) / share.num_samples

    def try_at(self, rho: Sampled, *arguments: Tensor, of_each: Sequence[int] = ()) -> None:
        """ConfigError unless f is a function of each sample alone, with the same value when called again, and its
        gradient, where it has one value for a sample, is that of its values.

        `of_each` is the shape of its value for a sample.
        """

        def value(*given: Tensor) -> Tensor:
            return self(rho, torch.Size((len(given[0]), *of_each)), *given)

        given = [values.detach() for values in arguments]
        check_each_sample(value, given, self.call)
        few = [values[:FEW] for values in given]
        for k, points in enumerate(few if not of_each else ()):
            check_gradient(lambda x, k=k: value(*few[:k], x, *few[k + 1 :]), points, self.call)  # type: ignore[misc]


def slope_in_time(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """f′(t), a scalar; NaN where f reads t outside torch."""
    leaf = t.detach().requires_grad_(True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")  # float(t) inside f
        value = f(leaf)
    found = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    return leaf.new_tensor(torch.nan) if found is None else found


def _takes(f: Callable[..., Any], count: int) -> bool:
    """Whether f takes so many arguments and needs no fewer; True where that cannot be known."""
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):
        return True
    kinds = [argument.kind for argument in signature.parameters.values()]
    needed = [
        argument
        for argument in signature.parameters.values()
        if argument.default is argument.empty and argument.kind <= argument.POSITIONAL_OR_KEYWORD
    ]
    several = inspect.Parameter.VAR_POSITIONAL in kinds
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return several or len(needed) == count or (len(needed) < count and count == 1)


def time_of(rho: Sampled, call: str) -> float:
    """The time of a measure; ConfigError where it has none."""
    t = getattr(rho, "t", None)
    if t is None:
        raise ConfigError(
            f"{call} needs a time, and this measure has none: {type(rho).__name__}(…). Give it one: "
            "measures.PushedMeasure(…, t=0.5), measures.Cloud(x, t=0.5)."
        )
    return float(t)
