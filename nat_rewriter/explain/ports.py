"""Which port source NAT gives a flow within a range: get_unique_tuple() of net/netfilter/nf_nat_core.c."""

from __future__ import annotations

import enum
from collections.abc import Container, Sequence
from dataclasses import dataclass

from nat_rewriter.explain.situation import Situation, is_ending
from nat_rewriter.model.slices import Address, PortRange
from nat_rewriter.model.tuples import FlowTuple

MOST_TRIED = 128  # ports of a range that the kernel tries one after the other before it picks by chance


class Choice(enum.Enum):
    """How a port is found."""

    KEPT = "kept"  # the flow's own port, in the range and free
    REUSED = "reused"  # the port that another flow of the same source and port was given
    MOVED = "moved"  # some free port of the range
    NONE = "none"  # there is none: the packet is dropped


@dataclass(frozen=True, slots=True)
class PortChoice:
    """The port that a flow gets; None where it is any free one of the range.

    ``free`` counts free ports towards the destination, ``ending`` those that flows in TIME_WAIT or closed still hold.
    """

    choice: Choice
    port: int | None
    ports: PortRange
    free: int
    ending: int

    @property
    def room(self) -> str:
        """How much of the range is free, in words."""
        return room_text(len(self.ports), self.free, self.ending)


def room_text(size: int, free: int, ending: int = 0) -> str:
    """Return how much of a range is free in words: ``19 of 20 free``, and what else there is to say of it."""
    more = [f"{ending} held by flows that are over"] if ending else []
    # Beyond this many ports free is not findable: NF_NAT_MAX_ATTEMPTS.
    more += ["which the kernel may not all find"] if size > MOST_TRIED and free < size // 2 else []
    return ", ".join([f"{free} of {size} free", *more])


def ranges_text(ranges: Sequence[PortRange], most: int = 4) -> str:
    """Return a few ranges in words, and how many there are where they are many."""
    return " or ".join(map(str, ranges)) if len(ranges) <= most else f"{len(ranges)} ranges from {ranges[0]} on"


def choose_port(packet: FlowTuple, address: Address, ports: PortRange, situation: Situation) -> PortChoice:
    """Return the port of a range that source NAT gives to a new flow."""
    taken = situation.ports_taken(packet, address, ports)
    free = len(ports) - len(taken)
    ending = sum(map(is_ending, taken.values()))
    port = _known_port(packet, address, ports, taken, situation.mappings_of(packet, address))
    if port is not None:
        return PortChoice(Choice.KEPT if port == packet.sport else Choice.REUSED, port, ports, free, ending)
    # A TCP flow that is over may be ended early for its port, so that nothing but living flows exhausts a range.
    if not free and not ending:
        return PortChoice(Choice.NONE, None, ports, free, ending)
    if free == 1 and not ending:
        port = next(number for number in range(ports.first, ports.last + 1) if number not in taken)
    return PortChoice(Choice.MOVED, port, ports, free, ending)


def _known_port(
    packet: FlowTuple, address: Address, ports: PortRange, taken: Container[int], mapped: Sequence[int]
) -> int | None:
    """Return the port that the kernel tries before it searches, if it is free."""
    own = [packet.sport] if packet.sport in ports else []
    # What is at its place already stays; what comes from elsewhere rather gets what its source was given before.
    tried = own + list(mapped) if packet.src == address else [*mapped, *own]
    return next((port for port in tried if port in ports and port not in taken), None)


def null_binding_range(packet: FlowTuple) -> PortRange:
    """Return where the kernel moves a port that no rule rewrites and that is taken: nf_nat_l4proto_unique_tuple()."""
    if packet.has_echo_id:
        return PortRange(0, 65535)
    if packet.sport < 512:
        return PortRange(1, 511)
    return PortRange(600, 1023) if packet.sport < 1024 else PortRange(1024, 65535)
