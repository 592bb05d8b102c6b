"""Sockets that hold a tuple against other sockets of this host before anything is sent, and become connections.

A placeholder has its 4-tuple in the kernel's table of connections, so that another socket's connect() with it fails
with EADDRNOTAVAIL. Conntrack does not see it: nothing was sent. Sources: tcp_fastopen_defer_connect() in
net/ipv4/tcp_fastopen.c, TCP_REPAIR in net/ipv4/tcp.c.

All functions raise OSError as the system call does; taken tuples are EADDRINUSE (bind) and EADDRNOTAVAIL (connect).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from nat_rewriter.errors import PermissionNeeded, UnsupportedFeature
from nat_rewriter.kernel.connections import foreign_address
from nat_rewriter.kernel.lease_entries import FAMILIES, KINDS, Way
from nat_rewriter.kernel.sysctls import read_sysctl

# include/uapi/linux/tcp.h and in.h: the socket module does not have them.
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_REPAIR_ON, _REPAIR_OFF_NO_PROBE = 1, -1
_SEND_QUEUE = 2
_TCP_FASTOPEN_CONNECT, _TCP_FASTOPEN_NO_COOKIE = 30, 34
_IP_BIND_ADDRESS_NO_PORT, _IP_LOCAL_PORT_RANGE = 24, 51
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)
_CLIENT_MAY = 1  # TFO_CLIENT_ENABLE
_libc = ctypes.CDLL(None, use_errno=True)


def has_fast_open() -> bool:
    """Tell whether this network namespace lets clients use TCP Fast Open, which nothing else needs to support."""
    return bool(int(read_sysctl("net.ipv4.tcp_fastopen") or 0) & _CLIENT_MAY)


def hold_by_fast_open(way: Way, port: int) -> socket.socket:
    """Return a socket in SYN-SENT that has sent nothing."""
    sock = _open_bound(way, port)
    try:
        _defer(sock)
        code = sock.connect_ex(way.destination)
        if code == errno.EINPROGRESS:
            raise _no_fast_open("the kernel has switched it off for a while: tcp_fastopen_blackhole_timeout_sec")
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def begin_from_fast_open(sock: socket.socket) -> None:
    """Let it send its SYN, an ordinary one. The tuple is its own all the time."""
    try:
        sock.send(b"")
    except BlockingIOError:
        return


def hold_by_repair(way: Way, port: int) -> socket.socket:
    """Return a socket in ESTABLISHED that has sent nothing. Raises PermissionNeeded without CAP_NET_ADMIN."""
    sock = _open_bound(way, port)
    try:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
        except PermissionError:
            raise PermissionNeeded("hold port by TCP_REPAIR", "CAP_NET_ADMIN") from None
        _begin_connect(sock, way)
    except BaseException:
        sock.close()
        raise
    return sock


def begin_from_repair(sock: socket.socket, way: Way) -> None:
    """Turn it into an ordinary socket of the same port, and send its SYN.

    Between the two the port stays bound, but another socket that shares it may take the tuple: EADDRNOTAVAIL then.
    """
    if _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # Zero makes the kernel choose the initial sequence number as for any connection (RFC 6528): what the disconnected
    # socket would go on from is known to everybody.
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 0)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_PROBE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # leaving repair took it away
    take_error(sock)  # the disconnection's own
    _begin_connect(sock, way)


def has_port_ranges() -> bool:
    """Tell whether the kernel knows IP_LOCAL_PORT_RANGE: Linux 6.3."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, 0)
        except OSError:
            return False
    return True


def abort_on_close(sock: socket.socket) -> None:
    """Let a connection that nobody was given end with a reset, which leaves no TIME_WAIT on a port of others."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def take_error(sock: socket.socket) -> int:
    """Return the errno that a socket has to tell, or 0; it is told once."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _open_bound(way: Way, port: int) -> socket.socket:
    """Return a non-blocking socket bound to the source of a way.

    It may share the port with sockets that do not listen and allow it too, each with another destination.
    """
    sock = socket.socket(FAMILIES[way.src.version], KINDS[way.protocol])
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((way.source, port))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise foreign_address(way, errno.EADDRNOTAVAIL) from None
        raise
    return sock


def _begin_connect(sock: socket.socket, way: Way) -> None:
    code = sock.connect_ex(way.destination)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))


def _defer(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
    except OSError as error:
        raise _no_fast_open(f"net.ipv4.tcp_fastopen={read_sysctl('net.ipv4.tcp_fastopen')}, {error.strerror}") from None


def _no_fast_open(found: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        "hold port by TCP Fast Open", "Linux 4.14 and bit 1 of sysctl net.ipv4.tcp_fastopen", found
    )
