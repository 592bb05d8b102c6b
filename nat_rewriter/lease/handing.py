"""Handing a leased, connected socket to another program."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nat_rewriter.errors import NatctlError
from nat_rewriter.lease.lease import Lease

DESCRIPTOR = 3
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to the whole group: the program says what becomes of both.
_LEFT_TO_THE_PROGRAM = (signal.SIGINT, signal.SIGQUIT)


def environment(lease: Lease) -> dict[str, str]:
    """Return what a program is told of its socket: where it is, and the tuple that it has on the wire."""
    return {
        "NATCTL_LEASE_FD": str(DESCRIPTOR),
        "LEASE_PROTOCOL": lease.way.protocol,
        "LEASE_SOURCE": str(lease.way.src),
        "LEASE_SOURCE_PORT": str(lease.port),
        "LEASE_DESTINATION": str(lease.way.dst),
        "LEASE_DESTINATION_PORT": str(lease.way.dport),
        "LEASE_SLICE": lease.slice.name,
        "LEASE_STRATEGY": lease.strategy.name,
    }


def run_with(lease: Lease, command: Sequence[str]) -> int:
    """Run a program with the connected socket as descriptor 3; return its exit code, 128 + number for a signal.

    A TCP connection is the program's alone from its start. A UDP lease is kept until the program ends. Signals to end
    or reload are passed on.
    """
    sock = lease.detach() if lease.way.protocol == "tcp" else lease.socket
    assert sock is not None, "the lease is connected"
    with _forwarding() as child:
        child.append(_spawn(command, sock, environment(lease)))
        if lease.way.protocol == "tcp":
            sock.close()
        _, status = os.waitpid(child[0], 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _spawn(command: Sequence[str], sock: socket.socket, told: dict[str, str]) -> int:
    try:
        return os.posix_spawnp(
            command[0],
            list(command),
            os.environ | told,
            file_actions=[(os.POSIX_SPAWN_DUP2, sock.fileno(), DESCRIPTOR)],
            setsigdef=_LEFT_TO_THE_PROGRAM,
        )
    except OSError as error:
        sock.close()
        raise NatctlError("run command", (error.strerror or str(error)).lower(), command[0]) from None


@contextmanager
def _forwarding() -> Iterator[list[int]]:
    """Pass signals on to the process whose id is put into the list."""
    child: list[int] = []

    def forward(number: int, _: object) -> None:
        for process in child:
            os.kill(process, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    before |= {number: signal.signal(number, signal.SIG_IGN) for number in _LEFT_TO_THE_PROGRAM}
    try:
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
