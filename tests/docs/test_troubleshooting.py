"""The page on troubleshooting quotes messages that the package still has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYMPTOM = re.compile(r"^\| (`.*?) \|", re.MULTILINE)


def messages():
    """The texts in the source, figures and names left out as in the page."""
    found = []
    for path in (ROOT / "pwgf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[a-z]", "…", node.value))
    return found


def quoted(page):
    """The messages quoted in the first column: what stands in backticks and has blanks."""
    spans = [span for cell in SYMPTOM.findall(page) for span in re.findall(r"`([^`]+)`", cell)]
    return [span for span in spans if " " in span]


def test_each_quoted_message_is_in_the_package():
    wanted = quoted((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(wanted) > 20
    patterns = [re.compile(".*".join(map(re.escape, text.split("…"))), re.DOTALL) for text in wanted]
    texts = messages()
    assert [p.pattern for p in patterns if not any(p.search(text) for text in texts)] == []


def test_a_message_that_is_not_there_is_seen():
    assert quoted("| `no … such` or `name` | cause | cure |") == ["no … such"]
    assert not any("the moon is … away" in text for text in messages())
