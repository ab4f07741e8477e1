"""The first page for a new user, followed literally: its script and its commands, one after another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"^```(python)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_page_is_followed_literally(tmp_path):
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    (install, *commands), scripts = [[text for kind, text in STEP.findall(page) if kind == k] for k in ("", "python")]
    assert "pip install" in install and "Save this as `valley.py`" in page
    (tmp_path / "valley.py").write_text(scripts[0], encoding="utf-8")
    (tmp_path / "later.py").write_text(scripts[1], encoding="utf-8")
    inline = re.findall(r"`(pwgf run .*?)`", page)
    assert commands == ["python valley.py\n", "pwgf info valley.h5\n"] and len(inline) == 1
    said = [run(line.strip(), tmp_path) for line in (*commands, "python later.py", *inline)]
    assert "Verdict: good" in said[1] and "Warnings: none" in said[1]
    for name in ("valley.png", "density.png", "samples.csv", "own.h5"):
        assert (tmp_path / name).stat().st_size > 0


def run(line, folder):
    """What a command printed; "python" and "pwgf" are those of this environment."""
    program, *arguments = line.split()
    start = {"python": [sys.executable], "pwgf": [sys.executable, "-m", "pwgf"]}[program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*start, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
