"""What the rules do to real packets: source and destination NAT, the guard, and local sockets beside rewriting."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from netns_lab import Host, Lab, round_trip

LabFactory = Callable[..., Lab]
SERVER, SERVER_6 = "203.0.113.1", "2001:db8:203::1"
SOFT, SOFT_6 = "198.51.100.10", "2001:db8:100::10"
CLIENT, CLIENT_6 = "10.0.0.2", "2001:db8:10::2"
FAMILIES = pytest.mark.parametrize(
    ("server", "soft", "client"), [(SERVER, SOFT, CLIENT), (SERVER_6, SOFT_6, CLIENT_6)], ids=["ipv4", "ipv6"]
)
PORTS = range(9000, 9010)


def apply(lab: Lab, text: str) -> None:
    lab.natctl("apply", "--config", "-", input=text, expect=0)


def config(rules: str, *, coexist: str = "off", guard: str = "drop", ports: str = '"9000-9009"') -> str:
    """Return a configuration with one slice a family, and these rules."""
    protocols = 'protocols = ["tcp", "udp", "icmp"]'
    return f"""
        version = 1
        [controller]
        coexist = "{coexist}"
        guard = "{guard}"
        [[slice]]
        name = "ams-1"
        address = "{SOFT}"
        ports = [{ports}]
        {protocols}
        [[slice]]
        name = "ams-6"
        address = "{SOFT_6}"
        ports = [{ports}]
        {protocols}
        {rules}
        """


def snat(name: str = "clients", slices: str = '"ams-1", "ams-6"', **keys: str) -> str:
    matches = "\n".join(f"{key} = {value}" for key, value in (keys or {"iifname": '"fish0"'}).items())
    return f'\n[[snat]]\nname = "{name}"\nslices = [{slices}]\n{matches}\n'


# -- source NAT ---------------------------------------------------------------------------------------------------


@FAMILIES
def test_clients_get_ports_and_echo_ids_of_the_slice(server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config(snat()))
    tcp, udp = lab.server.tcp_server(443), lab.server.udp_server(53)
    kept = [lab.client.tcp_connect((server, 443)) for _ in range(4)]
    assert all(map(round_trip, kept))
    assert all(round_trip(lab.client.udp_connect((server, 53))) for _ in range(4))
    with lab.upstream.capture("down0") as wire:
        assert all(lab.client.ping(server, ident=ident) for ident in (77, 78, 9003))
        echo = wire.sources(soft, "icmpv6" if ":" in soft else "icmp")
    for peers in (tcp.wait_for_peers(4), udp.wait_for_peers(4)):
        assert {address for address, _ in peers} == {soft}
        assert len({port for _, port in peers}) == 4
        assert all(port in PORTS for _, port in peers)
    assert len(echo) == 3
    assert all(ident in PORTS for ident in echo)
    assert (lab.leaks().total, lab.leaks().unrewritten) == (0, 0)


@FAMILIES
def test_a_port_of_the_slice_is_kept(server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config(snat()))
    tcp = lab.server.tcp_server(443)
    lab.client.tcp_connect((server, 443), src=(client, 9004))
    assert tcp.wait_for_peers(1) == [(soft, 9004)]


@FAMILIES
@pytest.mark.parametrize("spread", ["flow", "random"])
def test_a_spread_uses_all_ranges(spread: str, server: str, soft: str, client: str, lab_factory: LabFactory) -> None:
    lab = lab_factory(slices=[f"{SOFT}:9000-9009,9100-9109", f"[{SOFT_6}]:9000-9009,9100-9109"])
    rules = snat(iifname='"fish0"', spread=f'"{spread}"')
    apply(lab, config(rules, ports='"9000-9009", "9100-9109"'))
    udp = lab.server.udp_server(53)
    for _ in range(16):
        round_trip(lab.client.udp_connect((server, 53), timeout_s=0.5))
    used = Counter(port // 100 for _, port in udp.wait_for_peers(8))
    assert set(used) == {90, 91}, used
    assert lab.leaks().total == 0


@FAMILIES
def test_a_client_keeps_its_range_and_clients_share_all(
    server: str, soft: str, client: str, lab_factory: LabFactory
) -> None:
    lab = lab_factory(slices=[f"{SOFT}:9000-9019,9100-9119", f"[{SOFT_6}]:9000-9019,9100-9119"], clients=12)
    apply(lab, config(snat(), ports='"9000-9019", "9100-9119"'))
    udp = lab.server.udp_server(53)
    ranges = set()
    for number in range(2, 14):
        source = f"2001:db8:10::{number:x}" if ":" in client else f"10.0.0.{number}"
        before = len(udp.peers)
        for _ in range(2):
            assert round_trip(lab.client.udp_connect((server, 53), src=(source, 0)))
        (one,) = {port // 100 for _, port in udp.peers[before:]}
        ranges.add(one)
    assert ranges == {90, 91}


def test_excluded_destinations_and_sources_are_not_rewritten(lab_factory: LabFactory) -> None:
    lab = lab_factory(clients=2)
    exclude = '["203.0.113.2", "2001:db8:203::2"]'
    apply(lab, config(snat(iifname='"fish0"', exclude=exclude, exclude_source='["10.0.0.3"]')))
    with lab.upstream.capture("down0") as wire:
        for server in (SERVER, SERVER_6, "203.0.113.2", "2001:db8:203::2"):
            lab.client.udp_connect((server, 53), src=(CLIENT_6 if ":" in server else CLIENT, 0)).send(b"x")
        lab.client.udp_connect((SERVER, 53), src=("10.0.0.3", 0)).send(b"x")
        assert wire.wait_for(lambda packet: str(packet.tuple.src) == "10.0.0.3")
        sources = {
            str(packet.tuple.dst): str(packet.tuple.src) for packet in wire.packets() if packet.tuple.dport == 53
        }
    assert sources == {
        SERVER: "10.0.0.3",  # the last one sent
        SERVER_6: SOFT_6,
        "203.0.113.2": CLIENT,
        "2001:db8:203::2": CLIENT_6,
    }


SLICES = """
        [[slice]]
        name = "second"
        address = "198.51.100.11"
        ports = ["7000-7009"]
        [[slice]]
        name = "third"
        address = "198.51.100.11"
        ports = ["7010-7019"]
        """


def address_for(lab: Lab, source: str, destination: str = SERVER, mark: int = 0) -> tuple[str, int]:
    """Return address and port that a packet of a client has on the wire."""
    with lab.upstream.capture("down0") as wire:
        sock = lab.client.udp_connect((destination, 53), src=(source, 0))
        sock.send(b"x")
        found = wire.wait_for(lambda packet: str(packet.tuple.dst) == destination and packet.tuple.dport == 53)
    assert found is not None
    return str(found.tuple.src), found.tuple.sport


def test_the_first_rule_that_matches_wins(lab_factory: LabFactory) -> None:
    lab = lab_factory(clients=3)
    rules = snat("host", '"ams-1"', source='["10.0.0.2"]') + snat("network", '"second"', source='["10.0.0.0/30"]')
    apply(lab, config(SLICES + rules + snat("rest", '"third"')))
    assert address_for(lab, "10.0.0.2")[0] == SOFT
    address, port = address_for(lab, "10.0.0.3")
    assert (address, port in range(7000, 7010)) == ("198.51.100.11", True)
    address, port = address_for(lab, "10.0.0.4")
    assert (address, port in range(7010, 7020)) == ("198.51.100.11", True)


def test_clients_of_one_map_get_their_own_slices(lab_factory: LabFactory) -> None:
    lab = lab_factory(clients=4)
    rules = snat("one", '"ams-1"', source='["10.0.0.2"]')
    rules += snat("two", '"second"', source='["10.0.0.3"]') + snat("three", '"third"', source='["10.0.0.4"]')
    text = config(SLICES + rules)
    apply(lab, text)
    assert "map @clients" in lab.natctl("render", "--config", "-", input=text, expect=0).stdout
    assert address_for(lab, "10.0.0.2")[0] == SOFT
    assert address_for(lab, "10.0.0.3")[1] in range(7000, 7010)
    assert address_for(lab, "10.0.0.4")[1] in range(7010, 7020)
    assert address_for(lab, "10.0.0.5")[0] == "10.0.0.5"  # no rule: not rewritten


MATCHES = {
    "in": ({"iifname": '"fish0"'}, True),
    "not in": ({"iifname": '"up0"'}, False),
    "out": ({"oifname": '["eth9", "up0"]'}, True),
    "not out": ({"oifname": '"fish0"'}, False),
    "destination": ({"destination": '["203.0.113.0/25"]'}, True),
    "not destination": ({"destination": '["203.0.113.128/25"]'}, False),
    "source": ({"source": '["192.0.2.0/24", "10.0.0.0/24"]'}, True),
    "not source": ({"source": '["192.0.2.0/24"]'}, False),
    "mark": ({"mark": "0x10"}, True),
    "not mark": ({"mark": "0x11"}, False),
    "all of them": ({"iifname": '"fish0"', "oifname": '"up0"', "mark": "16", "source": '["10.0.0.2"]'}, True),
    "all but one": ({"iifname": '"fish0"', "oifname": '"up0"', "mark": "17", "source": '["10.0.0.2"]'}, False),
}


@pytest.mark.parametrize(("keys", "matches"), MATCHES.values(), ids=MATCHES)
def test_what_a_rule_matches(keys: dict[str, str], matches: bool, lab: Lab) -> None:
    lab.egress.nft(
        "table ip marks { chain c { type filter hook prerouting priority -300; iifname fish0 meta mark set 0x10; }\n}"
    )
    apply(lab, config(snat("one", '"ams-1"', **keys)))
    assert address_for(lab, CLIENT)[0] == (SOFT if matches else CLIENT)


def test_the_timestamp_option_is_taken_from_forwarded_syns_alone(lab: Lab) -> None:
    """Seen at the upstream by nft itself: a SYN with the option, and one without."""
    lab.upstream.nft(
        "table inet options {\n counter with { }\n counter without { }\n"
        " chain c {\n type filter hook prerouting priority 0\n"
        ' iifname "down0" tcp flags & (syn | ack) == syn tcp option timestamp exists counter name with return\n'
        ' iifname "down0" tcp flags & (syn | ack) == syn counter name without\n }\n}'
    )
    lab.server.tcp_server(443)
    for setting, expected in (("keep", (1, 0)), ("strip", (1, 1))):
        apply(lab, config(snat(iifname='"fish0"', timestamps=f'"{setting}"'), coexist="confine"))
        assert round_trip(lab.client.tcp_connect((SERVER, 443)))
        listed = lab.upstream.run(["nft", "list", "counters", "table", "inet", "options"]).stdout
        counts = {name: int(count) for name, count in re.findall(r"counter (\w+) \{\s+packets (\d+)", listed)}
        assert (counts["with"], counts["without"]) == expected
    assert round_trip(lab.egress.tcp_connect((SERVER, 443), src=(SOFT, 9001)))
    listed = lab.upstream.run(["nft", "list", "counter", "inet", "options", "with"]).stdout
    assert "packets 2 " in listed


def test_the_rule_that_rewrites_decides_about_the_timestamp_option(lab_factory: LabFactory) -> None:
    lab = lab_factory(clients=2)
    rest = snat("rest", '"ams-1"', iifname='"fish0"', timestamps='"strip"', exclude='["203.0.113.2"]')
    apply(lab, config(snat("kept", '"ams-1"', source='["10.0.0.2"]') + rest))
    lab.upstream.nft(
        "table inet options {\n set stripped { type ipv4_addr . ipv4_addr; flags dynamic; size 64; }\n"
        " set kept { type ipv4_addr . ipv4_addr; flags dynamic; size 64; }\n"
        " chain c {\n type filter hook prerouting priority 0\n"
        ' iifname "down0" tcp flags & (syn | ack) == syn tcp option timestamp exists'
        " update @kept { ip saddr . ip daddr }\n"
        ' iifname "down0" tcp flags & (syn | ack) == syn tcp option timestamp missing'
        " update @stripped { ip saddr . ip daddr }\n }\n}"
    )
    for source, server in (("10.0.0.2", "203.0.113.3"), ("10.0.0.3", "203.0.113.4"), ("10.0.0.3", "203.0.113.2")):
        lab.client.tcp_start((server, 443), src=(source, 0))
    lab.client.tcp_start((SERVER_6, 443))  # this rule has no slice of IPv6
    seen = {
        name: lab.upstream.run(["nft", "list", "set", "inet", "options", name]).stdout for name in ("kept", "stripped")
    }
    assert f"{SOFT} . 203.0.113.3" in seen["kept"]
    assert "10.0.0.3 . 203.0.113.2" in seen["kept"]
    assert f"{SOFT} . 203.0.113.4" in seen["stripped"]
    assert seen["stripped"].count(" . 203") == 1


# -- destination NAT ----------------------------------------------------------------------------------------------


@FAMILIES
def test_unsolicited_packets_reach_the_host_behind(server: str, soft: str, client: str, lab: Lab) -> None:
    name, to = ("ams-6", f"[{client}]") if ":" in client else ("ams-1", client)
    rules = f'\n[[dnat]]\nname = "same"\nslice = "{name}"\nports = ["9000-9004"]\nto = "{client}"\n'
    rules += f'\n[[dnat]]\nname = "web"\nslice = "{name}"\nports = ["9005-9006"]\nto = "{to}:80"\n'
    apply(lab, config(snat() + rules))
    same, web, udp = lab.client.tcp_server(9003), lab.client.tcp_server(80), lab.client.udp_server(9003)
    for port in (9003, 9005, 9006):
        assert round_trip(lab.server.tcp_connect((soft, port), src=(server, 0)))
    assert round_trip(lab.server.udp_connect((soft, 9003), src=(server, 0)))
    assert [len(each.peers) for each in (same, web, udp)] == [1, 2, 1]
    assert same.peers[0][0] == server  # the client sees who called
    assert lab.leaks().total == 0


def test_ports_without_a_rule_stay_with_the_host(lab: Lab) -> None:
    apply(lab, config('\n[[dnat]]\nname = "one"\nslice = "ams-1"\nports = ["9000-9004"]\nto = "10.0.0.2"\n'))
    here = lab.egress.tcp_server(9005)
    assert round_trip(lab.server.tcp_connect((SOFT, 9005)))
    assert len(here.peers) == 1


# -- the guard ----------------------------------------------------------------------------------------------------


def send_stray(host: Host, server: str, soft: str) -> None:
    with suppress(PermissionError):  # what a local socket sends and the guard drops is an error of its sender
        host.udp_connect((server, 53), src=(soft, 8999)).send(b"x")


@FAMILIES
@pytest.mark.parametrize(("guard", "passes"), [("drop", False), ("count", True), ("off", True)])
def test_the_guard(guard: str, passes: bool, server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config("", guard=guard))
    send_stray(lab.egress, server, soft)
    with suppress(TimeoutError):
        lab.egress.tcp_connect((server, 443), src=(soft, 8998), timeout_s=0.2)
    with suppress(PermissionError):
        lab.egress.ping(server, src=soft, ident=8997, timeout_s=0.2)
    family = "6" if ":" in soft else "4"
    sent = lab.leaks().sent
    assert [sent[f"{name}{family}"] > 0 for name in ("tcp", "udp", "icmp")] == [passes] * 3
    if guard != "off":
        recorded = lab.egress.run(["nft", "list", "set", "inet", "natctl", f"strays{family}"]).stdout
        assert f"udp . {soft} . 8999 . {server} . 53 counter packets 1 " in recorded
        assert f"tcp . {soft} . 8998 . {server} . 443 counter packets 1 " in recorded
        assert "expires" in recorded


@FAMILIES
def test_the_guard_lets_the_slice_and_other_addresses_pass(server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config(snat(), coexist="confine"))
    lab.server.tcp_server(443)
    assert round_trip(lab.egress.tcp_connect((server, 443), src=(soft, 9009)))
    assert round_trip(lab.egress.tcp_connect((server, 443)))
    assert round_trip(lab.client.tcp_connect((server, 443)))
    assert lab.egress.ping(server, src=soft, ident=9001)
    assert lab.server.ping(soft, src=server, ident=9002)  # a reply has the id of the one who asked
    family = "6" if ":" in soft else "4"
    recorded = lab.egress.run(["nft", "list", "set", "inet", "natctl", f"strays{family}"]).stdout
    assert "elements" not in recorded


def test_without_confine_a_colliding_socket_is_caught_by_the_guard(lab: Lab) -> None:
    """The collision of the article: the kernel moves the socket's port out of the slice, and nobody says so."""
    apply(lab, config(snat()))
    lab.server.tcp_server(443)
    lab.client.tcp_connect((SERVER, 443), src=(CLIENT, 9000))
    with pytest.raises(TimeoutError):
        lab.egress.tcp_connect((SERVER, 443), src=(SOFT, 9000), timeout_s=0.3)
    recorded = lab.egress.run(["nft", "list", "set", "inet", "natctl", "strays4"]).stdout
    assert re.search(rf"tcp \. {SOFT} \. \d+ \. {SERVER} \. 443 ", recorded)
    assert lab.leaks().total == 0


