"""Findings as JSON objects, as lines for a log, and as rows of a table."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nat_rewriter.model.findings import Finding, FlowParty, Party
from nat_rewriter.model.tuples import FlowTuple
from nat_rewriter.report.json_lines import time_text, tuple_object, without_absent

FINDING_COLUMNS = ("severity", "kind", "slice", "subject", "wire", "victim", "holder")

OPEN, CLOSED = "open", "closed"


def finding_object(finding: Finding, moment: datetime, state: str = OPEN) -> dict[str, Any]:
    """Return a finding as `check --json` and `watch --json` print it; absent fields are left out."""
    fields = {
        "time": time_text(moment),
        "kind": finding.kind.value,
        "severity": finding.severity.value,
        "slice": finding.slice,
        "protocol": finding.protocol,
        "tuple": tuple_object(finding.tuple) if finding.tuple else None,
        "wire_sport": finding.wire_sport,
        "victim": _party_object(finding.victim),
        "holder": _party_object(finding.holder),
        **finding.extra,
        "message": finding.message,
        "remedy": finding.remedy,
        "state": state,
    }
    return without_absent(fields)


def finding_line(finding: Finding, state: str | None = None) -> str:
    """Return a finding as one line of words for a log; ``state`` is put in front where it is told."""
    words = [state, finding.severity.value, finding.kind.value, finding.slice, finding.protocol]
    words += _claim_words(finding)
    # The message repeats what the words say where there is a tuple, and is all there is where there is none.
    sentence = finding.remedy if finding.tuple else f"{finding.message} {finding.remedy}"
    return f"{' '.join(word for word in words if word)}: {sentence}"


def finding_row(finding: Finding) -> tuple[str, ...]:
    """Return the cells of FINDING_COLUMNS for a finding."""
    return (
        finding.severity.value,
        finding.kind.value,
        finding.slice or "",
        _subject_text(finding),
        "" if finding.wire_sport is None else str(finding.wire_sport),
        party_text(finding.victim),
        party_text(finding.holder),
    )


def _claim_words(finding: Finding) -> list[str]:
    words = [_tuple_text(finding.tuple)] if finding.tuple else []
    if finding.wire_sport is not None:
        words.append(f"wire {finding.wire_sport}")
    if finding.victim is not None:
        words.append(f"victim {party_text(finding.victim)}")
    if finding.holder is not None:
        words.append(f"holder {party_text(finding.holder)}")
    return words


def _subject_text(finding: Finding) -> str:
    if finding.tuple:
        return f"{finding.protocol} {_tuple_text(finding.tuple)}"
    if "destination" in finding.extra:
        return f"{finding.protocol} to {finding.extra['destination']}"
    return str(finding.extra.get("bound", ""))


def _tuple_text(one: FlowTuple) -> str:
    return f"{one.source} -> {one.destination}"


def _party_object(party: Party | None) -> dict[str, Any] | None:
    if party is None:
        return None
    if isinstance(party, FlowParty):
        return {"type": party.type, "src": party.src, "sport": party.sport, "id": party.id}
    return without_absent({"type": "socket", "pid": party.pid, "command": party.command, "inode": party.inode})


def party_text(party: Party | None) -> str:
    """Return who takes part as words: an address and port, or a process."""
    if party is None:
        return ""
    if isinstance(party, FlowParty):
        return party.source
    if party.pid is not None:
        return f"{party.command}[{party.pid}]"
    return "socket" if party.inode is None else f"socket inode {party.inode}"
