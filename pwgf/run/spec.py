"""What the file records of a call of `solve`, checked and made once."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..checks import check_integer, check_seed, is_real, plain, refuse_masks
from ..errors import ConfigError
from ..maps import PushForward
from ..schemes import Scheme, ask, names_for
from ..schemes.base import stored_config
from ..state import State

Times = Sequence[float] | np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class RunSpec:
    """The settings of a run.

    Args:
        scheme: `stored_config(scheme)`.
        description: `scheme.describe()` as JSON, with the `formula` of the map as the docstring of its class begins.
        times: (T,) float64, strictly increasing; a row is stored at each, and the first is the initial time.
        seed: of all randomness.
        problem: `problem.to_config()`, or None.
        start: t and counters of the state to begin from; None for `scheme.start(seed)`.
        metadata: the user's own entries, or None.
        store_samples: number of samples that every row holds; None for none.
    """

    scheme: Mapping[str, Any]
    description: Mapping[str, Any]
    times: np.ndarray
    seed: int
    problem: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    store_samples: int | None = None

    @classmethod
    def of(
        cls,
        scheme: Scheme,
        times: Times,
        seed: int,
        problem: Any,
        start: State | None,
        metadata: Any = None,
        store_samples: int | None = None,
    ) -> RunSpec:
        """The settings from the arguments of `solve`.

        Raises:
            ConfigError: an argument that cannot work.
        """
        _check_problem(problem, scheme)
        if store_samples is not None:
            check_integer(store_samples, "store_samples", "solve", least=1)
        return cls(
            scheme=stored_config(scheme),
            description={**ask(scheme, "describe")().to_config(), "formula": _formula(getattr(scheme, "map", None))},
            times=check_times(times),
            seed=check_seed(seed, "solve"),
            problem=None if problem is None else problem.to_config(),
            start=None if start is None else {"t": start.t, "counters": dict(start.counters)},
            metadata=None if metadata is None else _checked_metadata(metadata),
            store_samples=store_samples,
        )

    @property
    def device(self) -> str:
        """Where θ lives."""
        return str(self.scheme.get("device", "cpu"))

    @property
    def span(self) -> tuple[float, float]:
        """The initial and the last time."""
        return float(self.times[0]), float(self.times[-1])

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON values, as the file holds them; what is last in the list only where it was given."""
        config: dict[str, Any] = {
            "scheme": dict(self.scheme),
            "description": dict(self.description),
            "times": self.times.tolist(),
            "seed": self.seed,
            "problem": None if self.problem is None else dict(self.problem),
        }
        given = {"start": self.start, "metadata": self.metadata}
        config |= {name: dict(value) for name, value in given.items() if value is not None}
        return config if self.store_samples is None else {**config, "store_samples": self.store_samples}

    def continuing(self, stored: Mapping[str, Any]) -> RunSpec:
        """The settings of the continued run: the stored times, to the bit, then the further ones of this call."""
        begun = stored["times"]
        times = check_times(np.concatenate([begun, self.times[len(begun) :]]))
        return dataclasses.replace(self, times=times, metadata=stored.get("metadata"))


def _formula(map: Any) -> str:
    """The first paragraph of the docstring of a map's class, and of that of a map within it; "" without a map."""
    text = None if map is None else type(map).__dict__.get("__doc__")  # its own, not that of its base
    told = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    inner = getattr(map, "map", None)
    return told if not isinstance(inner, PushForward) else f"{told} M: {_formula(inner)}"


def check_times(times: Times, call: str = "solve") -> np.ndarray:
    """times as float64, (T,); ConfigError unless finite and strictly increasing."""
    refuse_masks(times)
    try:
        values = np.asarray(times.detach().cpu().numpy() if isinstance(times, torch.Tensor) else times)
        t = values.real.astype(np.float64)  # complex numbers are refused below, without a warning of numpy
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{call}(times=…) must be a sequence of numbers; got {times!r:.60} ({error}). "
            "E.g. torch.linspace(0, 1, 11)."
        ) from error
    numbers = values.dtype.kind in "iuf" or all(is_real(plain(value)) for value in values.astype(object).flat)
    if hasattr(times, "unit") or hasattr(times, "units") or values.dtype.kind in "bmM" or not numbers:
        raise ConfigError(
            f"{call}(times=…) must be a sequence of numbers without a unit; got {times!r:.60}. "
            "Divide by the unit of t, e.g. times / numpy.timedelta64(1, 's')."
        )
    if t.ndim != 1 or len(t) == 0:
        raise ConfigError(
            f"{call}(times=…) must be a non-empty sequence of numbers; got shape {t.shape}. "
            "E.g. torch.linspace(0, 1, 11)."
        )
    if not np.isfinite(t).all():
        k = int((~np.isfinite(t)).argmax())
        raise ConfigError(
            f"{call}(times=…) must be finite; got {t[k]} at position {k}. Give the times at which to store rows."
        )
    if (np.diff(t) <= 0).any():
        k = int((np.diff(t) <= 0).argmax())
        raise ConfigError(
            f"{call}(times=…) must increase strictly; got {t[k]:g} followed by {t[k + 1]:g}. "
            "Sort them and drop repeats."
        )
    return t


def _check_problem(problem: object, scheme: Scheme) -> None:
    known = not isinstance(problem, type) and callable(getattr(problem, "to_config", None))
    if problem is not None and not known:
        raise ConfigError(
            f"solve(problem=…) needs a problem with to_config(), from pwgf.problems; got {problem!r:.60}. "
            "Make one, e.g. pwgf.problems.OrnsteinUhlenbeck(2), or leave it out."
        )
    ours, theirs = getattr(scheme, "flow", "gradient"), getattr(problem, "flow", "gradient")
    if problem is not None and ours != theirs:
        raise ConfigError(
            f"solve(scheme, problem=…): {type(scheme).__name__} follows the {ours} flow of an energy, and the exact "
            f"law of {type(problem).__name__} is that of the {theirs} flow. Use scheme "
            f"{' or '.join(names_for(theirs))}, or leave the problem out."
        )


def _checked_metadata(metadata: object) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"solve(metadata=…) needs a dictionary of texts, numbers and lists of them; {error}. "
            'Give e.g. metadata={"note": "first try"}.'
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError(
            f"solve(metadata=…) needs a dictionary of texts, numbers and lists of them; got {type(metadata).__name__}. "
            'Give e.g. metadata={"note": "first try"}.'
        )
    return plain
