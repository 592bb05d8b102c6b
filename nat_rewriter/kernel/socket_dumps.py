"""Dumps of the kernel's sockets through sock_diag, as packed records.

Nothing here needs numpy, so that sockets can be listed while it is still being imported.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from typing import Any

from nat_rewriter.errors import NetlinkError
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
SOCKET_BYTES: int = ffi.sizeof("struct nr_socket")
_LIST = "list sockets"
_ALL_STATES = 0xFFFFFFFF


def dump_sockets(protocols: Collection[str] = ("tcp", "udp"), families: Collection[int] = (4, 6)) -> bytearray:
    """Return the records of all sockets of these protocols and families, in every state, one after the other."""
    # IPv6 sockets are always asked for: some of them are of family 4.
    parts = [
        _dump_one(protocol, number, families)
        for protocol in protocols
        for family, number in FAMILIES.items()
        if family in families or family == 6
    ]
    return bytearray().join(parts)


def _dump_one(protocol: str, family: int, families: Collection[int]) -> bytearray:
    request = netlink.message(
        lib.SOCK_DIAG_BY_FAMILY, lib.NLM_F_DUMP, diag_request(family, PROTOCOLS[protocol], bytes(48))
    )

    def read() -> bytearray:
        with netlink.open_socket(lib.NETLINK_SOCK_DIAG, _LIST) as source:
            dump = netlink.Dump(source, request, netlink.SOCKETS, socket_context(protocol, families), _LIST)
            return netlink.collect_bytes(dump, SOCKET_BYTES, 1024)

    try:
        return netlink.once_more(read)
    except NetlinkError as error:
        # No handler: the protocol, or IPv6 itself, is not built in or loaded, so that it has no sockets.
        if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT):
            return bytearray()
        raise


def socket_context(protocol: str, families: Collection[int]) -> Any:
    """Return what the decoder of sockets has to know: struct nr_context."""
    return ffi.new(
        "struct nr_context *",
        {"protocol": PROTOCOLS[protocol], "families": sum(1 << family for family in set(families))},
    )


def diag_request(family: int, protocol: int, socket_id: bytes) -> bytes:
    """Return struct inet_diag_req_v2, for sockets in any state."""
    return struct.pack("=BBBxI", family, protocol, 0, _ALL_STATES) + socket_id
