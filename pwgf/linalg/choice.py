"""Which linear solver: by name, or by the sizes of the problem."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from pwgf.errors import ConfigError, nearest
from pwgf.linalg.base import LinearSolver, Solution, TangentLike, check_settings
from pwgf.linalg.blocks import BlockPCG
from pwgf.linalg.dual import Dual
from pwgf.linalg.krylov import CG, LSMR, MINRES
from pwgf.linalg.primal import Primal
from pwgf.linalg.subsample import SubsamplePCG

MAX_PRIMAL, MAX_DUAL = 500, 1000  # parameters, rows n·d up to which a Cholesky factorisation beats an iteration
MAX_UNLAYERED = 1000, 500  # the same where the structure of J is unknown, so that Gram matrices need rows one by one
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

    p ≤ 500: primal, but dual where n·d ≤ p/2. n·d ≤ 1000: dual. Larger: CG preconditioned by the blocks of each
    coordinate where a quarter of the parameters lies in them, else by a subsample in d ≤ 20 for damping below 1e-5,
    plain CG otherwise. Where the structure of J is unknown: p ≤ 1000 and n·d ≤ 500, then LSMR. A free right side
    excludes dual and LSMR; CG takes their place. Unknown structure excludes Grams of a J above 1e8 entries.

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


@dataclass(frozen=True)
class Auto:
    """Takes `choose`'s solver anew at each call.

    Args:
        accuracy: in (0, 1], factor of the iterations' tolerances; at 1 the error in the displacement,
            |J(x − x*)|/|Jx*|, is a few 1e-4.

    Example:
        >>> Auto().name
        'auto'
    """

    accuracy: float = 1.0
    name: ClassVar[str] = "auto"
    _kept: dict[str, LinearSolver] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self, accuracy=self.accuracy)

    def for_interval(self) -> Auto:
        """The same solver for solves at nearby θ on the same samples: chooses once, and what it builds is kept."""
        solver = replace(self)
        object.__setattr__(solver, "_kept", {})
        return solver

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        implicit = getattr(tangent, "h", 0.0) > 0
        kind = "implicit" if implicit else "explicit"
        if self._kept and kind in self._kept:
            solver = self._kept[kind]
        else:
            solver = choose(
                tangent.n,
                tangent.d,
                tangent.p,
                tangent.layered,
                rhs is not None,
                damping,
                self.accuracy,
                implicit,
                getattr(tangent, "output_share", 0.0),
            )
            if self._kept is not None:
                solver = self._kept[kind] = for_interval(solver)
        return solver(tangent, v, damping=damping, prior=prior, rhs=rhs)


def for_interval(solver: LinearSolver) -> LinearSolver:
    """The solver for one interval, in which θ moves little and the samples stay: one that may keep what it builds."""
    return solver.for_interval() if isinstance(solver, (Auto, BlockPCG, SubsamplePCG)) else solver


SOLVERS: dict[str, type[LinearSolver]] = {
    solver.name: solver for solver in (Auto, Primal, Dual, CG, BlockPCG, SubsamplePCG, MINRES, LSMR)
}


def get_solver(solver: str | LinearSolver, **settings: Any) -> LinearSolver:
    """A solver by name, with settings; a solver itself passes through.

    Args:
        solver: "auto", "primal", "dual", "cg", "block-pcg", "pcg", "minres", "lsmr", or any callable as
            `LinearSolver` says.
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
        return solver
    if solver not in SOLVERS:
        raise ConfigError(
            f"get_solver(solver=…) needs one of {list(SOLVERS)}; got {solver!r}.{nearest(solver, SOLVERS)}"
        )
    made = SOLVERS[solver]
    known = [f.name for f in fields(made) if f.init]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"get_solver({solver!r}, …) knows the settings {known}; got {name!r}.{nearest(name, known)}"
            )
    return made(**settings)
