"""Actions as JSON objects and as lines."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nat_rewriter.model.actions import Action, EntryTarget, SocketTarget, Target
from nat_rewriter.report.findings import party_text
from nat_rewriter.report.json_lines import time_text, tuple_object, without_absent


def action_object(action: Action, moment: datetime) -> dict[str, Any]:
    """Return an action as `check --json` and `watch --json` print it among the findings; it has no `kind`."""
    fields = {
        "time": time_text(moment),
        "action": action.verb.value,
        "target": _target_object(action.target),
        "finding": action.finding.kind.value,
        "result": action.result.value,
        "detail": action.detail,
    }
    return without_absent(fields)


def action_line(action: Action) -> str:
    """Return an action as one line of words for a log."""
    because = f": {action.detail}" if action.detail else ""
    return (
        f"action {action.result.value} {action.verb.value} {target_text(action.target)} "
        f"for {action.finding.kind.value}{because}"
    )


def target_text(target: Target) -> str:
    """Return what an action touches as words."""
    if isinstance(target, EntryTarget):
        named = "" if target.id is None else f" id {target.id}"
        return f"{target.tuple.protocol} {target.tuple.source} -> {target.tuple.destination}{named}"
    if isinstance(target, SocketTarget):
        ends = f"{target.tuple.protocol} {target.tuple.source} -> {target.tuple.destination}"
        return f"{ends} of {party_text(target.socket)}"
    return f"table inet {target.name}"


def _target_object(target: Target) -> dict[str, Any]:
    if isinstance(target, EntryTarget):
        zone = target.zone or None
        fields = {"type": "entry", **_tuple_fields(target), "id": target.id, "zone": zone}
    elif isinstance(target, SocketTarget):
        one = target.socket
        fields = {
            "type": "socket", **_tuple_fields(target), "pid": one.pid, "command": one.command, "inode": one.inode,
        }  # fmt: skip
    else:
        fields = {"type": "table", "family": "inet", "name": target.name}
    return without_absent(fields)


def _tuple_fields(target: EntryTarget | SocketTarget) -> dict[str, Any]:
    return {"protocol": target.tuple.protocol, "tuple": tuple_object(target.tuple)}
