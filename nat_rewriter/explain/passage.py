"""A packet on its way through the hooks: where it is now, what was told of it, and what has come of it so far."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from nat_rewriter.explain.situation import Packet, Situation, is_over
from nat_rewriter.model.flows import Flow, Origin
from nat_rewriter.model.policy import Policy, SnatRule
from nat_rewriter.model.slices import PortRange
from nat_rewriter.model.tuples import FlowTuple


class Fate(enum.Enum):
    """What comes of a packet."""

    CONTINUES = "continues"  # it belongs to an entry, which decided long ago
    KEPT = "kept"  # it leaves with its own source
    MOVED = "moved"  # it leaves from another port of the slice
    LEAKED = "leaked"  # it leaves from a port that this host does not own
    REWRITTEN = "rewritten"  # it leaves from a slice
    UNCHANGED = "unchanged"  # no rule takes it
    REFUSED = "refused"  # its sender is told at once
    DROPPED = "dropped"  # by the guard
    EXHAUSTED = "exhausted"  # no port is free: dropped
    DELIVERED = "delivered"  # to this host
    SENT_ON = "sent-on"  # by a DNAT rule
    PROXIED = "proxied"  # taken in by a proxy of this host
    AVOIDS = "avoids"  # rewriting leaves the tuple alone, since it is held
    MAY_TAKE = "may-take"  # rewriting may give the tuple to a flow
    TAKES_ANYWAY = "takes-anyway"  # the same, though a socket believes it has it
    NEVER = "never"  # no rule rewrites into the tuple


class Verdict(enum.Enum):
    """What a station does, in a word."""

    PASSES = "passes"
    RECORDS = "records"
    REWRITES = "rewrites"
    REFUSES = "refuses"
    DROPS = "drops"


@dataclass(frozen=True, slots=True)
class Step:
    """One station: its hook, its priority (None: no chain), its name, and what happens there."""

    hook: str
    priority: int | None
    station: str
    verdict: Verdict
    does: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes of a packet, in a word and in a sentence; ``ports``: where its source port may lie on the wire.

    ``wanted``: the tuple that is meant, as it is before any station changes it.
    """

    fate: Fate
    text: str
    wanted: FlowTuple
    ports: tuple[PortRange, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(slots=True)
class Passage:
    """A packet on its way. ``candidate``: it stands for any client's packet that this rule rewrites into the tuple.

    ``ended_entry`` is one of a connection that is over: it makes way for the packet.
    ``ports`` are the ranges of which its source port is one; one port is a range too.
    """

    policy: Policy
    situation: Situation
    packet: Packet
    origin: Origin
    candidate: SnatRule | None = None
    now: FlowTuple = field(init=False)
    entry: Flow | None = field(init=False)
    ended_entry: Flow | None = field(init=False, default=None)
    ports: tuple[PortRange, ...] = field(init=False)
    steps: list[Step] = field(init=False, default_factory=list)
    fate: Fate = field(init=False, default=Fate.UNCHANGED)
    reason: str = field(init=False, default="")
    ended: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.now = self.packet.tuple
        self.entry = None if self.candidate else self.situation.entry_of(self.now)
        if self.entry is not None and self.entry.original == self.now and is_over(self.entry):
            self.situation, self.ended_entry, self.entry = self.situation.without(self.entry), self.entry, None
        self.ports = (PortRange(self.now.sport, self.now.sport),)

    @property
    def from_soft(self) -> bool:
        """Whether the packet's source is a soft-unicast address now."""
        return any(owned.address == self.now.src for owned in self.policy.slices)

    @property
    def to_soft(self) -> bool:
        """Whether the packet's destination is a soft-unicast address now."""
        return any(owned.address == self.now.dst for owned in self.policy.slices)

    @property
    def translated(self) -> FlowTuple:
        """What the entry that the packet belongs to makes of it."""
        assert self.entry is not None, "a packet without an entry is not translated by one"
        forward = self.entry.original == self.packet.tuple
        return (self.entry.reply if forward else self.entry.original).reversed()

    @property
    def lost(self) -> str:
        """What the sender notices when the packet is dropped: a socket of this host may be told."""
        if self.origin is Origin.FORWARDED:
            return "the sender waits"
        return "connect() waits" if self.now.protocol == "tcp" else "send() fails with EPERM"

    def current(self) -> Packet:
        """Return the packet as it is now, with its interfaces."""
        return replace(self.packet, tuple=self.now)

    def leave_from(self, source: FlowTuple) -> None:
        """Give the packet the source of a tuple."""
        self.now = replace(self.now, src=source.src, sport=source.sport)
        if self.now.has_echo_id:
            self.now = replace(self.now, dport=source.sport)
        self.ports = (PortRange(source.sport, source.sport),)

    def settle(self, fate: Fate, reason: str, *, end: bool = False) -> None:
        """Say what has come of the packet; ``end``: it goes no further."""
        self.fate, self.reason, self.ended = fate, reason, end
