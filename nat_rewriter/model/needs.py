"""What each kind of finding has to look at, so that a look can leave out what nobody asked for."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from nat_rewriter.model.findings import Kind


class Needs(enum.Flag):
    """What a detection looks at."""

    FLOWS = enum.auto()
    SOCKETS = enum.auto()
    DRIFT = enum.auto()
    HOST = enum.auto()
    EVENTS = enum.auto()


_BOTH = Needs.FLOWS | Needs.SOCKETS

NEEDS = {
    Kind.PORT_LEAKED: _BOTH,
    Kind.PORT_REMAPPED: _BOTH,
    Kind.TUPLE_SHARED: _BOTH,
    Kind.REPLY_CAPTURED: _BOTH | Needs.HOST,
    Kind.SLICE_EXHAUSTED: Needs.FLOWS,
    Kind.RULESET_DRIFT: Needs.DRIFT,
    Kind.SOCKET_UNTRACKED: _BOTH,
    Kind.ENTRY_STUCK: _BOTH,
    Kind.SLICE_PRESSURE: Needs.FLOWS,
    Kind.FLOW_STRANDED: Needs.FLOWS,
    Kind.EPHEMERAL_OVERLAP: Needs.HOST,
    Kind.FOREIGN_BIND: Needs.SOCKETS,
    Kind.ENTRY_ORPHANED: _BOTH,
    Kind.EVENTS_LOST: Needs.EVENTS,
}


def needs_of(kinds: Iterable[Kind]) -> Needs:
    """Return all that the detection of these kinds looks at."""
    needs = Needs(0)
    for kind in kinds:
        needs |= NEEDS[kind]
    return needs
