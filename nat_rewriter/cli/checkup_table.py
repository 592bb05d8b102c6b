"""What a host offers, as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from nat_rewriter.model.checkup import Answer, Check, Weight

_STYLES = {
    (Answer.NO, Weight.REQUIRED): "bold red",
    (Answer.NO, Weight.RECOMMENDED): "yellow",
    (Answer.NO, Weight.OPTIONAL): "dim",
}


def checks_table(checks: Sequence[Check]) -> Table:
    """Return checks as a table: the answer, what was found, what it is for, and what mends it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found, and what mends it", overflow="fold")
    for check in checks:
        table.add_row(_answer(check), check.name, _story(check))
    return table


def _answer(check: Check) -> Text:
    usual = "green" if check.answer is Answer.YES else "cyan"
    return Text(check.answer.value, style=_STYLES.get((check.answer, check.weight), usual))


def _story(check: Check) -> Text:
    subject = f"{check.subject}: " if check.subject else ""
    told = Text.assemble(subject, check.found, (f"  for {check.purpose}", "dim"))
    return Text.assemble(told, (f"\n{check.remedy}", "bold")) if check.remedy else told
