"""A network namespace for one test: nameless, so that it is gone when the thread has left it, whatever happens."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(command: str, text: str | None = None) -> str:
    """Run a command in the namespace of this thread and return what it prints."""
    done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def own_network(*addresses: str) -> Iterator[None]:
    """Be in a fresh network namespace with these addresses on its loopback device."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            run("ip link set lo up")
            for address in addresses:
                run(f"ip address add {address} dev lo" + (" nodad" if ":" in address else ""))
            _wait_for_routes([address.partition("/")[0] for address in addresses if ":" in address])
            yield
        finally:
            assert _libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


def _wait_for_routes(addresses: list[str]) -> None:
    """Wait until the kernel takes IPv6 addresses for its own: it does so a moment after they were added."""
    deadline = time.monotonic() + 30
    while addresses:
        routes = run("ip -6 route show table local")
        addresses = [address for address in addresses if f"local {address} " not in routes]
        assert time.monotonic() < deadline, f"no local route to {addresses}"


def set_sysctl(name: str, value: int) -> None:
    """Set a sysctl of the namespace of this thread."""
    Path("/proc/sys", name.replace(".", "/")).write_text(str(value))


@contextmanager
def connection(client: str, server: str, port: int, sport: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Hold a TCP connection from one address to another; yield both ends."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.create_server((server, port), family=family) as listener, socket.socket(family) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind((client, sport))
        ours.settimeout(5)
        ours.connect((server, port))
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


def send_udp(client: str, sport: int, server: str, port: int, *, answered: bool = False) -> None:
    """Send a datagram, and one back."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as ours, socket.socket(family, socket.SOCK_DGRAM) as theirs:
        theirs.bind((server, port))
        theirs.settimeout(5)
        ours.bind((client, sport))
        ours.sendto(b"question", (server, port))
        _, seen_as = theirs.recvfrom(100)
        if answered:
            theirs.sendto(b"answer", seen_as)
            ours.settimeout(5)
            ours.recv(100)


def send_echo(client: str, server: str, echo_id: int) -> None:
    """Send an echo request and wait for the reply."""
    ipv6 = ":" in server
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    request = struct.pack("!BBHHH", 128 if ipv6 else 8, 0, 0, echo_id, 1)
    if not ipv6:  # the kernel fills in the checksum of ICMPv6 only
        request = struct.pack("!BBHHH", 8, 0, ~sum(struct.unpack("!4H", request)) & 0xFFFF, echo_id, 1)
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(5)
        raw.bind((client, 0))
        raw.sendto(request, (server, 0))
        while raw.recv(1500)[0 if ipv6 else 20] != (129 if ipv6 else 0):
            continue
