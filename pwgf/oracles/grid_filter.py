"""The filter of an observed diffusion on a grid in one dimension: the truth to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..energies import Energy
from ..errors import ConfigError
from ._observations import Observed, check_observation, schedule
from .finite_volume import Marginal, fokker_planck

_TRUSTED = 1e-30  # densities below are continued from those above


def finite_volumes(
    model: Observed,
    times: Sequence[float],
    observations: Sequence[Any],
    *,
    end: float | None = None,
    half_width: float = 10.0,
    num_nodes: int = 8001,
    steps: int = 200,
) -> Marginal:
    """The filter on a grid in one dimension: the truth to compare with, of order 2 in the spacing.

    Args:
        model, times, observations, end: as in `run`; d = 1.
        half_width: the grid is [−half_width, half_width] and must hold all mass.
        num_nodes: of the grid.
        steps: in time, between observations.

    Returns:
        The law at the end; its `density` at the nodes `grid` sums to 1 over the spacing.

    Raises:
        ConfigError: d > 1, a model without a potential, a grid that is too narrow.
    """
    if model.dim != 1:
        raise ConfigError(f"filtering.finite_volumes works in one dimension; the model has {model.dim}. Use particles.")
    if isinstance(model.potential, Energy):
        raise ConfigError(
            f"filtering.finite_volumes needs a model with a potential V(x) and a temperature; got the energy "
            f"{model.potential!r}. On a line every drift has a potential: give it, or use particles."
        )
    at, end = schedule(times, observations, end)
    grid = np.linspace(-half_width, half_width, num_nodes)
    nodes, spacing = torch.from_numpy(grid)[:, None], grid[1] - grid[0]
    values = model.potential(nodes).detach().numpy()
    rho = model.initial.log_density(nodes).exp().numpy()
    now = 0.0
    for t, y in zip([*at, end], [*observations, None], strict=True):
        if t > now:
            rho = fokker_planck(grid, values, rho, t - now, tau=model.temperature, steps=steps)
        if y is not None:
            log_w = model.at(y)(nodes).detach()
            check_observation(log_w, t)
            rho = rho * (log_w - log_w.max()).exp().numpy()
        rho, now = rho / (rho.sum() * spacing), t
    if max(rho[0], rho[-1]) > 1e-8 * rho.max():
        raise ConfigError(
            f"filtering.finite_volumes(half_width={half_width:g}): the law reaches the ends of the grid. Give more, "
            f"such as half_width={2 * half_width:g}."
        )
    trusted = rho > _TRUSTED * rho.max()
    excess = np.interp(grid, grid[trusted], np.log(rho[trusted]) + values[trusted] / model.temperature)
    return Marginal(grid, excess, model.potential, model.temperature)
