"""Proxies under test: started as users start them, in the network namespace of the calling thread."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from own_network import own_network, run
from waiting import wait_until

from netns_lab.servers import TcpServer, listen_tcp

PATIENCE_S = 20
SOFT, SOFT_6 = "198.51.100.10", "2001:db8:100::10"
SERVER, SERVER_6 = "203.0.113.1", "2001:db8:203::1"
ADDRESSES = (f"{SOFT}/32", f"{SERVER}/32", f"{SOFT_6}/128", f"{SERVER_6}/128")
_SLICES = """
version = 1
[[slice]]
name = "ams-1"
address = "{SOFT}"
ports = ["{ports}"]
[[slice]]
name = "ams-6"
address = "{SOFT_6}"
ports = ["{ports}"]
"""
SLICES = _SLICES.format(SOFT=SOFT, SOFT_6=SOFT_6, ports="9000-9009")
WIDE_SLICES = _SLICES.format(SOFT=SOFT, SOFT_6=SOFT_6, ports="9000-9999")  # for many connections after another


def proxy_text(mode: str, listen: str | list[str], **keys: object) -> str:
    """Return a [[proxy]] named after its mode, with both slices unless keys say otherwise."""
    fields: dict[str, object] = {"name": mode, "mode": mode, "listen": listen, "slices": ["ams-1", "ams-6"]} | keys
    return "\n[[proxy]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


PROXIES = (
    proxy_text("socks", "127.0.0.1:1080", connect_timeout=1)
    + proxy_text("connect", "127.0.0.1:3128", connect_timeout=1)
    + proxy_text("listen", "127.0.0.1:8443", to=f"{SERVER}:443", slices=["ams-1"])
)


class RunningProxy:
    """A ``natctl proxy`` that runs; ``lines``: the objects it has printed so far."""

    def __init__(self, process: subprocess.Popen[str], config: Path) -> None:
        self.process, self.config = process, config
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the printed objects of a kind."""
        return [line for line in self.lines if line["event"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Return the last of so many objects of a kind, once they are printed."""
        wait_until(lambda: len(self.events(kind)) >= count or not self._reader.is_alive(), f"{count} {kind}")
        assert len(self.events(kind)) >= count, (self.lines, self.errors())
        return self.events(kind)[count - 1]

    def errors(self) -> str:
        """Return what a proxy that has ended said of it."""
        assert self.process.stderr
        return self.process.stderr.read() if self.process.poll() is not None else ""

    def wait_for_outcome(self, outcome: str) -> dict[str, Any]:
        """Return the first connection that ended so, once it is printed."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.events("connection") if line["outcome"] == outcome]

        wait_until(lambda: bool(found()), outcome)
        return found()[0]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code, once it has ended."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def workers(self) -> list[int]:
        """Return the processes of the workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def descriptors(self) -> int:
        """Return how many descriptors all workers have."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())


@contextmanager
def running(directory: Path, text: str, *options: str, workers: int = 2) -> Iterator[RunningProxy]:
    """Run ``natctl proxy`` with a configuration until the block ends."""
    config = directory / f"proxy-{len(os.listdir(directory))}.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "nat_rewriter", "proxy", "-v", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--workers", str(workers), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    proxy = RunningProxy(process, config)
    try:
        proxy.wait_for("started")
        yield proxy
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        proxy._reader.join(PATIENCE_S)
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stderr.close()


def dial(address: str, port: int) -> socket.socket:
    """Return a connection to a proxy."""
    return socket.create_connection((address, port), timeout=PATIENCE_S)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Return so many bytes, or fewer where the stream ends."""
    content = b""
    while len(content) < count and (piece := sock.recv(count - len(content))):
        content += piece
    return content


def read_all(sock: socket.socket) -> bytes:
    """Return everything until the stream ends."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def http_connect(target: str, port: int = 3128) -> tuple[socket.socket, bytes]:
    """Ask for a target; return the connection and the status line's code and words."""
    sock = dial("127.0.0.1", port)
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n") and (piece := sock.recv(1)):
        head += piece
    return sock, head.split(b"\r\n")[0].removeprefix(b"HTTP/1.1 ")


def socks_request(target: str, port: int) -> bytes:
    """Return the request of SOCKS5 for an address, or a name."""
    for family, kind in ((socket.AF_INET, 1), (socket.AF_INET6, 4)):
        try:
            packed = bytes((5, 1, 0, kind)) + socket.inet_pton(family, target)
        except OSError:
            continue
        return packed + port.to_bytes(2, "big")
    return bytes((5, 1, 0, 3, len(target))) + target.encode() + port.to_bytes(2, "big")


def socks_connect(target: str, port: int, *, to: tuple[str, int] = ("127.0.0.1", 1080)) -> tuple[socket.socket, int]:
    """Ask for a target by SOCKS5; return the connection and the code of the reply."""
    sock = dial(*to)
    sock.sendall(b"\x05\x01\x00")
    assert read_exactly(sock, 2) == b"\x05\x00"
    sock.sendall(socks_request(target, port))
    reply = read_exactly(sock, 4)
    read_exactly(sock, 18 if reply[3] == 4 else 6)
    return sock, reply[1]


@contextmanager
def proxy_network() -> Iterator[None]:
    """Be in a namespace with slices and servers on one device, and a net from which no answer comes."""
    with own_network(*ADDRESSES, *(f"203.0.113.{last}/32" for last in range(2, 11))):
        run("ip link add void type veth peer name nowhere")
        run("ip link set void up")
        run("ip link set nowhere up")
        run("ip route add 192.0.2.0/24 dev void")
        run("ip neighbour add 192.0.2.1 lladdr 02:00:00:00:00:01 dev void")
        yield


@contextmanager
def echo_server() -> Iterator[TcpServer]:
    """Have an echo server on port 443 of all addresses."""
    echo = TcpServer(listen_tcp(443))
    try:
        yield echo
    finally:
        echo.close()


def echoes(sock: socket.socket, text: bytes = b"natctl") -> bool:
    sock.sendall(text)
    return read_exactly(sock, len(text)) == text
