"""Findings: what is wrong, who did it to whom, and how to mend it. See docs/findings.md."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from nat_rewriter.model.tuples import FlowTuple, endpoint_text


class Severity(enum.Enum):
    """How bad a finding is."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTICE = "notice"

    @property
    def rank(self) -> int:
        """Its place in the order from the worst on."""
        return list(Severity).index(self)


class Kind(enum.Enum):
    """What is wrong; the contract fixes the names and their severity."""

    PORT_LEAKED = "port-leaked"
    PORT_REMAPPED = "port-remapped"
    TUPLE_SHARED = "tuple-shared"
    SOCKET_UNTRACKED = "socket-untracked"
    ENTRY_ORPHANED = "entry-orphaned"
    ENTRY_STUCK = "entry-stuck"
    REPLY_CAPTURED = "reply-captured"
    SLICE_PRESSURE = "slice-pressure"
    SLICE_EXHAUSTED = "slice-exhausted"
    FLOW_STRANDED = "flow-stranded"
    EPHEMERAL_OVERLAP = "ephemeral-overlap"
    FOREIGN_BIND = "foreign-bind"
    RULESET_DRIFT = "ruleset-drift"
    EVENTS_LOST = "events-lost"

    @property
    def severity(self) -> Severity:
        """The severity that the contract gives this kind."""
        return SEVERITIES[self]


SEVERITIES = {
    Kind.PORT_LEAKED: Severity.CRITICAL,
    Kind.PORT_REMAPPED: Severity.WARNING,
    Kind.TUPLE_SHARED: Severity.CRITICAL,
    Kind.SOCKET_UNTRACKED: Severity.WARNING,
    Kind.ENTRY_ORPHANED: Severity.NOTICE,
    Kind.ENTRY_STUCK: Severity.WARNING,
    Kind.REPLY_CAPTURED: Severity.CRITICAL,
    Kind.SLICE_PRESSURE: Severity.WARNING,
    Kind.SLICE_EXHAUSTED: Severity.CRITICAL,
    Kind.FLOW_STRANDED: Severity.WARNING,
    Kind.EPHEMERAL_OVERLAP: Severity.WARNING,
    Kind.FOREIGN_BIND: Severity.WARNING,
    Kind.RULESET_DRIFT: Severity.CRITICAL,
    Kind.EVENTS_LOST: Severity.NOTICE,
}


@dataclass(frozen=True, slots=True)
class SocketParty:
    """A local socket as holder or victim; the process is unknown where /proc does not tell.

    ``cookie`` and ``ifindex`` name a connected socket to the kernel; they are not printed.
    """

    inode: int | None = None
    pid: int | None = None
    command: str | None = None
    cookie: int | None = field(default=None, compare=False)
    ifindex: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class FlowParty:
    """A flow as holder or victim: its original source, and the conntrack id. ``type`` is nat-flow or local-flow."""

    type: str
    src: str
    sport: int
    id: int

    @property
    def source(self) -> str:
        """The original source as ``address:port``."""
        return endpoint_text(ip_address(self.src), self.sport)


Party = SocketParty | FlowParty
Identity = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Two findings with the same ``identity`` are the same, seen at two times."""

    kind: Kind
    message: str
    remedy: str
    slice: str | None = None
    protocol: str | None = None
    tuple: FlowTuple | None = None
    wire_sport: int | None = None
    victim: Party | None = None
    holder: Party | None = None
    subject: str | None = None  # what tells findings of a kind apart where the tuple does not; not printed
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the kind, printed as they are

    @property
    def severity(self) -> Severity:
        """The severity that the contract gives this kind."""
        return self.kind.severity

    @property
    def identity(self) -> Identity:
        """What makes a finding the same one when it is seen again."""
        return (self.kind, self.slice, self.protocol, self.tuple, self.subject)
