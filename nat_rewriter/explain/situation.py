"""What an explanation starts from: a packet, and what the kernel said about it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from nat_rewriter.model.flows import Flow, Status
from nat_rewriter.model.slices import Address, PortRange, Protocol
from nat_rewriter.model.sockets import Owner
from nat_rewriter.model.tuples import FlowTuple

_ENDED = frozenset({"TIME_WAIT", "CLOSE"})
PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "icmp": Protocol.ICMP, "icmpv6": Protocol.ICMP}


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet by its tuple and the interfaces it comes in and goes out by; None where that is not known."""

    tuple: FlowTuple
    iifname: str | None = None
    oifname: str | None = None
    mark: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.tuple.src.version

    @property
    def protocol(self) -> Protocol:
        """The protocol of a slice that its numbers belong to."""
        return PROTOCOLS[self.tuple.protocol]


@dataclass(frozen=True, slots=True)
class SeenSocket:
    """A local socket that has to do with the tuple: connected to it, or bound to its source."""

    state: str
    protocol: str
    src: Address
    sport: int
    dst: Address
    dport: int
    inode: int
    uid: int
    owner: Owner | None = None

    @property
    def peerless(self) -> bool:
        """Whether it listens, or is bound and talks to nobody in particular."""
        return self.dport == 0


@dataclass(frozen=True, slots=True)
class Claim:
    """The element of the refuse set that has the tuple, and the seconds it has left."""

    timeout_s: int | None = None
    expires_s: int | None = None


class Table(enum.Enum):
    """The table of the configuration, as the kernel has it."""

    LIVE = "live"
    DIFFERS = "differs"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Situation:
    """What was seen. ``flows``: the entries that touch the tuple, its destination or its source; None: not known.

    ``claims_known`` tells whether the live table has a refuse set, and was asked; ``unanswered`` says in sentences
    what could not be asked.
    """

    flows: Sequence[Flow] | None = None
    sockets: Sequence[SeenSocket] | None = None
    claim: Claim | None = None
    claims_known: bool = False
    table: Table = Table.UNKNOWN
    source_local: bool | None = None
    destination_local: bool | None = None
    unanswered: tuple[str, ...] = field(default=())

    def entry_of(self, wanted: FlowTuple) -> Flow | None:
        """Return the entry that a packet with this tuple belongs to, in either direction."""
        return self._by_tuple.get(wanted)

    def holder_of(self, wanted: FlowTuple) -> Flow | None:
        """Return the entry that receives the answers to this tuple, so that no other flow can leave with it."""
        return self._by_tuple.get(wanted.reversed())

    def ports_taken(self, wanted: FlowTuple, address: Address, ports: PortRange) -> dict[int, Flow]:
        """Return the ports of an address that other flows hold towards the destination of a tuple."""
        echo = wanted.has_echo_id
        return {
            answer.dport: flow
            for answer, flow in self._by_tuple.items()
            if (answer.protocol, answer.src, answer.dst) == (wanted.protocol, wanted.dst, address)
            and (echo or answer.sport == wanted.dport)
            and answer.dport in ports
        }

    def without(self, flow: Flow) -> Situation:
        """Return the same without one entry."""
        return replace(self, flows=tuple(one for one in self.flows or () if one is not flow))

    def mappings_of(self, wanted: FlowTuple, address: Address) -> list[int]:
        """Return the ports of an address that other flows of the same source and port were given."""
        source = (wanted.protocol, wanted.src, wanted.sport)
        return [
            flow.reply.dport
            for flow in self.flows or ()
            if (flow.original.protocol, flow.original.src, flow.original.sport) == source and flow.reply.dst == address
        ]

    def sockets_of(self, wanted: FlowTuple) -> list[SeenSocket]:
        """Return the sockets that are connected with exactly this tuple."""
        return [one for one in self.sockets_at(wanted) if not one.peerless]

    def sockets_at(self, wanted: FlowTuple) -> list[SeenSocket]:
        """Return the sockets connected with a tuple, then those bound to its source, or to its port everywhere."""
        ends = (wanted.protocol, wanted.sport)
        found = [
            one
            for one in self.sockets or ()
            if (one.protocol, one.sport) == ends
            and (one.src == wanted.src or (one.peerless and one.src.is_unspecified))
            and (one.peerless or (one.dst, one.dport) == (wanted.dst, wanted.dport))
        ]
        return sorted(found, key=lambda one: one.peerless)

    @cached_property
    def _by_tuple(self) -> dict[FlowTuple, Flow]:
        flows = self.flows or ()
        return {flow.reply: flow for flow in flows} | {flow.original: flow for flow in flows}


def is_over(flow: Flow) -> bool:
    """Tell whether a TCP connection has ended, so that a SYN with its tuple begins a new entry: RFC 1122, 4.2.2.13."""
    return flow.state in _ENDED


def is_ending(flow: Flow) -> bool:
    """Tell whether the kernel may end a NAT flow early for one that needs its port: nf_nat_may_kill()."""
    return is_over(flow) and Status.SRC_NAT in flow.status


def is_rewritten(flow: Flow) -> bool:
    """Tell whether a flow's addresses or ports differ between its two sides."""
    return flow.reply.reversed() != flow.original
