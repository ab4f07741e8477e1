"""What all linear solvers share: the tangent they see, the problem they solve, and the solution they return.

The problem is a damped least-squares fit of a velocity by the tangent of a push-forward map,

    min over x of  |J x − v|²/n + μ |x − prior|²,   μ = damping · tr Ĝ,   Ĝ = JᵀJ/n,

and, with y = x − prior, its normal equations are (Ĝ + μI) y = b with b = Jᵀ(v − J prior)/n.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from pwgf.checks import full_precision, is_integer, is_real, plain, plain_fields
from pwgf.errors import ConfigError, NonFiniteError, ShapeError
from pwgf.parallel import ALONE, Group


class TangentLike(Protocol):
    """The tangent J = ∂_θT at n samples in dimension d with p parameters, known by its products.

    `layered` says that the Gram matrices are cheap because the structure of J is known.

    A tangent whose samples are shared out over processes has a `group` as well (`group_of`): then `jv` gives and `jtu`
    takes this process's rows, `group.share(n)`, and all else is of all n samples.
    """

    n: int
    d: int
    p: int
    layered: bool
    dtype: torch.dtype
    device: torch.device

    def jv(self, eta: Tensor) -> Tensor:
        """Jη: (p,) -> (n, d)."""
        ...

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, a plain sum over the samples: (n, d) -> (p,)."""
        ...

    def trace(self) -> Tensor:
        """tr Ĝ = |J|²_F / n, a scalar."""
        ...

    def to(self, dtype: torch.dtype) -> TangentLike:
        """The same tangent in another precision."""
        ...

    def subset(self, idx: Tensor) -> TangentLike:
        """The tangent at the samples `idx` (m,) alone."""
        ...

    def gram_dual(self) -> Tensor:
        """JJᵀ, (n·d, n·d), with row index i·d + k for sample i and coordinate k."""
        ...

    def gram_primal(self) -> Tensor:
        """Ĝ = JᵀJ/n, (p, p)."""
        ...


class Solution(NamedTuple):
    """What a linear solver returns.

    Args:
        x: the minimiser, (p,).
        residual: |b − (Ĝ+μI)(x−prior)|/|b|, computed anew from x; 0 if b is 0 (to rounding).
        fit: |Jx − v|²/|v|² on the samples of the solve, dimensionless; 0 if v is 0.
        num_products: products Jη and Jᵀu spent, each counted as one.
        converged: whether the solver reached its tolerance; x is its last iterate in either case.
    """

    x: Tensor
    residual: float
    fit: float
    num_products: int
    converged: bool


def group_of(tangent: TangentLike) -> Group:
    """The processes that share the tangent's samples out; a single one where it names none."""
    return getattr(tangent, "group", ALONE)


def spread_of(tangent: TangentLike) -> float:
    """|rows|²/(n·trace) ≥ 1: by how much the rows exceed the trace that the damping is relative to; 1 for plain J."""
    return float(getattr(tangent, "spread", 1.0))


def _same(r: Tensor) -> Tensor:
    return r


@dataclass(frozen=True)
class Prepared:
    """What a solver makes of a tangent before it sees a right side.

    Args:
        tangent: J.
        damping: ε ≥ 0, relative to tr Ĝ.
        trace: tr Ĝ.
        inverse: r ↦ (Ĝ + μI)⁻¹r, exact or a preconditioner; in sample space for `Dual`.
        single: J in single precision, where an iteration may take its products.
        kept: what `inverse` is made of and solves at nearby θ on the same samples may use again.
    """

    tangent: TangentLike
    damping: float
    trace: float
    inverse: Callable[[Tensor], Tensor] = _same
    single: TangentLike | None = None
    kept: Any = None

    @property
    def shift(self) -> float:
        """μ = ε tr Ĝ."""
        return self.damping * self.trace


class LinearSolver(ABC):
    """Solves the damped least-squares problem of this module, in two parts: what J needs, then right sides.

    `state = prepare(tangent, damping)` is made once for a J; `solve(state, v, prior)` once for each right side. Where θ
    moves little and the samples stay, `prepare(tangent, damping, last)` may use again what the state `last` holds. A
    solver itself never changes. `solver(tangent, v, damping=…, prior=…)` does both parts.
    """

    name: ClassVar[str]
    finite: ClassVar[bool] = False  # whether `solve` raises where x is NaN or infinite; else its caller checks

    @abstractmethod
    def prepare(self, tangent: TangentLike, damping: float, last: Any = None, *, has_rhs: bool = False) -> Any:
        """The state for solves with J.

        Args:
            tangent: J at n samples.
            damping: ε ≥ 0, relative to tr Ĝ; μ = ε tr Ĝ.
            last: this solver's state at a nearby θ on the same samples.
            has_rhs: whether `rhs` will be given.

        Raises:
            ConfigError: damping is negative, NaN or infinite.
            NonFiniteError: J is NaN or infinite.
        """

    @abstractmethod
    def solve(self, state: Any, v: Tensor, prior: Tensor | None = None, rhs: Tensor | None = None) -> Solution:
        """Solves for x (p,); see `NormalEquations` for the arguments and the errors."""

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        """Prepares and solves for a single right side."""
        return self.solve(self.prepare(tangent, damping, has_rhs=rhs is not None), v, prior, rhs)

    def to_config(self) -> dict[str, Any]:
        """Name and settings as JSON."""
        return {"name": self.name, **settings_of(self)}


