"""The guard lets established flows pass without a look, and never one that leaves a slice: old flows, withdrawn
slices, answers, and what began while the rules were others."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from operating import NATCTL
from waiting import WITHIN_S

from bench.coexist.load import serve
from bench.coexist.settings import configuration
from nat_rewriter.config import read_policy
from nat_rewriter.controller import intent
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.model.slices import PortRange, Protocol, Slice
from netns_lab import Lab, round_trip
from netns_lab.topology import CLIENT, CLIENT_6, CLIENT_NETWORKS, SERVER, SERVER_6, SOFT_ADDRESS, SOFT_ADDRESS_6

LabFactory = Callable[..., Lab]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
KINDS = pytest.mark.parametrize("kind", ["tcp", "udp"])
SERVERS = {4: SERVER, 6: SERVER_6}
SOFT = {4: SOFT_ADDRESS, 6: SOFT_ADDRESS_6}
CLIENTS = {4: CLIENT, 6: CLIENT_6}
OURS, OTHER = PortRange(9000, 9099), PortRange(8900, 8999)
PORT = 443


@pytest.fixture
def lab(lab_factory: LabFactory) -> Lab:
    """The upstream brings back both ranges, so that only the guard cuts a flow."""
    lab = lab_factory(slices=[f"{address}:{OTHER},{OURS}" for address in (SOFT[4], f"[{SOFT[6]}]")])
    serve(lab.server, PORT)
    # Without a rule that asks for it, the kernel would not track what begins before natctl's rules are there.
    lab.egress.nft("table inet track { chain c { type filter hook output priority 0; ct state new accept; }; }")
    return lab


def slices(*ranges: PortRange) -> list[Slice]:
    return [
        Slice(f"s{family}-{ports.first}", ip_address(SOFT[family]), (ports,), tuple(Protocol))
        for family in (4, 6)
        for ports in ranges
    ]


def own(lab: Lab, *ranges: PortRange, into: PortRange | None = None, **settings: str) -> None:
    """Apply a configuration with these ranges of both addresses; clients are rewritten into one of them."""
    owned = slices(*ranges)
    rules = [
        (
            network,
            [piece for piece in owned if piece.address.version == family and piece.ranges == (into or ranges[0],)],
        )
        for family, network in CLIENT_NETWORKS.items()
    ]
    make(lab, configuration(owned, rules=rules, **settings))


def make(lab: Lab, text: str) -> None:
    """Apply a configuration from within this process: a tenth of the time."""
    with lab.egress.enter(), KernelNft() as nft:
        intent.apply(read_policy(text.encode()), nft)


def settled(lab: Lab) -> set[str]:
    listed = lab.egress.run(["nft", "list", "set", "inet", "natctl", "settled"]).stdout
    found = re.search(r"elements = \{ (.*) \}", listed)
    return set(found[1].split(", ")) if found else set()


def local(lab: Lab, kind: str, family: int, port: int) -> socket.socket:
    connect = lab.egress.tcp_connect if kind == "tcp" else lab.egress.udp_connect
    return connect((SERVERS[family], PORT), src=(SOFT[family], port), timeout_s=0.4)


def forwarded(lab: Lab, kind: str, family: int, port: int = 0) -> socket.socket:
    connect = lab.client.tcp_connect if kind == "tcp" else lab.client.udp_connect
    return connect((SERVERS[family], PORT), src=(CLIENTS[family], port), timeout_s=0.4)


def pings(lab: Lab, family: int, ident: int) -> bool:
    with suppress(PermissionError):
        return lab.egress.ping(SERVERS[family], src=SOFT[family], ident=ident, timeout_s=0.4)
    return False


@FAMILIES
@KINDS
def test_what_is_ours_is_settled_and_goes_on(lab: Lab, kind: str, family: int) -> None:
    own(lab, OURS)
    assert settled(lab) == {"tcp", "udp"}
    flows = [local(lab, kind, family, 9001), forwarded(lab, kind, family)]
    assert all(round_trip(flow) for flow in flows for _ in range(3))
    own(lab, OURS, OTHER)
    assert settled(lab) == {"tcp", "udp"}
    assert all(map(round_trip, flows))


@FAMILIES
@KINDS
def test_a_flow_from_before_is_cut(lab: Lab, kind: str, family: int) -> None:
    """It began under no rules of natctl, and there is nothing about its packets that a first one would have."""
    flow = local(lab, kind, family, 8950)
    assert all(round_trip(flow) for _ in range(2))
    own(lab, OURS)
    assert not round_trip(flow)
    assert settled(lab) == {"tcp", "udp"} - {kind}
    fine = [local(lab, one, family, 9001) for one in ("tcp", "udp")]
    assert all(round_trip(each) for each in fine for _ in range(3))
    lab.egress.run(["conntrack", "-D", "-p", kind, "-f", f"ipv{family}", "--orig-port-src", "8950"])
    own(lab, OURS)
    assert settled(lab) == {"tcp", "udp"}
    assert not round_trip(flow)  # a packet in the midst of it begins a flow, which the guard looks at
    assert all(map(round_trip, fine))


@FAMILIES
@KINDS
def test_a_clients_flow_that_another_rule_rewrote_is_cut(lab: Lab, kind: str, family: int) -> None:
    ip = "ip6" if family == 6 else "ip"
    to = f"[{SOFT[6]}]" if family == 6 else SOFT[4]
    lab.egress.nft(
        f"table inet other {{ chain c {{ type nat hook postrouting priority 90; {ip} saddr {CLIENTS[family]}"
        f" meta l4proto {kind} snat {ip} to {to}:{OTHER}; }}; }}"
    )
    flow = forwarded(lab, kind, family)
    assert all(round_trip(flow) for _ in range(2))
    own(lab, OURS)
    assert not round_trip(flow)
    assert settled(lab) == {"tcp", "udp"} - {kind}
    newcomer = forwarded(lab, "udp", family)
    assert round_trip(newcomer) == (kind == "tcp")  # the other table's rule still comes first


@FAMILIES
@KINDS
def test_flows_of_a_withdrawn_slice_are_cut_and_go_on_when_it_is_back(lab: Lab, kind: str, family: int) -> None:
    own(lab, OURS, OTHER, into=OTHER)
    flows = [local(lab, kind, family, 8950), forwarded(lab, kind, family, 8951)]
    stays = local(lab, kind, family, 9001)
    assert all(round_trip(flow) for flow in (*flows, stays) for _ in range(3))
    own(lab, OURS)
    assert [round_trip(flow) for flow in flows] == [False, False]
    assert round_trip(stays)
    assert settled(lab) == {"tcp", "udp"} - {kind}
    own(lab, OURS, OTHER, into=OTHER)
    assert settled(lab) == {"tcp", "udp"}
    if kind == "udp":
        assert all(map(round_trip, flows))


@FAMILIES
@KINDS
def test_an_answer_is_looked_at_though_the_flow_is_established_by_then(lab: Lab, kind: str, family: int) -> None:
    own(lab, OURS)
    assert settled(lab) == {"tcp", "udp"}
    serve(lab.egress, 8960)
    connect = lab.server.tcp_connect if kind == "tcp" else lab.server.udp_connect
    try:
        caller = connect((SOFT[family], 8960), src=(SERVERS[family], 0), timeout_s=0.4)
    except TimeoutError:
        assert kind == "tcp"
    else:
        assert not round_trip(caller)
    strays = lab.egress.run(["nft", "list", "set", "inet", "natctl", f"strays{family}"]).stdout
    assert f"{kind} . {SOFT[family]} . 8960 . {SERVERS[family]} . " in strays


@FAMILIES
@KINDS
def test_answers_come_from_another_hosts_part_of_a_shared_address(lab: Lab, kind: str, family: int) -> None:
    """The server's address is shared as well: this host has other ports of it, which no packet comes from here."""
    shared = Slice("of-the-server", ip_address(SERVERS[family]), (OURS,), tuple(Protocol))
    (mine,) = (piece for piece in slices(OURS) if piece.address.version == family)
    make(lab, configuration([mine, shared], rules=[(CLIENT_NETWORKS[family], [mine])]))
    flow = forwarded(lab, kind, family)
    assert all(round_trip(flow) for _ in range(3))


