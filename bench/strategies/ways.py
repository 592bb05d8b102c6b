"""The ways to connect from a slice that are compared."""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

from bench.coexist.settings import apply, configuration
from nat_rewriter.config import read_policy
from nat_rewriter.kernel import lease_entries
from nat_rewriter.kernel.connections import await_connection, begin_in_range
from nat_rewriter.lease import STRATEGIES, Lease, Lessor
from nat_rewriter.model.slices import PortRange
from netns_lab import Lab

PORT = 443
TRIES = 1000
BARE_RANGE = "IP_LOCAL_PORT_RANGE, bare"


class Connection(Protocol):
    """What a way gives."""

    def close(self) -> None:
        """End it."""

    def port(self) -> int:
        """Return the port that the application believes in."""


Connect = Callable[[str, float], Connection]  # server, patience in seconds


@dataclass(frozen=True, slots=True)
class Way:
    """One way; ``begin`` yields what connects, inside the egress host. ``coexist``: None for plain SNAT alone."""

    name: str
    coexist: str | None
    protects: str
    begin: Callable[[Lab, PortRange], Iterator[Connect]]
    strategy: str = ""

    @contextmanager
    def ready(self, lab: Lab, ports: PortRange) -> Iterator[Connect]:
        """Yield what connects, in the egress host of a lab."""
        with lab.egress.enter():
            yield from self.begin(lab, ports)


def all_ways() -> list[Way]:
    """Return plain sockets under each mode, then the strategies of leases."""
    sockets = [
        Way("plain sockets, plain nft SNAT", None, "nobody", by_hand),
        Way("plain sockets, confine", "confine", "leaks: a socket moves inside the slice", by_hand),
        Way("plain sockets, refuse", "refuse", "NAT flows: the application tries another port", by_hand),
    ]
    leases = [
        Way(f"lease, {each.name}", "confine", each.protects, leasing(each.name), each.name)
        for each in STRATEGIES.values()
    ]
    unverified = Way("lease, port-range, verify=False", "confine", "as above", leasing("port-range", verify=False))
    leases.insert(1 + [way.strategy for way in leases].index("port-range"), unverified)
    return sockets + leases


def bare_range() -> Way:
    """Return the socket option that port-range is made of, with nothing around it."""
    return Way(BARE_RANGE, "confine", "", in_range)


def by_hand(lab: Lab, ports: PortRange) -> Iterator[Connect]:
    """An application that binds one port after the other, and tries the next where that fails at once."""
    line = itertools.cycle(range(ports.first, ports.last + 1))

    def connect(server: str, patience_s: float) -> Connection:
        for _ in range(TRIES):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(patience_s)
            try:
                sock.bind((str(lab.slices[0].address), next(line)))
                sock.connect((server, PORT))
                return _Plain(sock)
            except TimeoutError:
                sock.close()
                raise
            except OSError:
                sock.close()
        raise TimeoutError

    yield connect


def in_range(lab: Lab, ports: PortRange) -> Iterator[Connect]:
    """An application that leaves the choice to the kernel."""

    @functools.cache
    def towards(server: str) -> lease_entries.Way:
        return lease_entries.Way("tcp", lab.slices[0].address, ip_address(server), PORT)

    def connect(server: str, patience_s: float) -> Connection:
        sock, _, outcome = begin_in_range(towards(server), ports)
        if (await_connection(sock, patience_s) if outcome is None else outcome) != 0:
            raise TimeoutError
        return _Plain(sock)

    yield connect


def leasing(strategy: str, *, verify: bool = True) -> Callable[[Lab, PortRange], Iterator[Connect]]:
    """Return what leases and connects."""

    def begin(lab: Lab, _: PortRange) -> Iterator[Connect]:
        policy = read_policy(configuration(lab.slices).encode(), "bench")
        with Lessor(policy, verify=verify) as lessor:
            yield lambda server, patience_s: _Leased(
                lessor.connect("ams-1", (server, PORT), strategy=strategy, timeout_s=patience_s)
            )

    return begin


class _Leased:
    """A lease as a connection."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def close(self) -> None:
        self._lease.release()

    def port(self) -> int:
        return self._lease.port


class _Plain:
    """A socket as a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def close(self) -> None:
        self._socket.close()

    def port(self) -> int:
        return int(self._socket.getsockname()[1])


def prepare(way: Way, lab: Lab) -> None:
    """Make the egress host of a lab follow the way's mode."""
    if way.coexist:
        apply(lab, configuration(lab.slices, coexist=way.coexist))
