"""Packets for shared addresses on the kernel: whichever host of a fleet receives one, the owner of the port gets it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import open_store
from netns_lab.host import round_trip
from netns_lab.running_agent import RunningAgent, wait_until
from netns_lab.segment import (
    NARROW_MTU,
    SEGMENT_LINK,
    SERVER,
    SERVER_6,
    SHARED,
    SHARED_6,
    Segment,
    peer_address,
    peer_address_6,
    segment,
)

TCP, UDP = 443, 53
ENDS = [(SHARED, SERVER), (SHARED_6, SERVER_6)]
CONFIG = """version = 1
[controller]
coexist = "off"

[store]
url = "sqlite:{store}"

[inbound]
device = "{device}"
addresses = ["{peer}", "{peer_6}"]
"""
POOL = """
[[pool]]
name = "{name}"
addresses = ["{shared}"]
ports = "8192-16383"
slice_size = {size}
protocols = ["tcp", "udp", "icmp"]
ttl_s = {ttl}
hold_down_s = 1

[[snat]]
name = "clients-{name}"
source = ["{clients}"]
pools = ["{name}"]
"""


class Fleet:
    """Hosts with an agent each; the first one has a client behind it."""

    def __init__(self, lab: Segment, directory: Path, ttl_s: int = 15) -> None:
        self.lab, self.store_path, self._ttl_s = lab, directory / "pools", ttl_s
        self.configs = [directory / f"h{number}.toml" for number in range(len(lab.hosts))]
        for number, path in enumerate(self.configs):
            path.write_text(self._text(number))
        self.agents = [
            RunningAgent(host, f"h{number}", path)
            for number, (host, path) in enumerate(zip(lab.hosts, self.configs, strict=True))
        ]

    def _text(self, number: int) -> str:
        text = CONFIG.format(
            store=self.store_path, device=SEGMENT_LINK, peer=peer_address(number), peer_6=peer_address_6(number)
        )
        four = POOL.format(name="four", shared=SHARED, size=1024, ttl=self._ttl_s, clients="10.0.0.0/24")
        six = POOL.format(name="six", shared=SHARED_6, size=512, ttl=self._ttl_s, clients="2001:db8:10::/64")
        return text + four + six

    def natctl(self, number: int, *words: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "nat_rewriter", *words, "--config", str(self.configs[number])]
        done = self.lab.hosts[number].run(command, check=False)
        assert done.returncode == expect, done.stderr
        return done.stdout

    def start(self) -> None:
        self.natctl(0, "pool", "init")
        for agent in self.agents:
            agent.start()
        for number in range(len(self.agents)):
            assert wait_until(lambda n=number: self.knows_all(n), 60.0), self.agents[number].warnings()

    def knows_all(self, number: int) -> bool:
        """Tell whether a host hands over to all others: it knows their blocks."""
        others = 2 * (len(self.agents) - 1)
        elements = [len(self.elements(number, name)) for name in ("owners4", "owners6", "own4", "own6")]
        return elements == [others // 2, others // 2, 1, 1]

    def elements(self, number: int, name: str, family: str = "netdev") -> list[Any]:
        words = ["nft", "-j", "list", "set" if name.startswith(("own4", "own6", "mine", "peers")) else "map"]
        done = self.lab.hosts[number].run([*words, family, "natctl_inbound", name], check=False)
        if done.returncode:
            return []
        (listed,) = [each for each in json.loads(done.stdout)["nftables"] if "metainfo" not in each]
        (content,) = listed.values()
        return list(content.get("elem", []))

    def owned(self, number: int, shared: str) -> int:
        """Return the first port that a host holds of an address."""
        found: list[int] = []

        def holds() -> bool:
            with open_store(StoreAddress("sqlite", str(self.store_path))) as store:
                holdings = store.holdings("six" if ":" in shared else "four")
            found[:] = [each.block.first for each in holdings if each.host == f"h{number}" and not each.resting]
            return bool(found)

        assert wait_until(holds, 60.0), self.agents[number].warnings()
        return found[0]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts; the upstream deals each packet for a shared address to the next of them."""
    with segment(3) as lab:
        made = Fleet(lab, tmp_path_factory.mktemp("fleet"))
        lab.server.tcp_server(TCP)
        lab.server.udp_server(UDP)
        made.start()
        yield made


