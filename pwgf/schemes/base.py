"""What a scheme is and what it is asked, and how stored rows of a map's parameters are read back as measures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import check_points, is_real
from ..energies import Energy
from ..errors import ConfigError
from ..maps.base import Block, PushForward
from ..measures import PushedMeasure, Reference
from ..shown import Shown
from ..state import Info, Rows, State

Row = dict[str, float | Tensor]
"""One stored row: `theta` and `theta_dot` (p,), all else numbers; `t` is added by the loop."""

_SHOWN = ("tolerance", "dt", "tau", "h", "damping")  # settings that a figure names


class Replay(Protocol):
    """Reads stored rows back as measures; all that a trajectory needs of a scheme."""

    reference: Reference
    dtype: torch.dtype

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """Samples of ρ_t from samples z (n,d) of λ, (n,d)."""
        ...

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log ρ_t(x), (n,d) → (n,); ConfigError where the scheme has no density."""
        ...

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d) → (n,d); ConfigError where the scheme has no density."""
        ...


class Scheme(Replay, Protocol):
    """A way to move a measure in time. `solve` and `evolve` need no more than this; `Answers` holds what is optional.

    `step` makes one sampling interval and never passes t1; `measure` gives the figures of a row. Neither changes the
    scheme or the state, and equal states give equal results.
    """

    def start(self, seed: int = 0, t: float = 0.0) -> State:
        """The state at time t, after a check of the energy on a few samples."""
        ...

    def step(self, state: State, t1: float) -> tuple[State, Info]:
        """One step towards t1."""
        ...

    def measure(self, state: State) -> Row:
        """The row of this state: θ, θ̇ and the figures measured on fresh samples.

        Figures and summaries know these columns and leave out what is not there: `energy`, `energy_stderr`,
        `projection_residual`, `velocity_rms`, `fold_fraction`, and the totals `num_steps`, `num_implicit`,
        `num_rejected` and `num_stages`, the work, in the unit that `Description.work_unit` names.
        """
        ...

    def fingerprint(self, state: State) -> np.ndarray:
        """Energy and velocity at a few fixed samples of this state: tells another energy from the same one."""
        ...

    def layout(self) -> list[Block]:
        """The blocks of θ."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The resolved settings as JSON; `stored_config` adds name, energy, map, reference, dtype and device."""
        ...


