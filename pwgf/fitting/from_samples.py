"""A flow that starts at data: a Gaussian with their moments, and a map of it that is fitted to them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import distances, storage
from ..checks import as_tensor, plain_numbers, seeded
from ..errors import ConfigError
from ..maps import ConvexRidge
from ..maps.base import PushForward
from ..measures import Gaussian, PushedLaw, Reference
from ..run.results import final_law
from ..run.trajectory import load as load_run
from ..schemes._arguments import in_standard_coordinates
from ..shown import fields_as_table
from .fit_map import Fit, fit, fit_of
from .stored import File, keep, read

_TEST_SHARE = 0.2  # of the samples, by which the fit is judged and which it does not see
_LEAST = 20  # samples
_FLAT = 1e-10  # eigenvalue of the correlation matrix
_NUM_EVAL = 5000  # samples of the law that are compared with those
_REPEATS = 10  # of the floor


class Start(NamedTuple):
    """Where a flow can start: `PWGF(energy, **start.settings)`.

    Args:
        law: T_θ#λ, the fitted law: `law.map`, `law.reference`, `law.theta`.
        error: √(sliced W₂²) between the law and the m samples that the fit has not seen, in units of x.
        floor: what it would be if these were m samples of the law: an error near it cannot be told from none.
        fit: the fit itself.
    """

    law: PushedLaw
    error: float
    floor: float
    fit: Fit

    def _repr_html_(self) -> str:
        return fields_as_table(self)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `PWGF`: map, reference, theta0."""
        return {"map": self.law.map, "reference": self.law.reference, "theta0": self.law.theta}


@plain_numbers
def from_samples(
    x: Tensor | np.ndarray,
    map: PushForward | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Start:
    """A start at samples: λ is the Gaussian with their mean and covariance, T_θ is fitted by maximum likelihood.

    A fifth of the samples is kept aside, and measures how far the law lies from the data. The law of clusters apart
    keeps some mass between them; a wider map reduces the error.

    Cost: that of `fit`; 10 CPU seconds for 2000 samples of two moons.

    Args:
        x: (n,d) samples, a tensor or an array, n ≥ 20.
        map: T; None means `ConvexRidge(d, width=64)`, which cannot fold.
        seed: of all randomness.
        progress: as in `solve`.
        out, resume, overwrite: as for `fit`.
        options: of `fit`.

    Raises:
        ConfigError: no samples (n,d), too few, not finite, or all in a plane; from `fit`.
        ResumeMismatchError: from `fit`.
        SolverError: from `fit`.

    Example:
        >>> import numpy as np, pwgf
        >>> from pwgf import energies, fitting, maps
        >>> x = 3 + 2 * np.random.default_rng(0).standard_normal((500, 1))
        >>> start = fitting.from_samples(x, maps.Affine(1), progress=False)
        >>> start.error < 2 * start.floor
        True
        >>> scheme = pwgf.PWGF(energies.Entropy(), **start.settings)
    """
    x = _checked(x)
    generator = seeded(seed, "from_samples")
    x = x[torch.randperm(len(x), generator=generator)]
    test, seen = x[: int(_TEST_SHARE * len(x))], x[int(_TEST_SHARE * len(x)) :]
    reference = Gaussian(x.shape[1], seen.mean(0), torch.cov(seen.T).reshape(x.shape[1], -1))
    map = ConvexRidge(x.shape[1], width=64) if map is None else map
    map = in_standard_coordinates(map, reference)

    def find() -> tuple[Tensor, dict[str, float]]:
        found = fit(map, reference, seen, seed=seed, progress=progress, **options)
        law = PushedLaw(map, reference, found.theta)
        fresh = law.sample(_NUM_EVAL, generator)
        squares = [float(distances.sliced_w2(fresh, law.sample(len(test), generator))) for _ in range(_REPEATS)]
        error = float(distances.sliced_w2(fresh, test)) ** 0.5
        floor = (sum(squares) / _REPEATS) ** 0.5
        return found.theta, {**found._asdict(), "error": error, "floor": floor}

    file = File(out, resume, overwrite)
    theta, figures = keep(file, map, reference, x, options, seed, find)
    return _start(PushedLaw(map, reference, theta), figures)


def load(path: str | os.PathLike[str], *, map: PushForward | None = None, reference: Reference | None = None) -> Start:
    """What `from_samples(out=path)` or `fit(out=path)` returned, from its file; of `fit`, error and floor are NaN.

    Args:
        path: as given to `out`.
        map, reference: your own, which no file can rebuild; see `pwgf.load`.

    Raises:
        PathError, SchemaError: as `pwgf.load`.
        ConfigError: a run that is no fit.
    """
    path = storage.checked_path(path, "fitting.load(path)")
    figures = read(path, f"fitting.load({path!r})")
    return _start(final_law(load_run(path, map=map, reference=reference), map, reference), figures)


def _start(law: PushedLaw, figures: dict[str, float]) -> Start:
    return Start(law, figures["error"], figures["floor"], fit_of(law.theta, figures))


def _checked(x: object) -> Tensor:
    """The samples in float64 on the CPU."""
    x = as_tensor(x)
    if not isinstance(x, Tensor) or x.ndim != 2 or len(x) < _LEAST or not bool(torch.isfinite(x).all()):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError(
            f"from_samples(x) needs at least {_LEAST} finite samples of shape (n, d); got {got}. Leave out those that "
            "are not finite; numbers on a line are x[:, None]."
        )
    x = x.detach().double().cpu()
    scaled = (x - x.mean(0)) / x.std(0)
    if not bool(torch.isfinite(scaled).all()) or float(torch.linalg.eigvalsh(scaled.T @ scaled / len(x))[0]) < _FLAT:
        raise ConfigError(
            "from_samples(x): the samples lie in a plane of fewer dimensions, so that their law has no density. Leave "
            "out coordinates that follow from the others."
        )
    return x
