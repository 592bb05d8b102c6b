"""Rows of packed tables as the values that findings name: addresses, tuples, holders and victims."""

from __future__ import annotations

from typing import Any

from nat_rewriter.detect.keys import byte_flags
from nat_rewriter.model.findings import FlowParty, SocketParty
from nat_rewriter.model.flows import ICMP_PROTOCOLS, address_from_halves
from nat_rewriter.model.tuples import FlowTuple, protocol_name

PORTLESS = sorted(ICMP_PROTOCOLS)  # they have an echo id where others have two ports
IS_PORTLESS = byte_flags(PORTLESS)


def original_tuple(flow: Any) -> FlowTuple:
    """Return the original tuple of a flow record."""
    return FlowTuple(
        protocol_name(int(flow["protocol"])),
        address_from_halves(flow["orig_src"], flow["family"]),
        int(flow["orig_sport"]),
        address_from_halves(flow["orig_dst"], flow["family"]),
        int(flow["orig_dport"]),
    )


def reply_tuple(flow: Any) -> FlowTuple:
    """Return the reply tuple of a flow record."""
    return FlowTuple(
        protocol_name(int(flow["protocol"])),
        address_from_halves(flow["reply_src"], flow["family"]),
        int(flow["reply_sport"]),
        address_from_halves(flow["reply_dst"], flow["family"]),
        int(flow["reply_dport"]),
    )


def socket_tuple(socket: Any) -> FlowTuple:
    """Return the tuple of a socket record, from the socket to its peer."""
    return FlowTuple(
        protocol_name(int(socket["protocol"])),
        address_from_halves(socket["src"], socket["family"]),
        int(socket["sport"]),
        address_from_halves(socket["dst"], socket["family"]),
        int(socket["dport"]),
    )


def flow_party(flow: Any, *, local: bool) -> FlowParty:
    """Return a flow record as holder or victim; ``local`` says that its first packet came from this host."""
    original = original_tuple(flow)
    return FlowParty("local-flow" if local else "nat-flow", str(original.src), original.sport, int(flow["id"]))


def socket_party(socket: Any) -> SocketParty:
    """Return a socket record as holder or victim; who owns the inode is found out later, for reported ones only."""
    # An unconnected socket talks to others as well: it has no cookie, so that nothing can be done to it for one flow.
    cookie = int(socket["cookie"]) if socket["dport"] else None
    return SocketParty(inode=int(socket["inode"]) or None, cookie=cookie, ifindex=int(socket["ifindex"]))


def port_word(tuple_: FlowTuple) -> str:
    """Return what the number in a tuple of this protocol is called."""
    return "echo id" if tuple_.has_echo_id else "port"
