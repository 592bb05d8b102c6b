"""The live view of ``natctl watch``: the state of the table, slices with bars of use, and what is open.

Every line is made to fit, and lines are counted out to the height of the terminal: nothing wraps or scrolls, whatever
comes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from nat_rewriter.cli.tables import SEVERITY_COLOURS, timed_action_text
from nat_rewriter.model.actions import Action
from nat_rewriter.model.findings import Finding, Kind
from nat_rewriter.model.watching import WatchStatus
from nat_rewriter.report import FINDING_COLUMNS, finding_row

ACTIONS_SHOWN = 3
_STATE_STYLES = {"live": "green", "stale": "bold red", "syncing": "yellow"}
_NARROW, _TALL = 72, 40  # columns below which bars are short; lines from which destinations have a part of their own
_DESTINATIONS_SHOWN = 8
_INDENT = 2


class Used(Protocol):
    """Something with ports in use: a slice, or a destination."""

    @property
    def used(self) -> int:
        """Ports in use."""

    @property
    def capacity(self) -> int:
        """Ports that there are."""


class LiveView:
    """A status as a screenful; it shows as much as the terminal has lines for, the worst first."""

    def __init__(self, status: WatchStatus, actions: Iterable[tuple[datetime, Action]] = ()) -> None:
        self._status, self._actions = status, tuple(actions)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._lines(console, options.max_width, max(4, options.max_height))
        for line in lines:
            line.truncate(options.max_width, overflow="ellipsis")
        yield Text("\n").join(lines[: options.max_height])

    def _lines(self, console: Console, width: int, height: int) -> list[Text]:
        actions = [timed_action_text(moment, action) for moment, action in self._actions]
        top = [_head(self._status), Text()]
        left = height - len(top) - len(actions)
        top += _slices_part(self._status, width, max(1, left // 3 - 3))
        if height >= _TALL:
            top += _destinations_part(self._status, width)
        findings = _findings_part(console, self._status.findings, width, height - len(top) - len(actions))
        gap = height - len(top) - len(findings) - len(actions)
        return [*top, *findings, *[Text()] * (gap if actions else 0), *actions]


def _head(status: WatchStatus) -> Text:
    lost = (f"{status.dropped:,} lost", "bold red" if status.dropped else "dim")
    return Text.assemble(
        (status.state, _STATE_STYLES.get(status.state, "")),
        f"  {status.entries:,} flows  {status.event_rate:,.0f} events/s  {len(status.findings):,} findings  ",
        lost,
        (f"  {status.resyncs:,} resyncs", "dim"),
    )


def _slices_part(status: WatchStatus, width: int, most: int) -> list[Text]:
    """Return the slices in use, the fullest first, and how many others there are; ends with an empty line."""
    used = sorted((each for each in status.slices if each.flows), key=_share, reverse=True)
    shown = used[:most]
    cells = [("slice", "flows", "in use", "busiest destination")]
    cells += [(each.name, f"{each.flows:,}", f"{each.used}/{each.capacity}", each.busiest) for each in shown]
    name, flows, share, _ = (max(len(row[place]) for row in cells) for place in range(4))
    lines = [
        Text.assemble(f"{row[0]:{name}}  {row[1]:>{flows}}  ", one, f" {row[2]:{share}}  ", (row[3], "dim"))
        for row, one in zip(cells, [Text(" " * _bar_cells(width)), *(bar(each, width) for each in shown)], strict=True)
    ]
    lines[0].stylize("bold")
    idle, more = len(status.slices) - len(used), len(used) - len(shown)
    rest = [text for count, text in ((more, f"{more:,} more in use"), (idle, f"{idle:,} idle")) if count]
    return [*lines, *([Text(f"and {', '.join(rest)}", "dim")] if rest else []), Text()]


def _destinations_part(status: WatchStatus, width: int) -> list[Text]:
    """Return the destinations that use the largest share of a slice; ends with an empty line."""
    shown = status.destinations[:_DESTINATIONS_SHOWN]
    if not shown:
        return []
    names = [f"{use.protocol} {use.destination}" for use in shown]
    label = max(map(len, [*names, "top destinations"]))
    lines = [Text(f"{'top destinations':{label}}  {'':{_bar_cells(width)}} in use, free, findable", "bold")]
    for name, use in zip(names, shown, strict=True):
        counts = f" {use.used}/{use.capacity}  {use.headroom} free, {use.findable} findable  "
        lines.append(Text.assemble(f"{name:{label}}  ", bar(use, width), counts, (use.slice, "dim")))
    return [*lines, Text()]


def _findings_part(console: Console, found: Sequence[Finding], width: int, most: int) -> list[Text]:
    """Return a line for each finding, the worst first, and the stories of the worst ones as far as there is room."""
    if not found:
        return [Text("Nothing found.", "green")]
    worst = heapq.nsmallest(max(1, most), found, key=lambda one: one.severity.rank)
    # Where not all have a line, half of the room is for stories all the same: a remedy is worth more than a list.
    stories = _stories(console, worst, width, max(most - len(found), most // 2 - 1))
    left = most - sum(map(len, stories))
    shown = worst if len(found) <= left else worst[: max(1, left - 1)]
    kinds, slices = (max(len(text) for text in texts) for texts in zip(*map(_names, shown), strict=True))
    lines = []
    for place, finding in enumerate(shown):
        lines += [_finding_line(finding, kinds, slices), *(stories[place] if place < len(stories) else [])]
    return lines + _rest(found, shown)


def _stories(console: Console, worst: Sequence[Finding], width: int, room: int) -> list[list[Text]]:
    """Return the stories of the first findings, until one does not fit."""
    stories: list[list[Text]] = []
    for finding in worst:
        story = list(_story(console, finding, width))
        room -= len(story)
        if room < 0:
            break
        stories.append(story)
    return stories


def _rest(found: Sequence[Finding], shown: Sequence[Finding]) -> list[Text]:
    """Return how many findings are not shown, by kind, the worst first."""
    left = Counter(finding.kind for finding in found)
    left.subtract(finding.kind for finding in shown)
    counts = ", ".join(f"{left[kind]:,} {kind.value}" for kind in Kind if left[kind] > 0)
    return [Text(f"and {counts}: natctl check lists them all", "dim")] if counts else []


def _names(finding: Finding) -> tuple[str, str]:
    return finding.kind.value, finding.slice or ""


def _finding_line(finding: Finding, kinds: int, slices: int) -> Text:
    cells = dict(zip(FINDING_COLUMNS, finding_row(finding), strict=True))
    told = " ".join(f"{name} {cells[name]}" for name in ("wire", "victim", "holder") if cells[name])
    kind, name = _names(finding)
    subject = cells["subject"] or finding.message
    return Text.assemble(
        (f"{kind:{kinds}}", SEVERITY_COLOURS[finding.severity]), f"  {name:{slices}}  {subject}  ", (told, "dim")
    )


def _story(console: Console, finding: Finding, width: int) -> Iterator[Text]:
    """Yield what a finding means and how to mend it, in lines that fit."""
    for text, style in ((finding.message, ""), (finding.remedy, "dim")):
        for line in Text(text, style).wrap(console, max(20, width - _INDENT)):
            yield Text.assemble(" " * _INDENT, line)


def bar(use: Used, width: int) -> Text:
    """Return a bar for the share in use: green, yellow from eight tenths on, red when full."""
    cells, share = _bar_cells(width), _share(use)
    filled = min(cells, max(round(share * cells), share > 0))
    style = "red" if share >= 1 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("█" * filled, style), ("·" * (cells - filled), "dim"))


def _bar_cells(width: int) -> int:
    return 20 if width >= _NARROW else 8


def _share(use: Used) -> float:
    return use.used / use.capacity if use.capacity else 0.0
