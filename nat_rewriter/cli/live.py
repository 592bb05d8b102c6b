"""The live view of ``natctl watch``: the state of the table, slices with bars of use, and what is open."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from nat_rewriter.cli.tables import action_text, findings_table
from nat_rewriter.model.actions import Action
from nat_rewriter.model.watching import SliceUse, WatchStatus

ACTIONS_SHOWN = 3
_BAR_CELLS = 20
_STATE_STYLES = {"live": "green", "stale": "bold red", "syncing": "yellow"}
# Lines that the head, the slices' header and the note of what is not shown take.
_FRAME_LINES = 6
_LINES_A_FINDING = 6


class LiveView:
    """A status as a screenful; it shows as much as the terminal has lines for, the worst first."""

    def __init__(self, status: WatchStatus, actions: Iterable[tuple[datetime, Action]] = ()) -> None:
        self._status, self._actions = status, tuple(actions)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height - _FRAME_LINES - len(self._actions)
        shown = min(len(self._status.findings), max(1, height * 2 // 3 // _LINES_A_FINDING))
        slices = max(1, height - shown * _LINES_A_FINDING)
        yield Group(_head(self._status), Text(), _slices_part(self._status, slices), Text(), self._findings(shown))
        yield from (_action_line(moment, action) for moment, action in self._actions)

    def _findings(self, shown: int) -> RenderableType:
        found = sorted(self._status.findings, key=lambda finding: finding.severity.rank)
        if not found:
            return Text("Nothing found.", style="green")
        more = len(found) - shown
        note = Text(f"and {more} more: natctl check lists them all" if more > 0 else "", style="dim")
        return Group(findings_table(found[:shown]), note)


def _action_line(moment: datetime, action: Action) -> Text:
    line = Text.assemble((f"{moment:%H:%M:%S} ", "dim"), action_text(action))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _head(status: WatchStatus) -> Text:
    lost = (f"{status.dropped} lost", "bold red" if status.dropped else "dim")
    return Text.assemble(
        (status.state, _STATE_STYLES.get(status.state, "")),
        f"  {status.entries} flows  {status.event_rate:.0f} events/s  {len(status.findings)} findings  ",
        lost,
        (f"  {status.resyncs} resyncs", "dim"),
    )


def _slices_part(status: WatchStatus, lines: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("slice", "flows", "use", "", "busiest destination"):
        table.add_column(name, no_wrap=True, justify="right" if name == "flows" else "left")
    fullest = sorted(status.slices, key=_share, reverse=True)
    for each in fullest[:lines]:
        use = f"{each.used}/{each.capacity}"
        table.add_row(each.name, str(each.flows), bar(_share(each)), use, Text(each.busiest, style="dim"))
    return table


def bar(share: float) -> Text:
    """Return a bar for a share of 1: green, yellow from eight tenths on, red when full."""
    filled = min(_BAR_CELLS, round(share * _BAR_CELLS))
    style = "red" if share >= 1 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("█" * filled, style), ("·" * (_BAR_CELLS - filled), "dim"))


def _share(each: SliceUse) -> float:
    return each.used / each.capacity if each.capacity else 0.0