class EquationSolver(LinearSolver):
    """A solver of the normal equations: a subclass gives `answer`, and `made` where it factorises or preconditions.

    `takes_rhs` says whether the right side may lie outside range(Jᵀ).
    """

    takes_rhs: ClassVar[bool] = True
    finite: ClassVar[bool] = True

    def prepare(
        self, tangent: TangentLike, damping: float, last: Prepared | None = None, *, has_rhs: bool = False
    ) -> Prepared:
        """See `LinearSolver.prepare`."""
        if not 0 <= damping < math.inf:
            raise ConfigError(
                f"{self.name} solve(damping=…) needs a finite number ≥ 0; got {damping!r}. "
                "Give damping=1e-6, or 0 for the plain least-squares fit."
            )
        trace = float(tangent.trace())
        if not math.isfinite(trace):
            raise non_finite(self.name, "the trace of the metric")
        with full_precision():
            return self.made(Prepared(tangent, damping, trace), last)

    def made(self, state: Prepared, last: Prepared | None) -> Prepared:
        """The state with what solves will use of it."""
        return state

    def solve(self, state: Prepared, v: Tensor, prior: Tensor | None = None, rhs: Tensor | None = None) -> Solution:
        """See `LinearSolver.solve`."""
        if rhs is not None and not self.takes_rhs:
            raise ConfigError(
                f"{self.name} solve(rhs=…) needs a right side in range(Jᵀ), which a free rhs (form='gradient') is not. "
                "Use solver='primal' or 'cg', or form='velocity'."
            )
        with full_precision():
            problem = NormalEquations(self.name, state, v, prior, rhs)
            return problem.prior_solution() if problem.solved else self.answer(problem, state)

    @abstractmethod
    def answer(self, problem: NormalEquations, state: Prepared) -> Solution:
        """The solution where b ≠ 0."""


class Check(NamedTuple):
    """The state of the normal equations at some y, computed from y alone.

    Args:
        gradient: b − (Ĝ+μI) y, (p,).
        misfit: v − J(prior + y), (n, d).
        residual: |gradient|/|b|.
        fit: |misfit|²/|v|².
    """

    gradient: Tensor
    misfit: Tensor
    residual: float
    fit: float


