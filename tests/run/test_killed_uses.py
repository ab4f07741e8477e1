"""What stands on a run resumes as a run does: samples, a filter, a comparison, killed at any time and run again."""

import json
import os
import subprocess
import sys

import pytest

from tests.run import killed_uses


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("use", killed_uses.USES)
def test_a_use_killed_at_random_times_ends_as_one_left_alone(tmp_path, use, record_property):
    """Short versions, stopped at one place: test_small_reasons.py, test_compare.py."""
    command = [sys.executable, killed_uses.__file__, str(tmp_path), use, "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PWGF_PROGRESS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"] == 20 and found["kills"] >= 5
    outcome = f"resume=True ends as one left alone ({found['kills']} kills)"
    record_property("faults", (f"sample, filter or comparison killed: {use}", 20, outcome))
