"""What was measured, as Markdown tables, and their place in the documentation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.coexist.tables import DOCUMENT, markdown, where
from bench.packets.measuring import KINDS, Costs
from bench.packets.place import Shape

BEGIN, END = "<!-- packets: begin -->", "<!-- packets: end -->"


def table(shape: Shape, seen: Costs) -> str:
    """Return microseconds a packet and their ratio to one plain SNAT rule."""
    rows = [
        (name, *(f"{cost.nanoseconds / 1e3:.2f} ({cost.ratio:.2f})" for cost in kinds.values()))
        for name, kinds in seen.items()
    ]
    plural = "slice" if shape.count == 1 else "slices"
    return f"{shape.count:,} {plural} of IPv{shape.family}:\n\n{markdown(('', *KINDS), rows)}"


def write(tables: Sequence[str]) -> None:
    """Put the tables between the marks in the documentation."""
    body = "\n\n".join((BEGIN, where(), *tables, END))
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: body, text, flags=re.DOTALL))
