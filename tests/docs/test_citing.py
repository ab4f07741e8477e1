"""The page on citing agrees with itself and with the references in the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")


def test_each_key_has_an_entry():
    table = "\n".join(line.rpartition(" | ")[2] for line in PAGE.splitlines() if line.startswith("| "))
    assert set(re.findall(r"`([a-z]+\d*)`", table)) == set(re.findall(r"^@\w+\{(\w+),$", PAGE, re.MULTILINE))


def test_papers_are_those_of_the_code_and_the_method():
    sources = [*(ROOT / "pwgf").rglob("*.py"), ROOT / "docs" / "method.md"]
    code = " ".join(" ".join(path.read_text(encoding="utf-8") for path in sources).split())
    cited = re.findall(r"arXiv:(\d{4}\.\d{5})", PAGE)
    assert len(cited) == 7
    assert [number for number in cited if f"arXiv {number}" not in code] == []
