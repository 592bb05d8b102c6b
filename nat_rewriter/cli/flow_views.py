"""``natctl flows --top`` and ``--heatmap``: the flow table summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nat_rewriter.cli.env import Env
from nat_rewriter.model.flow_views import HeatMap, Rank, Ranked

if TYPE_CHECKING:
    from rich.text import Text

_PLAIN_WIDTH = 80  # of a map that is not on a terminal
_LABEL_WIDTH = 28  # enough for tcp and an IPv4 address with its port
_MOST_CELLS = 128
# From a few ports to all of them; nothing is no colour.
_HEAT = ("#1d3557", "#2a6f97", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261", "#e76f51", "#d62828")


def cells_for(env: Env) -> int:
    """Return how many cells of a map fit beside the names of its destinations."""
    width = env.console().width if env.terminal else _PLAIN_WIDTH
    return max(10, min(_MOST_CELLS, width - _LABEL_WIDTH - 9))


def print_ranks(env: Env, ranks: Sequence[Rank], by: Ranked, total: int) -> None:
    """Print a ranking: a table, lines, or JSON, one object a line."""
    from nat_rewriter.report.flow_views import rank_object, rank_row
    from nat_rewriter.report.json_lines import json_line

    if env.json:
        env.stdout.writelines(f"{json_line(rank_object(rank, by))}\n" for rank in ranks)
        return
    rows = [rank_row(rank, total) for rank in ranks]
    if not env.terminal:
        env.stdout.writelines(
            " ".join(cell.replace(" ", "") for cell in row[:3] if cell) + f" {row[3]}\n" for row in rows
        )
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("flows", "share", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(by.value.removesuffix("s"), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    env.console().print(table)


def print_heat(env: Env, heat: HeatMap) -> None:
    """Print a map: in colours, in characters, or as a JSON object."""
    from nat_rewriter.report.flow_views import heat_lines, heat_object
    from nat_rewriter.report.json_lines import json_line

    if env.json:
        env.stdout.write(f"{json_line(heat_object(heat))}\n")
    elif env.terminal:
        console = env.console()
        for line in _coloured(heat, console.width):
            console.print(line)
    else:
        env.stdout.writelines(f"{line}\n" for line in heat_lines(heat, _PLAIN_WIDTH))


def _coloured(heat: HeatMap, width: int) -> list[Text]:
    from rich.text import Text

    from nat_rewriter.report.flow_views import axis_text, heat_title, label_width, row_label

    label = label_width(heat, width)
    lines = [Text(heat_title(heat), "bold"), Text(f"{'':{label}} {axis_text(heat)}", "dim")]
    for row in heat.rows:
        cells = (("·", "dim") if share <= 0 else (" ", f"on {_colour(share)}") for share in row.shares)
        lines.append(Text.assemble(f"{row_label(row, label)} ", *cells, f" {row.used}", no_wrap=True))
    scale = (("   ", f"on {colour}") for colour in _HEAT)
    lines.append(Text.assemble("\nfew ", *scale, " all ports of a cell", style="dim"))
    if heat.others:
        lines.append(Text(f"and {heat.others} more destinations", "dim"))
    return lines


def _colour(share: float) -> str:
    return _HEAT[min(len(_HEAT) - 1, int(share * len(_HEAT)))]
