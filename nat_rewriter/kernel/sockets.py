"""The kernel's sockets through sock_diag: listed in bulk, joined with the processes that hold them, and destroyed.

Works in the network namespace of the calling thread. Errors: NetlinkError with the kernel's errno, PermissionNeeded
(destroying needs CAP_NET_ADMIN; listing needs nothing), UnsupportedFeature, DecodeError.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nat_rewriter.errors import NetlinkError, UnsupportedFeature
from nat_rewriter.kernel import netlink
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.socket_dumps import FAMILIES, diag_request, dump_sockets, socket_context
from nat_rewriter.kernel.socket_dumps import PROTOCOLS as PROTOCOLS
from nat_rewriter.model.sockets import SOCKET_FIELDS, Owner

SOCKET_DTYPE = np.dtype(SOCKET_FIELDS)
Records = np.ndarray[Any, np.dtype[np.void]]
_DESTROY = "destroy socket"
_PROC = Path("/proc")


class DecodedSockets(NamedTuple):
    """The sockets of some bytes, and whether they end the answer."""

    records: Records
    done: bool
    error: int  # errno that the kernel answered, or 0


def decode_sockets(data: bytes, protocol: str = "tcp", families: Collection[int] = (4, 6)) -> DecodedSockets:
    """Return the sockets of one sock_diag datagram. Raises DecodeError for bytes that the kernel does not write."""
    context = socket_context(protocol, families)
    records = np.empty(len(data) // lib.NLMSG_HDRLEN + 1, SOCKET_DTYPE)
    progress = ffi.new("struct nr_progress *")
    with ffi.from_buffer("struct nr_socket[]", records.view("u1"), require_writable=True) as buffer:
        problem = lib.nr_decode_sockets(data, len(data), context, buffer, len(records), progress)
    if problem:
        raise netlink.decode_error("decode sockets", problem, progress.offset)
    done = bool(progress.flags & (lib.NR_DONE | lib.NR_ANSWERED))
    return DecodedSockets(records[: progress.records], done, progress.error)


def list_sockets(protocols: Collection[str] = ("tcp", "udp"), families: Collection[int] = (4, 6)) -> Records:
    """Return all sockets of these protocols and families, in every state, as records of :data:`SOCKET_DTYPE`.

    An IPv6 socket that talks IPv4 counts as family 4. Sockets that come and go meanwhile may be missing.
    """
    return np.frombuffer(dump_sockets(protocols, families), SOCKET_DTYPE)


def destroy_socket(record: Any) -> bool:
    """End one listed socket at once: its application gets ECONNABORTED. Tell whether it was still there.

    The cookie in the record makes sure that no other socket is hit that has the same tuple by now.
    """
    request = netlink.message(
        lib.SOCK_DESTROY,
        lib.NLM_F_ACK,
        diag_request(FAMILIES[int(record["family"])], int(record["protocol"]), _socket_id(record)),
    )
    try:
        netlink.ask(lib.NETLINK_SOCK_DIAG, request, _DESTROY)
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedFeature("SOCK_DESTROY", "a kernel with CONFIG_INET_DIAG_DESTROY", error.detail) from None
        raise
    return True


def _socket_id(record: Any) -> bytes:
    """Return struct inet_diag_sockid."""
    cookie = int(record["cookie"])
    return (
        struct.pack("!HH", int(record["sport"]), int(record["dport"]))
        + _address(record["src"], int(record["family"]))
        + _address(record["dst"], int(record["family"]))
        + struct.pack("=III", int(record["ifindex"]), cookie & 0xFFFFFFFF, cookie >> 32)
    )


def _address(halves: Any, family: int) -> bytes:
    if family == 4:
        return struct.pack("!I12x", int(halves[1]))
    return struct.pack("!QQ", int(halves[0]), int(halves[1]))


def find_owners(inodes: Collection[int]) -> dict[int, Owner]:
    """Return which process holds each socket, by inode; those that /proc does not tell are left out.

    Of several processes that share a socket, one is named. Reading those of other users needs CAP_SYS_PTRACE.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    owners: dict[int, Owner] = {}
    for pid in _list_processes() if wanted else ():
        held = [wanted[link] for link in _list_links(pid) if link in wanted]
        for inode in held:
            owners.setdefault(inode, Owner(pid, _command_of(pid)))
        if len(owners) == len(wanted):
            break
    return owners


def _list_processes() -> list[int]:
    return sorted(int(name) for name in os.listdir(_PROC) if name.isdigit())


def _list_links(pid: int) -> Iterator[str]:
    """Yield where the descriptors of a process point; nothing of a process that is gone or not ours to see."""
    directory = f"{_PROC}/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{directory}/{name}")
        except OSError:
            continue


def _command_of(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""
