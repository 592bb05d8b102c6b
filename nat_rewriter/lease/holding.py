"""What each strategy asks of the kernel: entries that reserve, sockets that stand for a lease, and first packets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from nat_rewriter.kernel import placeholders
from nat_rewriter.kernel.connections import Connection, begin_at
from nat_rewriter.kernel.lease_entries import LeaseEntries, Way
from nat_rewriter.lease.lease import TAKEN, connect_failed
from nat_rewriter.lease.strategies import Holder, Strategy

Held = dict[int, socket.socket | None]  # port -> the socket that stands for it, if any


@contextlib.contextmanager
def passed_over() -> Iterator[None]:
    """Go on after the block where a local socket has the tuple that was tried."""
    try:
        yield
    except OSError as error:
        if error.errno not in TAKEN:
            raise


def reserve(entries: LeaseEntries, way: Way, ports: Sequence[int], term_s: int) -> list[int]:
    """Make entries; return the ports that have one. What a connection of this host left in TIME_WAIT is replaced.

    Whether a server takes its port again so soon is between it and this host's TCP: both go by one clock, that of the
    same host's timestamps and sequence numbers (RFC 6191).
    """
    made = entries.insert(way, ports, term_s)
    taken = [port for port, done in zip(ports, made, strict=True) if not done]
    if not taken:
        return list(ports)
    # A NAT flow has no entry whose original tuple is this one.
    found = zip(taken, entries.look(way, taken), strict=True)
    over = [port for port, entry in found if entry and entry.over and entry.wire_port == port]
    again = {port for port, done in zip(over, entries.replace(way, over, term_s), strict=True) if done}
    return [port for port, done in zip(ports, made, strict=True) if done or port in again]


def stand_for(way: Way, strategy: Strategy, ports: Sequence[int]) -> Held:
    """Open the sockets that stand for leases; leave out ports whose tuple a local socket has.

    Raises ConnectFailed where there is no way to the destination.
    """
    held: Held = {}
    try:
        for port in ports:
            with passed_over():
                held[port] = _holder(way, strategy, port)
    except BaseException as error:
        for sock in held.values():
            if sock is not None:
                sock.close()
        if isinstance(error, OSError) and error.errno:
            raise connect_failed(error.errno, way.at(port)) from None
        raise
    return held


def begin(way: Way, port: int, holder: Holder, standing: socket.socket | None) -> Connection:
    """Send the first packet from a held port. OSError where that fails."""
    if standing is None:
        return begin_at(way, port)
    try:
        if holder is Holder.FAST_OPEN:
            placeholders.begin_from_fast_open(standing)
        elif holder is Holder.REPAIR:
            placeholders.begin_from_repair(standing, way)
    except BaseException:
        standing.close()
        raise
    return Connection(standing, port, None)


def _holder(way: Way, strategy: Strategy, port: int) -> socket.socket | None:
    match strategy.holder:
        case Holder.FAST_OPEN:
            return placeholders.hold_by_fast_open(way, port)
        case Holder.REPAIR:
            return placeholders.hold_by_repair(way, port)
        case Holder.EXCLUSIVE:
            return begin_at(way, port, shared=False).sock
        case Holder.NONE:
            return None
