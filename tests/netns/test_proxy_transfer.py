"""Bytes through the relay: all of them, in their order, whatever both sides do. ``NATCTL_LONG=1``: a GiB each way."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from own_network import own_network
from proxying import (
    ADDRESSES,
    PATIENCE_S,
    SERVER,
    SERVER_6,
    WIDE_SLICES,
    dial,
    proxy_text,
    read_exactly,
    running,
)
from waiting import wait_until

from netns_lab.servers import listen_tcp

LONG = bool(os.environ.get("NATCTL_LONG"))
EACH_WAY = (1 << 30) if LONG else (32 << 20)
CONNECTIONS = 16
HEAD = struct.Struct("!QQ")  # a number for the connection, and how many bytes its server is to send
BLOCK = os.urandom(1 << 20)


class Ends:
    """What each end of each connection sent and got, as digests."""

    def __init__(self) -> None:
        self.digests: dict[tuple[int, str], str] = {}
        self.errors: list[BaseException] = []

    def run(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def send(self, sock: socket.socket, number: int, side: str, count: int) -> None:
        """Send so many bytes in pieces of all sizes, with pauses, then half-close."""
        chance, digest = random.Random(f"{number} {side} sends"), hashlib.blake2b()
        while count:
            size = min(count, chance.choice((1, 100, 1460, 5000, 65536, 300_000)))
            start = chance.randrange(len(BLOCK) - size)
            piece = BLOCK[start : start + size]
            digest.update(piece)
            sock.sendall(piece)
            count -= size
            if chance.random() < 0.002:
                time.sleep(chance.random() * 0.05)
        sock.shutdown(socket.SHUT_WR)
        self.digests[number, f"{side} sent"] = digest.hexdigest()

    def receive(self, sock: socket.socket, number: int, side: str) -> None:
        """Read to the end in pieces of all sizes, with pauses."""
        chance, digest = random.Random(f"{number} {side} reads"), hashlib.blake2b()
        while piece := sock.recv(chance.choice((10, 4096, 65536, 1 << 20))):
            digest.update(piece)
            if chance.random() < 0.002:
                time.sleep(chance.random() * 0.05)
        self.digests[number, f"{side} got"] = digest.hexdigest()


def serve(listener: socket.socket, ends: Ends) -> None:
    threads, peers = [], []
    for _ in range(CONNECTIONS):
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE_S * (20 if LONG else 3))
        peers.append(peer)
        number, count = HEAD.unpack(read_exactly(peer, HEAD.size))
        threads.append(ends.run(lambda peer=peer, number=number, count=count: ends.send(peer, number, "server", count)))
        threads.append(ends.run(lambda peer=peer, number=number: ends.receive(peer, number, "server")))
    for thread in threads:
        thread.join()
    for peer in peers:
        peer.close()


@pytest.mark.parametrize(("front", "to"), [("127.0.0.1", SERVER), ("[::1]", f"[{SERVER_6}]")], ids=["ipv4", "ipv6"])
def test_every_byte_arrives_in_its_place(tmp_path: Path, front: str, to: str) -> None:
    text = WIDE_SLICES + proxy_text("listen", f"{front}:8443", to=f"{to}:443")
    chance, ends = random.Random(front), Ends()
    shares = [chance.random() for _ in range(2 * CONNECTIONS)]
    up = [int(EACH_WAY * share / sum(shares[:CONNECTIONS])) for share in shares[:CONNECTIONS]]
    down = [int(EACH_WAY * share / sum(shares[CONNECTIONS:])) for share in shares[CONNECTIONS:]]
    with own_network(*ADDRESSES), listen_tcp(443) as listener, running(tmp_path, text) as proxy:
        idle = proxy.descriptors()
        server = ends.run(lambda: serve(listener, ends))
        threads, socks = [], []
        for number in range(CONNECTIONS):
            sock = dial(front.strip("[]"), 8443)
            sock.settimeout(PATIENCE_S * (20 if LONG else 3))
            sock.sendall(HEAD.pack(number, down[number]))
            socks.append(sock)
            threads.append(ends.run(lambda s=sock, n=number: ends.send(s, n, "client", up[n])))
            threads.append(ends.run(lambda s=sock, n=number: ends.receive(s, n, "client")))
        for thread in (*threads, server):
            thread.join(PATIENCE_S * (20 if LONG else 5))
        assert not ends.errors
        for sock in socks:
            sock.close()
        assert len(ends.digests) == 4 * CONNECTIONS
        for number in range(CONNECTIONS):
            assert ends.digests[number, "client sent"] == ends.digests[number, "server got"]
            assert ends.digests[number, "server sent"] == ends.digests[number, "client got"]
        wait_until(lambda: len(proxy.events("connection")) == CONNECTIONS, "all connections end")
        assert {line["outcome"] for line in proxy.events("connection")} == {"finished"}
        total = [sum(line["bytes"][way] for line in proxy.events("connection")) for way in (0, 1)]
        assert total == [sum(up) + CONNECTIONS * HEAD.size, sum(down)]
        # Pipes are kept for the next who needs one, at most 64 in a worker.
        assert proxy.descriptors() <= idle + 2 * 64 * 2
