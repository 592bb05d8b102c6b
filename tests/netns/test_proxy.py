"""``natctl proxy``: every way in, what clients hear when there is no way out, and that nothing is left of either."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from proxying import (
    PATIENCE_S,
    PROXIES,
    SERVER,
    SERVER_6,
    SLICES,
    SOFT,
    SOFT_6,
    WIDE_SLICES,
    RunningProxy,
    dial,
    echo_server,
    echoes,
    http_connect,
    proxy_network,
    proxy_text,
    read_all,
    read_exactly,
    running,
    socks_connect,
)
from waiting import wait_until

from netns_lab.servers import TcpServer, listen_tcp

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningProxy, TcpServer]]:
    """A proxy and a server for all tests that need nothing of their own."""
    directory = tmp_path_factory.mktemp("proxy")
    with proxy_network(), echo_server() as echo, running(directory, WIDE_SLICES + PROXIES) as started:
        yield started, echo


@pytest.fixture
def proxy(shared: tuple[RunningProxy, TcpServer]) -> RunningProxy:
    """The shared proxy, with nothing printed yet for this test."""
    started, _ = shared
    time.sleep(0.3)  # what the test before has caused is told by then
    started.lines.clear()
    return started


@pytest.fixture
def echo(shared: tuple[RunningProxy, TcpServer]) -> TcpServer:
    return shared[1]


def in_slice(server: TcpServer, address: str) -> bool:
    """Tell whether the last client of the server came from the slice."""
    host, port = server.wait_for_peers(1)[-1]
    return host == address and 9000 <= port <= 9999


def test_a_fixed_destination_is_reached_from_the_slice(proxy: RunningProxy, echo: TcpServer) -> None:
    with dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)
        assert in_slice(echo, SOFT)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    ended = proxy.wait_for_outcome("finished")
    assert (ended["proxy"], ended["bytes"], ended["destination"]) == ("listen", [6, 6], f"{SERVER}:443")


@pytest.mark.parametrize(("target", "source"), [(SERVER, SOFT), (SERVER_6, SOFT_6)])
def test_socks_reaches_both_families(proxy: RunningProxy, echo: TcpServer, target: str, source: str) -> None:
    sock, code = socks_connect(target, 443)
    with sock:
        assert code == 0
        assert echoes(sock)
        assert in_slice(echo, source)


@pytest.mark.parametrize(("target", "source"), [(f"{SERVER}:443", SOFT), (f"[{SERVER_6}]:443", SOFT_6)])
def test_connect_reaches_both_families(proxy: RunningProxy, echo: TcpServer, target: str, source: str) -> None:
    sock, status = http_connect(target)
    with sock:
        assert status.startswith(b"200")
        assert echoes(sock)
        assert in_slice(echo, source)


def test_what_a_client_sends_with_its_request_is_passed_on(proxy: RunningProxy) -> None:
    with dial("127.0.0.1", 3128) as sock:
        sock.sendall(f"CONNECT {SERVER}:443 HTTP/1.1\r\n\r\nearly".encode())
        assert read_exactly(sock, 44) == b"HTTP/1.1 200 Connection established\r\n\r\nearly"
    with dial("127.0.0.1", 1080) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(SERVER) + b"\x01\xbbearly")
        assert read_exactly(sock, 2 + 10 + 5)[-5:] == b"early"


def test_names_and_passwords(proxied_server: TcpServer, tmp_path: Path) -> None:
    keys = {"username": "crawler", "password": "correct horse"}
    text = SLICES + proxy_text("socks", "127.0.0.1:1080", **keys) + proxy_text("connect", "127.0.0.1:3128", **keys)
    right, wrong = b"\x01\x07crawler\x0dcorrect horse", b"\x01\x07crawler\x0dcorrect mouse"
    with running(tmp_path, text) as proxy:
        for words, answer in ((right, b"\x01\x00"), (wrong, b"\x01\x01")):
            with dial("127.0.0.1", 1080) as sock:
                sock.sendall(b"\x05\x02\x00\x02" + words)
                assert read_exactly(sock, 4) == b"\x05\x02" + answer
        with dial("127.0.0.1", 1080) as sock:
            sock.sendall(b"\x05\x01\x00")
            assert read_all(sock) == b"\x05\xff"
        for credential, code in ((b"Y3Jhd2xlcjpjb3JyZWN0IGhvcnNl", b"200"), (b"Y3Jhd2xlcjp4", b"407")):
            with dial("127.0.0.1", 3128) as sock:
                head = f"CONNECT {SERVER}:443 HTTP/1.1\r\nproxy-authorization: Basic ".encode()
                sock.sendall(head + credential + b"\r\n\r\n")
                assert read_exactly(sock, 12) == b"HTTP/1.1 " + code
        assert proxy.wait_for_outcome("not-authorized")


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("listen", "to"), [("127.0.0.1", SERVER), ("::1", SERVER_6)])
def test_the_destination_is_told_who_the_client_is(
    network_of_proxies: None, tmp_path: Path, version: str, listen: str, to: str
) -> None:
    six = ":" in listen
    bracketed = (f"[{listen}]", f"[{to}]") if six else (listen, to)
    text = proxy_text("listen", f"{bracketed[0]}:8443", to=f"{bracketed[1]}:443", proxy_protocol=version)
    with listen_tcp(443) as listener, running(tmp_path, SLICES + text), dial(listen, 8443) as sock:
        client = sock.getsockname()
        sock.sendall(b"first")
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE_S)
            if version == "v1":
                header = f"PROXY TCP{6 if six else 4} {client[0]} {listen} {client[1]} 8443\r\n".encode()
            else:
                packed = ipaddress.ip_address(client[0]).packed + ipaddress.ip_address(listen).packed
                packed += struct.pack("!HH", client[1], 8443)
                header = (
                    b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x21 if six else 0x11, len(packed)) + packed
                )
            assert read_exactly(peer, len(header) + 5) == header + b"first"


@pytest.mark.parametrize(
    ("target", "port", "code", "status", "outcome"),
    [
        (SERVER, 444, 5, b"502 Connection Refused", "refused"),
        ("203.0.113.99", 443, 3, b"502 Destination Unreachable", "unreachable"),
        ("192.0.2.1", 443, 6, b"504 Gateway Timeout", "connect-timeout"),
        ("nosuch.invalid", 443, 4, b"502 Name Not Resolved", "unresolved"),
        ("127.0.0.1", 443, 2, b"403 Forbidden", "forbidden"),
        ("localhost", 443, 2, b"403 Forbidden", "forbidden"),
        ("224.0.0.1", 443, 2, b"403 Forbidden", "forbidden"),
        ("0.0.0.0", 443, 2, b"403 Forbidden", "forbidden"),
    ],
)
def test_a_client_is_told_why_there_is_no_connection(
    proxy: RunningProxy, target: str, port: int, code: int, status: bytes, outcome: str
) -> None:
    before = proxy.descriptors()
    by_socks, answered = socks_connect(target, port)
    with by_socks:
        assert answered == code
        assert read_all(by_socks) == b""
    by_connect, said = http_connect(f"{target}:{port}")
    with by_connect:
        assert said == status
        assert read_all(by_connect) == b""
    assert proxy.wait_for_outcome(outcome)["message"]
    wait_until(lambda: proxy.descriptors() == before, "descriptors of clients that were refused")


def test_a_proxy_without_words_for_it_resets(proxied_server: TcpServer, tmp_path: Path) -> None:
    text = SLICES + proxy_text("listen", "127.0.0.1:8443", to=f"{SERVER}:444")
    with running(tmp_path, text) as proxy:
        with pytest.raises(ConnectionResetError):
            dial("127.0.0.1", 8443).recv(1)
        assert proxy.wait_for_outcome("refused")["error"] == "Connection refused"


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_reaches_the_other_side(network_of_proxies: None, tmp_path: Path, side: str) -> None:
    with listen_tcp(443) as listener, running(tmp_path, SLICES + PROXIES) as proxy:
        sock = dial("127.0.0.1", 8443)
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE_S)
        sock.sendall(b"x")
        assert peer.recv(1) == b"x"
        first, second = (sock, peer) if side == "client" else (peer, sock)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        first.close()
        with second, pytest.raises(ConnectionResetError):
            second.recv(1)
        assert proxy.wait_for_outcome("reset")


@pytest.mark.parametrize(
    ("port", "rubbish", "answer"),
    [
        (1080, b"\x04\x01\x00\x50", b""),
        (1080, b"GET / HTTP/1.1\r\n\r\n", b""),
        (1080, b"\x05\x00", b"\x05\xff"),
        (1080, b"\x05\x01\x00\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50", b"\x05\x00\x05\x07"),
        (1080, b"\x05\x01\x00\x05\x01\x00\x09\x01\x02\x03\x04\x00\x50", b"\x05\x00\x05\x08"),
        (1080, b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00\x05\x01"),
        (1080, b"\x05\x01\x00\x05\x01\x00\x01\x01\x02\x03\x04\x00\x00", b"\x05\x00\x05\x01"),
        (3128, b"\x16\x03\x01\x02\x00", b"HTTP/1.1 400"),
        (3128, b"GET http://example.org/ HTTP/1.1\r\n\r\n", b"HTTP/1.1 405"),
        (3128, b"CONNECT nowhere HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (3128, b"CONNECT a:b:1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (3128, b"CONNECT [::1:1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (3128, b"CONNECT 203.0.113.1:65536 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (3128, b"CONNECT 203.0.113.1:443 HTTP/1.1\r\n" + b"x: y\r\n" * 2000, b"HTTP/1.1 400"),
    ],
)
def test_rubbish_is_answered_and_forgotten(proxy: RunningProxy, port: int, rubbish: bytes, answer: bytes) -> None:
    before = proxy.descriptors()
    with dial("127.0.0.1", port) as sock:
        sock.sendall(rubbish)
        try:
            assert read_all(sock)[: max(1, len(answer))] == answer
        except ConnectionResetError:
            assert not answer
    assert proxy.wait_for("connection")["outcome"] in ("bad-request", "not-authorized")
    wait_until(lambda: proxy.descriptors() == before, "descriptors")


def test_a_thousand_broken_clients_leave_nothing(proxied_server: TcpServer, tmp_path: Path) -> None:
    with running(tmp_path, WIDE_SLICES + PROXIES) as proxy:
        break_a_thousand(proxy)


def break_a_thousand(proxy: RunningProxy) -> None:
    chance = random.Random(4)
    starts = (
        b"",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x01",
        b"CONNECT ",
        b"CONNECT 203.0.113.1:443 HTTP/1.1\r\n\r\n",
    )
    before = proxy.descriptors()
    for number in range(1000):
        with dial("127.0.0.1", (1080, 3128, 8443)[number % 3]) as sock:
            sock.sendall(chance.choice(starts) + chance.randbytes(chance.randrange(40)))
            if chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    wait_until(lambda: proxy.descriptors() == before, f"{before} descriptors, there are {proxy.descriptors()}")
    with dial("127.0.0.1", 8443) as sock:
        wait_until(lambda: len(proxy.workers()) == 2)
        assert not proxy.events("worker-died")
    proxy.signal(15)
    assert proxy.wait() == 0
    last = proxy.events("stopped")[-1]["proxies"]
    assert sum(each["accepted"] for each in last.values()) == 1001
    assert sum(sum(each["ended"].values()) for each in last.values()) == 1001


def test_a_client_that_does_not_finish_its_request_is_let_go(proxy: RunningProxy) -> None:
    with dial("127.0.0.1", 3128) as sock:
        sock.sendall(b"CONNECT 203.0.113.1:443 HTTP/1.1\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 408")
    assert proxy.wait_for_outcome("slow-request")


def test_a_name_is_looked_up_and_its_addresses_tried_in_turn(proxied_server: TcpServer, tmp_path: Path) -> None:
    text = SLICES + proxy_text("listen", "127.0.0.1:8443", to="localhost:443", slices=["ams-1"])
    with running(tmp_path, text), dial("127.0.0.1", 8443) as sock:
        assert echoes(sock)  # whatever families the name has: there is a slice of IPv4 only
        assert in_slice(proxied_server, SOFT)
