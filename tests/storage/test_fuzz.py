"""A thousand files that are nearly right: each reader refuses them in words of ours or reads them right, and soon."""

import json
import os
import subprocess
import sys

import pytest

from tests.storage import fuzz

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs that are mutated."""
    folder = tmp_path_factory.mktemp("runs")
    fuzz.prepare(str(folder))
    return folder


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 12), *(pytest.param(k, 125, marks=[pytest.mark.slow, pytest.mark.faults]) for k in range(1000, 2000, 125))],
)
def test_mutated_runs_are_refused_or_read_right(runs, first, count, record_property):
    """In a process of its own, so that a crash would show; seconds of CPU and memory are limited."""
    command = [
        sys.executable,
        os.path.join(ROOT, "tests", "storage", "fuzz.py"),
        str(runs),
        str(first),
        str(count),
        "5",
    ]
    environment = {**os.environ, "PYTHONPATH": ROOT, "PWGF_PROGRESS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=runs, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == [] and found["memory"] < 300  # MB over whole runs
    assert found["refused"] > count / 4
    what = "each reader refuses, or reads every row right; no raw exception, no reader over 5 s, memory under 300 MB"
    record_property("faults", ("mutated files, segments, manifests and locks", count, what))
