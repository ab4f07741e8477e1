"""Samples of unnormalised densities: by the converged flow (`sample`), and by Markov chains that check them."""

from .by_flow import Sampled, sample
from .chains import Chains, hmc, langevin
from .laplace import laplace

__all__ = ["Chains", "Sampled", "hmc", "langevin", "laplace", "sample"]
