"""The page of published figures is what its command writes from the results."""

import pytest

comparison = pytest.importorskip("experiments.comparison", reason="the experiments are not part of this installation")

TEXT = """words
| a | b |
|---|---|
| 1 | 2 |

| a | c |
|---|---|
| 3 | – |
| 4 | 5 |
more
"""


def test_the_page_is_current():
    assert comparison.PAGE.read_text(encoding="utf-8") == comparison.page(), "run python -m experiments.comparison"


def test_tables_are_found_by_their_columns():
    assert comparison.table_in(TEXT, "page.md", "a") == [{"a": "1", "b": "2"}]
    assert comparison.table_in(TEXT, "page.md", "c", "a") == [{"a": "3", "c": "–"}, {"a": "4", "c": "5"}]
    with pytest.raises(ValueError, match=r"results/page\.md has no table with the columns a, d"):
        comparison.table_in(TEXT, "page.md", "a", "d")


def test_ratios_are_ours_over_theirs():
    rows = comparison.table_in(comparison.filtering(), "filtering", "method", "ours over it")
    by_name = {row["method"]: row for row in rows}
    ours = float(by_name["pwgf"]["symmetric KL"])
    for row in rows:
        assert float(row["ours over it"]) == pytest.approx(ours / float(row["symmetric KL"]), rel=0.1)
