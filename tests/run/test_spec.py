"""What a run is: the settings that its file records, the same for a fresh and a resumed run."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import pwgf
from pwgf.errors import ConfigError, ResumeMismatchError
from pwgf.problems import OrnsteinUhlenbeck
from pwgf.run.spec import RunSpec
from tests.run.helpers import TIMES, scheme, solve


def test_it_holds_what_the_file_records(tmp_path):
    moving, problem = scheme(), OrnsteinUhlenbeck(2)
    state = dataclasses.replace(moving.start(3), counters={"num_steps": 2})
    spec = RunSpec.of(moving, TIMES, 3, problem, state, {"note": "first try"})
    assert spec.to_config() == {
        "scheme": moving.to_config(),
        "description": {**moving.describe().to_config(), "formula": spec.description["formula"]},
        "times": TIMES,
        "seed": 3,
        "problem": problem.to_config(),
        "start": {"t": 0.0, "counters": {"num_steps": 2}},
        "metadata": {"note": "first try"},
    }
    assert spec.description["formula"].startswith("T_θ(z) = A z + b + axis_gain")
    json.dumps(spec.to_config())
    assert spec.span == (TIMES[0], TIMES[-1])
    assert spec.device == "cpu"
    run = solve(out=tmp_path / "run.h5")
    assert run.config == json.loads(json.dumps(RunSpec.of(moving, TIMES, 3, None, None).to_config()))


def test_it_is_made_once():
    spec = RunSpec.of(scheme(), TIMES, 3, None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seed = 4


def test_a_longer_run_keeps_the_stored_times_to_the_bit_and_the_metadata():
    stored = RunSpec.of(scheme(), [0.0, 0.1, 0.2], 3, None, None, {"note": "first"}).to_config()
    longer = RunSpec.of(scheme(), torch.tensor([0.0, 0.1, 0.2, 0.3]), 3, None, None, {"note": "second"})
    assert longer.times[1] != 0.1  # it came as float32
    further = longer.continuing(stored)
    assert further.times[:3].tolist() == [0.0, 0.1, 0.2]
    assert np.isclose(further.times[3], 0.3)
    assert further.metadata == {"note": "first"}


@pytest.mark.parametrize("out", [None, "run.h5"])
def test_metadata_is_stored(tmp_path, out):
    given = {"note": "first try", "numbers": (1, 2.5), "of": {"whom": None}}
    run = solve(out=None if out is None else tmp_path / out, metadata=given)
    assert run.config["metadata"] == {"note": "first try", "numbers": [1, 2.5], "of": {"whom": None}}
    assert "metadata" not in solve().config


def test_a_resumed_run_keeps_its_metadata(tmp_path):
    out = tmp_path / "run.h5"
    solve(TIMES[:3], out=out, metadata={"note": "first"})
    run = solve(TIMES, out=out, resume=True, metadata={"note": "second"})
    assert run.t.tolist() == TIMES
    assert pwgf.load(out).config["metadata"] == {"note": "first"}
    with pytest.raises(ResumeMismatchError, match="seed: stored 3, now 4"):
        solve(TIMES, out=out, resume=True, seed=4)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ("a note", r"solve\(metadata=…\) needs a dictionary .*; got str\. Give e\.g\."),
        ([1], r"solve\(metadata=…\) needs a dictionary .*; got list\. Give e\.g\."),
        (
            {"x": torch.zeros(2)},
            r"solve\(metadata=…\) needs a dictionary .*Tensor is not JSON serializable\. Give e\.g\.",
        ),
        ({"x": float("nan")}, r"solve\(metadata=…\) needs a dictionary .*Give e\.g\."),
    ],
)
def test_bad_metadata(metadata, match):
    with pytest.raises(ConfigError, match=match):
        solve(metadata=metadata)
