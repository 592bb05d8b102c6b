"""Rankings and heat maps of flows as JSON objects and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nat_rewriter.model.flow_views import HeatMap, HeatRow, Rank, Ranked
from nat_rewriter.report.json_lines import without_absent

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# From nothing to all ports of a piece; anything at all is more than nothing.
SHADES = " .:-=+*#%@"


def rank_object(rank: Rank, by: Ranked) -> dict[str, Any]:
    """Return a rank with the field names that `flows --top --json` prints."""
    fields = {
        "protocol": rank.protocol,
        by.value.removesuffix("s"): rank.name,
        "flows": rank.flows,
        "bytes": rank.bytes,
    }
    return without_absent(fields)


def rank_row(rank: Rank, total: int) -> tuple[str, str, str, str]:
    """Return flows, their share of the total, bytes, and what has them."""
    name = f"{rank.protocol} {rank.name}" if rank.protocol else rank.name
    share = f"{rank.flows / max(total, 1):.1%}"
    return str(rank.flows), share, "" if rank.bytes is None else bytes_text(rank.bytes), name


def bytes_text(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves 1 or more."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def heat_object(heat: HeatMap) -> dict[str, Any]:
    """Return a map with the field names that `flows --heatmap --json` prints."""
    return {
        "slice": heat.slice.name,
        "capacity": heat.capacity,
        "pieces": [[piece.first, piece.last] for piece in heat.pieces],
        "destinations": [
            {
                "protocol": row.protocol,
                "destination": row.destination,
                "used": row.used,
                "shares": [round(share, 3) for share in row.shares],
            }
            for row in heat.rows
        ],
        "others": heat.others,
    }


def heat_lines(heat: HeatMap, width: int) -> Iterator[str]:
    """Yield a map as lines of at most ``width`` characters: a head, the ports, and a line a destination."""
    label = label_width(heat, width)
    yield heat_title(heat)
    yield f"{'':{label}} {axis_text(heat)}".rstrip()
    for row in heat.rows:
        cells = "".join(shade_of(share) for share in row.shares)
        yield f"{row_label(row, label)} {cells}| {row.used}"
    if heat.others:
        yield f"and {heat.others} more"


def heat_title(heat: HeatMap) -> str:
    """Return what a map shows, as a line."""
    each = "one port" if heat.piece_size == 1 else f"{heat.piece_size} ports"
    return f"slice {heat.slice.name}  {heat.slice.address}  {heat.capacity} ports, {each} a cell"


def axis_text(heat: HeatMap) -> str:
    """Return the first and the last port over the ends of the cells."""
    first, last = str(heat.pieces[0].first), str(heat.pieces[-1].last)
    return f"{first}{last:>{max(len(heat.pieces) - len(first), len(last) + 1)}}"


def label_width(heat: HeatMap, width: int) -> int:
    """Return how wide the names of destinations may be beside the cells, in lines of ``width``."""
    longest = max((len(f"{row.protocol} {row.destination}") for row in heat.rows), default=0)
    counts = len(str(heat.capacity)) + 3
    return max(12, min(longest, width - len(heat.pieces) - counts))


def row_label(row: HeatRow, width: int) -> str:
    """Return the name of a destination, cut to a width where it is longer."""
    name = f"{row.protocol} {row.destination}"
    return f"{name:{width}}" if len(name) <= width else f"{name[: width - 1]}…"


def shade_of(share: float) -> str:
    """Return the character for a share of 1."""
    return SHADES[0] if share <= 0 else SHADES[max(1, min(len(SHADES) - 1, int(share * (len(SHADES) - 1))))]
