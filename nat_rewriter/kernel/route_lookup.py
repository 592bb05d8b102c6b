"""Where the kernel would send a packet: one route lookup over rtnetlink, which needs no privilege."""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from nat_rewriter.errors import KernelError
from nat_rewriter.kernel import netlink
from nat_rewriter.model.slices import Address

# include/uapi/linux/rtnetlink.h
_RTM_GETROUTE = 26
_RTA_DST, _RTA_OIF, _RTA_MARK = 1, 4, 16
_RTN_LOCAL = 2
_NLM_F_ACK = 4
_ROUTE_HEADER = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES})


class Route(NamedTuple):
    """The interface towards an address, and whether the address is one of this host."""

    interface: str | None
    local: bool


def find_route(address: Address, mark: int = 0) -> Route | None:
    """Return the route that packets of this host to an address take; None where there is none. Raises NetlinkError."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    header = _ROUTE_HEADER.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    parts = netlink.attribute(_RTA_DST, address.packed)
    if mark:
        parts += netlink.attribute(_RTA_MARK, struct.pack("=I", mark))
    request = netlink.message(_RTM_GETROUTE, _NLM_F_ACK, header + parts)
    try:
        answers = netlink.ask(socket.NETLINK_ROUTE, request, "look up route")
    except KernelError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise
    return _route_of(answers[0]) if answers else None


def _route_of(answer: bytes) -> Route:
    header = _ROUTE_HEADER.unpack_from(answer, netlink.MESSAGE_HEADER)
    attributes = netlink.read_attributes(answer[netlink.MESSAGE_HEADER + _ROUTE_HEADER.size :])
    index = attributes.get(_RTA_OIF)
    return Route(_interface(struct.unpack("=I", index)[0]) if index else None, header[7] == _RTN_LOCAL)


def _interface(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
