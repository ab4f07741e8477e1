"""Which linear solver: by name, or by the sizes of the problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pwgf.errors import ConfigError, nearest
from pwgf.linalg.base import LinearSolver, Solution, TangentLike, check_settings, settings_of
from pwgf.linalg.blocks import BlockPCG
from pwgf.linalg.dual import Dual
from pwgf.linalg.krylov import CG, LSMR
from pwgf.linalg.primal import Primal
from pwgf.linalg.subsample import SubsamplePCG

MAX_PRIMAL, MAX_DUAL = 600, 1000  # parameters, rows n·d up to which a Cholesky factorisation beats an iteration
MAX_UNLAYERED = 1000, 500  # the same where the structure of J is unknown, so that Gram matrices need rows one by one
MAX_IMPLICIT_PRIMAL = 1000  # parameters up to which it does in implicit steps, whose iterations take longer
MAX_DENSE = 100_000_000  # entries of J up to which a Gram matrix is affordable when the structure of J is unknown
MIN_OUTPUT_SHARE = 0.25  # of parameters that move one coordinate alone, from which their blocks precondition well
MAX_PCG_DIM, MAX_PCG_DAMPING = 20, 1e-5  # beyond them a preconditioner costs more than it saves


def choose(
    n: int,
    d: int,
    p: int,
    layered: bool,
    has_rhs: bool = False,
    damping: float = 1e-6,
    accuracy: float = 1.0,
    implicit: bool = False,
    output_share: float = 0.0,
) -> LinearSolver:
    """The solver that suits the sizes, with an error in the displacement of a few 1e-4·accuracy.

    p ≤ 600 (1000 in implicit steps): primal, but dual where n·d ≤ p/2. n·d ≤ 1000: dual. Larger: CG preconditioned by
    the blocks of each coordinate where a quarter of the parameters lies in them, else by a subsample in d ≤ 20 for
    damping below 1e-5, plain CG otherwise. Where the structure of J is unknown: p ≤ 1000 and n·d ≤ 500, then LSMR. A
    free right side excludes dual and LSMR; CG takes their place. Unknown structure excludes Grams of a J above 1e8
    entries.

    The rows of an implicit step cost more to precondition than that saves: for the default map in d = 10 CG took 60 to
    80 products, with the subsample's metric as preconditioner 90 to 120 and three times as long.

    The damping is relative to the trace, which in high dimension many directions share: their spread is small then, and
    CG needs few iterations.

    Args:
        n, d, p: samples, dimension, parameters.
        layered: whether Gram matrices are cheap because the structure of J is known.
        has_rhs: whether a free right side is given (the gradient form).
        damping: ε of the solve.
        accuracy: in (0, 1], factor of the iterations' tolerances.
        implicit: whether the rows are those of an implicit step.
        output_share: share of the parameters that move a single coordinate of x each.

    Example:
        >>> choose(n=1000, d=10, p=5614, layered=True).name, choose(n=1000, d=2, p=50, layered=False).name
        ('pcg', 'primal')
    """
    affordable = layered or n * d * p <= MAX_DENSE
    max_primal, max_dual = (MAX_PRIMAL, MAX_DUAL) if layered else MAX_UNLAYERED
    max_primal = max(max_primal, MAX_IMPLICIT_PRIMAL) if implicit else max_primal
    dual = n * d <= max_dual and affordable and not has_rhs
    if p <= max_primal and affordable and not (dual and 2 * n * d <= p):
        return Primal()
    if dual:
        return Dual()
    if not layered:
        return CG(rtol=1e-5 * accuracy) if has_rhs else LSMR(rtol=1e-5 * accuracy)
    if output_share > MIN_OUTPUT_SHARE:
        return BlockPCG(rtol=1e-3 * accuracy)
    if d <= MAX_PCG_DIM and damping < MAX_PCG_DAMPING and not implicit:
        return SubsamplePCG(rtol=1e-3 * accuracy)
    return CG(rtol=(1e-3 if implicit else 2e-4) * accuracy, mixed=True)


class Choice(NamedTuple):
    """The solver that `Auto` took for a J, its state, and both for each kind of J met so far: explicit, implicit."""

    solver: LinearSolver
    state: Any
    met: dict[bool, tuple[LinearSolver, Any]]


@dataclass(frozen=True)
class Auto(LinearSolver):
    """Takes `choose`'s solver, and stays with it at nearby θ.

    Args:
        accuracy: in (0, 1], factor of the iterations' tolerances; at 1 the error in the displacement,
            |J(x − x*)|/|Jx*|, is a few 1e-4.

    Example:
        >>> Auto().name
        'auto'
    """

    accuracy: float = 1.0
    name: ClassVar[str] = "auto"
    finite: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self, accuracy=self.accuracy)

    def prepare(
        self, tangent: TangentLike, damping: float, last: Choice | None = None, *, has_rhs: bool = False
    ) -> Choice:
        """See `LinearSolver.prepare`."""
        implicit = getattr(tangent, "h", 0.0) > 0
        met = {} if last is None else last.met
        if implicit in met:
            solver, before = met[implicit]
        else:
            share = getattr(tangent, "output_share", 0.0)
            n, d, p, layered = tangent.n, tangent.d, tangent.p, tangent.layered
            solver, before = choose(n, d, p, layered, has_rhs, damping, self.accuracy, implicit, share), None
        state = solver.prepare(tangent, damping, before)
        return Choice(solver, state, {**met, implicit: (solver, state)})

    def solve(self, state: Choice, v: Tensor, prior: Tensor | None = None, rhs: Tensor | None = None) -> Solution:
        """See `LinearSolver.solve`."""
        return state.solver.solve(state.state, v, prior, rhs)


class FromCallable(LinearSolver):
    """A function solver(tangent, v, damping=…, prior=…, rhs=…) -> Solution as a solver that prepares nothing."""

    def __init__(self, function: Callable[..., Solution]) -> None:
        self.function = function
        self.name = getattr(function, "name", getattr(function, "__name__", type(function).__name__))  # type: ignore[misc]

    def prepare(
        self, tangent: TangentLike, damping: float, last: Any = None, *, has_rhs: bool = False
    ) -> tuple[TangentLike, float]:
        """J and the damping, as they are."""
        return tangent, damping

    def solve(
        self, state: tuple[TangentLike, float], v: Tensor, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        """What the function returns."""
        tangent, damping = state
        return self.function(tangent, v, damping=damping, prior=prior, rhs=rhs)

    def to_config(self) -> dict[str, Any]:
        """Its name, and its settings where it is a dataclass."""
        return {"name": self.name, **settings_of(self.function)}


SOLVERS: dict[str, type[LinearSolver]] = {
    solver.name: solver for solver in (Auto, Primal, Dual, CG, BlockPCG, SubsamplePCG, LSMR)
}


def get_solver(solver: str | LinearSolver | Callable[..., Solution], **settings: Any) -> LinearSolver:
    """A solver by name, with settings; a solver itself passes through.

    Args:
        solver: "auto", "primal", "dual", "cg", "block-pcg", "pcg", "lsmr", a `LinearSolver`, or any function
            solver(tangent, v, damping=…, prior=…, rhs=…) -> Solution.
        settings: fields of the named solver, such as rtol=1e-6.

    Raises:
        ConfigError: unknown name, unknown setting, settings for a solver that is already made, or not a solver.

    Example:
        >>> get_solver("cg", rtol=1e-6, max_iterations=50)
        CG(rtol=1e-06, max_iterations=50, mixed=False)
    """
    if not isinstance(solver, str):
        if not callable(solver) or isinstance(solver, type):
            raise ConfigError(
                f"get_solver(solver=…) needs one of {list(SOLVERS)} or a solver; got {solver!r}. "
                "Give a name, or an instance such as linalg.CG()."
            )
        if settings:
            raise ConfigError(
                f"get_solver(solver, …) takes settings with a name alone; got {solver!r} and {sorted(settings)}. "
                "Put the settings into the solver."
            )
        return solver if isinstance(solver, LinearSolver) else FromCallable(solver)
    if solver not in SOLVERS:
        raise ConfigError(
            f"get_solver(solver=…) needs one of {list(SOLVERS)}; got {solver!r}.{nearest(solver, SOLVERS)}"
        )
    made = SOLVERS[solver]
    known = [f.name for f in fields(made)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"get_solver({solver!r}, …) knows the settings {known}; got {name!r}.{nearest(name, known)}"
            )
    return made(**settings)
