"""What ``status`` shows: how the slices are used, what the guard caught, and how the kernel differs from the wish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nat_rewriter.model.policy import Controller
from nat_rewriter.model.slices import Slice
from nat_rewriter.model.tuples import FlowTuple


@dataclass(frozen=True, slots=True)
class FlowCount:
    """Flows of one protocol that leave from a slice: those of clients, and those of this host's own sockets."""

    forwarded: int = 0
    local: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.forwarded + self.local


@dataclass(frozen=True, slots=True)
class SliceFlows:
    """A slice, and its flows by protocol ("tcp", "udp", "icmp")."""

    slice: Slice
    flows: Mapping[str, FlowCount]

    @property
    def size(self) -> int:
        """How many ports, or echo ids, the slice has."""
        return sum(len(ports) for ports in self.slice.ranges)

    @property
    def total(self) -> int:
        """All its flows."""
        return sum(count.total for count in self.flows.values())


@dataclass(frozen=True, slots=True)
class DestinationUse:
    """How many of a slice's ports are used towards one destination: a port serves each destination once.

    ``findable``: of as many new flows as there are free ports, how many the kernel's search would find one for.
    """

    slice: str
    protocol: str
    destination: str
    used: int
    capacity: int
    findable: int
    zone: int = 0

    @property
    def headroom(self) -> int:
        """How many ports are free."""
        return max(0, self.capacity - self.used)


@dataclass(frozen=True, slots=True)
class Stray:
    """Packets that left a soft-unicast address outside its slices, as the guard recorded them."""

    tuple: FlowTuple
    packets: int
    bytes: int
    last_seen_s: int | None  # seconds ago


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of one host at one time. ``outside``: flows that leave from a slice's address, and from no slice."""

    controller: Controller
    slices: tuple[SliceFlows, ...]
    busiest: tuple[DestinationUse, ...]
    outside: int
    strays: tuple[Stray, ...]
    differences: tuple[str, ...]
    entries: int
    max_entries: int
    sysctls: Mapping[str, str]
