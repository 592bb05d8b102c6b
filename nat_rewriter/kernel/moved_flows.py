"""Conntrack entries of flows that move to another host: made there as they were here, and left to end here.

What ctnetlink_create_conntrack() of nf_conntrack_netlink.c needs is the tuple before any rewriting, in both
directions, and the rewriting as attributes. An entry becomes exactly that, or is refused: where its port is in use the
kernel looks for no other.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence

from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import lib
from nat_rewriter.kernel.conntrack_requests import (
    conntrack_message,
    destination_nat_attribute,
    source_nat_attribute,
    tuple_attribute,
    u32_attribute,
    zone_attributes,
)
from nat_rewriter.kernel.netlink import attribute, nested
from nat_rewriter.model.flows import TCP_STATES, Flow, Status
from nat_rewriter.model.slices import Address

_AT_ONCE = 64  # a refusal takes some 1300 bytes of the receive buffer
_RECEIVE_BYTES = 1 << 20
_LEAST_S = 10  # that an entry has left: none is to end between two hosts
_CARRIED = Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED
_INSERT, _END = "insert conntrack entries", "let conntrack entries end"
# struct nf_ct_tcp_flags: flags and mask. Nothing is known of the windows of the connection: packets outside of what
# the first one shows are no fault (nf_tcp_log_invalid() in nf_conntrack_proto_tcp.c).
_LIBERAL = bytes([lib.IP_CT_TCP_FLAG_BE_LIBERAL] * 2)


def insert_flows(flows: Sequence[Flow]) -> list[Flow]:
    """Make the entries of flows that another host had; return those that could not be, as another flow has their port.

    An entry with the same original tuple makes way: it is of the same flow, from before or begun in between. Raises
    NetlinkError, PermissionNeeded.
    """
    with _opened(_INSERT) as asked:
        there = _refused(asked, flows, lambda flow: [_insertion(flow)], {errno.EEXIST}, _INSERT)
        return _refused(asked, there, lambda flow: [_deletion(flow), _insertion(flow)], {errno.EEXIST}, _INSERT)


def let_flows_end(flows: Sequence[Flow], seconds: int) -> None:
    """Let entries end after so many seconds, whatever packets come: until then these still find their rewriting.

    What has ended meanwhile is left out. Raises NetlinkError, PermissionNeeded.
    """
    with _opened(_END) as asked:  # EPERM: its time is fixed already
        _refused(asked, flows, lambda flow: [_ending(flow, seconds)], {errno.ENOENT, errno.EPERM}, _END)


def _opened(operation: str) -> socket.socket:
    opened = netlink.open_socket(lib.NETLINK_NETFILTER, operation)
    opened.setsockopt(lib.SOL_NETLINK, lib.NETLINK_EXT_ACK, 0)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    return opened


def _refused(
    asked: socket.socket,
    flows: Sequence[Flow],
    requests: Callable[[Flow], list[bytes]],
    expected: set[int],
    operation: str,
) -> list[Flow]:
    """Send the requests of each flow, many at a time; return the flows whose last one was refused as expected."""
    refused = []
    for some in _chunks(flows):
        messages = [[bytearray(each) for each in requests(flow)] for flow in some]
        codes = netlink.exchange(asked, [each for one in messages for each in one], operation)
        at = -1
        for flow, own in zip(some, messages, strict=True):
            at += len(own)
            code = codes.get(at, 0)
            if code and code not in expected:
                raise netlink.refusal(operation, code, f"{flow.original}")
            if code:
                refused.append(flow)
    return refused


def _chunks(flows: Sequence[Flow]) -> Iterator[Sequence[Flow]]:
    return (flows[start : start + _AT_ONCE] for start in range(0, len(flows), _AT_ONCE))


def _insertion(flow: Flow) -> bytes:
    original, target = flow.original, flow.reply.reversed()  # as it comes, and as it goes on
    parts = [
        tuple_attribute(lib.CTA_TUPLE_ORIG, original),
        tuple_attribute(lib.CTA_TUPLE_REPLY, original.reversed(), is_reply=True),
        u32_attribute(lib.CTA_TIMEOUT, max(flow.timeout_s or 0, _LEAST_S)),
        u32_attribute(lib.CTA_STATUS, flow.status & _CARRIED | Status.CONFIRMED),
        *zone_attributes(flow.zone),
        *_rewriting((original.dst, original.dport), (target.dst, target.dport), destination_nat_attribute),
        *_rewriting((original.src, original.sport), (target.src, target.sport), source_nat_attribute),
    ]
    if flow.mark:
        parts.append(u32_attribute(lib.CTA_MARK, flow.mark))
    if flow.state in TCP_STATES:
        parts.append(_tcp_state(TCP_STATES.index(flow.state)))
    flags = lib.NLM_F_CREATE | lib.NLM_F_EXCL
    return conntrack_message(lib.IPCTNL_MSG_CT_NEW, flags, original.src.version, *parts)


def _rewriting(
    comes: tuple[Address, int], goes: tuple[Address, int], spelled: Callable[[Address, int], bytes]
) -> tuple[bytes, ...]:
    return (spelled(*goes),) if comes != goes else ()


def _tcp_state(state: int) -> bytes:
    return nested(
        lib.CTA_PROTOINFO,
        nested(
            lib.CTA_PROTOINFO_TCP,
            attribute(lib.CTA_PROTOINFO_TCP_STATE, bytes([state])),
            attribute(lib.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, _LIBERAL),
            attribute(lib.CTA_PROTOINFO_TCP_FLAGS_REPLY, _LIBERAL),
        ),
    )


def _deletion(flow: Flow) -> bytes:
    return conntrack_message(lib.IPCTNL_MSG_CT_DELETE, 0, flow.original.src.version, *_which(flow))


def _ending(flow: Flow, seconds: int) -> bytes:
    # In this order, as the kernel reads them: a fixed time could not be changed any more.
    timeout = u32_attribute(lib.CTA_TIMEOUT, seconds)
    status = u32_attribute(lib.CTA_STATUS, flow.status | _CARRIED | Status.FIXED_TIMEOUT)
    return conntrack_message(lib.IPCTNL_MSG_CT_NEW, 0, flow.original.src.version, *_which(flow), timeout, status)


def _which(flow: Flow) -> tuple[bytes, ...]:
    return tuple_attribute(lib.CTA_TUPLE_ORIG, flow.original), *zone_attributes(flow.zone)
