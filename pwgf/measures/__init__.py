"""Laws: reference measures λ and pushed measures ρ_θ = (T_θ)#λ; and what energies see of them, on samples."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, nearest
from .barenblatt import Barenblatt
from .base import Reference
from .cosine_series import CosineSeries
from .floored import FlooredMeasure
from .gaussian import Gaussian, check_cov
from .gaussianised import Gaussianised
from .law import Law
from .pushed import PushedLaw, PushedMeasure
from .sampled import Cloud, Sampled
from .uniform_ball import UniformBall
from .uniform_box import UniformBox
from .unnormalised import Unnormalised

__all__ = [
    "Barenblatt",
    "Cloud",
    "CosineSeries",
    "FlooredMeasure",
    "Gaussian",
    "Gaussianised",
    "Law",
    "PushedLaw",
    "PushedMeasure",
    "Reference",
    "Sampled",
    "UniformBall",
    "UniformBox",
    "Unnormalised",
    "check_cov",
    "from_config",
]

_SHELF: dict[str, Any] = {cls.__name__: cls for cls in (Gaussian, Barenblatt, UniformBall, UniformBox, CosineSeries)}


def from_config(config: dict[str, Any]) -> Reference:
    """Rebuilds a reference from `to_config()`.

    Raises:
        ConfigError: the reference is not one of this package; pass it instead.
    """
    settings = dict(config)
    name = settings.pop("name", "")
    if name not in _SHELF:
        raise ConfigError(
            f"the stored reference {name!r} cannot be rebuilt from the file; pass it: pwgf.load(path, reference=…)."
            + ("" if name == Unnormalised.__name__ else nearest(name, _SHELF))
        )
    return _SHELF[name](**settings)
