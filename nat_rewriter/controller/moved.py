"""Flows of a slice that goes to another host: which of them can go along, and which of them may come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nat_rewriter.controller.generations import Warn
from nat_rewriter.controller.withdrawal import end_flows, list_flows
from nat_rewriter.detect.observation import Rows
from nat_rewriter.detect.ownership import SliceIndex
from nat_rewriter.detect.placement import place_flows
from nat_rewriter.errors import NatctlError
from nat_rewriter.model.flows import Flow, Origin, Status, flow_from_record
from nat_rewriter.model.slices import Address, Protocol, Slice

MOST_FLOWS = 200_000
# A helper follows a connection in memory of its own, and with it the bytes that it has put in.
_BOUND = Status.HELPER | Status.SEQ_ADJUST
_PROTOCOLS = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "icmp": Protocol.ICMP, "icmpv6": Protocol.ICMP}


def end_socket_flows(owned: Slice, warn: Warn) -> list[Flow]:
    """End the flows of this host's own sockets in a slice, which cannot go along; return those that were there.

    Raises NatctlError, with nothing changed, for a slice with more flows than are moved at once.
    """
    flows = list_flows((owned,))
    if len(flows) > MOST_FLOWS:
        raise NatctlError("transfer", f"the slice has {len(flows)} flows, at most {MOST_FLOWS} go along", owned.name)
    ended, _ = end_flows(flows[~_forwarded(flows, owned)], warn)
    return [flow_from_record(each) for each in ended]


def movable_flows(owned: Slice) -> tuple[Rows, int]:
    """Return the forwarded flows of a slice that can go along, as records, and how many there are that cannot."""
    flows = list_flows((owned,))
    forwarded = flows[_forwarded(flows, owned)]
    bound = (forwarded["status"] & _BOUND) != 0
    return forwarded[~bound], int(np.count_nonzero(bound))


def refuse_strangers(flows: Iterable[Flow], slices: Sequence[Slice]) -> None:
    """Raise NatctlError for a flow that is not rewritten to leave from one of the slices, or to come in by one."""
    for flow in flows:
        protocol = _PROTOCOLS.get(flow.original.protocol)
        if not any(_is_of(each, end, protocol) for end in _rewritten_ends(flow) for each in slices):
            raise NatctlError("take flows", "it is not rewritten into a slice of this host", flow.original)


def _forwarded(flows: Rows, owned: Slice) -> Rows:
    """Tell of each flow whether it is a forwarded one; the others are those of sockets here."""
    return place_flows(flows, SliceIndex((owned,))).with_origin(Origin.FORWARDED)


def _rewritten_ends(flow: Flow) -> Iterator[tuple[Address, int]]:
    """Yield the ends of a flow that the far side knows in the place of its own: address and port, or echo id."""
    if (flow.reply.dst, flow.reply.dport) != (flow.original.src, flow.original.sport):
        yield flow.reply.dst, flow.reply.dport
    if (flow.reply.src, flow.reply.sport) != (flow.original.dst, flow.original.dport):
        yield flow.original.dst, flow.original.dport


def _is_of(owned: Slice, end: tuple[Address, int], protocol: Protocol | None) -> bool:
    address, port = end
    return address == owned.address and owned.owns(port) and protocol in owned.protocols
