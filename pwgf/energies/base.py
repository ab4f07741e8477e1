"""What an energy is: a value F(ρ) and the velocity v = −∇ δF/δρ at the samples. Sums and multiples of energies."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_repeats, plain, private
from ..errors import ConfigError, PWGFError, ShapeError
from ..measures import Sampled
from ..parallel import Shared
from ..shown import Shown
from .hessian import Hessian

FEW = 64  # samples at which a gradient is compared with differences
USER_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)


class Term(NamedTuple):
    """A multiple of an elementary energy inside a sum; `name` is unique there."""

    name: str
    coefficient: float
    energy: Energy


class Energy(Shown, ABC):
    """A functional F of a measure, with its velocity. Energies can be added and scaled: `V + 0.5 * Entropy()`.

    `pairwise` marks energies whose sampled value couples the samples (interactions, functionals): they get antithetic,
    moment-matched samples and are never split into blocks. `time` marks those that depend on `rho.t`, the
    time. Those with `has_value` False, such as drifts, have a velocity but no value whose gradient it is. `weighable`
    marks those whose value averages by `rho.mean` alone and whose velocity at a sample depends on that sample alone:
    right sides may then give the samples weights, and see more of the tails. `Interaction`, which counts a pair by the
    product of its weights, takes them too.

    A subclass supplies `__call__` and `velocity`, and, where it can, `hessian`: implicit steps then treat the term
    implicitly. For F = ½E|x − a|², for instance, the form is E|u|², `Hessian(point=torch.eye(d).expand(n, d, d))` in
    the dtype of `rho.x`. `hessian_of` in `energies.hessian` protects one that may fail or become infinite.
    """

    pairwise: bool = False
    weighable: bool = False
    time: bool = False
    has_value: bool = True
    __array_ufunc__ = None  # NumPy's scalars leave their products to `__rmul__`

    @abstractmethod
    def __call__(self, rho: Sampled) -> Tensor:
        """F(ρ) estimated on ρ's samples: a scalar tensor, differentiable when ρ's θ is."""

    @abstractmethod
    def velocity(self, rho: Sampled) -> Tensor:
        """v = −∇ δF/δρ at ρ's samples x, (n,d), detached."""

    def hessian(self, rho: Sampled) -> Hessian:
        """The second variation of F along displacements of ρ's samples; unknown here, so the term is explicit."""
        return Hessian(explicit=(self.label,))

    def try_functions(self, rho: Sampled) -> None:
        """Tries a user's functions at ρ's samples; here, whether the value at the same samples is the same twice.

        Raises:
            ConfigError: a function is random, keeps a state, or mixes samples that it should take one by one.
        """
        check_repeats(lambda: self(rho), (), f"{type(self).__name__}: F(rho)")

    def terms(self) -> list[Term]:
        """The elementary energies of which this one is the sum, each with its coefficient."""
        return [Term(self.label, 1.0, self)]

    @property
    def label(self) -> str:
        """Name of the term in files and messages."""
        return type(self).__name__.lower()

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """(drift terms, temperature) with which particles dX = Σ c·v(X) dt + √(2·temperature) dW follow the flow.

        Raises:
            ConfigError: the energy has none (it needs a density).
        """
        raise ConfigError(
            f"particles have no density, which {type(self).__name__} needs; particles follow sums of Potential, "
            "Interaction, KL and Entropy. Use scheme PWGF for this energy."
        )

    def power(self, rho: Sampled) -> Tensor:
        """∂F/∂t at the law ρ, a scalar: the rate of work on the samples; 0 for an F that does not depend on time."""
        return rho.x.new_zeros(())

    def noises(self) -> list[tuple[float, Any]]:
        """Diffusions beside the temperature of `particle_form`, each with its factor; none here."""
        return []

    def to_config(self) -> dict[str, Any]:
        """JSON that names the energy; callables by qualified name only."""
        named = {k: qualified_name(v) if callable(v) else v for k, v in vars(self).items() if not k.startswith("_")}
        return {"name": type(self).__name__, **named}

    def __add__(self, other: Energy) -> Energy:
        if isinstance(other, int) and other == 0:
            return self  # where `sum` begins
        if not isinstance(other, Energy):
            return NotImplemented
        return Combination([*self.terms(), *other.terms()])

    __radd__ = __add__

    def __mul__(self, factor: float) -> Energy:
        factor = plain(factor)
        if not isinstance(factor, (int, float)):
            return NotImplemented
        if not math.isfinite(factor):
            raise ConfigError(f"the factor of an energy must be finite; got {factor!r}.")
        return Combination([term._replace(coefficient=factor * term.coefficient) for term in self.terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Energy:
        divisor = plain(divisor)
        if not isinstance(divisor, (int, float)):
            return NotImplemented
        if divisor == 0:
            raise ConfigError("an energy cannot be divided by 0.")
        return (1 / divisor) * self

    def __sub__(self, other: Energy) -> Energy:
        return self + (-1.0) * other

    def __neg__(self) -> Energy:
        return (-1.0) * self


class Combination(Energy):
    """A weighted sum of energies; made by `+` and `*`."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = []
        seen = dict[str, int]()
        for term in terms:
            base = re.sub(r"_\d+$", "", term.name)  # the number that an earlier sum gave it
            seen[base] = seen.get(base, 0) + 1
            self._terms.append(term._replace(name=base if seen[base] == 1 else f"{base}_{seen[base]}"))
        self.pairwise = any(term.energy.pairwise for term in self._terms)
        self.weighable = all(term.energy.weighable for term in self._terms)
        self.time = any(term.energy.time for term in self._terms)
        self.has_value = all(term.energy.has_value for term in self._terms)

    def terms(self) -> list[Term]:
        """The weighted elementary energies."""
        return list(self._terms)

    def __call__(self, rho: Sampled) -> Tensor:
        """Σ c·F(ρ)."""
        return torch.stack([term.coefficient * term.energy(rho) for term in self._terms]).sum()

    def velocity(self, rho: Sampled) -> Tensor:
        """Σ c·v."""
        return torch.stack([term.coefficient * term.energy.velocity(rho) for term in self._terms]).sum(0)

    def try_functions(self, rho: Sampled) -> None:
        """Those of every term."""
        for term in self._terms:
            term.energy.try_functions(rho)

    def hessian(self, rho: Sampled) -> Hessian:
        """Σ c·Hess F, signed: a concave term may be outweighed by another."""
        total = Hessian()
        for term in self._terms:
            form = term.energy.hessian(rho)
            names = tuple(text.replace(term.energy.label, term.name, 1) for text in form.explicit)
            total = total + term.coefficient * replace(form, explicit=names)
        return total

    def particle_form(self) -> tuple[list[tuple[float, Energy]], float]:
        """Drifts and temperatures of the terms added up."""
        drifts, temperature = [], 0.0
        for term in self._terms:
            more, heat = term.energy.particle_form()
            drifts += [(term.coefficient * c, energy) for c, energy in more]
            temperature += term.coefficient * heat
        return drifts, temperature

    def power(self, rho: Sampled) -> Tensor:
        """Σ c·∂F/∂t."""
        return torch.stack([term.coefficient * term.energy.power(rho) for term in self._terms]).sum()

    def noises(self) -> list[tuple[float, Any]]:
        """Those of all terms."""
        return [(term.coefficient * c, source) for term in self._terms for c, source in term.energy.noises()]

    def to_config(self) -> dict[str, Any]:
        """The terms with their coefficients."""
        return {
            "name": "Combination",
            "terms": [{"coefficient": term.coefficient, **term.energy.to_config()} for term in self._terms],
        }


class Once(torch.autograd.Function):
    """A known gradient, a function of x that refuses to be differentiated: its derivative would appear as zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, message: str) -> Tensor:
        """The value itself."""
        ctx.message = message
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        """ConfigError with the message."""
        raise ConfigError(ctx.message)


def shares(rho: Sampled) -> Shared:
    """Which of all samples rho holds: all, unless it says so (any object with `x` and what the energy reads)."""
    return rho if isinstance(rho, Shared) else Shared(len(rho.x))


def check_callable(f: object, call: str) -> None:
    """Raises ConfigError unless f can be called."""
    if not callable(f):
        raise ConfigError(f"{call} needs a function of a tensor; got {type(f).__name__} {f!r:.60}.")


def qualified_name(f: Callable[..., Any]) -> str:
    """module.name of a function or class instance, for records; callables have no identity beyond this."""
    owner = f if hasattr(f, "__qualname__") else type(f)
    return f"{owner.__module__}.{owner.__qualname__}"


def evaluate(
    f: Callable[..., Any],
    call: str,
    shape: torch.Size | None,
    like: Tensor,
    *arguments: Any,
    t: float | Tensor | None = None,
) -> Tensor:
    """Calls a user's function on copies of tensors, and checks the shape, dtype and device of what it returns.

    A shape None is not checked. With t, a time, that comes first, as a 0-d tensor, and messages name it.

    Raises:
        ConfigError: the function raised, or returned another dtype or device.
        ShapeError: it returned no tensor, or one of another shape.
    """
    given = f"an input of shape {tuple(like.shape)}, {like.dtype} on {like.device}"
    if t is not None:
        given += f", at t = {float(torch.as_tensor(t).detach()):.6g}"
        arguments = (torch.as_tensor(t, dtype=like.dtype, device=like.device), *arguments)
    try:
        y = on_copies(f, arguments)
    except PWGFError:
        raise
    except USER_ERRORS as error:
        raise ConfigError(
            f"{call} failed on {given}: {type(error).__name__}: {error}. It must be a differentiable torch function "
            "(no NumPy inside); tensors that it captures must have the input's dtype and device: captured.to(x)."
        ) from error
    if not isinstance(y, Tensor):
        wanted = "" if shape is None else f" of shape {tuple(shape)}"
        raise ShapeError(
            f"{call} must return a torch tensor{wanted} for {given}; got {type(y).__name__}. "
            "Use torch operations, one value per sample, e.g. (x**2).sum(-1)."
        )
    if shape is not None and y.shape != shape:
        cure = "sum over the last axis: .sum(-1)" if y.ndim == like.ndim else "return one value per sample"
        if shape == like.shape and like.ndim == 2:
            cure = "return one vector per sample, of the shape of x"
        if not shape:
            cure = "F is one number for all samples, "
            cure += "not one a sample" if y.ndim == 1 else "not one a coordinate; sum over these by .sum(-1)"
            cure += ": average over the samples by .mean(), or take energies.Potential(V) for F = E V(x)"
        raise ShapeError(f"{call} must return shape {tuple(shape)} for {given}; got {tuple(y.shape)}. Cure: {cure}.")
    if y.dtype != like.dtype or y.device != like.device:
        raise ConfigError(
            f"{call} returned {y.dtype} on {y.device} for {given}; tensors that it captures or makes must follow the "
            "input: captured.to(x), torch.zeros_like(x[..., 0])."
        )
    followed = any(isinstance(value, Tensor) and value.requires_grad for value in (like, *arguments))
    return y if followed else y.detach()  # the function may have marked its copy, or have parameters of its own


def on_copies(f: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """f of copies of the arguments; they require gradients where f differentiates in itself and finds none."""
    copies = [private(value) if isinstance(value, Tensor) else value for value in arguments]
    try:
        return f(*copies)
    except RuntimeError as error:
        if "does not require grad" not in str(error) or not any(isinstance(value, Tensor) for value in arguments):
            raise
    with torch.enable_grad():
        return f(*(private(value).requires_grad_() if isinstance(value, Tensor) else value for value in arguments))


def check_slope(f: Callable[[Tensor], Tensor], x: Tensor, call: str) -> None:
    """ConfigError where f, a function of each sample, varies but not differentiably."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        slope(f(leaf), leaf, call, on_device=True)


def check_gradient(f: Callable[[Tensor], Tensor], x: Tensor, call: str) -> None:
    """ConfigError where the gradient of f, a function of each row of x, is not that of its values at most rows.

    Central differences of two lengths, along one direction in units of each coordinate's spread, count where they agree
    with each other and are above rounding: not where f jumps, or varies over lengths that they do not see. An f without
    a gradient is left to `slope`, one without values beside x is not compared.
    """
    x = x[:FEW].detach()
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        y = f(leaf)
        g = torch.autograd.grad(y.sum(), leaf, allow_unused=True)[0] if y.requires_grad else None
    if g is None:
        return
    eps = torch.finfo(x.dtype).eps
    h = eps ** (1 / 3)
    samples = -2 if x.ndim > 1 else -1
    along = along * torch.maximum(x.std(samples, keepdim=True), 100 * eps / h * x.abs().amax(samples, keepdim=True))
    given = (g * along).reshape(len(x), -1).sum(1)
    try:
        with torch.no_grad():
            wide, found = ((f(x + k * along) - f(x - k * along)) / (2 * k) for k in (h, h / 4))
    except (PWGFError, *USER_ERRORS):
        return
    sure = found.abs() > 1e3 * eps * y.detach().abs().max() / h
    sure &= (wide - found).abs() < 0.01 * found.abs()
    wrong = sure & ((given - found).abs() > 0.1 * (found.abs() + given.abs()))
    if int(wrong.sum()) > len(x) / 2:
        k = int(wrong.int().argmax())
        raise ConfigError(
            f"{call} has a gradient that is not that of its values: along one direction the derivative is "
            f"{float(given[k]):.4g} by autograd and {float(found[k]):.4g} by differences, and so at "
            f"{int(wrong.sum())} of {len(x)} samples. Causes: (a) .detach(), .item() or .numpy() of a part; (b) points "
            "changed where autograd does not see it, x.data or under no_grad: take x.clone(); (c) a "
            "torch.autograd.Function whose backward is another derivative."
        )


def slope(y: Tensor, leaf: Tensor, call: str, *, on_device: bool = False) -> Tensor:
    """∇Σy with respect to leaf; zeros where y is constant.

    A gradient that vanishes everywhere is looked into on a CPU; elsewhere, where that waits for the device, only with
    `on_device` (schemes do so once, at the start).

    Raises:
        ConfigError: y varies with the samples but not differentiably.
    """
    g = torch.autograd.grad(y.sum(), leaf, allow_unused=True)[0] if y.requires_grad else None
    looked_into = on_device or leaf.device.type == "cpu"
    if g is not None and (len(leaf) < 2 or not looked_into or bool(g.any())):
        return g
    flat = y.detach().reshape(-1)
    if not bool((flat == flat[0]).logical_or(flat.isnan()).all()):
        raise ConfigError(
            f"{call} varies with its input but has no gradient: it is not differentiable as written. Use torch "
            "operations throughout; no .detach(), .item(), .numpy(), rounding or comparisons; a derivative inside it "
            "needs torch.autograd.grad(…, create_graph=True)."
        )
    return torch.zeros_like(leaf)