# -- confine ------------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_local_socket_keeps_a_free_port_and_is_moved_from_a_taken_one(
    kind: str, server: str, soft: str, client: str, lab: Lab
) -> None:
    apply(lab, config(snat(), coexist="confine"))
    echo = lab.server.tcp_server(443) if kind == "tcp" else lab.server.udp_server(443)
    connect = "tcp_connect" if kind == "tcp" else "udp_connect"
    assert round_trip(getattr(lab.client, connect)((server, 443), src=(client, 9000)))
    free = getattr(lab.egress, connect)((server, 443), src=(soft, 9005))
    taken = getattr(lab.egress, connect)((server, 443), src=(soft, 9000))
    assert round_trip(free)
    assert round_trip(taken)
    assert taken.getsockname()[1] == 9000  # the socket does not know
    (_, first), (_, second), (_, third) = echo.wait_for_peers(3)
    assert (first, second) == (9000, 9005)
    assert third in PORTS
    assert third not in (9000, 9005)
    assert lab.leaks().total == 0


@FAMILIES
def test_confined_sockets_and_clients_fill_the_slice_together(server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config(snat(), coexist="confine"))
    tcp = lab.server.tcp_server(443)
    kept = [lab.client.tcp_connect((server, 443)) for _ in range(5)]
    kept += [lab.egress.tcp_connect((server, 443), src=(soft, port)) for port in range(9000, 9005)]
    assert all(map(round_trip, kept))
    assert sorted(port for _, port in tcp.wait_for_peers(10)) == list(PORTS)
    assert lab.leaks().total == 0


@FAMILIES
def test_a_local_ping_has_an_id_of_the_slice_on_the_wire(server: str, soft: str, client: str, lab: Lab) -> None:
    apply(lab, config(snat(), coexist="confine"))
    with lab.upstream.capture("down0") as wire:
        for ident in (9001, 77, 50000):
            assert lab.egress.ping(server, src=soft, ident=ident)
        seen = wire.sources(soft, "icmpv6" if ":" in soft else "icmp")
    assert seen[0] == 9001
    assert len(seen) == 3
    assert all(ident in PORTS for ident in seen)
    assert lab.leaks().total == 0
