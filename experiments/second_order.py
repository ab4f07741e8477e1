"""Second-order flows: error, change of the total energy and reversal, with samples frozen and redrawn.

Each flow runs from t = 0 to T, its rates are turned round, and it runs back. Error: the largest rms distance of samples
at nine times from the exact map (harmonic oscillator: cos t · z; gas and quantum oscillator: σ(t) z, σ from their
closed forms), or, for the wavy potential, from Newton's law for each sample by scipy. Redrawn: z is another one in
every step.

    python -m experiments.second_order         # about 2 minutes
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import torch
import tyro
from scipy.integrate import solve_ivp

import pwgf
from experiments.common import table
from pwgf import energies, maps, problems
from pwgf.state import State

SPRING = energies.Potential(lambda x: x.square().sum(-1) / 2)
WAVY = energies.Potential(lambda x: (x.square() / 2 + 0.5 * torch.sin(2 * x)).sum(-1))
Exact = Callable[[float, torch.Tensor], torch.Tensor]


def scaled(sigma: Callable[[float], float]) -> Exact:
    """T_t(z) = σ(t) z."""
    return lambda t, z: sigma(t) * z


def by_newton(t: float, z: torch.Tensor) -> torch.Tensor:
    """ẍ = −x − cos 2x from rest, coordinate by coordinate."""
    x = z.reshape(-1).numpy()
    n = len(x)
    rate = solve_ivp(
        lambda _, y: np.r_[y[n:], -y[:n] - np.cos(2 * y[:n])], (0, max(t, 1e-9)), np.r_[x, 0 * x], rtol=1e-9
    )
    return torch.from_numpy(rate.y[:n, -1]).view_as(z)


def moved(scheme: pwgf.PWHF, state: State, t1: float, redrawn: bool) -> State:
    """The state at t1."""
    k = 0
    while state.t < t1:
        if redrawn:
            state = dataclasses.replace(state, rng=torch.Generator().manual_seed(1000 * k + int(100 * t1)).get_state())
        state, _ = scheme.step(state, t1)
        k += 1
    return state


def measured(scheme: pwgf.PWHF, end: float, exact: Exact, redrawn: bool = False) -> list[str]:
    """The figures of a row of the table."""
    begun, rest = time.process_time(), 0.0
    start = state = scheme.start(0)
    z = scheme.reference.sample(500, 1)
    errors, total, kinetic = [], [], []
    times = np.linspace(0, end, 9)
    for t in times:
        state = moved(scheme, state, float(t), redrawn)
        paused = time.process_time()
        row = scheme.measure(dataclasses.replace(state, rng=start.rng))
        errors.append(float((scheme.map(state.theta, z) - exact(float(t), z)).square().sum(1).mean().sqrt()))
        total.append(row["total_energy"])
        kinetic.append(row["kinetic_energy"])
        rest += time.process_time() - paused
    seconds = time.process_time() - begun - rest
    back = dataclasses.replace(state, t=0.0, theta_dot=-state.theta_dot)
    for t in end - times[::-1][1:]:
        back = moved(scheme, back, float(t), redrawn)
    apart = float((scheme.map(back.theta, z) - z).square().sum(1).mean().sqrt())
    change = np.abs(np.array(total) - total[0]).max() / max(kinetic)
    return [f"{max(errors):.1e}", f"{change:.1e}", f"{apart:.0e}", f"{state.counters['num_stages']}", f"{seconds:.1f}"]


def main() -> None:
    """The table."""
    gas, quantum = problems.IsothermalGas(1), SPRING + energies.FisherInformation()
    breathing = scaled(lambda t: math.sqrt(math.cos(t) ** 2 + math.sin(t) ** 2 / 4))
    ten = 20 * math.pi
    flows = [
        ("harmonic, ten periods", SPRING, maps.Affine(1), 0.018, 100, ten, scaled(math.cos)),
        ("harmonic, ten periods", SPRING, maps.Affine(1), 0.036, 100, ten, scaled(math.cos)),
        ("isothermal gas", gas.energy, maps.ResidualMLP(1), 0.02, 500, 2.0, scaled(gas.spread)),
        ("isothermal gas", gas.energy, maps.ResidualMLP(2), 0.02, 500, 2.0, scaled(gas.spread)),
        ("quantum oscillator", quantum, maps.Affine(1), 0.02, 100, 6.0, breathing),
        ("quantum oscillator", quantum, maps.ResidualMLP(1), 0.02, 1000, 3.0, breathing),
        ("quantum oscillator", quantum, maps.ResidualMLP(2), 0.02, 1000, 3.0, breathing),
        ("wavy", WAVY, maps.ResidualMLP(1), 0.05, 500, 2.0, by_newton),
        ("wavy", WAVY, maps.ResidualMLP(2), 0.05, 500, 2.0, by_newton),
        ("wavy", WAVY, maps.ResidualMLP(1), 0.02, 500, 6.0, by_newton),
    ]
    rows = []
    for name, energy, map, dt, n, end, exact in flows:
        for redrawn in (False, True) if name in ("wavy", "isothermal gas") and map.dim == 1 and end == 2 else (False,):
            scheme = pwgf.PWHF(energy, map, pwgf.Gaussian(map.dim), dt=dt, num_samples=n, num_eval=2000)
            words = [name + (", z redrawn" if redrawn else ""), type(map).__name__, f"{map.dim}", f"{dt:g}", f"{n}"]
            rows.append([*words, f"{end:.3g}", *measured(scheme, end, exact, redrawn)])
            print(" | ".join(rows[-1]), flush=True)
    head = ["flow", "map", "d", "dt", "n", "to t =", "error", "energy", "reversal", "steps", "CPU s"]
    table(head, rows)


if __name__ == "__main__":
    tyro.cli(main)
