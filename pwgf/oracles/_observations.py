"""What the filters here need of a model, and the checks of observations and their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..checks import is_real, plain
from ..energies import Energy
from ..errors import ConfigError
from ..measures import Reference


class Observed(Protocol):
    """A diffusion with X₀ ~ `initial`, observed at times; `filtering.StateSpace` is one."""

    @property
    def dim(self) -> int:
        """d."""
        ...

    @property
    def initial(self) -> Reference:
        """The law of X₀."""
        ...

    @property
    def potential(self) -> Callable[[Tensor], Tensor] | Energy:
        """V, (n,d) → (n,), of dX = −∇V(X) dt + √(2τ) dW; or the energy of another diffusion."""
        ...

    @property
    def temperature(self) -> float:
        """τ beside V."""
        ...

    @property
    def energy(self) -> Energy:
        """Whose flow is the law between observations."""
        ...

    def at(self, y: Any) -> Callable[[Tensor], Tensor]:
        """log p(y|x) as a function of x, (n,d) → (n,)."""
        ...


def schedule(times: Sequence[float], observations: Sequence[Any], end: float | None) -> tuple[list[float], float]:
    """Times of observation and the end.

    Raises:
        ConfigError: they do not increase from above 0, differ in number from the observations, or pass the end.
    """
    try:
        given = [plain(t) for t in times]
        count = len(observations)
    except TypeError as error:
        raise ConfigError(f"filtering: times and observations must be sequences; {error}.") from error
    end = plain(end)
    for t in (*given, end or 0.0):
        if not is_real(t):
            raise ConfigError(
                f"filtering: times and end must be numbers without a unit; got {t!r:.60}. Divide by the unit of t, "
                "e.g. times / numpy.timedelta64(1, 's')."
            )
    at = [float(t) for t in given]
    if len(at) != count:
        raise ConfigError(f"filtering: each observation needs its time; got {len(at)} times, {count} observations.")
    if not all(math.isfinite(t) for t in at) or any(b <= a for a, b in zip([0.0, *at], at, strict=False)):
        raise ConfigError(f"filtering: times must increase strictly from above 0, the time of `initial`; got {at}.")
    last = at[-1] if at else 0.0
    end = last if end is None else float(end)
    if not (math.isfinite(end) and end >= last and end > 0):
        raise ConfigError(f"filtering(end=…) must not lie before the last observation at t = {last:g}; got {end}.")
    return at, end


def check_observation(log_likelihood: Tensor, t: float) -> None:
    """ConfigError where no sample of the law could have been observed so."""
    if not bool((log_likelihood > -math.inf).any()):
        raise ConfigError(
            f"filtering: the observation at t = {t:g} has zero likelihood at each of {len(log_likelihood)} samples of "
            "the law: it cannot have come from this model. Causes: (a) a wrong observation or unit; (b) a "
            "likelihood of bounded support, or one that underflows: return log p, not torch.log of p."
        )
