"""What was measured, as Markdown tables, and their place in the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from bench import document
from bench.packets.measuring import KINDS, Costs
from bench.packets.place import Shape


def table(shape: Shape, seen: Costs) -> str:
    """Return microseconds a packet and their ratio to one plain SNAT rule."""
    rows = [
        (name, *(f"{cost.nanoseconds / 1e3:.2f} ({cost.ratio:.2f})" for cost in kinds.values()))
        for name, kinds in seen.items()
    ]
    plural = "slice" if shape.count == 1 else "slices"
    return document.table(f"{shape.count:,} {plural} of IPv{shape.family}:", ("", *KINDS), rows)


def write(tables: Sequence[str]) -> None:
    """Put the tables into the documentation."""
    document.write("coexistence.md", "packets", document.where(), *tables)
