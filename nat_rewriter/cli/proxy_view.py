"""The live view of ``natctl proxy``: a line for each proxy, and the last events for which there is room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from nat_rewriter.model.proxies import Proxy
from nat_rewriter.proxy.outcomes import Outcome
from nat_rewriter.proxy.relay import Counts
from nat_rewriter.proxy.status import ProxyStatus

_QUIET = (Outcome.FINISHED, Outcome.RESET, Outcome.CLIENT_LEFT, Outcome.ENDED)
_UNITS = ("", "k", "M", "G", "T")


class ProxyView:
    """A status as a screenful. ``before`` is the last one, so many seconds ago: rates come from the two."""

    def __init__(self, status: ProxyStatus, before: ProxyStatus | None, seconds: float, lines: Sequence[str]) -> None:
        self._status, self._before, self._seconds, self._lines = status, before, seconds, lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(4, options.max_height)
        status = self._status
        head = f"{status.active} connections, {status.workers} workers"
        head += f", {status.draining} of before a reload" if status.draining else ""
        head += f", {status.restarts} restarts" if status.restarts else ""
        yield Text(head, style="bold", no_wrap=True, overflow="ellipsis")
        yield self._table()
        room = height - len(status.proxies) - 4
        for line in self._lines[-room:] if room > 0 else ():
            yield Text(line, no_wrap=True, overflow="ellipsis")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("proxy", no_wrap=True)
        for column in ("active", "new/s", "up/s", "down/s", "exhausted", "failed"):
            table.add_column(column, justify="right", no_wrap=True)
        for proxy in self._status.proxies:
            table.add_row(*self._row(proxy))
        return table

    def _row(self, proxy: Proxy) -> list[str | Text]:
        counts = self._status.counts[proxy.name]
        before = self._before.counts.get(proxy.name, counts) if self._before else counts
        exhausted = counts.ended[Outcome.EXHAUSTED]
        failed = sum(counts.ended[one] for one in Outcome if one not in _QUIET) - exhausted
        return [
            f"{proxy.name} ({proxy.mode.value})",
            f"{counts.active} of {proxy.max_connections}",
            *(short(self._rate(counts, before, name)) for name in ("accepted", "bytes_up", "bytes_down")),
            Text(str(exhausted), style="red" if exhausted else ""),
            Text(str(failed), style="yellow" if failed else ""),
        ]

    def _rate(self, counts: Counts, before: Counts, name: str) -> float:
        return max(0.0, (getattr(counts, name) - getattr(before, name)) / self._seconds) if self._seconds else 0.0


def short(value: float) -> str:
    """Return a number in at most three digits and a unit: 999, 1.2k, 35M."""
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError(value)
