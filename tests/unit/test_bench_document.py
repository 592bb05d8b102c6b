"""Where benchmarks put what they measured: between marks that are there, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import document


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(document, "DOCUMENTS", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(
        "before\n\n<!-- a: begin -->\n\nold\n\n<!-- a: end -->\n\nafter <!-- b: begin --> <!-- b: end -->\n"
    )
    return path


def test_what_was_measured_takes_the_place_of_what_is_there(page: Path) -> None:
    document.write("page.md", "a", "one", "two")
    written = page.read_text()
    assert written.startswith("before\n\n<!-- a: begin -->\n\none\n\ntwo\n\n<!-- a: end -->\n\nafter <!-- b: begin -->")
    document.write("page.md", "a", "one", "two")
    assert page.read_text() == written


def test_without_its_marks_nothing_is_written(page: Path) -> None:
    before = page.read_text()
    with pytest.raises(SystemExit, match="no place between <!-- c: begin -->"):
        document.write("page.md", "c", "one")
    assert page.read_text() == before


def test_numbers_are_to_the_right() -> None:
    assert document.table("Title:", ("", "count", "remark"), [("a way", 5, "slow"), ("b", "1,000", "")]) == (
        "Title:\n\n"
        "|       | count | remark |\n"
        "| :---- | ----: | :----- |\n"
        "| a way |     5 | slow   |\n"
        "| b     | 1,000 |        |"
    )
