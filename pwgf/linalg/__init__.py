"""Linear least-squares solves for the tangent of a push-forward map: which parameters follow a velocity best.

>>> from pwgf.linalg import get_solver
>>> get_solver("pcg").rtol < 1
True
"""

from pwgf.linalg.base import EquationSolver, LinearSolver, Prepared, Solution, TangentLike
from pwgf.linalg.blocks import BlockPCG
from pwgf.linalg.choice import SOLVERS, Auto, choose, get_solver
from pwgf.linalg.dual import Dual
from pwgf.linalg.krylov import CG, LSMR
from pwgf.linalg.primal import Primal
from pwgf.linalg.subsample import SubsamplePCG

__all__ = [
    "CG",
    "LSMR",
    "SOLVERS",
    "Auto",
    "BlockPCG",
    "Dual",
    "EquationSolver",
    "LinearSolver",
    "Prepared",
    "Primal",
    "Solution",
    "SubsamplePCG",
    "TangentLike",
    "choose",
    "get_solver",
]
