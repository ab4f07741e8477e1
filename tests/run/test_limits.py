"""Limits of a call of `solve`: it stops after a step, keeps its state, and the run goes on to the bit."""

import logging

import numpy as np
import pytest

import pwgf
from pwgf import cli, storage
from pwgf.errors import ConfigError
from tests.run.helpers import TIMES, assert_same_rows, scheme, solve


def status(path):
    with storage.open_record(str(path)) as record:
        return record.status


def test_max_steps_stops_between_rows_and_the_run_goes_on_to_the_bit(tmp_path, caplog):
    out, rows = tmp_path / "run.h5", []
    caplog.set_level(logging.WARNING)
    for limit in (2, 5, 3):  # steps of .025, rows every .1
        run = solve(out=out, resume=True, max_steps=limit)
        rows.append(len(run))
        assert status(out) == "interrupted"
    assert rows == [1, 2, 3]
    assert run.state().t == pytest.approx(0.25)
    assert "stopped at t = 0.05 of 0.4 by max_steps or max_seconds, after 2 steps" in caplog.text
    assert_same_rows(solve(out=out, resume=True), solve())
    assert status(out) == "complete"


def test_max_seconds_stops_after_the_step_in_progress(tmp_path):
    run = solve(out=tmp_path / "run.h5", max_seconds=1e-9)
    assert len(run) == 1
    assert run.state().t == pytest.approx(0.025)
    assert status(tmp_path / "run.h5") == "interrupted"
    again = solve(out=tmp_path / "run.h5", resume=True, max_seconds=1e6, max_steps=10**6)
    assert_same_rows(again, solve())
    assert status(tmp_path / "run.h5") == "complete"


def test_a_limit_reached_with_the_last_step_is_none(tmp_path, caplog):
    assert len(solve(TIMES[:2], out=tmp_path / "run.h5", max_steps=4)) == 2
    assert status(tmp_path / "run.h5") == "complete"
    assert "stopped" not in caplog.text


def test_a_run_in_memory_goes_on_from_its_state():
    part = solve(max_steps=6)
    state = part.state()
    assert len(part) == 2
    assert state.t == pytest.approx(0.15)
    rest = pwgf.solve(scheme(), [state.t, *TIMES[2:]], start=state, progress=False)
    whole = solve()
    np.testing.assert_array_equal(rest["theta"][-1], whole["theta"][-1])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_steps": 0}, r"solve\(max_steps=…\) must be an integer ≥ 1; got 0"),
        ({"max_steps": 1.5}, r"solve\(max_steps=…\) must be an integer"),
        ({"max_seconds": 0}, r"solve\(max_seconds=…\) must be positive and finite; got 0"),
        ({"max_seconds": "1 h"}, r"solve\(max_seconds=…\) must be positive and finite; got '1 h'"),
    ],
)
def test_limits_that_are_none(limits, message):
    with pytest.raises(ConfigError, match=message):
        solve(**limits)


def test_the_command_line_has_limits(tmp_path, capsys):
    out = str(tmp_path / "run.h5")
    few = ["--map", "affine", "--num-samples", "50", "--num-eval", "100"]
    command = ["run", "ornstein-uhlenbeck", "--dim", "1", *few, "--end-time", "0.1", "--out", out]
    assert cli.main([*command, "--max-steps", "1"]) == 0
    assert status(out) == "interrupted"
    assert cli.main(["info", out]) == 0
    assert "interrupted" in capsys.readouterr().out
    assert cli.main([*command, "--resume", "--max-seconds", "1e6"]) == 0
    assert status(out) == "complete"
