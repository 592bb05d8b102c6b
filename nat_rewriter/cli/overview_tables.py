"""The state of a host on a terminal: tables with bars."""

from __future__ import annotations

from collections.abc import Iterator

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nat_rewriter.model.overview import DestinationUse, Overview
from nat_rewriter.report.overview import age_text, ports_text

BAR_WIDTH = 20
FULL, TIGHT = 1.0, 0.8


def overview_view(overview: Overview) -> RenderableType:
    """Return the whole state; parts that are empty are left out."""
    return Group(*_parts(overview))


def _parts(overview: Overview) -> Iterator[RenderableType]:
    controller = overview.controller
    yield Text(f"table inet {controller.table}, coexist {controller.coexist.value}, guard {controller.guard.value}\n")
    yield _slices(overview)
    if overview.outside:
        yield Text(f"{overview.outside} flows leave from these addresses outside every slice: natctl check\n", "red")
    if overview.busiest:
        yield _busiest(overview)
    if overview.strays:
        yield _strays(overview)
    yield from _drift(overview)
    yield _host(overview)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _slices(overview: Overview) -> Table:
    protocols = [name for name in ("tcp", "udp", "icmp") if any(name in each.flows for each in overview.slices)]
    table = _table("slice", "address", "ports", "size", *protocols, right=("size", *protocols))
    for each in overview.slices:
        counts = (str(each.flows[name].total) if name in each.flows else "-" for name in protocols)
        table.add_row(each.slice.name, str(each.slice.address), ports_text(each), str(each.size), *counts)
    table.add_row()
    return table


def _busiest(overview: Overview) -> Table:
    right = ("headroom", "findable")
    table = _table("busiest destination", "slice", "used", *right, "", right=right)
    for use in overview.busiest:
        counts = f"{use.used} of {use.capacity}", str(use.headroom), str(use.findable)
        table.add_row(f"{use.protocol} {use.destination}", use.slice, *counts, _bar(use))
    table.add_row()
    return table


def _bar(use: DestinationUse) -> Bar:
    share = use.used / max(use.capacity, 1)
    colour = "red" if share >= FULL else "yellow" if share > TIGHT else "green"
    return Bar(max(use.capacity, 1), 0, use.used, width=BAR_WIDTH, color=colour, bgcolor="grey23")


def _strays(overview: Overview) -> Table:
    table = _table("caught by the guard", "packets", "last seen", right=("packets", "last seen"))
    for stray in overview.strays:
        table.add_row(Text(str(stray.tuple), "red"), str(stray.packets), f"{age_text(stray.last_seen_s)} ago")
    table.add_row()
    return table


def _drift(overview: Overview) -> Iterator[Text]:
    if overview.differences:
        count = len(overview.differences)
        yield Text(f"The live table differs from the configuration in {count} lines: natctl diff\n", "bold red")
    else:
        yield Text("The live table is what the configuration says.\n", "green")


def _host(overview: Overview) -> Table:
    table = _table("host", "")
    table.add_row("conntrack", f"{overview.entries} of {overview.max_entries} entries")
    for name, value in overview.sysctls.items():
        table.add_row(name, value or "(empty)")
    return table
