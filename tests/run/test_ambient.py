"""Modes of torch around a call: right results, or one error that names the mode."""

import contextlib

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError


def flow(dtype=torch.float64):
    energy = energies.Potential(lambda x: x.square().sum(-1)) + energies.Entropy()
    few = {"num_samples": 50, "num_eval": 50, "dtype": dtype}
    return pwgf.PWGF(energy, maps.ResidualMLP(2, width=4), pwgf.Gaussian(2), **few)


def solve(scheme):
    return pwgf.solve(scheme, [0, 0.05], progress=False)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


X = torch.zeros(1, 2, dtype=torch.float64)
HARMLESS = {
    "no_grad": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}
MODES = {
    "inference_mode": (
        torch.inference_mode,
        r"cannot work inside torch\.inference_mode\(\).*torch\.no_grad\(\) does no",
    ),
    "autocast": (
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        r"cannot work inside torch\.autocast\(\).*dtype=torch\.float32",
    ),
    "default device": (lambda: torch.device("meta"), r"default device is 'meta'.*device='meta' of the scheme"),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_modes_that_do_no_harm_change_no_bit(name, dtype):
    plain = solve(flow(dtype))
    with HARMLESS[name]():
        run = solve(flow(dtype))
        score = run.score(0.05, X)
    assert np.array_equal(run["theta"], plain["theta"])
    assert np.array_equal(run["energy"], plain["energy"])
    assert torch.equal(score, plain.score(0.05, X))


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_other_modes_are_named(name, dtype):
    mode, message = MODES[name]
    scheme = flow(dtype)
    run = solve(scheme)
    state = scheme.start(0)
    calls = (
        lambda: solve(scheme),
        lambda: next(pwgf.evolve(scheme, state, [0, 0.05])),
        lambda: run.score(0.05, X),
        lambda: run.log_density(0.05, X),
        lambda: pwgf.Gaussian(2),
        lambda: maps.Affine(2),
        lambda: pwgf.problems.OrnsteinUhlenbeck(2),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=message), mode():
            call()


def test_samples_can_be_read_in_inference_mode():
    run = solve(flow())
    with torch.inference_mode():
        found = run.sample(0.05, 5)
    assert torch.equal(found.clone(), run.sample(0.05, 5))