@pytest.fixture(autouse=True)
def _deal_to_all(fleet: Fleet) -> None:
    fleet.lab.deal_to([0, 1, 2])


def traces(fleet: Fleet, number: int, family: str) -> str:
    """Return what conntrack of a host has of the server."""
    server = SERVER_6 if family == "ipv6" else SERVER
    listed = fleet.lab.hosts[number].run(["conntrack", "-L", "-f", family]).stdout
    return "\n".join(line for line in listed.splitlines() if server in line)


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_sockets_of_each_host(fleet: Fleet, shared: str, server: str, protocol: str) -> None:
    for number, host in enumerate(fleet.lab.hosts):
        source = (shared, fleet.owned(number, shared) + 7)
        connect = host.tcp_connect if protocol == "tcp" else host.udp_connect
        with connect((server, TCP if protocol == "tcp" else UDP), src=source) as sock:
            assert all(round_trip(sock, b"x" * 900) for _ in range(9))


def answered(sock: socket.socket, size: int) -> bool:
    """Tell whether the server answers a datagram of a size; the first one may be too big for the path."""
    with sock:
        return any(round_trip(sock, bytes([number]) * size) for number in range(3))


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
def test_no_trace_where_it_only_passes(fleet: Fleet, shared: str, server: str) -> None:
    family = "ipv6" if ":" in shared else "ipv4"
    for host in fleet.lab.hosts:
        host.run(["conntrack", "-F"])
    fleet.lab.deal_to([1, 2])
    sock = fleet.lab.client.tcp_connect((server, TCP))
    assert round_trip(sock)
    for size in (100, 5000):
        assert answered(fleet.lab.client.udp_connect((server, UDP)), size)
    assert traces(fleet, 0, family)
    assert not traces(fleet, 1, family)
    assert not traces(fleet, 2, family)


def flow_of(fleet: Fleet, shared: str, server: str) -> str:
    """Return what conntrack of the first host has of the client's TCP flows."""
    return traces(fleet, 0, "ipv6" if ":" in shared else "ipv4")


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
def test_path_mtu_of_a_client_behind_the_owner(fleet: Fleet, shared: str, server: str) -> None:
    """What is too big for the last link is told to the shared address: the error gets to the client's socket."""
    fleet.lab.deal_to([1, 2])
    with fleet.lab.client.tcp_connect((server, TCP), timeout_s=10) as sock:
        assert carries(sock, 100_000)
        assert path_mtu(sock) == NARROW_MTU
    local = (shared, fleet.owned(2, shared) + 3)
    fleet.lab.deal_to([0, 1])
    with fleet.lab.hosts[2].tcp_connect((server, TCP), src=local, timeout_s=10) as sock:
        assert carries(sock, 100_000)
        assert path_mtu(sock) == NARROW_MTU


def carries(sock: socket.socket, size: int) -> bool:
    """Tell whether an echo server sends back all of what is more than a segment."""
    sock.sendall(b"z" * size)
    back = 0
    while back < size and (part := sock.recv(size)):
        back += len(part)
    return back == size


def path_mtu(sock: socket.socket) -> int:
    """Return what the kernel believes of a connected socket's way: IP_MTU, IPV6_MTU (linux/in.h, linux/in6.h)."""
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, 24)
    return sock.getsockopt(socket.IPPROTO_IP, 14)


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
def test_errors_reach_the_socket_they_are_about(fleet: Fleet, shared: str, server: str) -> None:
    fleet.lab.deal_to([1, 2])
    nobody = 9
    for host, source in ((fleet.lab.client, None), (fleet.lab.hosts[0], (shared, fleet.owned(0, shared) + 9))):
        with host.udp_connect((server, nobody), src=source) as sock:
            sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(10)


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
def test_echo_replies(fleet: Fleet, shared: str, server: str) -> None:
    for number, host in enumerate(fleet.lab.hosts):
        ident = fleet.owned(number, shared) + 11
        assert all(host.ping(server, src=shared, ident=ident) for _ in range(3))
    assert all(fleet.lab.client.ping(server) for _ in range(6))


