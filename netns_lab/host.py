"""One host of the lab: commands, sockets, servers and captures inside its network namespace."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from nat_rewriter.errors import NatctlError
from nat_rewriter.kernel.netns import entered
from netns_lab.capture import Capture
from netns_lab.servers import Endpoint, TcpServer, UdpServer, bind_udp, listen_tcp
from netns_lab.topology import set_sysctls

Completed = subprocess.CompletedProcess[str]
# An ordinary user's path often lacks the places of nft, conntrack and ip.
TOOL_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
_ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


class Host:
    """A network namespace of a lab. Whatever it opens is closed with the lab, at the latest."""

    def __init__(self, name: str, resources: ExitStack) -> None:
        self.name = name
        self._resources = resources

    def __repr__(self) -> str:
        return f"Host({self.name!r})"

    def enter(self) -> AbstractContextManager[None]:
        """Be in this host's namespace, in this thread, for the length of a ``with`` block."""
        return entered(self.name)

    def run(
        self, command: Sequence[str | os.PathLike[str]], *, check: bool = True, timeout_s: float = 60.0,
        input: str | None = None, env: Mapping[str, str] | None = None,
    ) -> Completed:  # fmt: skip
        """Run a command and return its output as text; with ``check`` a failure raises NatctlError."""
        with self.enter():
            done = subprocess.run(
                command,
                input=input,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=os.environ | {"PATH": TOOL_PATH} if env is None else env,
            )
        if check and done.returncode:
            words = " ".join(os.fspath(word) for word in command)
            raise NatctlError(f"run on {self.name}", f"exit code {done.returncode}: {done.stderr.strip()}", words)
        return done

    def popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[str]:
        """Start a command, by default with pipes for its output; it is ended with the lab."""
        usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        usual["env"] = os.environ | {"PATH": TOOL_PATH}
        with self.enter():
            process: subprocess.Popen[str] = subprocess.Popen(command, **(usual | options))
        self._resources.callback(end_process, process)
        return process

    def sysctl(self, name: str, value: object) -> None:
        """Set a sysctl, in the dotted or slashed form."""
        with self.enter():
            set_sysctls({name.replace(".", "/"): str(value)})

    def nft(self, text: str) -> Completed:
        """Load a ruleset, or run nft commands, given as text."""
        return self.run(["nft", "-f", "-"], input=text)

    def open_socket(self, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
        """Return a new socket of this host with SO_REUSEADDR."""
        with self.enter():
            sock = socket.socket(family, kind, protocol)
        self._resources.callback(sock.close)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return sock

    def tcp_connect(self, dst: Endpoint, *, src: Endpoint | None = None, timeout_s: float = 2.0) -> socket.socket:
        """Return a TCP socket, bound to ``src`` if given, once connected; OSError or TimeoutError otherwise."""
        sock = self._bound(socket.SOCK_STREAM, dst, src)
        sock.settimeout(timeout_s)
        try:
            sock.connect(dst)
        except OSError:
            sock.close()
            raise
        return sock

    def tcp_start(self, dst: Endpoint, *, src: Endpoint | None = None) -> socket.socket:
        """Return a non-blocking TCP socket that has sent its first SYN."""
        sock = self._bound(socket.SOCK_STREAM, dst, src)
        sock.setblocking(False)
        sock.connect_ex(dst)
        return sock

    def udp_connect(self, dst: Endpoint, *, src: Endpoint | None = None, timeout_s: float = 2.0) -> socket.socket:
        """Return a connected UDP socket; nothing is sent yet."""
        sock = self._bound(socket.SOCK_DGRAM, dst, src)
        sock.settimeout(timeout_s)
        sock.connect(dst)
        return sock

    def _bound(self, kind: int, dst: Endpoint, src: Endpoint | None) -> socket.socket:
        sock = self.open_socket(kind, family_of(dst[0]))
        if src is not None:
            sock.bind(src)
        return sock

    def tcp_server(self, port: int) -> TcpServer:
        """Start an echo server on a TCP port of all addresses, IPv4 and IPv6."""
        with self.enter():
            server = TcpServer(listen_tcp(port))
        self._resources.callback(server.close)
        return server

    def udp_server(self, port: int) -> UdpServer:
        """Start an echo server on a UDP port of all addresses, IPv4 and IPv6."""
        with self.enter():
            server = UdpServer(bind_udp(port))
        self._resources.callback(server.close)
        return server

    def ping(self, dst: str, *, src: str | None = None, ident: int = 0, timeout_s: float = 1.0) -> bool:
        """Send one echo request with that id (0: any), and tell whether its reply came."""
        family = family_of(dst)
        sock = self.open_socket(socket.SOCK_DGRAM, family, _ICMP[family])
        sock.settimeout(timeout_s)
        if src is not None or ident:
            sock.bind((src or ("::" if family == socket.AF_INET6 else "0.0.0.0"), ident))
        with sock:
            sock.sendto(struct.pack("!BBHHH", _ECHO_REQUEST[family], 0, 0, ident, 1) + b"natctl", (dst, 0))
            try:
                return bool(sock.recv(4096))
            except TimeoutError:
                return False

    def capture(self, interface: str) -> Capture:
        """Record what passes an interface of this host, from now on."""
        with self.enter():
            capture = Capture(interface)
        self._resources.callback(capture.close)
        return capture


def family_of(address: str) -> socket.AddressFamily:
    """Return the address family of an address given as text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def round_trip(sock: socket.socket, text: bytes = b"natctl") -> bool:
    """Send something to an echo server, and tell whether it came back before the socket's timeout."""
    try:
        sock.sendall(text)
        return sock.recv(len(text)) == text
    except OSError:
        return False


def end_process(process: subprocess.Popen[str], patience_s: float = 2.0) -> None:
    """Terminate a child, kill it if it does not end, and close its pipes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
