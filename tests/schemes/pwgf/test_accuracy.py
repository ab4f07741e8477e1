"""A stated accuracy of the law: the steps follow it, rows that miss it are named with what was tried, or end it."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import pwgf
from pwgf import energies, maps, problems
from pwgf.errors import ConfigError, SolverError
from pwgf.oracles import finite_volume

WELL = energies.Potential(lambda x: (x[:, 0].square() - 1).square()) + 0.2 * energies.Entropy()


def w2_to_the_exact_law(run, t):
    """Of two wells, against finite volumes, relative to the standard deviation of the law."""
    law = finite_volume.fokker_planck_marginal(lambda x: (x[:, 0].square() - 1).square(), t, tau=0.2, steps=400)
    levels = (np.arange(20_000) + 0.5) / 20_000
    exact = np.interp(levels, law.cdf, law.grid)
    x = run.push(t, torch.from_numpy(norm.ppf(levels))[:, None])[:, 0].sort().values.numpy()
    return float(np.sqrt(((x - exact) ** 2).mean()) / exact.std())


def affine(**settings):
    """No map that can follow: an affine one cannot tear N(0, 1) into two wells."""
    return pwgf.PWGF(WELL, maps.Affine(1), pwgf.Gaussian(1), num_eval=500, **settings)


def test_what_was_tried_is_named_and_helps(caplog):
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(affine(), [0.0, 0.3], progress=False)
    error, more, second = (
        float(run[name][-1]) for name in ("error_estimate", "error_more_samples", "error_second_map")
    )
    assert more > 0.5 * error  # samples are not what is missing
    assert second < 0.05 * error
    (said,) = (m for m in caplog.messages if "off by" in m)
    assert "more than accuracy = 2 %" in said
    assert "with 4 times the samples (num_samples) and " in said
    assert said.endswith(
        "Cure: a second map: maps.Layers(maps.ResidualMLP(dim)) in d = 2 and 3, "
        "else maps.Composed([map, maps.ResidualMLP(dim)])"
    )
    assert np.isnan(run["error_second_map"][0])  # nothing is missed at the start, and nothing tried
    cured = maps.Composed([maps.Affine(1), maps.ResidualMLP(1, width=8)])
    scheme = pwgf.PWGF(WELL, cured, pwgf.Gaussian(1), num_samples=300, num_eval=500, tolerance=3e-3)
    better = pwgf.solve(scheme, [0.0, 0.3], progress=False)
    assert w2_to_the_exact_law(better, 0.3) < 0.05 * w2_to_the_exact_law(run, 0.3)
    assert np.isnan(better["error_second_map"]).all()


def test_more_samples_are_named_where_they_are_missing(caplog):
    """8 samples for 54 parameters."""
    problem = problems.StyblinskiTang(1, c=0.06)
    scheme = pwgf.PWGF(
        problem.energy, maps.ResidualMLP(1, width=1), problem.reference, num_samples=8, num_eval=500, accuracy=0.001
    )
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(scheme, [0.0, 0.02], progress=False)
    assert float(run["error_more_samples"][-1]) < 0.5 * float(run["error_estimate"][-1])
    assert any(m.endswith("Cure: 4 times the samples (num_samples)") for m in caplog.messages)


def test_a_miss_can_end_the_run_and_the_rows_before_it_are_stored(tmp_path):
    out = tmp_path / "run.h5"
    said = r"off by .* % of its spread .* at t = 0\.3, more than accuracy = 1 %.*are stored; on_miss='warn' goes on"
    with pytest.raises(SolverError, match=said):
        pwgf.solve(affine(accuracy=0.01, on_miss="stop"), [0.0, 0.001, 0.3, 0.5], out=out, progress=False)
    assert pwgf.load(out).t.tolist() == [0.0, 0.001]
    kept = pwgf.solve(affine(accuracy=0.5, on_miss="stop"), [0.0, 0.001], progress=False)
    assert len(kept) == 2


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4])
def test_the_law_is_as_accurate_as_asked(accuracy):
    """OU with variances 1 and .01: the Bures–Wasserstein distance to the exact Gaussian, over its spread."""
    problem = problems.OrnsteinUhlenbeck(2, cov=torch.diag(torch.tensor([1.0, 0.01], dtype=torch.float64)))
    scheme = pwgf.PWGF(problem.energy, maps.Affine(2), problem.reference, num_eval=500, accuracy=accuracy)
    run = pwgf.solve(scheme, [0.0, 0.05, 0.5], progress=False)
    assert scheme.tolerance == pytest.approx(accuracy / 50)
    for t in run.t[1:]:
        exact = problem.exact(float(t))
        error = pwgf.distances.bures_w2(run.at(float(t)).mean(), run.at(float(t)).cov(), exact.mean(), exact.cov())
        assert float(error) < accuracy * math.sqrt(float(exact.cov().trace()))


def test_the_steps_follow_the_accuracy_in_any_unit_of_x():
    counts = []
    for scale in (1.0, 100.0):
        energy = (
            energies.Potential(lambda x, s=scale: s**2 * (x / s - 1).square().sum(-1)) + scale**2 * energies.Entropy()
        )
        scheme = pwgf.PWGF(energy, maps.Affine(1), pwgf.Gaussian(1, cov=scale**2), num_eval=100, accuracy=1e-3)
        counts.append(float(pwgf.solve(scheme, [0.0, 0.5], progress=False)["num_stages"][-1]))
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_a_tolerance_of_the_integrator_stays_in_units_of_x():
    own = affine(accuracy=0.01, integrator=pwgf.Implicit(tolerance=1e-3)).to_config()
    assert own["tolerance"] == 1e-3 and "tolerance_in_spreads" not in own
    assert affine(accuracy=0.01).to_config()["tolerance_in_spreads"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accuracy": 0}, r"accuracy=….* must be a number in \(0, 1\]; got 0"),
        ({"accuracy": "high"}, r"accuracy=….* must be a number in \(0, 1\]; got 'high'"),
        ({"accuracy": 1e-7}, r"accuracy=1e-07\) is finer than this scheme can show in torch.float64.*accuracy=1e-05"),
        (
            {"accuracy": 1e-4, "dtype": torch.float32},
            r"finer than this scheme can show in torch.float32.*0.001 or more",
        ),
        ({"on_miss": "halt"}, r"on_miss='halt'\) must be 'warn' or 'stop'"),
    ],
)
def test_an_accuracy_that_cannot_be_shown_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        affine(**settings)
