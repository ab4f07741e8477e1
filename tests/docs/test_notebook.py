"""A tutorial as a notebook, run by a kernel: the bar is seen, runs show themselves, an interrupt leaves a good file."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks are run by: pip install 'pwgf[docs]'")
pytest.importorskip("ipywidgets", reason="bars in notebooks are drawn by: pip install 'pwgf[docs]'")
nbformat = pytest.importorskip("nbformat")

import pwgf  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

INTERRUPT = """
import os, signal

def as_a_user_would(state, info):
    if state.t > 0.5:
        os.kill(os.getpid(), signal.SIGINT)  # what "interrupt the kernel" sends

pwgf.solve(scheme, run.t, out="stopped.h5", callbacks=[as_a_user_would])
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The tutorial up to its figure, then a cell that shows the run, and two of which the first is interrupted."""
    from docs.tools import pages

    folder = tmp_path_factory.mktemp("notebook")
    made = pages.notebook(ROOT / "docs" / "tutorials" / "driven.py")
    code = [cell for cell in made.cells if cell.cell_type == "code"][:2]
    more = ["run", INTERRUPT, 'again = pwgf.solve(scheme, run.t, out="stopped.h5", resume=True)\nlen(again)']
    made.cells = code + [nbformat.v4.new_code_cell(text) for text in more]
    made.cells[-2].metadata["tags"] = ["raises-exception"]
    client = nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(folder)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("PWGF_PROGRESS", raising=False)
        client.execute()
    return folder, made.cells, list(client.widget_state.values())


def outputs(cell, kind):
    """What a cell showed of that MIME type."""
    return [shown["data"][kind] for shown in cell.outputs if kind in shown.get("data", {})]


def test_the_bar_is_shown_below_the_cell_that_solves_and_moves(executed):
    assert outputs(executed[1][0], "application/vnd.jupyter.widget-view+json")
    bars = [widget for widget in executed[2] if widget.get("_model_name") == "FloatProgressModel"]
    assert bars and all(0 < bar["value"] <= bar["max"] for bar in bars)


def test_a_run_shows_itself(executed):
    (shown,) = outputs(executed[1][2], "text/html")
    assert "PWGF" in shown and "17" in shown  # rows


def test_an_interrupt_stops_after_the_step_and_leaves_a_file_that_goes_on(executed):
    folder, (*_, stopped, resumed), _ = executed
    (error,) = [shown for shown in stopped.outputs if shown.output_type == "error"]
    assert error.ename == "KeyboardInterrupt"
    assert any("stopping after this step" in shown.get("text", "") for shown in stopped.outputs)
    assert outputs(resumed, "text/plain")[-1] == "17"
    whole, parts = pwgf.load(folder / "trap.h5"), pwgf.load(folder / "stopped.h5")
    assert (whole["energy"] == parts["energy"]).all()
