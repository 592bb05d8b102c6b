"""The documentation as far as it is measured: Markdown between two marks, and what it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

DOCUMENTS = Path(__file__).parents[1] / "docs"


def write(name: str, mark: str, *pieces: str) -> None:
    """Put Markdown between the marks of docs/NAME, in place of what is there; SystemExit where there are none."""
    path = DOCUMENTS / name
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, has_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise SystemExit(f"write what was measured: no place between {begin} and {end}: '{path}'")
    path.write_text("\n\n".join((before + begin, *pieces, end + after)), encoding="utf-8")


def table(title: str, columns: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a table below what it is about; the first column is text, others are to the right if they have numbers."""
    first, *others = ([str(cell) for cell in column] for column in zip(columns, *rows, strict=True))
    aligned = [_aligned(first, to_the_right=False)]
    aligned += [_aligned(cells, to_the_right=any(cell[:1].isdigit() for cell in cells[1:])) for cells in others]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in zip(*aligned, strict=True))])


def _aligned(cells: Sequence[str], *, to_the_right: bool) -> list[str]:
    """Return a column in its width, with the rule below its head."""
    width = max(3, *map(len, cells))
    rule = "-" * (width - 1) + ":" if to_the_right else ":" + "-" * (width - 1)
    head, *others = (cell.rjust(width) if to_the_right else cell.ljust(width) for cell in cells)
    return [head, rule, *others]


def where() -> str:
    """Return what was measured on."""
    return f"{_kernel()}, {os.cpu_count()} processors, {date.today():%Y-%m-%d}. Use the ratios."


def heading(bench: str, peer: str) -> str:
    """Return how, when and on what a bench measures that begins now, and beside which version of what."""
    return (
        f"`./dev bench {bench}` on {date.today():%Y-%m-%d}: {_kernel()}, {os.cpu_count()} processors "
        f"with a load of {os.getloadavg()[0]:.1f} when it began, {peer}."
    )


def _kernel() -> str:
    return "Linux " + platform.release().partition("-")[0]  # what follows is who built it
