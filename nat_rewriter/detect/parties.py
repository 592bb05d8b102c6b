"""Rows of packed tables as the values that findings name: addresses, tuples, holders and victims."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nat_rewriter.model.findings import FlowParty, SocketParty
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import FlowTuple, endpoint_text, protocol_name

PORTLESS = (1, 58)  # ICMP and ICMPv6 have an echo id where others have two ports


def address_of(halves: Any, family: int) -> Address:
    """Return the address that a pair of 64-bit halves stands for."""
    number = (int(halves[0]) << 64) | int(halves[1])
    return IPv4Address(number) if family == 4 else IPv6Address(number)


def original_tuple(flow: Any) -> FlowTuple:
    """Return the original tuple of a flow record."""
    return FlowTuple(
        protocol_name(int(flow["protocol"])),
        address_of(flow["orig_src"], flow["family"]),
        int(flow["orig_sport"]),
        address_of(flow["orig_dst"], flow["family"]),
        int(flow["orig_dport"]),
    )


def reply_tuple(flow: Any) -> FlowTuple:
    """Return the reply tuple of a flow record."""
    return FlowTuple(
        protocol_name(int(flow["protocol"])),
        address_of(flow["reply_src"], flow["family"]),
        int(flow["reply_sport"]),
        address_of(flow["reply_dst"], flow["family"]),
        int(flow["reply_dport"]),
    )


def socket_tuple(socket: Any) -> FlowTuple:
    """Return the tuple of a socket record, from the socket to its peer."""
    return FlowTuple(
        protocol_name(int(socket["protocol"])),
        address_of(socket["src"], socket["family"]),
        int(socket["sport"]),
        address_of(socket["dst"], socket["family"]),
        int(socket["dport"]),
    )


def flow_party(flow: Any, *, local: bool) -> FlowParty:
    """Return a flow record as holder or victim; ``local`` says that its first packet came from this host."""
    original = original_tuple(flow)
    return FlowParty("local-flow" if local else "nat-flow", str(original.src), original.sport, int(flow["id"]))


def socket_party(socket: Any) -> SocketParty:
    """Return a socket record as holder or victim; who owns the inode is found out later, for reported ones only."""
    return SocketParty(inode=int(socket["inode"]) or None)


def source_text(tuple_: FlowTuple) -> str:
    """Return the source of a tuple as ``address:port``, or as ``address id n`` for ICMP."""
    return f"{tuple_.src} id {tuple_.sport}" if _portless(tuple_) else endpoint_text(tuple_.src, tuple_.sport)


def destination_text(tuple_: FlowTuple) -> str:
    """Return the destination of a tuple as ``address:port``, or the address alone for ICMP."""
    return str(tuple_.dst) if _portless(tuple_) else endpoint_text(tuple_.dst, tuple_.dport)


def port_word(tuple_: FlowTuple) -> str:
    """Return what the number in a tuple of this protocol is called."""
    return "echo id" if _portless(tuple_) else "port"


def _portless(tuple_: FlowTuple) -> bool:
    return tuple_.protocol in ("icmp", "icmpv6")