@dataclass(frozen=True)
class Description:
    """What figures, summaries and comparisons say of a scheme. The file of a run holds it, so they need no class.

    Args:
        name: of the scheme.
        rows: what a row of θ is: the parameters of a "map", those of one map of a "chain", "particles", "fitted
            particles" that have a density, or the scheme's "own", which only the scheme itself reads as a measure.
        map: name of the map; None without one.
        settings: such as "tolerance 0.001"; "{num_steps}" stands for the last value of that column.
        work_unit: what the column `num_stages` counts.
        balance: what a sound run does to the column `total_energy`, or `energy` where that is not there: it "falls",
            "stays", or "varies", where the energy depends on time or has no value.
        no_projection: why there is no column `projection_residual`.
        advice: what helps where many steps are rejected.
        cures: columns with the error estimate that a cure gave where it was tried, and what it is.
        sources: what figures of the law come from, by their names, where they do not all come from the same.
    """

    name: str
    rows: str = "own"
    map: str | None = None
    settings: tuple[str, ...] = ()
    work_unit: str = "right sides"
    balance: str = "falls"
    no_projection: str = ""
    advice: str = "another step length, or more samples"
    cures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_density(self) -> bool:
        """Whether ρ_t has one."""
        return self.rows != "particles"

    @property
    def has_particles(self) -> bool:
        """Whether rows of θ hold particles."""
        return "particles" in self.rows

    def line(self, size: int, dim: int | None) -> str:
        """Scheme and what it moves, such as "PWGF with ResidualMLP (326 parameters)".

        Args:
            size: numbers in a row of θ.
            dim: d, where it is known.
        """
        if self.has_particles:
            return f"{self.name} with {size // dim if dim else 'its'} particles"
        return self.name + (f" with {self.map}" if self.map else "") + f" ({size} parameters)"

    def to_config(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "settings": list(self.settings)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Description:
        """From `to_config()`; entries that a later version added are passed over."""
        known = {field.name for field in dataclasses.fields(cls)}
        entries = {name: value for name, value in config.items() if name in known}
        return cls(**{**entries, "settings": tuple(entries.get("settings", ()))})


FEW_FOLDS = 5e-4
"""Share of folded samples up to which nothing is warned of: single ones, in the tail of laws that are right."""


class Watch:
    """What a scheme warns of while it runs; this one of folds. `solve` makes one a run and reports each kind once.

    Args:
        span: the initial and the last time of the run.
    """

    fold_cure: str = "more samples (num_samples), or a map that cannot fold (maps.ConvexRidge)"

    def __init__(self, span: tuple[float, float]) -> None:
        self.first, self.last = span

    def of_row(self, row: Row, t: float) -> Iterator[tuple[str, str]]:
        """Kinds of trouble in the row at t, each with its message."""
        folded = float(row.get("fold_fraction", 0.0))
        if folded > FEW_FOLDS:
            message = (
                f"the map folds at {folded:.2g} of the samples at t = {t:.4g}: its density is wrong there. Cure: "
                f"{self.fold_cure}"
            )
            yield "fold", message

    def of_step(self, info: Info) -> Iterator[tuple[str, str]]:
        """Kinds of trouble in a step, each with its message."""
        yield from ()


class Answers(Shown):
    """What a scheme is asked besides its steps, with answers that suit most; override those that do not.

    `MapReplay`, `ParticleReplay` and `JKOReplay` inherit them. A scheme without this base gets them too (`ask`).
    """

    ROWS: ClassVar[str] = "own"
    flow: ClassVar[str] = "gradient"
    """Which flow of the energy it follows: "gradient", down the energy, or "Hamiltonian", Newton's law."""

    def _settings(self) -> dict[str, Any]:
        parts = {name: getattr(self, name, None) for name in ("energy", "map", "reference")}
        known = {name: member_config(part) for name, part in parts.items() if part is not None}
        return {**known, **getattr(self, "to_config", dict)(), "name": type(self).__name__}

    def check_times(self, times: np.ndarray, start: State | None) -> None:
        """ConfigError where the scheme cannot store rows at these times, or begin at this state."""

    def rows_for(self, times: np.ndarray) -> np.ndarray:
        """The times of the rows that are needed to have rows at `times`: more of them where every step is a row."""
        return times

    def interpolation_error(self, rows: Rows, k: int) -> float | None:
        """Estimated rms error of a sample between rows k and k + 1, in units of x; None where it is not known."""
        return None

    def moments(self, rows: Rows, t: float) -> tuple[Tensor, Tensor] | None:
        """Mean (d,) and covariance (d,d) of ρ_t, where they are known otherwise than by `push`; else None."""
        return None

    def watch(self, span: tuple[float, float]) -> Watch:
        """What to warn of in a run from span[0] to span[1]."""
        return Watch(span)

    @classmethod
    def described(cls, config: Mapping[str, Any]) -> Description:
        """The description, from `stored_config` of a scheme of this class."""
        map = config.get("map", {}).get("name")
        of_particles = "particles" in cls.ROWS
        why = "particles follow the velocity itself" if of_particles else "this scheme does not project the velocity"
        settings = (*shown_settings(config), config["dtype"])
        return Description(config["name"], cls.ROWS, map, settings, no_projection=why)

    def altered_by(self) -> str:
        """The argument that makes it follow another flow than that of its energy from its reference; "" for none."""
        return ""

    def describe(self) -> Description:
        """What figures, summaries and comparisons say of it."""
        kind = type(self) if isinstance(self, Answers) else Answers
        found = kind.described(stored_config(self))
        energy = getattr(self, "energy", None)
        if isinstance(energy, Energy) and (energy.time or not energy.has_value):
            found = dataclasses.replace(found, balance="varies")
        return found if _inherits_reading(kind) else dataclasses.replace(found, rows="own")


def ask(scheme: object, name: str) -> Callable[..., Any]:
    """The scheme's own answer, or that of `Answers` for a scheme which neither has nor inherits one."""
    own = getattr(scheme, name, None)
    return own if own is not None else functools.partial(getattr(Answers, name), scheme)


def _inherits_reading(kind: type) -> bool:
    """Whether rows are read by the methods of the base that names in `ROWS` what they are."""
    base = next(base for base in kind.__mro__ if "ROWS" in vars(base))
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in ("push", "log_density", "score"))


def stored_config(scheme: Any) -> dict[str, Any]:
    """The scheme's `to_config()` with what a file of any scheme holds: name, energy, map, reference, dtype, device."""
    parts = {name: getattr(scheme, name, None) for name in ("energy", "map", "reference")}
    return {
        "name": type(scheme).__name__,
        **{name: member_config(part) for name, part in parts.items() if part is not None},
        "dtype": str(scheme.dtype).removeprefix("torch."),
        "device": getattr(scheme, "device", "cpu"),
        **scheme.to_config(),
    }


def shown_settings(config: Mapping[str, Any]) -> list[str]:
    """The settings of a scheme that its figure names, where it has them and they are numbers."""
    return [f"{name} {config[name]:g}" for name in _SHOWN if is_real(config.get(name))]


def hermite(rows: Rows, t: float) -> Tensor:
    """θ(t): the row itself within 1e-6 of the run's range, else the cubic Hermite interpolant of θ and θ̇."""
    times = rows.t
    k = nearest_row(times, t)
    if k is not None:
        return rows.theta(k)
    k = int(np.searchsorted(times, t)) - 1
    return hermite_between(rows, k, k + 1, t)


