"""Connections from ports of a slice, begun and awaited by the C core: one call where the socket module takes six.

Functions raise OSError as the system call does; a taken tuple is EADDRINUSE (bind) or EADDRNOTAVAIL (connect).
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any, NamedTuple

from nat_rewriter.errors import KernelError
from nat_rewriter.kernel._core._native import ffi, lib
from nat_rewriter.kernel.lease_entries import Way
from nat_rewriter.model.slices import PortRange

_CONNECTED = lib.NR_CONNECTED
_CONNECTING = ffi.typeof("struct nr_connecting *")


class Connection(NamedTuple):
    """A socket, its port, and how it stands: 0 is connected and blocking, an errno failed, None is not known yet.

    An errno is told here and not by the socket again.
    """

    sock: socket.socket
    port: int
    outcome: int | None


def begin_at(way: Way, port: int, *, shared: bool = True) -> Connection:
    """Send a SYN from a port of the way's source, and do not wait for the answer; UDP sends nothing.

    A ``shared`` port may be used by others that share it and do not listen, each towards another destination.
    """
    begun = ffi.new(_CONNECTING)
    return _connection(way, lib.nr_connect_at(way.ends, port, shared, begun), begun)


def begin_in_range(way: Way, ports: PortRange) -> Connection:
    """Do the same from a port that the kernel picks: at connect for TCP, at bind for UDP.

    The kernel keeps to the range only where it lies in ip_local_port_range, and takes no port of
    ip_local_reserved_ports (inet_sk_get_local_port_range(), __inet_hash_connect()).
    """
    begun = ffi.new(_CONNECTING)
    return _connection(way, lib.nr_connect_in_range(way.ends, ports.first, ports.last, begun), begun)


def await_connection(sock: socket.socket, timeout_s: float) -> int | None:
    """Wait for a connection that was begun: 0 when it stands, the errno it failed with, None where nothing came."""
    until = time.monotonic() + timeout_s
    while True:
        outcome = int(lib.nr_await_connection(sock.fileno(), max(0, round((until - time.monotonic()) * 1000))))
        if outcome != lib.NR_INTERRUPTED_WAIT:  # else a signal came, whose handler has not raised
            return None if outcome == lib.NR_SILENT else outcome


def foreign_address(way: Way, code: int) -> KernelError:
    """Return the error that a source is which is no address of this host."""
    return KernelError("bind socket", code, f"the address is not one of this host: {way.source!r}")


def _connection(way: Way, descriptor: int, begun: Any) -> Connection:
    if descriptor < 0:
        raise _refusal(way, begun.step, begun.outcome)
    ends, outcome = way.ends, begun.outcome
    # What is not told to socket() is asked of the kernel.
    if outcome == _CONNECTED:
        return Connection(socket.socket(ends.family, ends.kind, 0, fileno=descriptor), begun.port, outcome)
    sock = socket.socket(ends.family, ends.kind | socket.SOCK_NONBLOCK, 0, fileno=descriptor)
    return Connection(sock, begun.port, None if outcome == lib.NR_SILENT else outcome)


def _refusal(way: Way, step: int, code: int) -> Exception:
    if step == lib.NR_STEP_BIND and code == errno.EADDRNOTAVAIL:
        return foreign_address(way, code)
    return OSError(code, os.strerror(code))
