"""Echo servers of the lab, each a thread: they send back what they get, and record who they saw."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from ipaddress import ip_address

Endpoint = tuple[str, int]
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_PKTINFO_SIZE = 20


class EchoServer(ABC):
    """A server on all IPv4 and IPv6 addresses of a host. ``peers``: address and port of each client, in order."""

    def __init__(self, listener: socket.socket) -> None:
        self.peers: list[Endpoint] = []
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=f"{type(self).__name__}:{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and close every connection."""
        if self._wake.fileno() >= 0:
            self._wake.close()
            self._thread.join()

    def wait_for_peers(self, count: int, timeout_s: float = 2.0) -> list[Endpoint]:
        """Return the clients seen, once there are ``count`` of them; raise TimeoutError otherwise."""
        deadline = time.monotonic() + timeout_s
        while len(self.peers) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"server on port {self.port} saw {len(self.peers)} clients, expected {count}")
            time.sleep(0.005)
        return list(self.peers)

    def _serve(self) -> None:
        with self._selector:
            while True:
                ready = [key.fileobj for key, _ in self._selector.select()]
                if self._woken in ready:
                    break
                for sock in ready:
                    assert isinstance(sock, socket.socket)
                    with contextlib.suppress(BlockingIOError):
                        self._handle(sock)
            for key in list(self._selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()

    @abstractmethod
    def _handle(self, sock: socket.socket) -> None:
        """Deal with a socket that can be read."""


class TcpServer(EchoServer):
    """Accepts every connection, and keeps it open until the client closes it."""

    def _handle(self, sock: socket.socket) -> None:
        if sock is self._listener:
            connection, peer = sock.accept()
            self.peers.append(plain_endpoint(peer))
            self._selector.register(connection, selectors.EVENT_READ)
            return
        try:
            received = sock.recv(65536)
            if received:
                sock.sendall(received)
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(sock)
            sock.close()


class UdpServer(EchoServer):
    """Answers every datagram from the address it was sent to. ``peers`` has one entry per client, not per datagram."""

    def _handle(self, sock: socket.socket) -> None:
        received, ancillary, _, peer = sock.recvmsg(65536, socket.CMSG_SPACE(_PKTINFO_SIZE))
        endpoint = plain_endpoint(peer)
        if endpoint not in self.peers:
            self.peers.append(endpoint)
        with contextlib.suppress(OSError):
            sock.sendmsg([received], [(level, kind, data) for level, kind, data in ancillary], 0, peer)


def listen_tcp(port: int) -> socket.socket:
    """Return a socket that listens on a port of every address."""
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(4096)
    return listener


def bind_udp(port: int) -> socket.socket:
    """Return a socket that receives the datagrams to a port of every address, and is told which address."""
    receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    receiver.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    receiver.bind(("::", port))
    return receiver


def plain_endpoint(address: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """Return address and port, an IPv4-mapped address as IPv4."""
    parsed = ip_address(address[0])
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    return str(mapped or parsed), address[1]
