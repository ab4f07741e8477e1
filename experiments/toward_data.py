r"""Flows towards data: ρ moves down a distance to samples, ∂ₜρ = ∇·(ρ∇δF/δρ), and is then a sampler of their law.

F = 2MMD² with the energy-distance kernel, d/2 sliced W₂², or the Sinkhorn divergence; 2-D shapes (moons, spiral,
pinwheel, checkerboard), and scikit-learn's digits, 8×8 grey values in d = 64. Judged on held-out data by the squared
energy distance between as many samples each, beside that between two halves of the data; both are means of ten draws.
The digits flow in the plane of their first 20 principal components, where 90 % of the variance is.

    python -m experiments.toward_data                     # shapes and digits, ten minutes, results/toward_data/*
    python -m experiments.toward_data --data moons --energies mmd sliced sinkhorn

Runs that are there already are not repeated; pictures are drawn from the files.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import matplotlib
import numpy as np
import torch
import tyro
from torch import Tensor

import pwgf
from experiments.common import RESULTS, cost, samples, save, table
from pwgf import distances, energies, maps
from pwgf.errors import ConfigError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNT = 4000  # of each shape: half to flow to, half held out
DRAWS = 10  # of samples and of halves, over which distances are averaged
COMPONENTS = 20  # of the digits
ENERGIES: dict[str, Callable[[Tensor], energies.Energy]] = {
    "mmd": lambda y: 4 * energies.MMD(y),
    "sliced": lambda y: y.shape[1] * energies.SlicedW2(y, max(64, 8 * y.shape[1])),  # as fast as W₂ itself
    "sinkhorn": lambda y: energies.Sinkhorn(y[:1000], blur=0.05),
}
END = 20.0


def moons(generator: torch.Generator) -> Tensor:
    """Two interleaved half circles."""
    angle = math.pi * torch.rand(COUNT, generator=generator, dtype=torch.float64)
    upper = torch.rand(COUNT, generator=generator) < 0.5
    x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle))
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
    return 2 * torch.stack([x - 0.5, y - 0.25], 1) + 0.1 * _noise(generator)


def spiral(generator: torch.Generator) -> Tensor:
    """One arm of an Archimedean spiral."""
    turn = 3 * math.pi * torch.rand(COUNT, generator=generator, dtype=torch.float64).sqrt()
    return turn[:, None] / 4 * torch.stack([torch.cos(turn), torch.sin(turn)], 1) + 0.1 * _noise(generator)


def pinwheel(generator: torch.Generator) -> Tensor:
    """Five bent arms."""
    arm = torch.randint(5, (COUNT,), generator=generator) * (2 * math.pi / 5)
    radius, across = (_noise(generator) * torch.tensor([0.4, 0.15], dtype=torch.float64)).T
    radius = 1.2 + radius
    angle = arm + 0.6 * radius
    x = torch.stack([radius, across], 1)
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1).reshape(-1, 2, 2)
    return 1.5 * (turn @ x[:, :, None]).squeeze(2)


def checkerboard(generator: torch.Generator) -> Tensor:
    """The dark squares of a 4×4 board."""
    column = torch.randint(4, (COUNT,), generator=generator)
    row = 2 * torch.randint(2, (COUNT,), generator=generator) + column % 2
    inside = torch.rand(COUNT, 2, generator=generator, dtype=torch.float64)
    return torch.stack([column, row], 1) + inside - 2.0


def digits(generator: torch.Generator) -> Tensor:
    """1797 images of 64 grey values between 0 and 16."""
    try:
        source = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ConfigError('digits come with scikit-learn: pip install "pwgf[data]".') from error
    return torch.from_numpy(source.load_digits().data)


def _noise(generator: torch.Generator) -> Tensor:
    return torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)


DATA: dict[str, Callable[[torch.Generator], Tensor]] = {
    "moons": moons,
    "spiral": spiral,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "digits": digits,
}


class Coordinates:
    """Centred, divided by one scale; the first principal components where there are many."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)
        self.axes = torch.linalg.svd(x - self.mean, full_matrices=False)[2][:COMPONENTS]
        if x.shape[1] <= COMPONENTS:
            self.axes = torch.eye(x.shape[1], dtype=torch.float64)
        self.scale = float(((x - self.mean) @ self.axes.T).square().mean().sqrt())

    def into(self, x: Tensor) -> Tensor:
        """(n,D) → (n,d)."""
        return (x - self.mean) @ self.axes.T / self.scale

    def back(self, y: Tensor) -> Tensor:
        """(n,d) → (n,D)."""
        return self.mean + self.scale * y @ self.axes


