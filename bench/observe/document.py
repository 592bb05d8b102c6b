"""The tables as Markdown, and where the documentation has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "observe.md"
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with its title; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        _line(columns, widths),
        _line([":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])], widths),
    ]
    return "\n".join([title, "", *lines, *(_line(row, widths) for row in rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if not at else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join((first, *others))} |"


def write(tables: Sequence[str]) -> None:
    """Put the tables between the marks of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    DOCUMENT.write_text("\n\n".join((before + _BEGIN, *tables, _END + after)), encoding="utf-8")
