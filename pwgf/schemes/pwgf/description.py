"""What figures and summaries say of a run of PWGF, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base import Description, shown_settings
from .cures import CURES

_SMOOTHER = "more samples or a larger damping make the right side smoother"


def described(config: Mapping[str, Any]) -> Description:
    """From `PWGF.to_config()`, also from that of version 0.1, which stored no integrator."""
    integrator = config.get("integrator", {"name": "Explicit"})
    steps = _steps(integrator) if "integrator" in config else []
    samples = f"{config['num_samples']} samples per right side"
    return Description(
        name=config["name"],
        rows="map",
        map=_map_name(config["map"]),
        settings=(*steps, *shown_settings(config), config["dtype"], samples),
        work_unit="right sides",
        advice=_SMOOTHER if _implicit(integrator) else f"--integrator implicit where the flow is stiff; {_SMOOTHER}",
        cures=CURES,
    )


def _map_name(map: Mapping[str, Any]) -> str | None:
    """Of the map, not of the coordinates that it may have been given."""
    return map["map"]["name"] if map.get("name") == "Standardised" else map.get("name")


def _implicit(integrator: Mapping[str, Any]) -> bool:
    return integrator["name"] in ("Auto", "Implicit")


def _steps(integrator: Mapping[str, Any]) -> list[str]:
    """Which steps a run took, such as "bosh3" or "auto steps, {num_implicit} of {num_steps} implicit"."""
    name, length = integrator["name"], integrator.get("dt")
    if name == "Auto":
        return ["auto steps, {num_implicit} of {num_steps} implicit"]
    word = integrator.get("method", "implicit steps" if name == "Implicit" else name)
    return [word + (f", dt {length:g}" if length is not None else "")]
