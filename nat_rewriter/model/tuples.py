"""Transport tuples: who talks to whom, in one direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nat_rewriter.model.slices import Address

PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}


@dataclass(frozen=True, slots=True)
class FlowTuple:
    """One direction of a flow. ``protocol`` is the kernel's lower-case name; for ICMP ``sport`` is the echo id."""

    protocol: str
    src: Address
    sport: int
    dst: Address
    dport: int

    @property
    def has_echo_id(self) -> bool:
        """Whether an echo id takes the place of ports."""
        return self.protocol in ("icmp", "icmpv6")

    @property
    def source(self) -> str:
        """The source as text: ``address:port``, or ``address id n``."""
        return f"{self.src} id {self.sport}" if self.has_echo_id else endpoint_text(self.src, self.sport)

    @property
    def destination(self) -> str:
        """The destination as text: ``address:port``, or the address alone where an echo id is no part of it."""
        return str(self.dst) if self.has_echo_id else endpoint_text(self.dst, self.dport)

    def reversed(self) -> FlowTuple:
        """Return the same flow as seen from the other end."""
        return FlowTuple(self.protocol, self.dst, self.dport, self.src, self.sport)

    def __str__(self) -> str:
        return f"{self.protocol} {endpoint_text(self.src, self.sport)} {endpoint_text(self.dst, self.dport)}"


class Question(NamedTuple):
    """Which entry has a tuple, in a zone? An echo request is told from its reply."""

    tuple: FlowTuple
    zone: int = 0
    is_reply: bool = True


def endpoint_text(address: Address, port: int) -> str:
    """Return ``address:port``, the address in brackets where it is IPv6."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def protocol_name(number: int) -> str:
    """Return the kernel's name of an IP protocol number, or the number itself as text."""
    return PROTOCOL_NAMES.get(number, str(number))