def test_answers_of_a_host_behind_are_looked_at(lab: Lab) -> None:
    """It has a shared address itself, and somebody else rewrites whoever calls it into an address of this host."""
    inside = "198.51.100.99"
    serve(lab.client, PORT)
    lab.client.run(["ip", "address", "add", inside, "dev", "lo"])
    lab.egress.run(["ip", "route", "add", inside, "via", CLIENT])
    lab.upstream.run(["ip", "route", "add", inside, "via", "100.64.0.2"])
    lab.egress.nft(
        f"table ip other {{ chain c {{ type nat hook postrouting priority 90; ip daddr {inside} masquerade; }}; }}"
    )
    assert round_trip(lab.server.udp_connect((inside, PORT), src=(SERVER, 0), timeout_s=0.4))
    there = Slice("inside", ip_address(inside), (OURS,), tuple(Protocol))
    make(lab, configuration([*slices(OURS), there]))
    assert not round_trip(lab.server.udp_connect((inside, PORT), src=(SERVER, 0), timeout_s=0.4))


@FAMILIES
@KINDS
def test_answers_of_a_flow_that_was_led_in_are_cut_with_its_slice(lab: Lab, kind: str, family: int) -> None:
    """Led to a client by natctl, and rewritten into an address of this host by somebody else on its way in."""
    serve(lab.client, PORT)
    ip, to = ("ip6", f"[{CLIENTS[6]}]") if family == 6 else ("ip", CLIENTS[4])
    lab.egress.nft(
        f"table {ip} other {{ chain c {{ type nat hook postrouting priority 90;"
        f" {ip} daddr {CLIENTS[family]} masquerade; }}; }}"
    )
    led = f'[[dnat]]\nname = "in"\nslice = "s{family}-{OTHER.first}"\nports = ["8960"]\nto = "{to}:{PORT}"\n'
    make(lab, configuration(slices(OURS, OTHER)) + led)
    connect = lab.server.tcp_connect if kind == "tcp" else lab.server.udp_connect
    caller = connect((SOFT[family], 8960), src=(SERVERS[family], 0), timeout_s=0.4)
    assert all(round_trip(caller) for _ in range(3))
    make(lab, configuration(slices(OURS)))
    assert not round_trip(caller)


