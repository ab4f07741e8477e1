"""Initial laws: a map fitted to samples or to a log density, a law transferred from one map to another, and the
directions in which a flow from λ is going to bend.

The θ of the first two goes into `PWGF(theta0=…)`.
"""

from .directions import active_directions
from .fit_map import Fit, fit
from .from_samples import Start, from_samples, load
from .hand_over import Reparametrised, regress, reparametrise

__all__ = [
    "Fit",
    "Reparametrised",
    "Start",
    "active_directions",
    "fit",
    "from_samples",
    "load",
    "regress",
    "reparametrise",
]