@pytest.mark.parametrize(("shared", "server"), ENDS, ids=["IPv4", "IPv6"])
def test_fragments_meet_and_go_on_together(fleet: Fleet, shared: str, server: str) -> None:
    """Each fragment goes to the next host; of each datagram they meet at one, often at none that they came to."""
    for number, host in enumerate(fleet.lab.hosts):
        with host.udp_connect((server, UDP), src=(shared, fleet.owned(number, shared) + 13)) as sock:
            answers = [round_trip(sock, bytes([turn]) * (2000 + 999 * turn)) for turn in range(16)]
            assert sum(answers) >= len(answers) - 1  # the first one may be too big for the path


@pytest.mark.parametrize("family", [4, 6])
def test_a_hop_too_many(fleet: Fleet, family: int) -> None:
    """A packet whose time is up is not handed over: it would have none left, or all of it again."""
    shared, _ = ENDS[family == 6]
    fleet.lab.deal_to([1])
    capture = fleet.lab.hosts[0].capture(SEGMENT_LINK)
    port = fleet.owned(0, shared) + 21
    sock = fleet.lab.server.open_socket(socket.SOCK_DGRAM, socket.AF_INET6 if family == 6 else socket.AF_INET)
    option = (socket.IPPROTO_IPV6, 16) if family == 6 else (socket.IPPROTO_IP, socket.IP_TTL)  # IPV6_UNICAST_HOPS
    for hops, arrives in ((3, False), (4, True)):  # core and upstream take one each, the wrong host the last
        sock.setsockopt(*option, hops)
        sock.sendto(b"late", (shared, port + hops))
        seen = capture.wait_for(lambda packet, at=port + hops: packet.tuple.dport == at, 3.0 if arrives else 0.5)
        assert bool(seen) == arrives


def test_a_router_hands_over_by_what_is_exported(fleet: Fleet, tmp_path: Path) -> None:
    """The upstream deals no more: it has the rules itself, and no other host sees the packets."""
    told = json.loads(fleet.natctl(1, "pool", "export"))
    assert {host["host"]: host["addresses"][0] for host in told["hosts"]} == {
        f"h{number}": peer_address(number) for number in range(3)
    }
    for each in told["slices"]:
        number = int(each["host"].removeprefix("h"))
        assert each["to"] == (peer_address_6(number) if ":" in each["address"] else peer_address(number))
        assert each["first"] == fleet.owned(number, each["address"])
        assert (each["first"] + 5) & each["mask"] == each["first"]
    text = fleet.natctl(1, "pool", "export", "--format", "nft", "--arrival", "core0", "--device", "br0")
    fleet.lab.upstream.nft(text)
    fleet.lab.upstream.nft(text)  # replaces what was there
    fleet.lab.upstream.run(["nft", "delete", "table", "netdev", "deal"])
    captures = [host.capture(SEGMENT_LINK) for host in fleet.lab.hosts]
    try:
        for shared, server in ENDS:
            for number, host in enumerate(fleet.lab.hosts):
                source = (shared, fleet.owned(number, shared) + 31)
                assert round_trip(host.tcp_connect((server, TCP), src=source))
                assert host.ping(server, src=shared, ident=source[1])
                with host.udp_connect((server, UDP), src=source) as sock:
                    assert answered(sock, 4000)
    finally:
        fleet.lab.upstream.run(["nft", "delete", "table", "netdev", "natctl_inbound"])
    for number, capture in enumerate(captures):
        arrived = {p.tuple.dport for p in capture.packets() if p.tuple.protocol == "tcp" and p.tuple.sport == TCP}
        assert arrived == {fleet.owned(number, shared) + 31 for shared in (SHARED, SHARED_6)}


