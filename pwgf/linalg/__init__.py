"""Linear least-squares solves for the tangent of a push-forward map: which parameters follow a velocity best.

>>> from pwgf.linalg import get_solver
>>> get_solver("pcg").rtol < 1
True
"""

from pwgf.linalg.base import LinearSolver, Solution, TangentLike
from pwgf.linalg.blocks import BlockPCG
from pwgf.linalg.choice import Auto, choose, for_interval, get_solver
from pwgf.linalg.dual import Dual
from pwgf.linalg.krylov import CG, LSMR, MINRES
from pwgf.linalg.primal import Primal
from pwgf.linalg.subsample import SubsamplePCG

__all__ = [
    "CG",
    "LSMR",
    "MINRES",
    "Auto",
    "BlockPCG",
    "Dual",
    "LinearSolver",
    "Primal",
    "Solution",
    "SubsamplePCG",
    "TangentLike",
    "choose",
    "for_interval",
    "get_solver",
]
