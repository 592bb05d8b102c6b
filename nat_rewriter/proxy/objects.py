"""What a proxy reports, as objects of JSON lines and as lines for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from nat_rewriter.model.proxies import Endpoint, Proxy
from nat_rewriter.proxy.outcomes import MEANINGS, ConnectionEnd, Outcome
from nat_rewriter.proxy.relay import Counts
from nat_rewriter.proxy.status import ProxyStatus, WorkerChange
from nat_rewriter.report.json_lines import time_text, without_absent


def end_object(end: ConnectionEnd, proxies: Sequence[Proxy], moment: datetime) -> dict[str, Any]:
    """Return the end of a connection as JSON has it."""
    return without_absent(
        {
            "time": time_text(moment),
            "event": "connection",
            "proxy": _name(end, proxies),
            "outcome": end.outcome.word,
            "client": _text(end.client),
            "destination": _text(end.destination),
            "host": end.host or None,
            "source": _text(end.source),
            "bytes": [end.bytes_up, end.bytes_down],
            "duration_ms": end.duration_ms,
            "error": os.strerror(end.error) if end.error else None,
            "message": MEANINGS[end.outcome],
        }
    )


def end_line(end: ConnectionEnd, proxies: Sequence[Proxy]) -> str:
    """Return the end of a connection as a line for a person."""
    where = _text(end.destination) or end.host or "?"
    named = f" ({end.host})" if end.host and end.destination else ""
    return f"{_name(end, proxies)}: {_text(end.client)} to {where}{named}: {MEANINGS[end.outcome]}"


def worker_object(change: WorkerChange, moment: datetime) -> dict[str, Any]:
    """Return the death or start of a worker as JSON has it."""
    event = "worker-died" if change.died else "worker-started"
    fields = {"worker": change.worker, "pid": change.pid, "reason": change.reason or None}
    return without_absent({"time": time_text(moment), "event": event, **fields})


def worker_line(change: WorkerChange) -> str:
    """Return the death or start of a worker as a line for a person."""
    what = f"died ({change.reason}), its connections are lost" if change.died else "was started in place of one"
    return f"worker {change.worker}, process {change.pid}, {what}"


def status_object(status: ProxyStatus, moment: datetime, event: str = "status") -> dict[str, Any]:
    """Return all counts as JSON has them."""
    return {
        "time": time_text(moment),
        "event": event,
        "workers": status.workers,
        "draining_workers": status.draining,
        "restarts": status.restarts,
        "proxies": {name: _counts_object(counts) for name, counts in status.counts.items()},
    }


def _counts_object(counts: Counts) -> dict[str, Any]:
    return {
        "active": counts.active,
        "accepted": counts.accepted,
        "bytes": [counts.bytes_up, counts.bytes_down],
        "ended": {one.word: counts.ended[one] for one in Outcome if counts.ended[one]},
    }


def _name(end: ConnectionEnd, proxies: Sequence[Proxy]) -> str:
    # A worker of before a reload may count by proxies that are no more.
    return proxies[end.proxy].name if end.proxy < len(proxies) else f"#{end.proxy}"


def _text(endpoint: Endpoint | None) -> str | None:
    return str(endpoint) if endpoint else None