@FAMILIES
def test_the_first_packet_outside_is_dropped(lab: Lab, family: int) -> None:
    own(lab, OURS, coexist="off")
    assert settled(lab) == {"tcp", "udp"}
    assert not round_trip(local(lab, "udp", family, 8950))
    with pytest.raises(TimeoutError):
        local(lab, "tcp", family, 8950)
    assert not pings(lab, family, 8950)


@FAMILIES
def test_a_ping_from_before_is_cut(lab: Lab, family: int) -> None:
    assert pings(lab, family, 8950)
    own(lab, OURS, coexist="off")
    assert not pings(lab, family, 8950)
    assert pings(lab, family, 9001)


@KINDS
def test_what_began_while_the_rules_were_gone_is_cut(lab: Lab, kind: str) -> None:
    own(lab, OURS)
    lab.egress.nft("flush table inet natctl")
    flow = local(lab, kind, 4, 8950)
    assert all(round_trip(flow) for _ in range(2))
    own(lab, OURS)
    assert not round_trip(flow)
    assert settled(lab) == {"tcp", "udp"} - {kind}


@KINDS
@pytest.mark.parametrize("before", ["count", "off"])
def test_what_began_under_a_guard_that_does_not_drop_is_cut(lab: Lab, kind: str, before: str) -> None:
    own(lab, OURS, guard=before, coexist="off")
    flow = local(lab, kind, 4, 8950)
    assert all(round_trip(flow) for _ in range(2))
    own(lab, OURS, coexist="off")
    assert not round_trip(flow)
    assert settled(lab) == {"tcp", "udp"} - {kind}


@KINDS
def test_a_slice_on_an_address_that_was_nobodys_cuts_what_leaves_beside_it(lab: Lab, kind: str) -> None:
    make(lab, configuration([piece for piece in slices(OURS) if piece.address.version == 6]))
    flow = local(lab, kind, 4, 8950)
    assert all(round_trip(flow) for _ in range(2))
    own(lab, OURS)
    assert not round_trip(flow)


@KINDS
def test_a_change_that_is_taken_back_leaves_no_flow_of_its_own(lab: Lab, kind: str, state: Path) -> None:
    own(lab, OURS)
    path = lab.config_file(configuration(slices(OURS, OTHER)))
    process = lab.egress.popen([*NATCTL, "apply", "--config", path, "--confirm", "3"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("table inet natctl: ")  # the time has begun to run
    flow = local(lab, kind, 4, 8950)
    assert all(round_trip(flow) for _ in range(2))
    process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert not round_trip(flow)
    assert settled(lab) == {"tcp", "udp"} - {kind}


def test_a_guard_that_counts_counts_every_packet(lab: Lab) -> None:
    own(lab, OURS, guard="count", coexist="off")
    flow = local(lab, "udp", 4, 8950)
    assert all(round_trip(flow) for _ in range(5))
    strays = lab.egress.run(["nft", "list", "set", "inet", "natctl", "strays4"]).stdout
    assert "counter packets 5 " in strays
