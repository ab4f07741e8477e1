"""The restart state between a scheme, which holds tensors, and a store, which holds plain arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..state import State
from ._stored import checked_restart


def state_to_restart(state: State, fingerprint: np.ndarray) -> dict[str, Any]:
    """A state as plain arrays and numbers, for the store."""
    plain: dict[str, Any] = {
        "time": float(state.t), "rest": float(state.rest), "dt": float(state.dt),
        "theta": state.theta.detach().cpu().numpy(),
        "theta_dot": state.theta_dot.detach().cpu().numpy(), "rng": state.rng.numpy(),
        "counters": json.dumps(dict(state.counters)), "fingerprint": np.asarray(fingerprint, dtype=np.float64),
    }  # fmt: skip
    plain.update({f"extra_{name}": value.detach().cpu().numpy() for name, value in state.extra.items()})
    return plain


def restart_to_state(plain: Mapping[str, Any], dtype: torch.dtype, device: str = "cpu") -> State:
    """The state again, to the bit; SchemaError where what is stored is none."""
    plain = checked_restart(plain)

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(plain[name])).to(dtype).to(device)

    own = {name.removeprefix("extra_"): np.array(plain[name]) for name in plain if name.startswith("extra_")}
    extra = {name: torch.from_numpy(value).to(device) for name, value in own.items()}
    return State(
        t=plain["time"],
        theta=tensor("theta"),
        theta_dot=tensor("theta_dot"),
        dt=plain["dt"],
        rng=torch.from_numpy(np.array(plain["rng"], dtype=np.uint8)),
        counters=plain["counters"],
        extra=extra,
        rest=plain["rest"],
    )
