"""Findings and flows as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nat_rewriter.model.actions import Action, Result
from nat_rewriter.model.findings import Finding, Severity
from nat_rewriter.report import FINDING_COLUMNS, FLOW_COLUMNS, action_line, finding_row

SEVERITY_COLOURS = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow", Severity.NOTICE: "cyan"}
_RESULT_COLOURS = {Result.DONE: "green", Result.FAILED: "red", Result.GIVEN_UP: "bold red"}


def action_text(action: Action) -> Text:
    """Return what was done about a finding, as a line."""
    return Text(action_line(action), style=_RESULT_COLOURS.get(action.result, "cyan"))


def timed_action_text(moment: datetime, action: Action) -> Text:
    """Return when something was done, in UTC, and what."""
    return Text.assemble((f"{moment:%H:%M:%S} ", "dim"), action_text(action))


def findings_table(found: Sequence[Finding]) -> Table:
    """Return findings as a table: what each is, who takes part, and how to mend it."""
    table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold")
    table.add_column("finding", no_wrap=True)
    table.add_column("slice", no_wrap=True)
    table.add_column("what and how to mend it", overflow="fold")
    for finding in found:
        name = Text(finding.kind.value, style=SEVERITY_COLOURS[finding.severity])
        table.add_row(name, finding.slice or "", _story(finding))
    return table


def print_flows(console: Console, rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of FLOW_COLUMNS as a table without the columns that are empty; long lines wrap, nothing is cut."""
    used = [number for number in range(len(FLOW_COLUMNS)) if any(row[number] for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number in used:
        table.add_column(FLOW_COLUMNS[number], no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[number]) for number in used))
    needed = Measurement.get(console, console.options.update(max_width=1 << 12), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _story(finding: Finding) -> Text:
    cells = dict(zip(FINDING_COLUMNS, finding_row(finding), strict=True))
    told = [f"{name} {cells[name]}" for name in ("wire", "victim", "holder") if cells[name]]
    heading = "  ".join(part for part in (cells["subject"], *told) if part)
    return Text.assemble((f"{heading}\n" if heading else "", "bold"), f"{finding.message}\n", (finding.remedy, "dim"))
