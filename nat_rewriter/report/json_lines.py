"""JSON as it is printed: one object a line, keys in the order of the contract."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import Any

from nat_rewriter.model.tuples import FlowTuple

# GRE has keys in the place of ports; the kernel reports them as ports too.
PORTED = ("tcp", "udp", "udplite", "dccp", "sctp", "gre")


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, without the line's end."""
    return json.dumps(value, ensure_ascii=False)


def time_text(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC with microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def start_text(start_ns: int) -> str:
    """Return the moment that a conntrack entry began, given in nanoseconds of the epoch."""
    seconds, ns = divmod(start_ns, 1_000_000_000)
    return f"{_second_text(seconds)}.{ns // 1000:06d}Z"


@functools.lru_cache
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def tuple_object(one: FlowTuple) -> dict[str, Any]:
    """Return a tuple as JSON has it: with two ports, with an echo id, or with neither."""
    if one.has_echo_id:
        return {"src": str(one.src), "dst": str(one.dst), "icmp_id": one.sport}
    if one.protocol in PORTED:
        return {"src": str(one.src), "sport": one.sport, "dst": str(one.dst), "dport": one.dport}
    return {"src": str(one.src), "dst": str(one.dst)}


def without_absent(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
