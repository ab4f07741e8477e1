"""Any number of readers, in processes and threads, see whole rows while a run is written and packed."""

import json
import os
import subprocess
import sys

import pytest

import pwgf
from tests.run import readers


@pytest.mark.parametrize(
    ("processes", "threads"), [(2, 4), pytest.param(50, 50, marks=[pytest.mark.slow, pytest.mark.faults])]
)
def test_many_readers_see_whole_rows(tmp_path, processes, threads, record_property):
    command = [sys.executable, readers.__file__, str(tmp_path), str(processes), str(threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PWGF_PROGRESS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["ends"]) == {0}, done.stderr
    assert len(found["loads"]) == processes + threads and min(found["loads"]) >= 1
    assert len(pwgf.load(tmp_path / "run.h5")) == len(readers.TIMES)
    assert os.listdir(tmp_path) == ["run.h5"]
    fault = f"loads by {processes} processes and {threads} threads while another process solves"
    record_property("faults", (fault, sum(found["loads"]), "whole rows, each of the right values"))