def test_rules_follow_a_slice_that_moves(fleet: Fleet) -> None:
    """A flow whose slice goes to another host goes on there, wherever its packets come in."""
    sock = fleet.lab.hosts[0].udp_connect((SERVER, UDP), src=(SHARED, fleet.owned(0, SHARED) + 41))
    assert round_trip(sock)
    first = fleet.owned(0, SHARED)
    with open_store(StoreAddress("sqlite", str(fleet.store_path))) as store:
        block = next(each.block for each in store.holdings("four") if each.block.first == first)
        store.transfer("four", block, "h0", "h1")
    element = {"concat": [SHARED, first]}
    assert wait_until(lambda: [element, peer_address(1)] in fleet.elements(2, "owners4"), 20)
    assert wait_until(lambda: [element, peer_address(1)] in fleet.elements(2, "owners4", "ip"), 20)
    assert wait_until(lambda: [element, peer_address(1)] in fleet.elements(0, "owners4"), 20)
    assert wait_until(lambda: all(element not in pair for pair in fleet.elements(1, "owners4")), 20)
    # Who does not know yet sends it to the host that had it, which hands it on.
    assert [element, peer_address(1)] in [[pair[0]["elem"]["val"], pair[1]] for pair in fleet.elements(0, "given4")]
    key = f"netdev natctl_inbound owners4 {{ {SHARED} . {first}"
    fleet.lab.hosts[2].nft(f"delete element {key} }}\nadd element {key} : {peer_address(0)} }}")
    fleet.lab.deal_to([2])
    capture = fleet.lab.hosts[1].capture(SEGMENT_LINK)
    sock = fleet.lab.server.open_socket(socket.SOCK_DGRAM)
    sock.sendto(b"late", (SHARED, first + 43))
    assert capture.wait_for(lambda packet: packet.tuple.dport == first + 43)
    fleet.lab.hosts[2].nft(f"delete element {key} }}\nadd element {key} : {peer_address(1)} }}")


def test_a_host_without_its_agent_goes_on_handing_over(fleet: Fleet) -> None:
    known = {"concat": [SHARED, fleet.owned(0, SHARED)]}
    assert wait_until(lambda: [known, peer_address(0)] in fleet.elements(2, "owners4"), 20)
    fleet.agents[2].kill()
    with open_store(StoreAddress("sqlite", str(fleet.store_path))) as store:
        store.hosts.depart("h2")  # as the end of its term would
    assert wait_until(lambda: all(to != peer_address(2) for _, to in fleet.elements(0, "slots4")), 20)
    assert len(fleet.elements(0, "slots4")) + len(fleet.elements(0, "mine4")) == 256
    for dealt in ([2], [0, 1, 2]):
        fleet.lab.deal_to(dealt)
        for shared, server in ENDS:
            source = (shared, fleet.owned(0, shared) + 51)
            with fleet.lab.hosts[0].udp_connect((server, UDP), src=source, timeout_s=0.5) as sock:
                # It may have taken the slice just now.
                assert wait_until(lambda sock=sock: round_trip(sock, b"first"), 20)
                assert all(round_trip(sock, b"a" * size) for size in range(10, 16))
    fleet.agents[2].start()
    assert wait_until(lambda: any(to == peer_address(2) for _, to in fleet.elements(0, "slots4")), 30)


def leave(agent: RunningAgent) -> None:
    """Ask an agent to end."""
    agent.terminate()
    assert wait_until(agent.ended, 60)


def test_what_is_given_back_is_taken_away(fleet: Fleet) -> None:
    def tables(number: int) -> str:
        return fleet.lab.hosts[number].run(["nft", "list", "tables"]).stdout

    leave(fleet.agents[1])
    assert tables(1).count("natctl_inbound") == 3
    again = RunningAgent(fleet.lab.hosts[1], "h1", fleet.configs[1], ("--give-back",))
    before = len(again.deeds())
    again.start()
    again.wait_for("inbound", before)
    leave(again)
    assert "natctl_inbound" not in tables(1), again.warnings()
    assert wait_until(lambda: all(to != peer_address(1) for _, to in fleet.elements(0, "owners4")), 20)
    fleet.lab.hosts[0].run(["nft", "flush", "ruleset"])
    assert wait_until(lambda: len(fleet.elements(0, "owners4")) == 1, 20), fleet.agents[0].warnings()
    leave(fleet.agents[0])
    fleet.natctl(0, "remove", "--state", str(fleet.configs[0].with_suffix(".state")))
    assert "natctl" not in tables(0)
