"""The page on extending is one script: its members work from outside the package, its files without the script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pwgf
from pwgf import cli, plots
from pwgf.study.compare import Comparison

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which the page's blocks were run as one script, and what it printed."""
    folder = tmp_path_factory.mktemp("extending")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    (folder / "script.py").write_text("\n".join(blocks), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "script.py"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout


def test_the_members_are_compared(done):
    folder, printed = done
    assert "| midpoint | 2 | 1 |" in printed and "Failed" not in printed
    table = Comparison.load(folder / "pull.h5")
    last = {entry["method"]: entry["bures_w2"] for entry in table.entries if entry["t"] == 1}
    assert last["midpoint"] < 0.2  # 500 particles
    assert last["diagonal"] < 2e-3
    assert (folder / "pull.png").stat().st_size > 0


def test_a_file_is_summarised_drawn_and_read_without_the_class(done, capsys):
    path = done[0] / "midpoint.h5"
    run = pwgf.load(path)
    assert run.t.tolist() == [0, 1, 2]
    assert run["energy"][2] < run["energy"][1] < run["energy"][0]
    assert run.sample(1.5, 100).shape == (100, 2)
    assert cli.main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "MidpointParticles with 500 particles" in said and "Energy terms: " in said
    assert len(plots.draw(run, n=100).axes) == 4  # energy, and the law at three rows


def test_own_maps_and_references_are_handed_over(done):
    for name, argument in (("diagonal", "map"), ("laplace", "reference")):
        run = pwgf.load(done[0] / f"{name}.h5")
        assert len(run["energy"]) == 2
        with pytest.raises(pwgf.ConfigError, match=rf"pass it: pwgf\.load\(path, {argument}=…\)"):
            run.sample(0.5, 3)
