"""Entries of local sockets of soft-unicast addresses, told as they end: DESTROY events of conntrack, filtered.

A filter in the kernel (bpf_prog_create(), net/core/filter.c) leaves the events of NAT flows, and those of entries
that this process itself deletes, out: a busy host destroys thousands of others a second.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.lease_entries import KINDS, Way
from nat_rewriter.model.flows import address_from_halves
from nat_rewriter.model.slices import Address
from nat_rewriter.model.tuples import protocol_name

_LISTEN = "listen to ends of conntrack entries"
_RECEIVE_BYTES = 1 << 20
_DATAGRAMS, _DATAGRAM_BYTES = 16, 4096
_SO_ATTACH_FILTER = 26
_SENDER_AT, _FAMILY_AT = 12, 16  # struct nlmsghdr: who asked for the change; struct nfgenmsg
# ctnetlink_conntrack_event() begins with CTA_TUPLE_ORIG > CTA_TUPLE_IP > the source. Of IPv6 its last four bytes.
_SOURCE_AT = {4: 32, 6: 44}
_MOST_SOURCES = 100  # a jump is a byte long
# linux/bpf_common.h
_LOAD_WORD, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_Step = tuple[int, int, int, int]  # struct sock_filter: code, jump if true, jump if false, operand


class Ends(NamedTuple):
    """Entries that have ended, and whether there were others that the kernel could not tell."""

    entries: list[tuple[Way, int]]
    overrun: bool


class LeaseEnds:
    """A subscription in the network namespace of the calling thread. Raises PermissionNeeded, NetlinkError.

    Entries have events only if somebody listened when they were made (net.netfilter.nf_conntrack_events).
    """

    def __init__(self, addresses: Iterable[Address], own: int) -> None:
        """Listen for flows from these addresses, but for what the netlink socket with the port id ``own`` deletes."""
        self._source = netlink.open_socket(lib.NETLINK_NETFILTER, _LISTEN)
        try:
            self._source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            _attach(self._source, _program(sorted(addresses, key=int), own))
            self._source.bind((0, 1 << lib.NFNLGRP_CONNTRACK_DESTROY - 1))
        except OSError as error:
            self._source.close()
            raise netlink.refusal(_LISTEN, error.errno or errno.EIO) from None
        context = ffi.new("struct nr_context *", {"events": 1})
        self._receiver = netlink.Receiver(self._source, netlink.FLOWS, context, _DATAGRAMS, _DATAGRAM_BYTES)
        self._room = ffi.new(f"struct nr_flow[{_DATAGRAMS}]")

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._source.fileno()

    def read(self) -> Ends:
        """Return what has ended since, and do not wait. An event that cannot be read counts as an overrun."""
        ended: list[tuple[Way, int]] = []
        overrun = False
        while True:
            progress, problem = self._receiver.read(self._room, 0, until_done=False, timeout_ms=0)
            ended += _read_flows(self._room[0 : progress.records])
            overrun |= bool(problem or progress.error or progress.overruns)
            if progress.flags & lib.NR_DRAINED or progress.error:
                return Ends(ended, overrun)

    def close(self) -> None:
        """End the subscription."""
        self._receiver.close()
        self._source.close()


def _read_flows(flows: Any) -> Iterator[tuple[Way, int]]:
    for flow in flows:
        protocol = protocol_name(flow.protocol)
        if protocol in KINDS:
            src, dst = (address_from_halves(halves, flow.family) for halves in (flow.orig_src, flow.orig_dst))
            yield Way(protocol, src, dst, flow.orig_dport), flow.orig_sport


def _program(addresses: Sequence[Address], own: int) -> list[_Step]:
    """Return a filter: not by ``own``, and from one of the addresses where they are few."""
    steps: list[_Step] = [
        (_LOAD_WORD, 0, 0, _SENDER_AT),
        (_JUMP_EQUAL, 0, 1, socket.htonl(own)),  # the number is in this host's order, and loaded as of the network
        (_RETURN, 0, 0, 0),
    ]
    if len(addresses) <= _MOST_SOURCES:
        of = {version: [int(each) & 0xFFFFFFFF for each in addresses if each.version == version] for version in (4, 6)}
        ipv6 = _from_one_of(of[6], _SOURCE_AT[6])
        steps += [(_LOAD_BYTE, 0, 0, _FAMILY_AT), (_JUMP_EQUAL, 0, len(ipv6), socket.AF_INET6)]
        steps += [*ipv6, *_from_one_of(of[4], _SOURCE_AT[4])]
    return [*steps, (_RETURN, 0, 0, 0xFFFFFFFF)]


def _from_one_of(words: Sequence[int], at: int) -> list[_Step]:
    """Return steps that accept what has one of the words in a place, and drop the rest."""
    last = len(words)
    compared = [(_JUMP_EQUAL, last - place, 0, word) for place, word in enumerate(words)]
    return [(_LOAD_WORD, 0, 0, at), *compared, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)]


def _attach(source: socket.socket, program: Sequence[_Step]) -> None:
    steps = ffi.from_buffer(bytearray(b"".join(struct.pack("=HBBI", *step) for step in program)))
    described = struct.pack("@HP", len(program), int(ffi.cast("uintptr_t", steps)))
    source.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
