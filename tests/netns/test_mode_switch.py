"""What is established goes on while the configuration changes: other slices, and how this one is shared."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from bench.coexist.load import connects, serve
from bench.coexist.settings import Rule, apply, configuration, socket_half
from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from netns_lab import Lab
from netns_lab.topology import CLIENT, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
SLICE = PortRange(9000, 9099)
SOCKET_PORTS = socket_half(SLICE)
MODES = ("off", "confine", "refuse", "split")
GUARDS = ("drop", "count", "off")
PORT = 443
Way = tuple[str, str]


class Stream:
    """Sends numbered bytes to an echo server again and again, and compares what comes back, until it is stopped."""

    def __init__(self, sock: socket.socket, pause_s: float) -> None:
        self._socket = sock
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self.trouble: str | None = None
        sock.settimeout(5)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._pause_s):
                self._exchange(self.rounds.to_bytes(8, "big") * 32)
                self.rounds += 1
        except OSError as error:
            self.trouble = f"after {self.rounds} rounds: {error}"

    def _exchange(self, sent: bytes) -> None:
        self._socket.sendall(sent)
        received = b""
        while len(received) < len(sent):
            piece = self._socket.recv(len(sent) - len(received))
            if not piece:
                raise ConnectionError("closed")
            received += piece
        if received != sent:
            raise ConnectionError("other bytes came back")


@contextmanager
def streaming(sockets: Iterable[socket.socket], pause_s: float = 0.001) -> Iterator[list[Stream]]:
    """Keep bytes flowing on every socket for the length of the block; then none may have been lost."""
    with ExitStack() as stack:
        streams = [Stream(sock, pause_s) for sock in sockets]
        for stream in streams:
            stack.callback(stream.stop)
        yield streams
    assert [stream.trouble for stream in streams] == [None] * len(streams)
    assert min(stream.rounds for stream in streams) > 10


@pytest.fixture
def lab(lab_factory: LabFactory) -> Lab:
    lab = lab_factory(slices=[f"{SOFT_ADDRESS}:{SLICE}", f"[{SOFT_ADDRESS_6}]:{SLICE}"])
    serve(lab.server, PORT)
    return lab


def connections(lab: Lab) -> list[socket.socket]:
    """Return NAT flows and local connections, IPv4 and IPv6."""
    port = SOCKET_PORTS.first
    local = [
        lab.egress.tcp_connect((server, PORT), src=(soft, port))
        for server, soft in ((SERVER, SOFT_ADDRESS), (SERVER_6, SOFT_ADDRESS_6))
    ]
    return local + [lab.client.tcp_connect((server, PORT)) for server in (SERVER, SERVER_6) for _ in range(2)]


def datagram_sockets(lab: Lab) -> list[socket.socket]:
    """Return one of a NAT flow and a local one."""
    to = (SERVER, PORT)
    return [lab.client.udp_connect(to), lab.egress.udp_connect(to, src=(SOFT_ADDRESS, SOCKET_PORTS.first))]


@contextmanager
def applying(lab: Lab) -> Iterator[Callable[[str], str]]:
    """Give a function that applies a configuration and returns what that did to the table."""
    with lab.egress.enter(), KernelNft() as nft:
        yield lambda text: intent.apply(read_policy(text.encode()), nft).action


def other_slices(number: int) -> list[Slice]:
    """Return slices that nothing here uses, other ones for each number."""
    address = ip_address("198.51.100.20")
    firsts = range(10_000 + number, 10_000 + number + 20 * (number % 4), 20)
    return [
        Slice(f"other-{first}", address, (PortRange(first, first + 9),), (Protocol.TCP, Protocol.UDP))
        for first in firsts
    ]


def with_others(lab: Lab, number: int, coexist: str) -> str:
    """Return a configuration in which each of the other slices has a client of its own."""
    others = other_slices(number)
    rules: list[Rule] = [("10.0.0.0/24", lab.slices[:1]), ("2001:db8:10::/64", lab.slices[1:])]
    rules += [(f"10.9.0.{place}", [piece]) for place, piece in enumerate(others, 1)]
    return configuration([*lab.slices, *others], coexist=coexist, rules=rules)


def every_switch(ways: list[Way]) -> Iterator[Way]:
    """Yield ways, one after the other, so that each follows each other one."""
    for one, other in itertools.combinations(ways, 2):
        yield from (one, other, one)


@pytest.mark.parametrize("coexist", ["confine", "refuse"])
def test_flows_survive_a_hundred_changes_of_other_slices(lab: Lab, coexist: str) -> None:
    with applying(lab) as change:
        change(with_others(lab, 0, coexist))
        with streaming(connections(lab)):
            actions = {change(with_others(lab, number, coexist)) for number in range(1, 101)}
    assert "rebuild" in actions
    assert "none" not in actions
    assert lab.leaks().total == 0


def test_no_datagram_is_lost_in_a_hundred_changes_of_other_slices(lab: Lab) -> None:
    with applying(lab) as change:
        change(with_others(lab, 0, "confine"))
        with streaming(datagram_sockets(lab), pause_s=0):
            for number in range(1, 101):
                change(with_others(lab, number, "confine"))


def test_flows_survive_every_switch_of_mode_and_guard(lab: Lab) -> None:
    ways = list(itertools.product(MODES, GUARDS))
    with applying(lab) as change:
        change(configuration(lab.slices, coexist="off", guard="off"))
        with streaming(connections(lab)):
            for coexist, guard in every_switch(ways):
                change(configuration(lab.slices, coexist=coexist, guard=guard))
    assert lab.leaks().total == 0


def test_new_connections_neither_leak_nor_hang_while_modes_switch(lab: Lab) -> None:
    with applying(lab) as change:
        change(configuration(lab.slices, coexist="confine"))
        shape = {"count": 800, "rate": 100, "at_once": 800, "hold": 0.05}
        flows = connects(lab.client, CLIENT, SERVER, port=PORT, **shape)
        sockets = connects(lab.egress, SOFT_ADDRESS, SERVER, port=PORT, ports=str(SLICE), retries=1000, **shape)
        switches = 0
        while not (flows.done() and sockets.done()):
            change(configuration(lab.slices, coexist=("refuse", "confine")[switches % 2]))
            switches += 1
    went = [flows.outcome(), sockets.outcome()]
    assert switches >= 10
    assert [(one.worked, one.hung, one.broken) for one in went] == [(800, 0, 0)] * 2
    assert lab.leaks().total == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("before", ["off", "confine", "refuse", "split"])
def test_a_rebuilt_table_knows_the_claims_of_flows_that_are_there(lab: Lab, family: int, before: str) -> None:
    server, soft = {4: (SERVER, SOFT_ADDRESS), 6: (SERVER_6, SOFT_ADDRESS_6)}[family]
    apply(lab, configuration(lab.slices, coexist=before, guard="count"))
    with lab.egress.capture("up0") as capture:
        lab.client.tcp_connect((server, PORT))
        (port,) = capture.sources(soft)
    apply(lab, configuration(lab.slices, coexist="refuse", guard="drop"))
    with pytest.raises(ConnectionRefusedError):
        lab.egress.tcp_connect((server, PORT), src=(soft, port))
