"""Samples of unnormalised densities: by the converged flow (`sample`), and by Markov chains that check them."""

from .by_flow import sample
from .chains import Chains, hmc, langevin
from .found import Sampled, Summary
from .laplace import laplace
from .stored import load

__all__ = ["Chains", "Sampled", "Summary", "hmc", "langevin", "laplace", "load", "sample"]
