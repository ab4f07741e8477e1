"""Which linear solver: by name, or by the sizes of the problem."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from pwgf.errors import ConfigError, nearest
from pwgf.linalg.base import LinearSolver, Solution, TangentLike
from pwgf.linalg.dual import Dual
from pwgf.linalg.krylov import CG, LSMR, MINRES
from pwgf.linalg.primal import Primal
from pwgf.linalg.subsample import SubsamplePCG

MAX_DIRECT = 2000  # unknowns up to which a Cholesky factorisation beats an iteration (.016–.12 s on a core)
MAX_DENSE = 100_000_000  # entries of J up to which a Gram matrix is affordable when the structure of J is unknown


def choose(n: int, d: int, p: int, layered: bool, has_rhs: bool = False) -> LinearSolver:
    """The solver that suits the sizes.

    p ≤ 2000: primal. n·d ≤ 2000: dual. Larger: subsample PCG where the structure is known, else LSMR. A free right
    side excludes dual and LSMR; CG takes their place. Unknown structure excludes Grams of a J above 1e8 entries.

    Args:
        n, d, p: samples, dimension, parameters.
        layered: whether Gram matrices are cheap because the structure of J is known.
        has_rhs: whether a free right side is given (the gradient form).

    Example:
        >>> choose(n=1000, d=10, p=5614, layered=True).name, choose(n=1000, d=2, p=50, layered=False).name
        ('pcg', 'primal')
    """
    affordable = layered or n * d * p <= MAX_DENSE
    if p <= MAX_DIRECT and affordable:
        return Primal()
    if n * d <= MAX_DIRECT and affordable and not has_rhs:
        return Dual()
    if layered:
        return SubsamplePCG()
    return CG() if has_rhs else LSMR()


@dataclass(frozen=True)
class Auto:
    """Takes `choose`'s solver anew at each call.

    Example:
        >>> Auto().name
        'auto'
    """

    name: ClassVar[str] = "auto"

    def __call__(
        self, tangent: TangentLike, v: Tensor, *, damping: float, prior: Tensor | None = None, rhs: Tensor | None = None
    ) -> Solution:
        solver = choose(tangent.n, tangent.d, tangent.p, tangent.layered, rhs is not None)
        return solver(tangent, v, damping=damping, prior=prior, rhs=rhs)


SOLVERS: dict[str, type[LinearSolver]] = {
    solver.name: solver for solver in (Auto, Primal, Dual, CG, SubsamplePCG, MINRES, LSMR)
}


def get_solver(solver: str | LinearSolver, **settings: Any) -> LinearSolver:
    """A solver by name, with settings; a solver itself passes through.

    Args:
        solver: "auto", "primal", "dual", "cg", "pcg", "minres", "lsmr", or any callable as `LinearSolver` says.
        settings: fields of the named solver, such as rtol=1e-6.

    Raises:
        ConfigError: unknown name, unknown setting, settings for a solver that is already made, or not a solver.

    Example:
        >>> get_solver("cg", rtol=1e-6, max_iterations=50)
        CG(rtol=1e-06, max_iterations=50)
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
    known = [field.name for field in fields(made)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"get_solver({solver!r}, …) knows the settings {known}; got {name!r}.{nearest(name, known)}"
            )
    return made(**settings)
