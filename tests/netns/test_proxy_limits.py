"""``natctl proxy`` where something runs out: ports of the slice, connections that it may have, patience, a buffer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from proxying import (
    PATIENCE_S,
    PROXIES,
    SERVER,
    SLICES,
    RunningProxy,
    dial,
    echoes,
    http_connect,
    proxy_text,
    read_all,
    running,
    socks_connect,
)
from waiting import wait_until

from netns_lab.servers import TcpServer, listen_tcp


def test_ten_ports_carry_ten_connections_to_each_of_ten_destinations(proxied_server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, SLICES + PROXIES) as proxy:
        fill_ten_ports(proxy, proxied_server)


def fill_ten_ports(proxy: RunningProxy, server: TcpServer) -> None:
    held = [http_connect(f"203.0.113.{last}:443") for last in range(1, 11) for _ in range(10)]
    assert [status for _, status in held if not status.startswith(b"200")] == []
    assert all(echoes(sock) for sock, _ in held)
    assert {port for _, port in server.peers} == set(range(9000, 9010))
    one_more, status = http_connect(f"{SERVER}:443")
    assert status == b"503 Slice Exhausted"
    by_socks, code = socks_connect(SERVER, 443)
    assert code == 1
    ended = proxy.wait_for_outcome("exhausted")
    assert ended["destination"] == f"{SERVER}:443"
    for sock in (one_more, by_socks, *(sock for sock, _ in held)):
        sock.close()


def test_a_port_that_the_server_closed_is_used_again(network_of_proxies: None, tmp_path: Path) -> None:
    with listen_tcp(443) as listener, running(tmp_path, SLICES + PROXIES):
        for _ in range(30):  # three times as many as there are ports
            with dial("127.0.0.1", 8443) as sock:
                peer, _ = listener.accept()
                peer.sendall(b"bye")
                peer.close()
                assert read_all(sock) == b"bye"


def test_ports_of_a_destination_are_used_in_turn(network_of_proxies: None, tmp_path: Path) -> None:
    """The port that was used longest ago comes next: it is the first to be out of TIME_WAIT."""
    with listen_tcp(443) as listener, running(tmp_path, SLICES + PROXIES, workers=1):
        seen = []
        for _ in range(20):
            with dial("127.0.0.1", 8443) as sock:
                peer, (_, port, *_) = listener.accept()
                seen.append(port)
                peer.close()
                assert read_all(sock) == b""
    first = seen[0] - 9000
    assert seen == [9000 + (first + step) % 10 for step in range(20)]


def test_an_idle_connection_is_ended(proxied_server: TcpServer, tmp_path: Path) -> None:
    text = SLICES + proxy_text("listen", "127.0.0.1:8443", to=f"{SERVER}:443", idle_timeout=1)
    with running(tmp_path, text) as proxy, dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert proxy.wait_for_outcome("idle")["duration_ms"] >= 900


def test_no_more_connections_than_allowed(proxied_server: TcpServer, tmp_path: Path) -> None:
    text = SLICES + proxy_text("connect", "127.0.0.1:3128", max_connections=5)
    with running(tmp_path, text) as proxy:
        held = [http_connect(f"{SERVER}:443") for _ in range(5)]
        assert all(status.startswith(b"200") for _, status in held)
        with dial("127.0.0.1", 3128) as sock:
            assert read_all(sock).startswith(b"HTTP/1.1 503 Too Many")
        assert proxy.wait_for_outcome("limit")
        held[0][0].close()
        wait_until(lambda: len(proxy.events("connection")) >= 2)
        sock, status = http_connect(f"{SERVER}:443")
        assert status.startswith(b"200")
        for each in (sock, *(sock for sock, _ in held)):
            each.close()


def send_until_stopped(sock: socket.socket, most: int) -> int:
    """Send until the socket takes nothing for its timeout; return how much it took."""
    sent = 0
    try:
        while sent < most:
            sent += sock.send(bytes(1 << 16))
    except TimeoutError:
        pass
    return sent


def test_a_silent_reader_stops_the_writer(network_of_proxies: None, tmp_path: Path) -> None:
    """Backpressure: what the relay takes is bounded, and arrives once it is read."""
    with listen_tcp(443) as listener, running(tmp_path, SLICES + PROXIES), dial("127.0.0.1", 8443) as sock:
        peer, _ = listener.accept()
        sock.settimeout(0.5)
        sent = send_until_stopped(sock, 1 << 30)
        assert sent < 64 << 20
        sock.settimeout(PATIENCE_S)
        sock.shutdown(socket.SHUT_WR)
        counted = threading.Thread(target=lambda: counts.append(len(read_all(peer))))
        counts: list[int] = []
        peer.settimeout(PATIENCE_S)
        counted.start()
        counted.join(3 * PATIENCE_S)
        peer.close()
        assert counts == [sent]
