"""Result pages of the full matrices."""

from __future__ import annotations

import pytest

from tests.results import Matrix


def test_a_page_names_the_commit_and_holds_a_row_a_case() -> None:
    made = Matrix("faults", "Faults", "What happened.", ("case", "what was said"))
    made.add("disk full", "error: a | b\n  c")
    text = made.page("0123456789")
    assert "at commit 0123456789: 1 cases." in text
    assert "| disk full | error: a \\| b c |" in text


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Matrix("faults", "Faults", "", ("case", "said")).add("alone")