def main(
    data: tuple[str, ...] = tuple(DATA),
    energies: tuple[str, ...] = ("mmd", "sliced"),
    num_steps: int = 4,
    seed: int = 0,
) -> None:
    """A table of distances to held-out data, and a picture of each set before and after.

    Args:
        data: names out of moons, spiral, pinwheel, checkerboard, digits.
        energies: out of mmd, sliced, sinkhorn.
        num_steps: of the map, a neural ODE.
        seed: of data, split and flow.
    """
    (RESULTS / "toward_data").mkdir(parents=True, exist_ok=True)
    rows = []
    for name in data:
        generator = torch.Generator().manual_seed(seed)
        points = DATA[name](generator)
        points = points[torch.randperm(len(points), generator=generator)]
        half = len(points) // 2
        coordinates = Coordinates(points[:half])
        to, held_out = coordinates.into(points[:half]), coordinates.into(points[half : 2 * half])
        runs = {kind: _solved(name, kind, to, num_steps, seed) for kind in energies}
        floor = _halves(coordinates.into(points))
        for kind, run in runs.items():
            start, end = (_apart(run, t, held_out) for t in (0.0, END))
            line = [name, kind, f"{start:.2e}", f"{end:.2e}", f"{floor:.2e}", f"{math.sqrt(end / floor):.2f}"]
            rows.append([*line, f"{run['fold_fraction'][-1]:.2g}", cost(run, END), str(seed)])
        (_draw_images if name == "digits" else _draw_points)(name, coordinates, held_out, runs)
    header = ["data", "energy", "at the start", "energy distance² to held-out", "two halves", "ratio of roots", "folds"]
    table([*header, "right sides", "CPU s", "seed"], rows)


def _solved(name: str, kind: str, to: Tensor, num_steps: int, seed: int) -> pwgf.Trajectory:
    d = to.shape[1]
    scheme = pwgf.PWGF(ENERGIES[kind](to), maps.NeuralODE(d, num_steps=num_steps), pwgf.Gaussian(d), num_samples=1000)
    out = RESULTS / "toward_data" / f"{name}-{kind}-seed{seed}.h5"
    return pwgf.solve(scheme, [0.0, 0.5, 1.0, 2.0, END], out=out, seed=seed, resume=True)


def _apart(run: pwgf.Trajectory, t: float, held_out: Tensor) -> float:
    """Squared energy distance of samples at t to the held-out ones, as many, averaged over draws."""
    draws = (run.sample(t, len(held_out), seed=k) for k in range(DRAWS))
    return sum(float(distances.energy_distance(x, held_out)) for x in draws) / DRAWS


def _halves(points: Tensor) -> float:
    """Squared energy distance of two halves, averaged over splits."""
    half, total = len(points) // 2, 0.0
    for k in range(DRAWS):
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(k))
        total += float(distances.energy_distance(points[order[:half]], points[order[half : 2 * half]]))
    return total / DRAWS


def _draw_points(name: str, coordinates: Coordinates, held_out: Tensor, runs: dict[str, pwgf.Trajectory]) -> None:
    """Start, result of each energy, held-out data."""
    first = next(iter(runs.values()))
    clouds = [("t = 0", samples(first, 0.0, 2000))]
    clouds += [(f"{kind}, t = {run.t[-1]:g}", samples(run, float(run.t[-1]), 2000)) for kind, run in runs.items()]
    clouds += [("held-out data", held_out[:2000])]
    figure, axes = plt.subplots(1, len(clouds), figsize=(2.6 * len(clouds), 2.8), layout="constrained")
    for ax, (title, x) in zip(axes, clouds, strict=True):
        ax.scatter(*coordinates.back(x).T, s=1)
        extent = 1.1 * float(coordinates.back(held_out).abs().max())
        ax.set(title=title, aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
    save(figure, f"toward_data/{name}.png")
    plt.close(figure)


def _draw_images(name: str, coordinates: Coordinates, held_out: Tensor, runs: dict[str, pwgf.Trajectory]) -> None:
    """A row of images each: start, result of each energy, held-out data seen through the same components."""
    first = next(iter(runs.values()))
    lines = [("t = 0", samples(first, 0.0, 12))]
    lines += [(f"{kind}, t = {run.t[-1]:g}", samples(run, float(run.t[-1]), 12)) for kind, run in runs.items()]
    lines += [("held-out data", held_out[:12])]
    figure, axes = plt.subplots(len(lines), 1, figsize=(7, 0.85 * len(lines)), layout="constrained")
    for ax, (title, x) in zip(axes, lines, strict=True):
        images = coordinates.back(x).clamp(0, 16).reshape(-1, 8, 8)
        ax.imshow(np.concatenate(list(images), 1), cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    save(figure, f"toward_data/{name}.png")
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
