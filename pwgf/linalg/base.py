"""What all linear solvers share: the tangent they see, the problem they solve, and the solution they return.

The problem is a damped least-squares fit of a velocity by the tangent of a push-forward map,

    min over x of  |J x − v|²/n + μ |x − prior|²,   μ = damping · tr Ĝ,   Ĝ = JᵀJ/n,

and, with y = x − prior, its normal equations are (Ĝ + μI) y = b with b = Jᵀ(v − J prior)/n.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pwgf.checks import is_integer, is_real, plain, plain_fields
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


class LinearSolver(Protocol):
    """A callable that solves the damped least-squares problem of this module for one right side."""

    @property
    def name(self) -> str:
        """The name by which `get_solver` finds it."""
        ...

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        """Solves for x (p,); see `NormalEquations` for the arguments and the errors."""
        ...


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
        tangent: J at n samples.
        v: velocity to be fitted, (n, d), in the tangent's dtype.
        damping: λ ≥ 0, relative to tr Ĝ; μ = λ tr Ĝ.
        prior: centre of the damping, (p,); zero if None.
        rhs: replaces Jᵀv/n, (p,).

    Raises:
        ConfigError: damping is negative, NaN or infinite.
        ShapeError: v, prior or rhs has the wrong shape or dtype.
        NonFiniteError: v, prior, rhs, the trace or a product is NaN or infinite.
    """

    def __init__(
        self, solver: str, tangent: TangentLike, v: Tensor, damping: float, prior: Tensor | None, rhs: Tensor | None
    ) -> None:
        if not 0 <= damping < math.inf:
            raise ConfigError(
                f"{solver} solve(damping=…) needs a finite number ≥ 0; got {damping!r}. "
                "Give damping=1e-6, or 0 for the plain least-squares fit."
            )
        self.solver, self.tangent, self.v, self.rhs, self.num_products = solver, tangent, v, rhs, 0
        self.group = group_of(tangent)
        own = self.group.share(tangent.n)
        self._check_input("the right side v", v, (own.stop - own.start, tangent.d))
        if prior is not None:
            self._check_input("the prior", prior, (tangent.p,))
        if rhs is not None:
            self._check_input("the right side rhs", rhs, (tangent.p,))
        self.prior = torch.zeros(tangent.p, dtype=tangent.dtype, device=tangent.device) if prior is None else prior
        trace = float(tangent.trace())
        self._check_finite("the trace of the metric", trace)
        self.trace, self.shift = trace, damping * trace
        self._form_right_side(trace, has_prior=prior is not None)

    def _form_right_side(self, trace: float, has_prior: bool) -> None:
        n, v, rhs = self.tangent.n, self.v, self.rhs
        moved = self.jv(self.prior) if has_prior else torch.zeros_like(v)
        self.start_misfit = v - moved
        if rhs is None:
            self.b = self.jtu(self.start_misfit) / n
        else:
            self.b = rhs - self.jtu(moved) / n if has_prior else rhs
        norms = self.sample_norms(v, moved, self.start_misfit)
        sizes = self.numbers(torch.cat([norms, self.b.norm().reshape(1)]))
        self.v_norm, moved_norm, start_misfit_norm, self.b_norm = sizes
        self._check_finite("the tangent product", moved_norm + self.b_norm)
        spread = math.sqrt(max(trace, 0.0) / n)  # |J|_F/n
        given = spread * self.v_norm if rhs is None else float(torch.linalg.vector_norm(rhs))
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

    def non_finite(self, what: str) -> NonFiniteError:
        """The error that says that `what` is NaN or infinite."""
        return NonFiniteError(
            f"{self.solver} solve: {what} is NaN or infinite; a linear solve needs finite numbers. Likely causes: "
            "(a) the parameters left the range of the map: take smaller steps (tolerance or dt); "
            "(b) the energy is infinite at a sample, or the map folds there: look at the velocity, try "
            "integrator='implicit'; (c) overflow in float32: use dtype=torch.float64."
        )

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self.non_finite(what)

    def _check_input(self, what: str, a: Tensor, shape: tuple[int, ...]) -> None:
        dtype = self.tangent.dtype
        if tuple(a.shape) != shape or a.dtype != dtype:
            raise ShapeError(
                f"{self.solver} solve: {what} needs shape {shape} and dtype {dtype}; got {tuple(a.shape)} and "
                f"{a.dtype}. Reshape it, or cast it with .to(tangent.dtype)."
            )
        if self.group.any(not bool(torch.isfinite(a).all())):
            raise self.non_finite(what)


def refuse_rhs(solver: str, rhs: Tensor | None) -> None:
    """Raises `ConfigError` when `rhs` is given to a solver that needs its right side in range(Jᵀ)."""
    if rhs is not None:
        raise ConfigError(
            f"{solver} solve(rhs=…) needs a right side in range(Jᵀ), which a free rhs (form='gradient') is not. "
            "Use solver='primal', 'cg' or 'minres', or form='velocity'."
        )


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
