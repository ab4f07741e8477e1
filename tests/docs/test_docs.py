"""The documentation: every link leads somewhere, and every Python block runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pwgf
from pwgf import maps, problems

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SLOW = {"README.md", "extending.md", "file-format.md", "method.md", "uses.md"}  # more than about ten seconds


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page, apart from those into the web, that lead nowhere."""
    found = []
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def test_the_checks_see_links_anchors_and_blocks(tmp_path):
    page = tmp_path / "page.md"
    links = "[a](page.md#one-word-two) [b](page.md#three) [c](none.md)"
    page.write_text(f"# One `word`, two\n{links}\n```python\nx = 1\n```\n")
    assert broken(page) == ["page.md#three", "none.md"]
    assert BLOCK.findall(text_of(page)) == ["x = 1\n"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert broken(page) == []


WITH_BLOCKS = [page for page in PAGES if BLOCK.search(text_of(page)) and page.name != "start.md"]  # see test_start.py


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW), id=p.name) for p in WITH_BLOCKS]
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page one after another, as a reader would paste them, in a folder with a run at results/ou.h5."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PWGF_PROGRESS", "0")
    if "results/ou.h5" in text_of(page):
        problem = problems.OrnsteinUhlenbeck(1)
        scheme = pwgf.PWGF(problem.energy, maps.ResidualMLP(1, width=4), problem.reference, num_samples=100)
        pwgf.solve(scheme, [0.0, 0.5, 1.0], out="results/ou.h5")
    names = {"__name__": "__main__"}
    for block in BLOCK.findall(text_of(page)):
        exec(compile(block, page.name, "exec"), names)
