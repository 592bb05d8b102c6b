"""Flows as JSON objects, as lines, and as rows of a table."""

from __future__ import annotations

from typing import Any

from nat_rewriter.model.flows import Flow, Origin, Status
from nat_rewriter.report.json_lines import start_text, tuple_object, without_absent

FLOW_COLUMNS = ("protocol", "state", "slice", "origin", "source", "destination", "wire", "timeout", "mark", "zone")


def flow_object(flow: Flow, slice_name: str | None = None, origin: Origin | None = None) -> dict[str, Any]:
    """Return a flow as `flows --json` prints it; absent fields are left out."""
    fields = {
        "id": flow.id,
        "protocol": flow.original.protocol,
        "state": flow.state,
        "original": tuple_object(flow.original),
        "reply": tuple_object(flow.reply),
        "status": flow.status.names(),
        "mark": flow.mark,
        "zone": flow.zone,
        "timeout_s": flow.timeout_s,
        "packets": flow.packets,
        "bytes": flow.bytes,
        "start": None if flow.start_ns is None else start_text(flow.start_ns),
        "slice": slice_name,
        "origin": origin.value if origin else None,
    }
    return without_absent(fields)


def flow_row(flow: Flow, slice_name: str | None = None, origin: Origin | None = None) -> tuple[str, ...]:
    """Return the cells of FLOW_COLUMNS for a flow; wire is the source that the far end sees, where it is another."""
    wire = flow.reply.reversed()
    return (
        flow.original.protocol,
        flow.state or ("" if flow.status & Status.SEEN_REPLY else "UNREPLIED"),
        slice_name or "",
        origin.value if origin else "",
        flow.original.source,
        flow.original.destination,
        wire.source if wire.source != flow.original.source else "",
        "" if flow.timeout_s is None else f"{flow.timeout_s} s",
        str(flow.mark) if flow.mark else "",
        str(flow.zone) if flow.zone else "",
    )


def flow_line(flow: Flow, slice_name: str | None = None, origin: Origin | None = None) -> str:
    """Return a flow as one line of words."""
    protocol, state, name, where, source, destination, wire, timeout, mark, zone = flow_row(flow, slice_name, origin)
    named = (("wire", wire), ("timeout", timeout), ("mark", mark), ("zone", zone))
    words = [protocol, state, name, where, source, "->", destination]
    words += [f"{key} {value}" for key, value in named if value]
    return " ".join(word for word in words if word)
