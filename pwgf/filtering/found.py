"""What a filter returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..measures import PushedLaw
from ..run.trajectory import Trajectory


@dataclass(frozen=True)
class Updated:
    """A law after an observation.

    Args:
        law: the new law.
        log_evidence, log_evidence_stderr: log ∫p(y|x) dρ(x) by importance sampling, with its standard error.
        share: effective share of the samples of the previous law; small where the observation is improbable under it.
        kl_flow: KL(ρ|posterior) at the end of the flow towards the posterior, nats, estimated from above.
        kl_fit: KL between that law and the law of the one map that replaces it, nats.
    """

    law: PushedLaw
    log_evidence: float
    log_evidence_stderr: float
    share: float
    kl_flow: float
    kl_fit: float


@dataclass(frozen=True)
class Filtered:
    """What `run` returns.

    Args:
        times: of the observations.
        predicted: the laws just before each observation.
        updates: the result of each observation; `updates[k].law` is the law just after it.
        end: the last time.
        law: the law at `end`.
        runs: the flows between observations, in times that begin at 0 for each, unless the dynamics depend on time.
    """

    times: list[float]
    predicted: list[PushedLaw]
    updates: list[Updated]
    end: float
    law: PushedLaw
    runs: list[Trajectory] = field(repr=False)

    @property
    def log_evidence(self) -> float:
        """log p(y_1, …, y_K)."""
        return sum(update.log_evidence for update in self.updates)
