"""Pools on a terminal: the port space of each address, drawn, and who has what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nat_rewriter.model.pools import Block, Holding, Pool
from nat_rewriter.model.slices import Address
from nat_rewriter.report.pools import FREE, HOLDING_COLUMNS, RESTING, cells, count_states, holding_row

_MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green", "bright_yellow")
_WIDEST = 64

Marks = Mapping[str, tuple[str, str]]


def holdings_table(held: Iterable[Holding], marks: Marks | None = None) -> Table:
    """Return who has what as a table; ``marks`` are the letters and colours of hosts in a drawing."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HOLDING_COLUMNS:
        table.add_column(heading, no_wrap=True, justify="right" if heading == "left" else "left")
    for each in held:
        row = [Text(cell) for cell in holding_row(each)]
        if marks and each.host in marks:
            mark, colour = marks[each.host]
            row[1] = Text(f"{mark} {each.host}", style=colour)
        table.add_row(*row, style="dim" if each.resting else "")
    return table


def pool_view(pool: Pool, held: Sequence[Holding], width: int) -> RenderableType:
    """Return a pool: its counts, the port space of each address, a letter a host, and who has what."""
    marks = _marks(held)
    drawn = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    by_block = {each.block: each for each in held}
    for address in pool.addresses:
        drawn.add_row(str(address), str(pool.ports), _strip(pool, address, by_block, marks, width))
    counts = ", ".join(f"{count} {state}" for state, count in count_states(pool, held).items())
    title = Text.assemble((pool.name, "bold"), f"  {counts}; slices of {pool.slice_size} ports")
    key = Text(f"{FREE} free   {RESTING} resting", style="dim")
    return Group(title, drawn, key, holdings_table(held, marks) if held else Text(""))


def _marks(held: Sequence[Holding]) -> Marks:
    hosts = sorted({each.host for each in held})
    return {host: (_MARKS[number % len(_MARKS)], _COLOURS[number % len(_COLOURS)]) for number, host in enumerate(hosts)}


def _strip(pool: Pool, address: Address, by_block: Mapping[Block, Holding], marks: Marks, width: int) -> Text:
    room = max(8, min(_WIDEST, width - len(str(address)) - len(str(pool.ports)) - 6))
    strip = Text()
    for each in cells(pool, address, by_block, room):
        if each is None:
            strip.append(FREE, "dim")
        elif each.resting:
            strip.append(RESTING, marks[each.host][1])
        else:
            strip.append(*marks[each.host])
    return strip
