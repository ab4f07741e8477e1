"""Starting anywhere: a map fitted to samples or to a log density, and a law handed over from one map to another.

The θ of either goes into `PWGF(theta0=…)`.
"""

from .fit_map import Fit, fit
from .hand_over import Reparametrised, regress, reparametrise

__all__ = ["Fit", "Reparametrised", "fit", "regress", "reparametrise"]