def hermite_between(rows: Rows, k: int, l: int, t: float) -> Tensor:  # noqa: E741
    """The cubic through θ and θ̇ of rows k and l, at t."""
    h = float(rows.t[l] - rows.t[k])
    s = (t - float(rows.t[k])) / h
    a, b = rows.theta(k), rows.theta(l)
    da, db = rows.theta_dot(k), rows.theta_dot(l)
    bend = s * (1 - s) * (a != b)  # a parameter that is the same in both rows did not move between them
    return a + s * s * (3 - 2 * s) * (b - a) + h * bend * ((1 - s) * da - s * db)


def nearest_row(times: np.ndarray, t: float) -> int | None:
    """Index of the row at t (within 1e-6 of the range), None between rows, ConfigError outside the run."""
    span = float(times[-1] - times[0]) if len(times) > 1 else max(abs(float(times[0])), 1.0)
    slack = 1e-6 * span
    if not math.isfinite(t) or t < times[0] - slack or t > times[-1] + slack:
        raise ConfigError(
            f"t = {t!r} lies outside the run, which goes from {times[0]:g} to {times[-1]:g}. Give a t within it, or "
            "solve on with longer times (resume=True)."
        )
    k = int(np.abs(times - t).argmin())
    return k if abs(float(times[k]) - t) <= slack else None


class MapReplay(Answers):
    """ρ_t = (T_θ(t))#λ with θ interpolated between rows: what all schemes with one map share.

    Args:
        map, reference: T and λ.
        dtype: of θ in memory.
        device: where θ lives.
    """

    ROWS: ClassVar[str] = "map"
    map: PushForward
    reference: Reference
    dtype: torch.dtype
    device: str

    def __init__(
        self, map: PushForward, reference: Reference, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> None:
        self.map, self.reference, self.dtype, self.device = map, reference, dtype, device

    def _theta(self, rows: Rows, t: float) -> Tensor:
        return hermite(rows, t).to(self.dtype).to(self.device)

    def push(self, rows: Rows, t: float, z: Tensor) -> Tensor:
        """T_θ(t)(z), (n,d)."""
        check_points(z, self.map.dim, "push(t, z): z", finite=True)
        theta = self._theta(rows, t)
        with torch.no_grad():
            return self.map(theta, z.to(theta)).cpu()

    def _at(self, rows: Rows, t: float, x: Tensor) -> PushedMeasure:
        check_points(x, self.map.dim, "x", finite=True)
        theta = self._theta(rows, t)
        z = self.map.inverse(theta, x.detach().to(theta))
        return PushedMeasure(self.map, self.reference, theta, z)

    def log_density(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """log λ(z) − log|det ∂_zT(z)| at z = T⁻¹(x), (n,)."""
        return self._at(rows, t, x).log_density.cpu()

    def score(self, rows: Rows, t: float, x: Tensor) -> Tensor:
        """∇ log ρ_t(x), (n,d)."""
        return self._at(rows, t, x).score.cpu()

    def interpolation_error(self, rows: Rows, k: int) -> float | None:
        """By doubling the step: the cubic over rows j−1 and j+1 against row j; the error falls 16-fold with half of it.

        None where there are fewer than three rows.
        """
        if len(rows.t) < 3:
            return None
        middle = min(max(k, 1), len(rows.t) - 2)
        wide = hermite_between(rows, middle - 1, middle + 1, float(rows.t[middle]))
        z = self.reference.sample(256, torch.Generator().manual_seed(0)).to(self.dtype)
        apart = self.map(wide.to(z), z) - self.map(rows.theta(middle).to(z), z)
        return float(apart.square().sum(1).mean().sqrt()) / 16

    def layout(self) -> list[Block]:
        """The map's parameter blocks."""
        return self.map.layout()


def fork(rng: Tensor, purpose: str) -> torch.Generator:
    """A generator of its own, fixed by a random state and a purpose: its draws do not disturb the state's stream."""
    digest = hashlib.sha256(rng.cpu().numpy().tobytes() + purpose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def tensor_config(x: Tensor | None) -> dict[str, Any] | None:
    """A tensor as JSON: shape, dtype and sha256 of its values."""
    if x is None:
        return None
    values = x.detach().cpu().contiguous()
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch."), "sha256": digest}


def member_config(member: Any) -> dict[str, Any]:
    """`to_config` of a map, reference or energy; a user's own without one is named by its class."""
    if hasattr(member, "to_config"):
        return dict(member.to_config())
    return {"name": f"{type(member).__module__}.{type(member).__qualname__}"}


def read(value: Tensor, gradient: Tensor) -> tuple[float, Tensor, bool]:
    """A scalar as a number, its gradient, and whether that is finite, with one wait for the device."""
    number, finite = torch.stack([value.detach(), torch.isfinite(gradient).all().to(value.dtype)]).tolist()
    return number, gradient, finite > 0


def merge_counters(old: Mapping[str, int], **more: int) -> dict[str, int]:
    """Counters with increments added."""
    return {**old, **{name: old.get(name, 0) + step for name, step in more.items()}}


def standard_error(values: list[float]) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
