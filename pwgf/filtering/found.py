"""What a filter returns."""

from __future__ import annotations

import html
from dataclasses import dataclass

from ..measures import PushedLaw
from ..run.trajectory import Trajectory
from ..shown import as_table, fields_as_table


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
    _repr_html_ = fields_as_table


@dataclass(frozen=True, repr=False)
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
    runs: list[Trajectory]

    @property
    def log_evidence(self) -> float:
        """log p(y_1, …, y_K)."""
        return sum(update.log_evidence for update in self.updates)

    def __repr__(self) -> str:
        known = f"log evidence {self.log_evidence:.4g}, law at t = {self.end:g}"
        return f"Filtered({len(self.updates)} observations, {known})"

    def _repr_html_(self) -> str:
        """A row for each observation."""
        names = ("log_evidence", "log_evidence_stderr", "share", "kl_flow", "kl_fit")
        updates = zip(self.times, self.updates, strict=True)
        rows = [[f"{t:g}", *(f"{getattr(update, name):.3g}" for name in names)] for t, update in updates]
        return f"<p>{html.escape(repr(self))}</p>{as_table(rows, ('t', *names))}"