class NormalEquations:
    """The equations (Ĝ + μI) y = b for y = x − prior, with every product counted.

    b = Jᵀ(v − J prior)/n, or rhs − Ĝ prior when `rhs` is given (the gradient form, whose right side need not lie in
    range(Jᵀ)). `solved` says that b vanishes to rounding, that is |b| ≤ 10 ε |J|_F (|v| + |J prior|)/n with ε the
    unit round-off of the dtype: then x = prior, and no relative residual could be reached.

    Cost: one product, two with a prior.

    Args:
        solver: name of the solver, for the messages.
        state: J and the damping.
        v: velocity to be fitted, (n, d), in the tangent's dtype.
        prior: centre of the damping, (p,); zero if None.
        rhs: replaces Jᵀv/n, (p,).

    Raises:
        ShapeError: v, prior or rhs has the wrong shape or dtype.
        NonFiniteError: v, prior, rhs or a product is NaN or infinite.
    """

    def __init__(self, solver: str, state: Prepared, v: Tensor, prior: Tensor | None, rhs: Tensor | None) -> None:
        tangent = self.tangent = state.tangent
        self.solver, self.v, self.rhs, self.num_products = solver, v, rhs, 0
        self.group = group_of(tangent)
        own = self.group.share(tangent.n)
        self._check_input("the right side v", v, (own.stop - own.start, tangent.d))
        if prior is not None:
            self._check_input("the prior", prior, (tangent.p,))
        if rhs is not None:
            self._check_input("the right side rhs", rhs, (tangent.p,))
        self.prior = torch.zeros(tangent.p, dtype=tangent.dtype, device=tangent.device) if prior is None else prior
        self.shift = state.shift
        self._form_right_side(state.trace, has_prior=prior is not None)

    def _form_right_side(self, trace: float, has_prior: bool) -> None:
        """b, and all norms with a single wait for the device; what is not finite has no finite norm."""
        n, v, rhs = self.tangent.n, self.v, self.rhs
        moved = self.jv(self.prior) if has_prior else torch.zeros_like(v)
        self.start_misfit = v - moved
        if rhs is None:
            self.b = self.jtu(self.start_misfit) / n
        else:
            self.b = rhs - self.jtu(moved) / n if has_prior else rhs
        norms = self.sample_norms(v, moved, self.start_misfit)
        others = torch.stack(
            [torch.linalg.vector_norm(a) for a in (self.b, self.prior, self.b if rhs is None else rhs)]
        )
        sizes = self.numbers(torch.cat([norms, others]))
        self.v_norm, moved_norm, start_misfit_norm, self.b_norm, prior_norm, rhs_norm = sizes
        self._check_finite("the right side v", self.v_norm)
        self._check_finite("the prior", prior_norm)
        if rhs is not None:
            self._check_finite("the right side rhs", rhs_norm)
        self._check_finite("the tangent product", moved_norm + self.b_norm)
        spread = math.sqrt(max(trace, 0.0) / n)  # |J|_F/n
        given = spread * self.v_norm if rhs is None else rhs_norm
        self.rounding = 10 * torch.finfo(self.tangent.dtype).eps * (given + spread * moved_norm)
        self.solved = self.b_norm <= self.rounding
        self.start_fit = (start_misfit_norm / self.v_norm) ** 2 if self.v_norm > 0 else 0.0

    def sample_norms(self, *arrays: Tensor) -> Tensor:
        """|a| over all samples, for each array (n, d)."""
        return self.group.norm(torch.stack([torch.linalg.vector_norm(a) for a in arrays]))

    def numbers(self, scalars: Tensor) -> list[float]:
        """The scalars (k,) that a solver branches on, the same in all processes."""
        return self.group.from_first(scalars).tolist()

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n, d); one product."""
        self.num_products += 1
        return self.tangent.jv(eta)

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,); one product."""
        self.num_products += 1
        return self.tangent.jtu(u)

    def matvec(self, y: Tensor) -> Tensor:
        """(Ĝ + μI) y, (p,); two products."""
        return (self.jtu(self.jv(y)) / self.tangent.n).add_(y, alpha=self.shift)

    def check(self, y: Tensor) -> Check:
        """The true residual and the fit at y, computed anew; two products.

        A residual within the rounding error of b counts as 0: where the prior fits v nearly, b is a small difference.
        """
        moved = self.jv(self.prior + y)
        misfit = self.v - moved
        if self.rhs is None:
            gradient = self.jtu(misfit) / self.tangent.n - self.shift * y
        else:
            gradient = self.rhs - self.jtu(moved) / self.tangent.n - self.shift * y
        gradient_norm, misfit_norm = self.numbers(torch.cat([gradient.norm().reshape(1), self.sample_norms(misfit)]))
        self._check_finite("the tangent product", gradient_norm + misfit_norm)
        fit = (misfit_norm / self.v_norm) ** 2 if self.v_norm > 0 else 0.0
        residual = 0.0 if gradient_norm <= self.rounding else gradient_norm / self.b_norm
        return Check(gradient, misfit, residual, fit)

    def solution(self, y: Tensor, check: Check, converged: bool) -> Solution:
        """Packs y and its check."""
        return Solution(self.prior + y, check.residual, check.fit, self.num_products, converged)

    def prior_solution(self) -> Solution:
        """The solution when b is 0: the prior itself."""
        return Solution(self.prior.clone(), 0.0, self.start_fit, self.num_products, True)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise non_finite(self.solver, what)

    def _check_input(self, what: str, a: Tensor, shape: tuple[int, ...]) -> None:
        dtype = self.tangent.dtype
        if tuple(a.shape) != shape or a.dtype != dtype:
            raise ShapeError(
                f"{self.solver} solve: {what} needs shape {shape} and dtype {dtype}; got {tuple(a.shape)} and "
                f"{a.dtype}. Reshape it, or cast it with .to(tangent.dtype)."
            )


def non_finite(solver: str, what: str) -> NonFiniteError:
    """The error that says that `what` is NaN or infinite."""
    return NonFiniteError(
        f"{solver} solve: {what} is NaN or infinite; a linear solve needs finite numbers. Likely causes: "
        "(a) the parameters left the range of the map: take smaller steps (tolerance or dt); "
        "(b) the energy is infinite at a sample, or the map folds there: look at the velocity, try "
        "integrator='implicit'; (c) overflow in float32: use dtype=torch.float64."
    )


def settings_of(solver: Any) -> dict[str, Any]:
    """The fields of a dataclass; none of anything else."""
    fields = dataclasses.fields(solver) if dataclasses.is_dataclass(solver) else ()
    return {field.name: getattr(solver, field.name) for field in fields}


def check_settings(solver: object, **settings: float | None) -> None:
    """Raises `ConfigError` unless every setting is None or a finite number > 0, whole if its name counts something."""
    plain_fields(solver)
    for name, value in settings.items():
        counts = name.startswith(("num_", "max_"))
        fits = is_integer if counts else is_real
        if value is not None and not (fits(plain(value)) and value > 0):
            raise ConfigError(
                f"{type(solver).__name__}({name}=…) needs a {'whole' if counts else 'finite'} number > 0; "
                f"got {value!r}. Leave it out for the default."
            )
